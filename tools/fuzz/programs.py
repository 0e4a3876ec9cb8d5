"""Programs of a few lines run side by side in two worlds and are compared line by line.

A program is a list of Python statements. A world binds its names to the reference or to this
package. After each line, its value, exception, warnings and all variables are compared. A line may
raise if it raises in both worlds. So any line may be removed, and a failing program shrinks to the
lines that matter.
"""

from __future__ import annotations

import ast
import functools
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import CodeType, ModuleType
from typing import Any

import numpy as np

from tools.fuzz.draw import Draw
from tools.fuzz.leaves import Leaves


@dataclass(frozen=True)
class World:
    """The place where a program runs.

    Attributes
    ----------
    name : the name in messages.
    names : function that returns a new namespace.
    around : context in which a program runs.
    wider : whether it is a twin in wider types: its types and errors tell nothing.
    """

    name: str
    names: Callable[[], dict[str, Any]]
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    wider: bool = False


@dataclass
class Seen:
    """The effect of a line: an exception or None, and all that is visible after it."""

    error: Exception | None
    leaves: Leaves


@dataclass(frozen=True)
class Divergence:
    """The first difference between two worlds.

    Attributes
    ----------
    number, line : number and text of the line.
    place : path of the value that differs.
    kind : the kind of difference, for grouping.
    detail : a text for readers.
    """

    number: int
    line: str
    place: str
    kind: str
    detail: str

    @property
    def signature(self) -> str:
        """Return a key that divergences of one fault are likely to share."""
        target = re.search(r"([A-Za-z_]\w*)(?=\()|\.(\w+)(?=\S* \S?= )", self.line)
        verb = next(filter(None, target.groups()), "") if target else self.line.split(" ")[0]
        place = re.sub(r"[0-9]+|'[^']*'", "#", self.place)
        return f"{verb} | {place.rpartition('.')[2]} | {self.kind}"


@dataclass
class Fuzzer:
    """Two worlds, and the differences that are allowed.

    Attributes
    ----------
    name : the name in messages.
    call : code that checks a `PROGRAM`, after ``from tools.fuzz import`` its module.
    imports : lines that a program needs to run by itself.
    program : function of a `Draw` that returns the lines of a program.
    theirs, ours : the two worlds.
    twins : worlds in which the reference computes in float64 or rounds differently. They run if
        the two worlds differ by more than `unit`.
    describe : value -> leaves.
    same : (theirs, ours, the twins' values, program so far) -> why it is no rounding, or "".
    beyond : (a wider twin's value, ours, program so far) -> why they differ, or "". It is asked
        if the reference raises and this package does not.
    known : (program so far, divergence) -> the reason ("" for a fault), and whether to skip the
        rest of the program.
    beside : attribute of a variable that the detail of its divergence shows too.
    lasting : keywords and names of modules that shrinking keeps, so that programs stay quick.
    """

    name: str
    call: str
    imports: Sequence[str]
    program: Callable[[Draw], list[str]]
    theirs: World
    ours: World
    twins: Callable[[], Sequence[World]]
    describe: Callable[[Any], Leaves]
    same: Callable[[np.ndarray, np.ndarray, list[np.ndarray], Sequence[str]], str]
    known: Callable[[Sequence[str], Divergence], tuple[str, bool]]
    lasting: frozenset[str] = frozenset()
    beyond: Callable[[np.ndarray, np.ndarray, Sequence[str]], str] = lambda there, here, lines: ""
    beside: str = ""
    counts: dict[str, int] = field(default_factory=dict)


@functools.lru_cache(1000)  # a program runs in two or more worlds
def compiled(line: str) -> tuple[CodeType, bool]:
    """Return the code of a line, and whether it is an expression."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SyntaxWarning
        return _compiled(line)


def _compiled(line: str) -> tuple[CodeType, bool]:
    tree = ast.parse(line)
    if len(tree.body) == 1 and isinstance(tree.body[0], ast.Expr):
        return compile(line, "<program>", "eval"), True
    return compile(line, "<program>", "exec"), False


def run(fuzzer: Fuzzer, lines: Sequence[str], world: World) -> Iterator[Seen]:
    """Return the effect of each line in `world`."""
    names = world.names()
    given = set(names) | {"__builtins__"}
    versions: Leaves = {}  # of tensors; only whether a line wrote counts, not how often
    with world.around():
        for line in lines:
            code, is_expression = compiled(line)
            value, error = None, None
            with warnings.catch_warnings(record=True) as warned, np.errstate(all="ignore"):
                warnings.simplefilter("always")
                try:
                    if is_expression:
                        value = eval(code, names)
                    else:
                        exec(code, names)
                except Exception as raised:
                    error = raised.with_traceback(None)
            leaves = _described(fuzzer, "value", value) if error is None else {}
            shown = {type(w.message) for w in warned if not _tells_nothing(w.message)}
            leaves["warnings"] = sorted(category.__name__ for category in shown)
            for name, variable in names.items():
                if name not in given and not isinstance(variable, ModuleType):
                    leaves |= _described(fuzzer, name, variable)
            for path in [path for path in leaves if path.endswith(".version")]:
                now, before = leaves[path], versions.get(path, (0, 0))
                versions[path], leaves[path] = now, now[0] == before[0] and now[1] != before[1]
            yield Seen(error, leaves)


def _tells_nothing(warning: Warning | str) -> bool:
    """Say whether a warning tells nothing: it warns of rounding, or of strides.

    Strides are compared anyway, and their warning comes once in a process. PyTorch's product of an
    empty tensor has other strides.
    """
    of_strides = "do not obey the gradient layout contract" in str(warning)
    return isinstance(warning, RuntimeWarning) or of_strides


def _described(fuzzer: Fuzzer, name: str, value: Any) -> Leaves:
    try:
        return {f"{name}{path}": leaf for path, leaf in fuzzer.describe(value).items()}
    except Exception as error:  # reading a value is part of the program too
        return {f"{name}.cannot be read": type(error).__name__}


def difference(fuzzer: Fuzzer, lines: Sequence[str]) -> Divergence | None:
    """Return the first line after which the worlds differ, and how; None if they do not."""
    # the worlds run one after the other: both use the global random state
    both = [list(run(fuzzer, lines, world)) for world in (fuzzer.theirs, fuzzer.ours)]
    twins = Twins(fuzzer, lines)
    for number, (theirs, ours) in enumerate(zip(*both, strict=True)):
        before = both[1][number - 1].leaves if number else {}
        step = _Step(fuzzer, lines[: number + 1], theirs, ours, before, twins)
        if found := step.error():
            if reason := step.excused(found):
                fuzzer.counts[reason] = fuzzer.counts.get(reason, 0) + 1
                alone = theirs.error is not None and ours.error is None
                return step.beyond(both[0][:number]) if alone else None
            return found
        for path in [*theirs.leaves, *(ours.leaves.keys() - theirs.leaves.keys())]:
            there, here = theirs.leaves.get(path, MISSING), ours.leaves.get(path, MISSING)
            if not _equal(there, here) and (found := step.leaf(path, there, here)):
                reason = step.excused(found)
                if not reason:
                    return found
                fuzzer.counts[reason] = fuzzer.counts.get(reason, 0) + 1
                if step.ends:
                    return None
    return None


MISSING = "(missing)"


class Twins:
    """A program in the twins; a twin runs only if the twins before it do not suffice."""

    def __init__(self, fuzzer: Fuzzer, lines: Sequence[str]) -> None:
        self._fuzzer, self._lines = fuzzer, lines
        self._worlds = iter(fuzzer.twins())
        self._runs: list[tuple[World, list[Seen]]] = []

    def until(self, number: int) -> Iterator[tuple[World, list[Seen]]]:
        """Return what is visible in each twin after each line, up to the one of this number."""
        for world, steps in self._runs:
            yield world, steps[: number + 1]
        for world in self._worlds:
            steps = list(run(self._fuzzer, self._lines, world))
            self._runs.append((world, steps))
            yield world, steps[: number + 1]


class _Step:
    """The effect of a line in the two worlds, and in the twins if the worlds differ."""

    def __init__(
        self, fuzzer: Fuzzer, lines: Sequence[str], theirs: Seen, ours: Seen, before: Leaves,
        twins: Twins,
    ) -> None:  # fmt: skip
        self.fuzzer, self.lines, self.theirs, self.ours = fuzzer, lines, theirs, ours
        self.before, self.ends, self._twins = before, False, twins

    def twins(self) -> Iterator[tuple[World, Seen]]:
        return ((world, steps[-1]) for world, steps in self._twins.until(len(self.lines) - 1))

    def _found(self, place: str, kind: str, detail: str) -> Divergence:
        if place != "error" and self.ours.error is not None:
            here = self.ours.leaves.get(place, MISSING)
            if place == "warnings":  # a world that raises earlier has warned of less
                same = not Counter(here) - Counter(self.theirs.leaves[place])
            else:
                same = here is False or _equal(here, self.before.get(place, MISSING))
            changed = "unchanged here" if same else "changed here"
            kind = f"{kind}, after an error, {changed}"
            detail = f"{detail}\nafter {self.ours.error!r}"
        if beside := self.fuzzer.beside:
            own = f"{place.partition('.')[0]}.{beside}"
            both = [seen.leaves[own] for seen in (self.theirs, self.ours) if own in seen.leaves]
            detail += f"\nbeside {beside} {both}" if both else ""
        return Divergence(len(self.lines) - 1, self.lines[-1], place, kind, detail)

    def error(self) -> Divergence | None:
        """Return a divergence if only one world raised, or if they raised different errors."""
        theirs, ours = self.theirs.error, self.ours.error
        if _is_a(ours, theirs):
            return None
        kind = f"{type(theirs).__name__} there, {type(ours).__name__} here"
        return self._found("error", kind, f"there {theirs!r}\nhere {ours!r}")

    def leaf(self, path: str, there: Any, here: Any) -> Divergence | None:
        """Return a divergence if the values at `path` differ by more than rounding."""
        for leaf, kind in ((there, "missing there"), (here, "missing here")):
            if leaf is MISSING:
                return self._found(path, kind, _shown(there, here))
        if not isinstance(there, np.ndarray) or not isinstance(here, np.ndarray):
            return self._found(path, "not equal", _shown(there, here))
        if there.shape != here.shape:
            return self._found(path, "shape", _shown(there, here))
        why, alike = self.fuzzer.same(there, here, [], self.lines), []
        for _, twin in self.twins() if why else ():
            other = twin.leaves.get(path)
            if isinstance(other, np.ndarray) and other.shape == there.shape:
                alike.append(other)
                why = self.fuzzer.same(there, here, alike, self.lines)
                if not why:
                    break
        if not why:
            return None
        return self._values(path, "values", why, there, here)

    def _values(self, path: str, kind: str, why: str, there: Any, here: Any) -> Divergence:
        if self.ours.error is None and _equal(here, self.before.get(path, MISSING)):
            why += ", unchanged here"
        return self._found(path, kind, f"{why}\n{_shown(there, here)}")

    def beyond(self, earlier: Sequence[Seen]) -> Divergence | None:
        """Compare with a twin in wider types if the reference raised and this package did not.

        If the twin did not raise either, return the first value that differs from the twin's
        and is not known.
        A twin in which an earlier line did raise where it did not in the reference, or the other
        way round, has run another program. `earlier` has those lines' effects in the reference.
        """
        raised = [seen.error is not None for seen in earlier]
        for world, (*before, twin) in self._twins.until(len(self.lines) - 1):
            parted = [seen.error is not None for seen in before] != raised
            if not world.wider or twin.error is not None or parted:
                continue
            for path, there in twin.leaves.items():
                here = self.ours.leaves.get(path, MISSING)
                both = isinstance(there, np.ndarray) and isinstance(here, np.ndarray)
                if not both or not (why := self.fuzzer.beyond(there, here, self.lines)):
                    continue
                found = self._values(path, "values beyond theirs", why, there, here)
                if not self.fuzzer.known(self.lines, found)[0]:
                    return found
        return None

    def excused(self, found: Divergence) -> str:
        """Return why the divergence is no fault (a decision, or the reference's own rounding), or
        ""."""
        reason, self.ends = self.fuzzer.known(self.lines, found)
        if reason:
            return reason
        first = self._discrete(self.theirs, found.place)
        self.ends = any(
            self._discrete(twin, found.place) != first
            for world, twin in self.twins()
            if not world.wider
        )
        return "it depends on rounding in the reference too" if self.ends else ""

    def _discrete(self, seen: Seen, path: str) -> Any:
        if path == "error":
            return type(seen.error)
        leaf = seen.leaves.get(path, MISSING)
        return leaf.shape if isinstance(leaf, np.ndarray) else repr(leaf)


def _shown(there: Any, here: Any) -> str:
    return f"there {there!r}\nhere {here!r}"


def _is_a(ours: Exception | None, theirs: Exception | None) -> bool:
    """Say whether code that catches `theirs` catches `ours`; no code catches NumPy's private
    classes."""
    if theirs is None:
        return ours is None
    public = next(c for c in type(theirs).__mro__ if not c.__module__.startswith("numpy._"))
    return isinstance(ours, public)


def _equal(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if not isinstance(one, np.ndarray):
        return bool(one == other)
    # compared as bytes: NaN equals NaN, and 0 differs from -0
    same = one.dtype == other.dtype and one.shape == other.shape
    return same and one.tobytes() == other.tobytes()


def text(fuzzer: Fuzzer, lines: Sequence[str], found: Divergence | None = None) -> str:
    """Return the program as a text that runs, and fails, by itself."""
    kept = list(lines) if found is None else list(lines[: found.number + 1])
    head = []
    if found is not None:
        head = [
            f"# {line}" for line in (f"{found.place}: {found.kind}\n{found.detail}").split("\n")
        ]
    body = "\n".join(kept)
    return "\n".join(
        [
            *head,
            f"from tools.fuzz import {fuzzer.call.partition('.')[0]}",
            "",
            f"# {'; '.join(fuzzer.imports)}",
            'PROGRAM = """',
            body,
            '"""',
            fuzzer.call,
        ]
    )


def statements(program: str) -> list[str]:
    """Split a text into its statements."""
    found = (ast.get_source_segment(program, node) for node in ast.parse(program).body)
    return [statement for statement in found if statement is not None]


def check(fuzzer: Fuzzer, program: str) -> None:
    """Raise AssertionError if the worlds differ."""
    found = difference(fuzzer, statements(program))
    assert found is None, f"line {found.number + 1}, {found.line}: {found.place}: {found.detail}"


@contextmanager
def seeded() -> Iterator[None]:
    """Start the global generators of Python and NumPy from the same state."""
    np.random.seed(12345)
    yield
