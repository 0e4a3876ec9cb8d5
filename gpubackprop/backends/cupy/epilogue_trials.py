"""Ways to compute the same thing on a GPU: which of them are right there, and which is fastest.

Each way runs on arrays like those of the step, with contents of its own, while a plan is made. The
contents are integers so small that every sum is exact in the compute type. Therefore a right way
has the very numbers of the first one, NaN included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop.backends.cupy import cublaslt
from gpubackprop.backends.cupy.issuer import Issuer
from gpubackprop.backends.cupy.library import explained
from gpubackprop.dtypes import STORAGES
from gpubackprop.errors import OutOfMemory

Arrays = dict[str, Any]
Way = Callable[[Issuer, Arrays], None]  # records its calls for these arrays
RUNS = 5  # timed runs of each way
COMPARED_ROWS = 64  # at either end of a matrix
LARGE_ROWS = 64  # rows in which there are large numbers, a seventh of all
PERIOD = 4093  # numbers after which contents repeat; a prime, so that no width divides it
FIRST_NAN, LAST_NAN, SMALL = "first", "last", "small"  # contents: see `_contents`


def large_number(name: str) -> float:
    """Return a number that needs all bits of 16, and of others half and one more.

    A sum of terms that were rounded to fewer bits, as TF32 does, then has another value.

    Parameters
    ----------
    name : str
        A storage dtype.

    Returns
    -------
    float
        A power of two, plus 1.

    Examples
    --------
    >>> large_number("float32"), large_number("float16"), large_number("float64") == 2**26 + 1
    (4097.0, 1025.0, True)
    """
    row = STORAGES[name]
    half = 2.0 ** math.ceil(-math.log2(STORAGES[row.compute].epsilon) / 2)
    return 1 + min(half, 1 / row.epsilon)


@dataclass(frozen=True)
class Trial:
    """What ways are compared on.

    Attributes
    ----------
    arrays : dict of arrays
        The arrays of the step, by their roles. The ways get others like them.
    contents : mapping
        What the inputs among them are filled with; the rest is filled with 3.
    results : sequence of str
        The roles that are compared.
    prepare : callable or None
        A way that fills further inputs.
    """

    arrays: Arrays
    contents: Mapping[str, str]
    results: Sequence[str]
    prepare: Way | None = None

    def key(self) -> str:
        """Return what a choice depends on."""
        return " ".join(
            f"{role} {array.dtype.name} {'x'.join(map(str, array.shape))} "
            f"{cublaslt.alignment(array.data.ptr)}"
            for role, array in self.arrays.items()
        )


def right_ways(backend: Issuer, trial: Trial, ways: Sequence[Way]) -> list[int]:
    """Return the numbers of the ways that give the first way's values, and each time the same.

    Parameters
    ----------
    backend : Issuer
        A recorder, of which the trial has others.
    trial : Trial
        The arrays.
    ways : sequence of callable
        The first is right by definition. A way that raises `CublasLtError` is not right.
    """
    like = _Like(backend, trial)
    right, wanted = [0], like.values(ways[0])
    for number, way in enumerate(ways[1:], 1):
        try:
            got = [like.values(way) for _ in range(2)]
        except cublaslt.CublasLtError:
            continue
        if all(_same(one, wanted) for one in got):
            right.append(number)
    return right


def fastest(backend: Issuer, trial: Trial, ways: Mapping[int, Way]) -> int:
    """Return the number of the way that takes least time."""
    like, times = _Like(backend, trial), {}
    cuda = backend.cupy.cuda
    for number, way in ways.items():
        run = like.recorded(way)
        like.fill()
        with like.explained():
            run()  # the first run loads the kernels
            start, end = cuda.Event(), cuda.Event()
            start.record()
            for _ in range(RUNS):
                run()
            end.record()
            end.synchronize()
            times[number] = cuda.get_elapsed_time(start, end)
    return min(times, key=lambda number: times[number])


class _Like:
    """Arrays like those of a trial: of the same shapes, alignment and overlaps."""

    def __init__(self, backend: Issuer, trial: Trial) -> None:
        self._backend, self._trial = backend, trial
        made: dict[int, Any] = {}
        self.arrays: Arrays = {}
        for role, array in trial.arrays.items():
            address = int(array.data.ptr)
            if address not in made or made[address].shape != array.shape:
                made[address] = _like(backend, array)
            self.arrays[role] = made[address]
        self._hosts = {
            role: _contents(self.arrays[role], kind) for role, kind in trial.contents.items()
        }

    def fill(self) -> None:
        backend = self._backend
        with self.explained():
            for array in self.arrays.values():
                array.fill(3)
        for role, host in self._hosts.items():
            backend.from_host(host, self.arrays[role])
        if self._trial.prepare is not None:
            run = self.recorded(self._trial.prepare)
            with self.explained():
                run()

    def recorded(self, way: Way) -> Callable[[], None]:
        """Return the calls of a way, compiled; they are issued one by one."""
        recorder = self._backend._recorder()
        recorder._epilogues = None
        way(recorder, self.arrays)
        calls = recorder._recorded
        assert calls is not None
        calls.complete(recorder.launcher)
        return calls.run

    def values(self, way: Way) -> list[np.ndarray]:
        run = self.recorded(way)
        self.fill()
        with self.explained():
            run()
        found = []
        for role in self._trial.results:
            array = self.arrays[role]
            ends = [array] if array.ndim < 2 else [array[:COMPARED_ROWS], array[-COMPARED_ROWS:]]
            found += [self._backend.memory.read(end) for end in ends]
        return found

    @contextmanager
    def explained(self) -> Iterator[None]:
        cupy = self._backend.cupy
        with explained(cupy, "a trial of products"), cupy.cuda.Device(self._backend.index):
            yield


def _like(backend: Issuer, array: Any) -> Any:
    """Return another array of this shape, whose address is aligned as its."""
    begin = int(array.data.ptr) % cublaslt.MOST_ALIGNED // array.itemsize
    flat = backend.empty(array.size + begin, array.dtype)
    return flat[begin:].reshape(array.shape)


def _contents(array: Any, kind: str) -> np.ndarray:
    """Return -1, 0 and 1 for an array, and unless SMALL large numbers and a NaN among them."""
    place = np.arange(PERIOD)
    table = ((7 * place + place // 13) % 3 - 1).astype(np.float64)
    flat = np.resize(table.astype(array.dtype), array.size)
    if kind != SMALL:
        few = flat[: LARGE_ROWS * array.shape[-1]]
        large = large_number(array.dtype.name) * np.where(np.arange(PERIOD) % 3, 1.0, -1.0)
        few[::7] = np.resize(large.astype(array.dtype), few[::7].size)
        flat[0 if kind == FIRST_NAN else -1] = np.nan
    return flat.reshape(array.shape)


def _same(got: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> bool:
    return all(
        np.array_equal(one.astype(np.float64), other.astype(np.float64), equal_nan=True)
        for one, other in zip(got, wanted, strict=True)
    )


OUT_OF_ROOM = (cublaslt.CublasLtError, OutOfMemory)  # after which the usual calls are taken
