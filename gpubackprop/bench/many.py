"""Many small networks to train: the problem and its cases.

They are measured on demand only, by ``python -m benchmarks.bench_many``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import numpy as np

from gpubackprop.bench.problems import Array, Problem, storage
from gpubackprop.bench.shapes import Case, parameter_count
from gpubackprop.bench.steps import HeldToLosses, by_hand

CHECKED = 3  # epochs whose losses are compared: later, rounding has grown
SMALL = (64, 128, 10)
NETWORKS = (1, 2, 4, 8, 16, 32, 64, 640)


class ManyData:
    """The rows and weights of a case. All networks have the same rows, in their order."""

    def __init__(self, case: Case) -> None:
        self.networks, self.epochs, self.batch, self.rows, *widths = case.shape
        self.widths = tuple(widths)

    def data(self) -> tuple[Array, Array]:
        """Return x in float32, in [0, 1), and labels in int64."""
        rng = np.random.default_rng(1)
        x = rng.random((self.rows, self.widths[0]), dtype=np.float32)
        return x, rng.integers(0, self.widths[-1], self.rows)

    def weights(self, network: int = 0) -> tuple[list[Array], list[Array]]:
        """Return W (out, in) as in He et al. 2015, and b = 0, of a network."""
        rng = np.random.default_rng((2, network))
        shapes = list(zip(self.widths[1:], self.widths[:-1], strict=True))
        W = [rng.normal(0, np.sqrt(2 / i), (o, i)).astype(np.float32) for o, i in shapes]
        return W, [np.zeros(o, np.float32) for o, _ in shapes]


class _OneNetwork:
    """What `steps.by_hand` reads of one of the networks."""

    def __init__(self, data: ManyData, network: int) -> None:
        self.data, self.weights = data.data, partial(data.weights, network)


class FitMany(HeldToLosses):
    """Whole trainings of many networks: relu, softmax cross entropy, Adam, rows in their order.

    The oracle is a loop by hand in float64; it has the first epochs of the first and of the last
    network.
    """

    limit: ClassVar = ""

    def find_losses(self, case: Case) -> Array:
        data = ManyData(case)
        found = []
        for network in (0, data.networks - 1):
            one: Any = _OneNetwork(data, network)
            step = by_hand(np, one, np.float64, data.batch)
            batches = np.arange(data.rows).reshape(-1, data.batch)
            for _ in range(min(CHECKED, data.epochs)):
                found.append(np.mean([float(step(rows)) for rows in batches]))
        return np.array(found)

    def bytes(self, case: Case) -> int:
        data = ManyData(case)
        inputs = data.epochs * data.rows * data.widths[0]
        return data.networks * inputs * storage(case).itemsize

    def flops(self, case: Case) -> int:
        data = ManyData(case)
        return 6 * data.networks * data.epochs * data.rows * parameter_count(data.widths)


def many_cases() -> Iterator[Case]:
    """Return the cases: 1, 2, 4 ... networks 64-128-10, 20 epochs of 14 batches."""
    for networks in NETWORKS:
        yield Case("fit_many", (networks, 20, 128, 1792, *SMALL))


PROBLEMS: dict[str, Problem] = {"fit_many": FitMany()}
