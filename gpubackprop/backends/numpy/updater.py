"""An optimizer on flat NumPy buffers: its numbers for a step, and the calls of its update."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubackprop.backends.updater import UpdateRule

Array = np.ndarray
NORM_FLOOR = 1e-6  # added to the norm when clipping, as PyTorch does


class NumpyUpdater:
    """An optimizer on flat buffers; what changes from step to step lives in arrays, so that a
    recorded plan reads it.

    Parameters
    ----------
    backend : `NumpyBackend`. rule : see `UpdateRule`. parameters, gradient, slots : flat buffers.
    """

    def __init__(
        self,
        backend: Any,
        rule: UpdateRule,
        parameters: Array,
        gradient: Array,
        slots: tuple[Array, ...],
    ) -> None:
        self.rule = rule
        self.parameters, self.gradient, self.slots = parameters, gradient, slots
        dtype = parameters.dtype
        count = len(rule.formula.coefficients(rule.hyperparameters, rule.lr, 1))
        self._c = np.zeros(count, dtype)
        self._decay, self._clip, self._l2 = (np.ones((), dtype) for _ in range(3))
        self._l2[...] = rule.l2
        self._norm2, self._weights2 = np.zeros(()), np.zeros(())

    def set(self, lr: float, step: int) -> None:
        """Learning rate and number (from 1) of the next update."""
        rule = self.rule
        self._c[:] = rule.formula.coefficients(rule.hyperparameters, lr, step)
        if rule.weight_decay:
            coupled = rule.formula.decay == "coupled"
            self._decay[...] = rule.weight_decay if coupled else 1.0 - lr * rule.weight_decay

    def set_l2(self, l2: float) -> None:
        """Penalty factor of the next updates; only for a rule whose l2 is not 0."""
        self._l2[...] = l2

    def skipped(self) -> int:
        """Updates left out because the gradient was not finite: none, they show in the loss."""
        return 0

    def penalty(self, verbs: Any, divisor: float) -> tuple[Array, Array] | None:
        """Issue the sum of the squared weights; the pair for `accumulate`, l2 / divisor."""
        if not self.rule.l2:
            return None
        verbs.sum_of_squares(self.parameters[: self.rule.penalized], self._weights2)
        return self._weights2, self._l2 if divisor == 1 else self._l2 / divisor

    def emit(self, verbs: Any) -> None:
        """Issue norm and clipping factor (where they are wanted) and update."""
        rule, end = self.rule, self.rule.penalized
        coefficients: dict[str, Any] = {
            "c": tuple(self._c[i : i + 1].reshape(()) for i in range(len(self._c)))
        }
        if rule.weight_decay:
            coefficients["decay"] = self._decay
        if rule.l2 and rule.clip_norm is None:
            coefficients["l2"] = (end, self._l2)
        if rule.clip_norm is not None:
            if rule.l2:  # the norm is that of the whole gradient, penalty included
                verbs.add_scaled(self.parameters[:end], self._l2, self.gradient[:end])
            verbs.sum_of_squares(self.gradient, self._norm2)
            verbs.call(_clip_factor, self._norm2, rule.clip_norm, self._clip)
            coefficients["clip"] = self._clip
        verbs.update(self.parameters, self.gradient, self.slots, rule.formula, coefficients)


def _clip_factor(norm2: Array, clip_norm: float, clip: Array) -> None:
    clip[...] = min(1.0, clip_norm / (math.sqrt(norm2) + NORM_FLOOR))
