"""An optimizer on flat NumPy buffers: the numbers of a step, and the calls of its update."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpubackprop.backends.base import Backend
from gpubackprop.backends.updater import SCALE, SINCE, SKIPPED, STEPS, Updater, UpdateRule

Array = np.ndarray
COEFFICIENTS = 8  # of each formula; the host kernels read so many
NORM_FLOOR = 1e-6  # added to the norm when clipping, as PyTorch does


class NumpyUpdater(Updater[Backend]):
    """The result of `NumpyBackend.updater`. If the loss is scaled, the gradient is left unscaled.

    Attributes
    ----------
    next_step : int
        The step number that `set` expects next, from 1.
    """

    def __init__(
        self,
        rule: UpdateRule,
        parameters: Array,
        gradient: Array,
        slots: tuple[Array, ...],
        random: Array | None = None,
        half_copy: Array | None = None,
    ) -> None:
        self.rule, self.random, self.half_copy = rule, random, half_copy
        self.parameters, self.gradient, self.slots = parameters, gradient, slots
        dtype = parameters.dtype
        self._count = len(rule.formula.coefficients(rule.hyperparameters, rule.lr, 1))
        self._c = np.zeros(max(self._count, COEFFICIENTS), dtype)
        self._decay, self._clip, self._l2, self._unscale = (np.ones((), dtype) for _ in range(4))
        self._l2[...] = rule.l2
        self._norm2, self._weights2, self._bad = (np.zeros(()) for _ in range(3))
        self._own = gradient if rule.part is None else gradient[rule.part]
        self._agree: Callable[[Backend], None] | None = None
        self.state, self.next_step, self._lr = np.array([0.0, 0.0, 1.0, 0.0]), 1, rule.lr
        self._upstream = None if rule.scaling is None else np.ones((), dtype)
        if rule.scaling is not None:
            self.state[SCALE] = rule.scaling.scale
            self.restored(1)

    @property
    def upstream(self) -> Array | None:
        return self._upstream

    def agree_by(self, norm: Array, agree: Callable[[Backend], None]) -> None:
        self._norm2, self._bad, self._agree = norm[:1].reshape(()), norm[1:].reshape(()), agree

    def restored(self, next_step: int) -> None:
        self.next_step = next_step
        if self.upstream is not None:
            self.upstream[...] = self.state[SCALE]

    def set(self, lr: float, step: int) -> None:
        if self.rule.scaling is None:
            self._set_coefficients(lr, step)
            return
        if step != self.next_step:
            self.state[STEPS] = step - 1
        self._lr, self.next_step = lr, step + 1

    def _set_coefficients(self, lr: float, step: int) -> None:
        rule = self.rule
        coefficients = rule.formula.coefficients(rule.hyperparameters, lr, step)
        for index, number in enumerate(coefficients):  # a tuple would become an array first
            self._c[index] = number
        if rule.weight_decay:
            coupled = rule.formula.decay == "coupled"
            self._decay[...] = rule.weight_decay if coupled else 1.0 - lr * rule.weight_decay

    def set_l2(self, l2: float) -> None:
        self._l2[...] = l2

    def skipped(self) -> int:
        return self.counts()[1]

    def counts(self) -> tuple[int, int]:
        return int(self.state[STEPS]), int(self.state[SKIPPED])

    def penalty(self, backend: Backend, divisor: float) -> tuple[Array, Array] | None:
        if not self.rule.l2:
            return None
        backend.sum_of_squares(self.parameters[: self.rule.penalized], self._weights2)
        return self._weights2, self._l2 if divisor == 1 else self._l2 / divisor

    def emit(self, backend: Backend) -> None:
        scaled = self.rule.scaling is not None
        if scaled:
            backend.call(self._unscale_gradient)
            backend.call(_note_if_finite, self._own, self._bad)
        if self._agree is not None:
            self._emit_norm(backend)
            self._agree(backend)
        if scaled:
            backend.call(_if_zero, self._bad, self._proceed(backend), self._skip)
        else:
            self._emit_update(backend)

    def _proceed(self, backend: Backend) -> Callable[[], None]:
        update = backend.plan(self._emit_update)

        def proceed() -> None:
            self._set_coefficients(self._lr, int(self.state[STEPS]) + 1)
            update()
            self.state[STEPS] += 1
            self._count_since(2.0)

        return proceed

    def _skip(self) -> None:
        self.state[SKIPPED] += 1
        self._count_since(0.5)

    def _count_since(self, factor: float) -> None:
        """Double the scale after an interval without a change; halve it at once."""
        scaling, state = self.rule.scaling, self.state
        state[SINCE] += 1
        if scaling is None or not scaling.growth_interval or self.upstream is None:
            return
        if factor < 1 or state[SINCE] >= scaling.growth_interval:
            state[SCALE] *= factor
            state[SINCE] = 0
        self.upstream[...] = state[SCALE]

    def _unscale_gradient(self) -> None:
        self._unscale[...] = 1.0 / self.state[SCALE]
        np.multiply(self._own, self._unscale, self._own)

    def _emit_norm(self, backend: Backend) -> None:
        """Issue the squared norm that clips: of the gradient here, penalty included."""
        rule, end, parameters = self.rule, self.rule.penalized, self.parameters
        if rule.clip_norm is None:
            return
        if rule.part is not None:
            end, parameters, *_ = rule.of_part(end, parameters, self.gradient, None)
        if rule.l2:
            backend.add_scaled(parameters[:end], self._l2, self._own[:end])
        backend.sum_of_squares(self._own, self._norm2)

    def _emit_update(self, backend: Backend) -> None:
        rule, end = self.rule, self.rule.penalized
        here, parameters, gradient, copy = end, self.parameters, self.gradient, self.half_copy
        if rule.part is not None:
            here, parameters, gradient, copy = rule.of_part(end, parameters, gradient, copy)
        coefficients: dict[str, Any] = {
            "c": tuple(self._c[i : i + 1].reshape(()) for i in range(self._count)),
            "copy": copy,
            "random": self.random if rule.stochastic else None,
        }
        if rule.weight_decay:
            coefficients["decay"] = self._decay
        if rule.l2 and rule.clip_norm is None:
            coefficients["l2"] = (here, self._l2)
        if rule.clip_norm is not None:
            if self._agree is None:
                self._emit_norm(backend)
            backend.call(_clip_factor, self._norm2, rule.clip_norm, self._clip)
            coefficients["clip"] = self._clip
        if self.random is not None:
            backend.call(_count, self.random)
        backend.update(parameters, gradient, self.slots, rule.formula, coefficients)


def _count(random: Array) -> None:
    random[1] += np.uint64(1)


def _note_if_finite(x: Array, bad: Array) -> None:
    """Set `bad` to 0 if all of x is finite, else to 1.

    Largest and smallest element decide, which both keep a NaN. A sum of squares could overflow.
    """
    ends = np.maximum.reduce(x, initial=-np.inf), np.minimum.reduce(x, initial=np.inf)
    bad[...] = x.size > 0 and not (math.isfinite(ends[0]) and math.isfinite(ends[1]))


def _if_zero(bad: Array, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
    (otherwise if bad else then)()


def _clip_factor(norm2: Array, clip_norm: float, clip: Array) -> None:
    clip[...] = min(1.0, clip_norm / (math.sqrt(norm2) + NORM_FLOOR))
