"""The choice of the long sweeps' cases in a run: all of them, or a sample that a seed chooses.

A sweep is a test of many cases that is slow or emulated, or has the mark ``sweep``; or a test that
asks the fixture `sweep` how many cases of its own to take. ``--sweeps`` says what a run takes:

=========  =====================================================================================
all        every case: ``make test-all``, and pytest itself, so that a failing case runs by its name
sample     a sample: ``make test``
changed    every case of a file that is not on record with its dependencies; of others a sample
=========  =====================================================================================

A sample of a grid has every value of every parameter, but not every combination. A list of cases
that a person chose stays whole unless it is marked, ``@pytest.mark.sweep(keep=20)``. The seed is
the day, or GPUBACKPROP_SEED; the last line of a run names it beside the cases that were skipped.

swept.json has a key for each file whose sweeps passed whole. The key changes with the file, with
what it imports from tests/ and tools/, and with the code that computes: `COMPUTES`. A run of all
cases with GPUBACKPROP_RECORD=1 writes it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import random
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).with_name("swept.json")
COMPUTES = ("kernels", "gpubackprop/formulas", "gpubackprop/backends")
MODES = ("all", "sample", "changed")
FEWEST, SHARE = 8, 8  # a grid of fewer cases stays whole; of others one case in so many is kept
# These parameters say what computes: each value is a sweep of its own.
WAYS = ("way", "device", "path")


def seed() -> str:
    """Return the day, or GPUBACKPROP_SEED."""
    return os.environ.get("GPUBACKPROP_SEED") or date.today().isoformat()


def sampled(cases: Sequence[T], keep: int, salt: str) -> list[T]:
    """Return `keep` of the cases in their order, the same ones for the same seed and salt."""
    chosen = random.Random(f"{seed()} {salt}").sample(range(len(cases)), min(keep, len(cases)))
    return [cases[n] for n in sorted(chosen)]


def covering(cases: Sequence[dict[str, Any]], keep: int, salt: str) -> list[int]:
    """Return cases of a grid, by number: every value of every parameter, and at least `keep` cases."""
    rest = list(range(len(cases)))
    random.Random(f"{seed()} {salt}").shuffle(rest)
    values = [{(name, _named(value)) for name, value in case.items()} for case in cases]
    missing = set().union(*values)
    chosen = []
    while missing:
        best = max(rest, key=lambda n: len(values[n] & missing))
        rest.remove(best)
        missing -= values[best]
        chosen.append(best)
    return sorted(chosen + rest[: max(0, keep - len(chosen))])


def is_grid(cases: Sequence[dict[str, Any]]) -> bool:
    """Return whether the cases are at least half of all combinations of their parameters' values.

    A parameter that follows from another (the source of an entry from the entry) does not count.
    """
    columns = {name: [_named(case[name]) for case in cases] for name in cases[0]}
    sizes = {name: len(set(column)) for name, column in columns.items()}
    names = sorted((name for name in columns if sizes[name] > 1), key=lambda name: -sizes[name])
    free: list[str] = []
    for name in names:
        pairs = (set(zip(columns[other], columns[name], strict=True)) for other in free)
        if all(len(pair) > sizes[other] for other, pair in zip(free, pairs, strict=True)):
            free.append(name)
    combinations = math.prod(sizes[name] for name in free)
    return len(free) > 1 and 2 * len(cases) >= combinations


def _named(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return id(value)
    return type(value), value


def left_out(items: Sequence[pytest.Item]) -> tuple[list[pytest.Item], int]:
    """Return the collected tests that a sample skips, and how many cases these sweeps have."""
    sweeps: dict[tuple[Any, ...], list[pytest.Function]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            ways = (item.callspec.params.get(name) for name in WAYS)
            sweeps[item.nodeid.partition("[")[0], *ways].append(item)
    result: list[pytest.Item] = []
    total = 0
    for (name, *_), cases in sweeps.items():
        kept = _kept(name, cases)
        result += [case for n, case in enumerate(cases) if n not in kept]
        total += len(cases) if len(kept) < len(cases) else 0
    return result, total


def _kept(test: str, cases: Sequence[pytest.Function]) -> set[int]:
    everything = set(range(len(cases)))
    mark = cases[0].get_closest_marker("sweep")
    if mark is not None:
        return set(sampled(sorted(everything), mark.kwargs["keep"], test))
    long = any(case.get_closest_marker(name) for case in cases for name in ("slow", "emulated"))
    parameters = [case.callspec.params for case in cases]
    if not long or len(cases) < FEWEST or not is_grid(parameters):
        return everything
    return set(covering(parameters, -(-len(cases) // SHARE), test))


class Sweep:
    """The fixture `sweep`, for a test that goes through its cases itself.

    Attributes
    ----------
    is_whole : bool
        Whether this run takes every case of the test's file.
    """

    def __init__(self, item: pytest.Item, *, is_whole: bool) -> None:
        self._item, self.is_whole = item, is_whole

    def number(self, whole: int, sample: int) -> int:
        """Return how many cases to take: `whole`, or `sample` if this run takes a sample."""
        taken = whole if self.is_whole else sample
        self._item.user_properties.append((PROPERTY, [taken, whole]))
        return taken

    def cases(self, cases: Iterable[T], keep: int) -> list[T]:
        """Return all cases, or `keep` of them."""
        every = list(cases)
        return sampled(every, self.number(len(every), min(keep, len(every))), self._item.nodeid)


def noted(report: pytest.TestReport) -> list[tuple[int, int]]:
    """Return what `Sweep.number` noted: how many cases were taken, and how many there are."""
    notes: list[Any] = [value for name, value in report.user_properties if name == PROPERTY]
    return [(taken, whole) for taken, whole in notes]


PROPERTY = "sweep"  # the name of a property in a test's report


@cache
def key_of(file: str) -> str:
    """Return the key of a test file; it changes with the file and its dependencies."""
    parts = {ROOT / file, *_imported(ROOT / file)}
    for folder in COMPUTES:
        parts |= _files(ROOT / folder)
    digest = hashlib.sha256()
    for path in sorted(parts):
        digest.update(f"{path.relative_to(ROOT)}\0{_digest(path)}\0".encode())
    return digest.hexdigest()[:20]


@cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def _files(folder: Path) -> frozenset[Path]:
    return frozenset(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


def _imported(file: Path) -> set[Path]:
    """Return the files of tests/ and tools/ that a test file imports, directly or not.

    A package in a folder counts with all its files.
    """
    found: set[Path] = set()
    wanted = [file]
    while wanted:
        for name in _names(wanted.pop()):
            path = ROOT.joinpath(*name.split("."))
            new = {path.with_suffix(".py")} if path.with_suffix(".py").exists() else set()
            if len(name.split(".")) > 1 and path.is_dir():
                new = set(_files(path))
            wanted += [one for one in new - found if one.suffix == ".py"]
            found |= new
    return found


@cache
def _names(file: Path) -> frozenset[str]:
    """Return dotted names below tests and tools that a file imports.

    ``from tests import ways`` names tests.ways; ``from tests.ways import MLP`` also names
    tests.ways.MLP, which is no file.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(name for name in names if name.partition(".")[0] in ("tests", "tools"))


def recorded() -> dict[str, str]:
    found: dict[str, str] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def record(files: Iterable[str]) -> None:
    """Write down that the sweeps of these files passed whole; drop files that do not exist."""
    found = recorded() | {file: key_of(file) for file in files}
    kept = {file: key for file, key in sorted(found.items()) if (ROOT / file).exists()}
    RECORD.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
