"""Repeated predictions of a few rows: they are planned at the second call of a kind.

A plan reads coefs_ and intercepts_ in place, so it sees what is written into them. If they are
replaced, the plan is made anew. It is kept beside the estimator and not in it, because a prediction
must leave the estimator as it was. A call takes the plan out of the store and puts it back
afterwards, so two threads that predict at once never share memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from gpubackprop.backends import Backend, devices

Array = Any
FEW = 1 << 14  # the most numbers in all units of all rows for which a plan is made
PARAMETERS = 1 << 17  # the most parameters: a plan keeps replaced ones alive until it is made anew
FLOATS = (np.dtype(np.float64), np.dtype(np.float32))


class FewRows:
    """One kind of call, and its plan from the second call on.

    Parameters
    ----------
    estimator : BaseMLP
        The fitted estimator; only its parameters are kept.
    key : tuple
        What `kind_of` returned for the call.
    """

    def __init__(self, estimator: Any, key: tuple[Any, ...]) -> None:
        self.key, self.parameters = key, _parameters(estimator)
        self.shapes = [array.shape for array in self.parameters]
        self.replay: Callable[[], None] | None = None
        self.x = self.result = np.empty(0)

    def fits(self, estimator: Any, key: tuple[Any, ...]) -> bool:
        """Return whether the next call is of this kind, with these arrays of parameters."""
        now = _parameters(estimator)
        return (
            key == self.key
            and all(map(_is, now, self.parameters))
            and [array.shape for array in now] == self.shapes
        )

    @property
    def result_width(self) -> int:
        return int(self.parameters[-1].shape[0])

    def plan(
        self, backend: Backend, emit: Callable[[Backend, Array, Array], None], x: Array
    ) -> None:
        """Record the calls that `emit` issues from rows like x to a result."""
        self.x = backend.empty(x.shape, x.dtype)
        self.result = backend.empty((len(x), self.result_width), x.dtype)
        self.replay = backend.plan(lambda recorder: emit(recorder, self.x, self.result))

    def __call__(self, x: Array) -> Array:
        assert self.replay is not None
        np.copyto(self.x, x)
        self.replay()
        return self.result.copy()


_KEPT: WeakKeyDictionary[Any, FewRows] = WeakKeyDictionary()


def device_for_host_rows(e: Any) -> str:
    """Return the device for rows of the host; "auto" predicts on the CPU if it fitted there."""
    if e.device == "auto" and getattr(e, "device_", "") == "cpu":
        return "cpu"
    return devices.chosen(e.device)


def kind_of(estimator: Any, x: Any) -> tuple[Any, ...] | None:
    """Return what a plan for x depends on beside the parameters; None if no plan is made."""
    e = estimator
    if type(x) is not np.ndarray or x.dtype not in FLOATS or not x.flags.c_contiguous:
        return None
    if e.precision is not None or not isinstance(e.activation, str):
        return None
    if device_for_host_rows(e) != "cpu" or len(e.coefs_) != len(e.intercepts_):
        return None
    return x.shape, x.dtype, e.activation, e.out_activation_, e.n_layers_, len(e.coefs_)


def take(estimator: Any, key: tuple[Any, ...]) -> FewRows | None:
    """Return the estimator's plan if it fits; it is the caller's alone until it is kept again."""
    kept = _KEPT.pop(estimator, None)
    return kept if kept is not None and kept.fits(estimator, key) else None


def keep(estimator: Any, plan: FewRows) -> None:
    _KEPT[estimator] = plan


def begin(estimator: Any, x: Array, key: tuple[Any, ...]) -> None:
    """Note a call, so that the next one of its kind is planned, if that is worth it."""
    own = _parameters(estimator)
    if not all(type(array) is np.ndarray and array.dtype == x.dtype for array in own):
        return
    units = sum(array.shape[-1] for array in own if array.ndim == 1)
    pairs = zip(estimator.coefs_, estimator.intercepts_, strict=True)
    plain = all(b.shape == W.shape[1:] for W, b in pairs)
    if plain and len(x) * (units + x.shape[1]) <= FEW and sum(a.size for a in own) <= PARAMETERS:
        keep(estimator, FewRows(estimator, key))


def _parameters(estimator: Any) -> list[Any]:
    return [*estimator.coefs_, *estimator.intercepts_]


def _is(one: Any, other: Any) -> bool:
    return one is other
