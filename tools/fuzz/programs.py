"""Programs of a few lines, run side by side in two worlds and compared line by line.

A program is a list of Python statements. A world binds the names in it: to the reference, or to
this package. After each line its value, exception, warnings and all variables are compared. All
lines may raise, as long as they raise in both worlds: so any line may be left out, and a failing
program shrinks to the lines that matter.
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
    """Where a program runs.

    Attributes
    ----------
    name : for messages. names : a new namespace. around : entered while a program runs.
    wider : of a twin in wider types, whose types and errors tell nothing.
    """

    name: str
    names: Callable[[], dict[str, Any]]
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    wider: bool = False


@dataclass
class Seen:
    """What a line did: an exception or None, and what can be seen after it."""

    error: Exception | None
    leaves: Leaves


@dataclass(frozen=True)
class Divergence:
    """Where two worlds part.

    Attributes
    ----------
    number, line : of the program. place : path of what differs. kind : for grouping. detail : text.
    """

    number: int
    line: str
    place: str
    kind: str
    detail: str

    @property
    def signature(self) -> str:
        """Of all divergences that are likely one fault."""
        target = re.search(r"([A-Za-z_]\w*)(?=\()|\.(\w+)(?=\S* \S?= )", self.line)
        verb = next(filter(None, target.groups()), "") if target else self.line.split(" ")[0]
        place = re.sub(r"[0-9]+|'[^']*'", "#", self.place)
        return f"{verb} | {place.rpartition('.')[2]} | {self.kind}"


@dataclass
class Fuzzer:
    """Two worlds and what may differ between them.

    Attributes
    ----------
    name : for messages. call : checks a `PROGRAM`, after ``from tools.fuzz import`` its module.
    imports : lines that make a program run by itself, for its text.
    program : generator of random numbers -> lines.
    theirs, ours : the worlds. twins : worlds of the reference computed otherwise (in float64, with
        other roundings), run where the two differ by more than `unit`.
    describe : value -> leaves. same : (theirs, ours, of twins, program so far) -> why it is no
        rounding, or "".
    beyond : (of a wider twin, ours, program so far) -> why what ours has where the reference raises
        is not the twin's, or "".
    known : (program so far, divergence) -> reason, "" for a fault; whether the rest is left.
    beside : attribute of a variable that the detail of a divergence in it shows too.
    lasting : keywords that shrinking leaves, so that programs stay quick, and names of modules.
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


@functools.lru_cache(1000)  # a program runs in two worlds and more
def compiled(line: str) -> tuple[CodeType, bool]:
    """The code of a line and whether it is an expression."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SyntaxWarning
        return _compiled(line)


def _compiled(line: str) -> tuple[CodeType, bool]:
    tree = ast.parse(line)
    if len(tree.body) == 1 and isinstance(tree.body[0], ast.Expr):
        return compile(line, "<program>", "eval"), True
    return compile(line, "<program>", "exec"), False


def run(fuzzer: Fuzzer, lines: Sequence[str], world: World) -> Iterator[Seen]:
    """What each line does in `world`."""
    names = world.names()
    given = set(names) | {"__builtins__"}
    versions: Leaves = {}  # of tensors: whether a line has written counts, not how often
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
    """Whether it is of rounding, or of strides (which are compared), once in a process: PyTorch's
    product of an empty tensor has others."""
    of_strides = "do not obey the gradient layout contract" in str(warning)
    return isinstance(warning, RuntimeWarning) or of_strides


def _described(fuzzer: Fuzzer, name: str, value: Any) -> Leaves:
    try:
        return {f"{name}{path}": leaf for path, leaf in fuzzer.describe(value).items()}
    except Exception as error:  # looking is a part of the program too
        return {f"{name}.cannot be read": type(error).__name__}


def difference(fuzzer: Fuzzer, lines: Sequence[str]) -> Divergence | None:
    """The first line after which the worlds differ, and how; None where they do not."""
    # one after the other: both use the global random state
    both = [list(run(fuzzer, lines, world)) for world in (fuzzer.theirs, fuzzer.ours)]
    twins = Twins(fuzzer, lines)
    for number, (theirs, ours) in enumerate(zip(*both, strict=True)):
        before = both[1][number - 1].leaves if number else {}
        step = _Step(fuzzer, lines[: number + 1], theirs, ours, before, twins)
        if found := step.error():
            if reason := step.excused(found):
                fuzzer.counts[reason] = fuzzer.counts.get(reason, 0) + 1
                return step.beyond() if theirs.error is not None and ours.error is None else None
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
    """A program in the twins, each of which runs when the ones before it have not sufficed."""

    def __init__(self, fuzzer: Fuzzer, lines: Sequence[str]) -> None:
        self._fuzzer, self._lines = fuzzer, lines
        self._worlds = iter(fuzzer.twins())
        self._runs: list[tuple[World, list[Seen]]] = []

    def after(self, number: int) -> Iterator[tuple[World, Seen]]:
        """What can be seen in each after the line of this number."""
        for world, steps in self._runs:
            yield world, steps[number]
        for world in self._worlds:
            steps = list(run(self._fuzzer, self._lines, world))
            self._runs.append((world, steps))
            yield world, steps[number]


class _Step:
    """What a line did in the two worlds, and, where they differ, in the twins."""

    def __init__(
        self, fuzzer: Fuzzer, lines: Sequence[str], theirs: Seen, ours: Seen, before: Leaves,
        twins: Twins,
    ) -> None:  # fmt: skip
        self.fuzzer, self.lines, self.theirs, self.ours = fuzzer, lines, theirs, ours
        self.before, self.ends, self._twins = before, False, twins

    def twins(self) -> Iterator[tuple[World, Seen]]:
        return self._twins.after(len(self.lines) - 1)

    def _found(self, place: str, kind: str, detail: str) -> Divergence:
        if place != "error" and self.ours.error is not None:
            here = self.ours.leaves.get(place, MISSING)
            if place == "warnings":  # who raises earlier has warned of less
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
        """Where one raised and the other did not, or something else."""
        theirs, ours = self.theirs.error, self.ours.error
        if _is_a(ours, theirs):
            return None
        kind = f"{type(theirs).__name__} there, {type(ours).__name__} here"
        return self._found("error", kind, f"there {theirs!r}\nhere {ours!r}")

    def leaf(self, path: str, there: Any, here: Any) -> Divergence | None:
        """Where what is at `path` and differs, differs by more than rounding."""
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
        if self.ours.error is None and _equal(here, self.before.get(path, MISSING)):
            why += ", unchanged here"
        return self._found(path, "values", f"{why}\n{_shown(there, here)}")

    def beyond(self) -> Divergence | None:
        """Where this package goes on and the reference has raised, what it has then is what a twin
        in wider types has, if that goes on too; or where it is not."""
        for world, twin in self.twins():
            if not world.wider or twin.error is not None:
                continue
            for path, there in twin.leaves.items():
                here = self.ours.leaves.get(path, MISSING)
                both = isinstance(there, np.ndarray) and isinstance(here, np.ndarray)
                if both and (why := self.fuzzer.beyond(there, here, self.lines)):
                    return self._found(
                        path, "values beyond theirs", f"{why}\n{_shown(there, here)}"
                    )
        return None

    def excused(self, found: Divergence) -> str:
        """Why the divergence is no fault: a decision, or rounding in the reference too; or ""."""
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
    """Whether who catches `theirs` catches `ours`; nobody catches a private class of NumPy's."""
    if theirs is None:
        return ours is None
    public = next(c for c in type(theirs).__mro__ if not c.__module__.startswith("numpy._"))
    return isinstance(ours, public)


def _equal(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if not isinstance(one, np.ndarray):
        return bool(one == other)
    # as bytes: NaN is NaN, and 0 is not -0
    same = one.dtype == other.dtype and one.shape == other.shape
    return same and one.tobytes() == other.tobytes()


def text(fuzzer: Fuzzer, lines: Sequence[str], found: Divergence | None = None) -> str:
    """The program with what makes it run, and fail, by itself."""
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
    """A text as the list of its statements."""
    found = (ast.get_source_segment(program, node) for node in ast.parse(program).body)
    return [statement for statement in found if statement is not None]


def check(fuzzer: Fuzzer, program: str) -> None:
    """AssertionError where the worlds differ."""
    found = difference(fuzzer, statements(program))
    assert found is None, f"line {found.number + 1}, {found.line}: {found.place}: {found.detail}"


@contextmanager
def seeded() -> Iterator[None]:
    """The global generators of Python and NumPy from the same state."""
    np.random.seed(12345)
    yield
