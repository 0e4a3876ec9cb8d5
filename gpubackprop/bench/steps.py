"""Whole training steps: all providers share data, batches and initial weights.

A batch gathers its rows by number, in random order, as a shuffled epoch does. A large batch has
each row several times, which leaves the mean gradient unchanged; so the float64 oracle computes
each row once. The losses of a provider's first steps are compared with the oracle's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from gpubackprop.bench.problems import (
    Array,
    Arrays,
    Problem,
    product_bytes,
    product_flops,
    storage,
)
from gpubackprop.bench.shapes import Case, parameter_count

LEARNING_RATE = 1e-3
EPS = 1e-12  # of Adam: scikit-learn places it elsewhere, and so small it does not matter
LOSS_TOLERANCE = 2e-4  # relative error of each of the first losses
# The oracle is slow on a large network; in a deep network rounding grows from step to step.
STEPS_CHECKED, STEPS_CHECKED_FEW, LARGE, DEEP = 10, 3, 8 << 20, 16
ORACLE_WORK = 1 << 28  # at most so many rows times parameters in one step of the oracle
MOST_ROWS = 256
# Batches in one run, by the products of a step: a run takes at most tenths of a second on a CPU.
BATCHES_BY_FLOPS = ((1e9, 16), (1e10, 4), (math.inf, 2))
ORACLES: dict[str, Array] = {}  # by case name: one process finds it and tells the others


class StepData:
    """The rows, batches and weights of a step.

    Attributes
    ----------
    batch, widths : batch size and widths of the case.
    distinct : number of different rows in a batch.
    batches : number of different batches.
    steps_checked : number of losses that are compared.
    """

    def __init__(self, case: Case) -> None:
        self.batch, *widths = case.shape
        self.widths = tuple(widths)
        size = parameter_count(self.widths)
        most = min(self.batch, max(8, min(MOST_ROWS, ORACLE_WORK // size)))
        # Each row comes equally often, or the mean would change.
        self.distinct = next(rows for rows in range(most, 0, -1) if self.batch % rows == 0)
        self.batches = next(n for most, n in BATCHES_BY_FLOPS if product_flops(case) <= most)
        few = size > LARGE or len(self.widths) > DEEP
        self.steps_checked = STEPS_CHECKED_FEW if few else STEPS_CHECKED

    def data(self) -> tuple[Array, Array]:
        """Return x in float32, in [0, 1), and labels in int64."""
        rng, rows = np.random.default_rng(1), self.distinct * self.batches
        x = rng.random((rows, self.widths[0]), dtype=np.float32)
        return x, rng.integers(0, self.widths[-1], rows)

    def weights(self) -> tuple[list[Array], list[Array]]:
        """Return W (out, in) as in He et al. 2015, and b = 0, in float32."""
        rng = np.random.default_rng(2)
        shapes = list(zip(self.widths[1:], self.widths[:-1], strict=True))
        W = [rng.normal(0, np.sqrt(2 / i), (o, i)).astype(np.float32) for o, i in shapes]
        return W, [np.zeros(o, np.float32) for o, _ in shapes]

    @cached_property
    def _order(self) -> Array:
        return np.random.default_rng(3).permutation(self.distinct * self.batches)

    def rows(self, step: int, batch: int | None = None) -> Array:
        """Return the row numbers of a batch, (batch,) int64."""
        start = step % self.batches * self.distinct
        return np.resize(self._order[start : start + self.distinct], batch or self.batch)


class HeldToLosses(Problem):
    """Problems whose results are losses; the oracle computes its own once for all providers."""

    awkward: ClassVar = ()

    def find_losses(self, case: Case) -> Array:
        raise NotImplementedError

    def tolerance(self, case: Case, found: Arrays) -> float:
        """Return the largest relative difference of a loss that passes."""
        return LOSS_TOLERANCE

    def losses(self, case: Case) -> Array:
        """Return the oracle's losses."""
        if case.name not in ORACLES:
            ORACLES[case.name] = self.find_losses(case)
        return ORACLES[case.name]

    def check(self, case: Case, found: Arrays) -> tuple[float, float]:
        losses, wanted = np.asarray(found["losses"], np.float64), self.losses(case)
        if losses.shape != wanted.shape or not np.isfinite(losses).all():
            return float("inf"), float("inf")
        worst = float((np.abs(losses - wanted) / np.abs(wanted)).max())
        return worst / self.tolerance(case, found), worst


class TrainingStep(HeldToLosses):
    """Gather, forward, loss, backward, Adam."""

    limit: ClassVar = "products"
    variants: ClassVar = ("adam",)

    def find_losses(self, case: Case) -> Array:
        """Compute the losses of the first steps in float64, from each distinct row of a batch
        once."""
        data = StepData(case)
        step = by_hand(np, data, np.float64, data.distinct)
        rows = [data.rows(number, data.distinct) for number in range(data.steps_checked)]
        return np.array([float(step(batch)) for batch in rows])

    def bytes(self, case: Case) -> int:
        """Return the bytes that its products and Adam (7 passes over the parameters) must move."""
        return product_bytes(case) + 7 * storage(case).itemsize * parameter_count(case.shape[1:])

    def flops(self, case: Case) -> int:
        return product_flops(case) + 12 * parameter_count(case.shape[1:])


def by_hand(xp: Any, data: StepData, dtype: Any, batch: int) -> Callable[[Any], Any]:
    """Write Adam on a ReLU network as a careful person does: in place, with `out`.

    Returns ``step(rows)``, which returns the loss as a 0-d array and does not wait for a GPU.
    """
    host_x, host_y = data.data()
    x, y = xp.asarray(host_x.astype(dtype)), xp.asarray(host_y)
    W, b = ([xp.asarray(p.astype(dtype)) for p in group] for group in data.weights())
    layers, arange = len(W), xp.arange(batch)
    a = [xp.empty((batch, len(w)), dtype) for w in W]
    delta = [xp.empty_like(item) for item in a]
    grads = [xp.empty_like(p) for p in [*W, *b]]
    state = [[xp.zeros_like(p) for p in [*W, *b]] for _ in range(3)]
    count = [0]

    def step(rows: Any) -> Any:
        h = [x[rows]]
        for layer in range(layers):
            xp.matmul(h[-1], W[layer].T, out=a[layer])
            a[layer] += b[layer]
            if layer < layers - 1:
                xp.maximum(a[layer], 0, out=a[layer])
            h.append(a[layer])
        z, d, labels = a[-1], delta[-1], y[rows]
        xp.subtract(z, z.max(axis=1, keepdims=True), out=d)
        picked = d[arange, labels]
        xp.exp(d, out=d)
        s = d.sum(axis=1, keepdims=True)
        loss = (xp.log(s[:, 0]) - picked).mean()
        d /= s
        d[arange, labels] -= 1
        d /= batch
        for layer in reversed(range(layers)):
            xp.matmul(delta[layer].T, h[layer], out=grads[layer])
            xp.sum(delta[layer], axis=0, out=grads[layers + layer])
            if layer:
                xp.matmul(delta[layer], W[layer], out=delta[layer - 1])
                delta[layer - 1] *= h[layer] > 0
        count[0] += 1
        _adam(xp, [*W, *b], grads, state, count[0])
        return loss

    return step


def _adam(xp: Any, params: list[Any], grads: list[Any], state: Any, step: int) -> None:
    root = (1 - 0.999**step) ** 0.5
    rate = float(LEARNING_RATE * root / (1 - 0.9**step))
    for p, g, m, v, t in zip(params, grads, *state, strict=True):
        m *= 0.9
        xp.multiply(g, 0.1, out=t)
        m += t
        v *= 0.999
        xp.multiply(g, g, out=t)
        t *= 0.001
        v += t
        xp.sqrt(v, out=t)
        t += float(EPS * root)
        xp.divide(m, t, out=t)
        t *= rate
        p -= t
