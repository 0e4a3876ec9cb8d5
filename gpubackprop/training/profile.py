"""Where a training step's time goes: each operation of the step, timed by itself.

A step of `gpubackprop.passes` is a list of calls of a backend's operations. Here each call has a
plan of its own, and the plans run one after another, with a wait after each. On a GPU the step
itself is one graph, so the sum of the operations is more than the step takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gpubackprop.backends import Backend
from gpubackprop.ops import display
from gpubackprop.training.epochs import way_of_epochs

if TYPE_CHECKING:
    from gpubackprop.training.gather import StepBatch
    from gpubackprop.training.step import TrainStep

Array = Any  # an array of the network's device


@dataclass(frozen=True)
class ProfileRow:
    """One operation of a step.

    Parameters
    ----------
    operation : str
        Name of the backend's operation, or of a function of the host.
    shape : tuple of int
        Shape of its first array.
    seconds : float
        Median time of a call.
    bytes : int
        Bytes of the arrays that it is given; each is counted once.
    launches : int or None
        Kernels and products that a GPU runs for it; None on the CPU.

    Examples
    --------
    >>> ProfileRow("update", (400,), 1e-5, 8000, None).operation
    'update'
    """

    operation: str
    shape: tuple[int, ...]
    seconds: float
    bytes: int
    launches: int | None


@dataclass(frozen=True)
class Profile:
    """What `Trainer.profile` measured; `gpubackprop.plots.profile` draws it.

    Parameters
    ----------
    rows : tuple of ProfileRow
        The operations in their order.
    step : float
        Median seconds of the whole step, as training runs it.
    batch_size : int
        Rows of the step.
    device : str
        "cpu" or "cuda:N".
    epochs : str
        On a GPU: whether whole epochs are one launch, or why not; `step` is of one step by itself.

    Examples
    --------
    >>> from gpubackprop import MLP, Trainer
    >>> trainer = Trainer(MLP([4, 8, 3]), batch_size=16)
    >>> profile = trainer.profile(np.zeros((32, 4)), np.zeros(32, int), repeats=3)
    >>> [row.operation for row in profile.rows[1:4]]
    ['gather_rows', 'affine_forward', 'affine_forward']
    """

    rows: tuple[ProfileRow, ...]
    step: float
    batch_size: int
    device: str
    epochs: str = ""

    @property
    def seconds(self) -> float:
        """The sum of the operations' times."""
        return sum(row.seconds for row in self.rows)

    def _table(self) -> list[list[str]]:
        total = self.seconds or 1.0
        return [
            [
                row.operation, " x ".join(map(str, row.shape)), f"{1e6 * row.seconds:.1f}",
                f"{100 * row.seconds / total:.0f} %", f"{row.bytes / 1e6:.3f}",
                "" if row.launches is None else str(row.launches),
            ]
            for row in self.rows
        ]  # fmt: skip

    _HEAD = ("operation", "shape", "us", "share", "MB", "launches")

    def __str__(self) -> str:
        lines = [list(self._HEAD), *self._table()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self._HEAD))]
        text = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        end = f"{1e6 * self.seconds:.1f} us one by one, {1e6 * self.step:.1f} us as one step"
        text.append(f"{end} of {self.batch_size} rows on {self.device}")
        return "\n".join([*text, self.epochs] if self.epochs else text)

    def _repr_html_(self) -> str:
        title = f"{1e6 * self.step:.1f} us a step of {self.batch_size} rows on {self.device}"
        return display.html_table(title, list(self._HEAD), self._table())


@dataclass(frozen=True)
class _Call:
    """One call of a step: what it is, the arrays that it is given, and how to issue it again."""

    name: str
    arrays: list[Array]
    emit: Callable[[Any], Any]


class _Noting:
    """A backend that notes the operations that a step calls, and does not do them."""

    def __init__(self, backend: Backend, calls: list[_Call]) -> None:
        self._backend, self._calls = backend, calls

    def __getattr__(self, name: str) -> Any:
        if name in _MEMORY:
            return getattr(self._backend, name)

        def note(*args: Any, **options: Any) -> None:
            self._calls.append(
                _Call(
                    args[0].__name__.strip("_") if name == "call" else name,
                    _arrays((args, options)),
                    lambda recorder: getattr(recorder, name)(*args, **options),
                )
            )

        return note


_MEMORY = frozenset(("empty", "zeros", "asarray", "asynchronous", "device"))


class _NotingUpdater:
    """An updater whose work is one call, since it uses more of a backend than its operations."""

    def __init__(self, updater: Any, calls: list[_Call]) -> None:
        self._updater, self._calls = updater, calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._updater, name)

    def emit(self, backend: Backend) -> None:
        updater = self._updater
        arrays = _arrays((updater.parameters, updater.gradient, updater.slots))
        self._calls.append(_Call("update", arrays, updater.emit))


def measured(step: TrainStep, batch: StepBatch, run: Callable[[], Any], repeats: int) -> Profile:
    """Return the profile of a step whose batch is gathered; its parameters change.

    Parameters
    ----------
    step : TrainStep
        The step.
    batch : StepBatch
        A batch of it.
    run : callable
        Does the whole step once.
    repeats : int
        Times that each operation and the step run; the median is reported.
    """
    backend = step.network.backend
    calls = _calls_of(step, batch)
    plans = [backend.plan(call.emit) for call in calls]
    wait = _waiting(backend)
    seconds = np.empty((repeats, len(plans)))
    whole = np.empty(repeats)
    for repeat in range(repeats):
        for number, plan in enumerate(plans):
            with _range(backend, calls[number].name):
                seconds[repeat, number] = _timed(plan, wait)
        whole[repeat] = _timed(run, wait)
    medians = np.median(seconds, 0)
    rows = tuple(
        ProfileRow(
            call.name,
            tuple(map(int, call.arrays[0].shape)) if call.arrays else (),
            float(medians[number]),
            sum({id(array): int(array.nbytes) for array in call.arrays}.values()),
            getattr(plans[number], "launches", None),
        )
        for number, call in enumerate(calls)
    )
    epochs = way_of_epochs(step) if backend.asynchronous else ""
    return Profile(rows, float(np.median(whole)), len(batch.targets), backend.device, epochs)


def _calls_of(step: TrainStep, batch: StepBatch) -> list[_Call]:
    """Return the calls of which the step consists.

    The gather of a plan of its own takes the same rows each time: a cursor would leave them.
    """
    calls: list[_Call] = []
    noting: Any = _Noting(step.network.backend, calls)
    updater, step.updater = step.updater, cast(Any, _NotingUpdater(step.updater, calls))
    cursor, step.source.cursor = step.source.cursor, None
    if cursor is not None:
        step.network.backend.from_host(np.arange(len(batch.targets)), batch.index)
    try:
        step._emit(noting, batch)
    finally:
        step.updater, step.source.cursor = updater, cursor
    return calls


def _timed(run: Callable[[], Any], wait: Callable[[], None]) -> float:
    start = perf_counter()
    run()
    wait()
    return perf_counter() - start


def _waiting(backend: Backend) -> Callable[[], None]:
    """Return a function that waits for the device; on the CPU it does nothing."""
    cupy = getattr(backend, "cupy", None)
    if cupy is None:
        return lambda: None
    return cast(Callable[[], None], cupy.cuda.get_current_stream().synchronize)


@contextmanager
def _range(backend: Backend, name: str) -> Iterator[None]:
    """Show the call in Nsight Systems, by a range of NVTX, if CuPy has it."""
    cupy = getattr(backend, "cupy", None)
    nvtx = None if cupy is None else getattr(cupy.cuda, "nvtx", None)
    if nvtx is None:
        yield
        return
    nvtx.RangePush(f"gpubackprop {name}")
    try:
        yield
    finally:
        nvtx.RangePop()


def _arrays(value: Any) -> list[Array]:
    """Return the arrays in a value, also those in tuples, lists and dictionaries."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return [array for part in value for array in _arrays(part)]
    return [value] if hasattr(value, "nbytes") and hasattr(value, "shape") else []
