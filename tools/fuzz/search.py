"""A search for programs on which two worlds differ: it seeds, shrinks and groups them."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tools.fuzz.draw import Draw
from tools.fuzz.programs import Divergence, Fuzzer, difference, text
from tools.fuzz.shrink import shrunk

UNFINISHED = re.compile(r"\.bfloat16\(\)(?!\.to\()")  # a twin would not be wider
SHRINKING = 15.0  # seconds for one finding


@dataclass
class Tally:
    """The counts of a search.

    Attributes
    ----------
    programs : number of programs that ran, without those of shrinking.
    found : how often each signature was met.
    """

    programs: int = 0
    found: Counter[str] = field(default_factory=Counter)


def search(
    fuzzer: Fuzzer, seed: int, seconds: float, programs: int = 10**9,
    say: Callable[[str], None] = print,
    *,
    start: int = 0,
    first: bool = False,
    before: Callable[[str], None] = lambda text: None,
) -> Tally:  # fmt: skip
    """Run programs for so many seconds, or so many programs, whichever ends first.

    The numbers of the programs begin at `start`. With `first` the search ends at the first failure.
    `say` gets each distinct failure as a program, below a line that says where it was met. `before`
    gets each program before it runs.
    """
    tally, stop = Tally(), time.monotonic() + seconds
    while time.monotonic() < stop and tally.programs < programs:
        # A program's draws depend on its number alone, not on the programs before it.
        name = f"{fuzzer.name} {seed} {start + tally.programs}"
        lines = fuzzer.program(Draw(name))
        tally.programs += 1
        before(text(fuzzer, lines))
        try:
            found = difference(fuzzer, lines)
        except KeyboardInterrupt:
            break
        if found is None:
            continue
        tally.found[found.signature] += 1
        if tally.found[found.signature] == 1:
            lines, found = _shrunk(fuzzer, lines[: found.number + 1], found)
            say(f"--- {name}: {found.signature}\n{text(fuzzer, lines, found)}\n")
            if first:
                break
    return tally


def _shrunk(fuzzer: Fuzzer, lines: list[str], found: Divergence) -> tuple[list[str], Divergence]:
    until = time.monotonic() + SHRINKING

    def fails(candidate: list[str]) -> bool:
        nonlocal found
        if time.monotonic() > until or any(UNFINISHED.search(line) for line in candidate):
            return False
        other = difference(fuzzer, candidate)
        if other is None or other.signature != found.signature:
            return False
        found = other
        return True

    lines = shrunk(lines, fails, fuzzer.lasting)
    return lines[: found.number + 1], found
