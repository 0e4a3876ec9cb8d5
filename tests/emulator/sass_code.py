"""Python code for compiled kernels: each basic block of SASS becomes a function of a thread.

`sass_run.py` runs the functions. A function changes the thread's registers and returns the number of
the next block, or -1 when the thread has ended. Integers, addresses and predicates are exact. A
float32 operation is computed in float64 and rounded once, the special functions by the host's
library. Control codes (scoreboards, stalls) are not read. What is missing here is an error that
names the instruction: add a method of its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.emulator import sass_values
from tests.emulator.sass_instructions import ENDS, Statement
from tests.emulator.sass_operands import Line

_LINE = re.compile(
    r"^(?P<label>[.$][\w$]+):"
    r"|/\*(?P<at>[0-9a-f]{4,})\*/\s+(?:@(?P<predicate>!?U?P\w+)\s+)?(?P<opcode>[A-Z][\w.]*)"
    r"\s*(?P<operands>[^;]*);",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Code:
    """An entry's blocks: their functions and their instructions."""

    functions: tuple[Callable[[Any], int], ...]
    lines: tuple[tuple[Line, ...], ...]


def translate(body: str) -> Code:
    """Return the code of an entry, given its text in nvdisasm's output (`sass.bodies`)."""
    blocks, labels = _blocks(body)
    starts = {block[0].at: n for n, block in enumerate(blocks) if block}
    texts = []
    for n, block in enumerate(blocks):
        statements = [s for line in block for s in Statement(line, n, labels).text()]
        texts.append(
            f"def block{n}(t):\n r=t.r;p=t.p;u=t.u;q=t.q;w=t.pending;K=t.K\n "
            + "\n ".join(statements) + f"\n return {n + 1}"
        )  # fmt: skip
    scope: dict[str, Any] = {**sass_values.NAMES, "STARTS": starts}
    exec("\n".join(texts), scope)
    functions = tuple(scope[f"block{n}"] for n in range(len(blocks)))
    return Code(functions, tuple(tuple(block) for block in blocks))


def _blocks(body: str) -> tuple[list[list[Line]], dict[str, int]]:
    blocks: list[list[Line]] = [[]]
    labels: dict[str, int] = {}
    for match in _LINE.finditer(body):
        if match["label"]:
            if blocks[-1]:
                blocks.append([])
            labels[match["label"]] = len(blocks) - 1
            continue
        operands = match["operands"].replace(".reuse", "").strip()
        split = tuple(part.strip() for part in operands.split(",")) if operands else ()
        line = Line(int(match["at"], 16), match["predicate"] or "", match["opcode"], split)
        blocks[-1].append(line)
        if line.name in ENDS:
            blocks.append([])
    return blocks, labels
