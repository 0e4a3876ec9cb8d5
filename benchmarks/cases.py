"""What is measured: cases, and for each the contestants that do the same work.

A contestant is a function that sets up its arrays and returns (check, run): ``check()`` gives
numbers that must equal the oracle's, ``run()`` does the timed work once. Nothing is imported before
it is needed, so that a contestant's process holds its own library alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray
Contestant = Callable[[], tuple[Callable[[], list[float]], Callable[[], Any]]]
STEPS_CHECKED = 10
LEARNING_RATE = 1e-3
EPS = 1e-12  # of Adam: so small that its placement, in which scikit-learn differs, does not matter


@dataclass(frozen=True)
class Case:
    """One piece of work.

    Attributes
    ----------
    name : as shown and as given to --case.
    contestants : name -> set-up; "gpubackprop" is ours; "oracle" is float64 and not timed.
    unit : what one run is, for the table.
    tolerance : largest relative difference of the checks from the oracle's.
    goals : contestant -> largest ratio of our time to its time (targets of the project).
    """

    name: str
    contestants: dict[str, Contestant]
    unit: str
    tolerance: float
    goals: dict[str, float]


# -- softmax cross entropy ------------------------------------------------------------------------


def _problem(rows: int, classes: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    z = rng.normal(0, 3, (rows, classes)).astype(np.float32)
    return z, rng.integers(0, classes, rows)


def _digest(loss: Any, delta: Array) -> list[float]:
    """Numbers that a wrong loss or gradient would change."""
    delta = np.asarray(delta, np.float64)
    return [float(loss), float(np.abs(delta).sum()), *delta[:3, :3].ravel(), float(delta[-1, -1])]


def five_lines(z: Array, y: Array) -> tuple[Any, Array]:
    """The textbook's NumPy."""
    z = z - z.max(axis=1, keepdims=True)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    loss = -np.log(p[np.arange(len(y)), y]).mean()
    p[np.arange(len(y)), y] -= 1
    return loss, p / len(y)


def five_lines_once(z: Array, y: Array) -> tuple[Any, Array]:
    """The same with the exponential taken once."""
    e = np.exp(z - z.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    loss = -np.log(p[np.arange(len(y)), y]).mean()
    p[np.arange(len(y)), y] -= 1
    return loss, p / len(y)


def _numpy_entropy(rows: int, classes: int, function: Any, dtype: Any = np.float32) -> Contestant:
    def setup() -> tuple[Callable[[], list[float]], Callable[[], Any]]:
        z, y = _problem(rows, classes)
        z = z.astype(dtype)
        return (lambda: _digest(*function(z, y))), (lambda: function(z, y))

    return setup


def _our_entropy(rows: int, classes: int) -> Contestant:
    def setup() -> tuple[Callable[[], list[float]], Callable[[], Any]]:
        from gpubackprop.ops import softmax_cross_entropy

        z, y = _problem(rows, classes)
        out = np.empty_like(z)
        run = lambda: softmax_cross_entropy(z, y, out=out)  # noqa: E731
        return (lambda: _digest(*run())), run

    return setup


def _torch_entropy(rows: int, classes: int) -> Contestant:
    def setup() -> tuple[Callable[[], list[float]], Callable[[], Any]]:
        import torch

        numpy_z, numpy_y = _problem(rows, classes)
        z, y = torch.tensor(numpy_z, requires_grad=True), torch.tensor(numpy_y)

        def run() -> tuple[Any, Any]:
            z.grad = None
            loss = torch.nn.functional.cross_entropy(z, y)
            loss.backward()
            return loss, z.grad

        def check() -> list[float]:
            loss, grad = run()
            return _digest(loss.item(), grad.numpy())

        return check, run

    return setup


def entropy_case(rows: int, classes: int) -> Case:
    return Case(
        f"softmax_cross_entropy/f32/{rows}x{classes}",
        {
            "oracle": _numpy_entropy(rows, classes, five_lines_once, np.float64),
            "gpubackprop": _our_entropy(rows, classes),
            "numpy, five lines": _numpy_entropy(rows, classes, five_lines),
            "numpy, five lines, one exp": _numpy_entropy(rows, classes, five_lines_once),
            "torch autograd": _torch_entropy(rows, classes),
        },
        "loss + gradient",
        2e-5,
        {"numpy, five lines, one exp": 0.60, "torch autograd": 1.00},
    )


# -- the training step ----------------------------------------------------------------------------


@dataclass(frozen=True)
class StepProblem:
    """Data, batches and initial weights that all contestants of a step share."""

    widths: tuple[int, ...]
    batch: int
    batches: int = 16

    def data(self) -> tuple[Array, Array]:
        rng = np.random.default_rng(1)
        rows = self.batch * self.batches
        x = rng.random((rows, self.widths[0]), dtype=np.float32)
        return x, rng.integers(0, self.widths[-1], rows)

    def weights(self) -> tuple[list[Array], list[Array]]:
        rng = np.random.default_rng(2)
        shapes = list(zip(self.widths[1:], self.widths[:-1], strict=True))
        W = [rng.normal(0, np.sqrt(2 / i), (o, i)).astype(np.float32) for o, i in shapes]
        return W, [np.zeros(o, np.float32) for o, _ in shapes]

    def rows(self, step: int) -> Array:
        """Row numbers of a batch, in random order: everybody gathers, as a shuffled epoch does."""
        order = np.random.default_rng(3).permutation(self.batch * self.batches)
        start = step % self.batches * self.batch
        return order[start : start + self.batch]


Setup = tuple[Callable[[], list[float]], Callable[[], Any]]


def _runner(problem: StepProblem, step: Callable[[Array], float]) -> Setup:
    """check: losses of the first steps; run: a pass over all batches."""

    batches = [problem.rows(i) for i in range(problem.batches)]

    def check() -> list[float]:
        return [float(step(batches[i])) for i in range(STEPS_CHECKED)]

    def run() -> None:
        for rows in batches:
            step(rows)

    return check, run


def numpy_step(problem: StepProblem, dtype: Any) -> Contestant:
    """Adam on a ReLU network as a careful person writes it in NumPy: in place, with `out`."""

    def setup() -> Setup:
        x, y = problem.data()
        x = x.astype(dtype)
        W, b = ([p.astype(dtype) for p in group] for group in problem.weights())
        n, layers = problem.batch, len(W)
        a = [np.empty((n, len(w)), dtype) for w in W]
        delta = [np.empty_like(item) for item in a]
        grads = [np.empty_like(p) for p in [*W, *b]]
        m, v, t = ([np.zeros_like(p) for p in [*W, *b]] for _ in range(3))
        arange, count = np.arange(n), [0]

        def step(rows: Array) -> float:
            h = [x[rows]]
            for layer in range(layers):
                np.matmul(h[-1], W[layer].T, out=a[layer])
                a[layer] += b[layer]
                if layer < layers - 1:
                    np.maximum(a[layer], 0, out=a[layer])
                h.append(a[layer])
            z, d, labels = a[-1], delta[-1], y[rows]
            np.subtract(z, z.max(1, keepdims=True), out=d)
            picked = d[arange, labels]
            np.exp(d, out=d)
            s = d.sum(1, keepdims=True)
            loss = float((np.log(s[:, 0]) - picked).mean())
            d /= s
            d[arange, labels] -= 1
            d /= n
            for layer in reversed(range(layers)):
                np.matmul(delta[layer].T, h[layer], out=grads[layer])
                np.sum(delta[layer], axis=0, out=grads[layers + layer])
                if layer:
                    np.matmul(delta[layer], W[layer], out=delta[layer - 1])
                    delta[layer - 1] *= h[layer] > 0
            count[0] += 1
            _numpy_adam([*W, *b], grads, (m, v, t), count[0])
            return loss

        return _runner(problem, step)

    return setup


def _numpy_adam(params: list[Array], grads: list[Array], state: Any, step: int) -> None:
    root = np.sqrt(1 - 0.999**step)
    rate = float(LEARNING_RATE * root / (1 - 0.9**step))
    for p, g, m, v, t in zip(params, grads, *state, strict=True):
        m *= 0.9
        np.multiply(g, 0.1, out=t)
        m += t
        v *= 0.999
        np.multiply(g, g, out=t)
        t *= 0.001
        v += t
        np.sqrt(v, out=t)
        t += float(EPS * root)
        np.divide(m, t, out=t)
        t *= rate
        p -= t


def our_step(problem: StepProblem) -> Contestant:
    def setup() -> Setup:
        from gpubackprop import MLP, optimizers
        from gpubackprop.backends import Total
        from gpubackprop.training.batches import Batches
        from gpubackprop.training.step import Regularization, TrainStep

        x, y = problem.data()
        network = MLP(problem.widths, "relu")
        W, b = problem.weights()
        for mine, theirs in zip([*network.W, *network.b], [*W, *b], strict=True):
            mine[...] = theirs
        loss = network.default_loss()
        data = Batches.check(network, loss, x, y)
        adam = optimizers.Adam(LEARNING_RATE, eps=EPS)
        plan = TrainStep(network, loss, data, problem.batch, adam, Regularization())

        def step(rows: Array) -> float:
            before = plan.totals[Total.LOSS]
            plan.update(rows, LEARNING_RATE)
            return float(plan.totals[Total.LOSS] - before) / problem.batch

        return _runner(problem, step)

    return setup


def torch_step(problem: StepProblem) -> Contestant:
    def setup() -> Setup:
        import torch
        from torch import nn

        numpy_x, numpy_y = problem.data()
        x, y = torch.tensor(numpy_x), torch.tensor(numpy_y)
        layers: list[nn.Module] = []
        for W, b in zip(*problem.weights(), strict=True):
            linear = nn.Linear(W.shape[1], W.shape[0])
            linear.weight.data, linear.bias.data = torch.tensor(W), torch.tensor(b)
            layers += [linear, nn.ReLU()]
        model = nn.Sequential(*layers[:-1])
        adam = torch.optim.Adam(model.parameters(), LEARNING_RATE, eps=EPS)

        def step(rows: Array) -> float:
            adam.zero_grad()
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            adam.step()
            return loss.item()

        return _runner(problem, step)

    return setup


def sklearn_step(problem: StepProblem) -> Contestant:
    def setup() -> Setup:
        from sklearn.neural_network import MLPClassifier

        x, y = problem.data()
        model = MLPClassifier(
            problem.widths[1:-1],
            alpha=0.0,
            batch_size=problem.batch,
            learning_rate_init=LEARNING_RATE,
            epsilon=EPS,
            shuffle=False,
        )
        model.partial_fit(x[: problem.batch], y[: problem.batch], classes=np.unique(y))
        for mine, theirs in zip(
            [*model.coefs_, *model.intercepts_],
            [*(W.T for W in problem.weights()[0]), *problem.weights()[1]],
            strict=True,
        ):
            mine[...] = theirs
        del model._optimizer  # start again from these weights

        def check() -> list[float]:
            losses = []
            for i in range(STEPS_CHECKED):
                model.partial_fit(x[problem.rows(i)], y[problem.rows(i)])
                losses.append(float(model.loss_))
            return losses

        return check, lambda: model.partial_fit(x, y)

    return setup


def step_case(widths: tuple[int, ...], batch: int, goals: dict[str, float]) -> Case:
    problem = StepProblem(widths, batch)
    return Case(
        f"training_step/adam/f32/{'-'.join(map(str, widths))}/batch{batch}",
        {
            "oracle": numpy_step(problem, np.float64),
            "gpubackprop": our_step(problem),
            "numpy in place, by hand": numpy_step(problem, np.float32),
            "torch eager": torch_step(problem),
            "scikit-learn": sklearn_step(problem),
        },
        f"{problem.batches} steps",
        2e-4,
        goals,
    )


_STEP_GOALS = {"numpy in place, by hand": 1.00, "torch eager": 1.00, "scikit-learn": 0.50}
CASES: dict[str, Case] = {
    case.name: case
    for case in (
        entropy_case(4096, 1000),
        entropy_case(256, 50257),
        entropy_case(4096, 10),
        step_case((784, 512, 512, 10), 256, _STEP_GOALS),
        step_case((64, 128, 10), 200, {}),
    )
}
