"""Training steps of scikit-learn and thinc on the CPU, and `MLPClassifier.fit`, ours too."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from gpubackprop.bench import front_ends
from gpubackprop.bench.problems import Unsupported
from gpubackprop.bench.shapes import Case
from gpubackprop.bench.steps import EPS, LEARNING_RATE, StepData
from gpubackprop.bench.timers import Timer, Work

MODULES = {
    "scikit-learn": "sklearn.neural_network", "thinc": "thinc.api",
    "gpubackprop.sklearn": "gpubackprop.sklearn",
}  # fmt: skip
LARGEST_EPOCH = 1 << 28  # elements of x: scikit-learn needs the repeated rows in memory


def timer(device: str, provider: str) -> Timer:
    importlib.import_module(MODULES[provider])
    where = Timer()
    where.device = device  # the estimator waits for its results, so the host's clock is right
    return where


def setup(case: Case, where: Timer, provider: str) -> Work:
    if case.op == "fit":
        return _fit(case, where, provider)
    if case.op != "training_step":
        raise Unsupported(f"{provider} is not set up for {case.op}")
    return {"scikit-learn": _sklearn, "thinc": _thinc}[provider](StepData(case))


def _fit(case: Case, where: Timer, provider: str) -> Work:
    ours = {"device": where.device} if provider != "scikit-learn" else {}
    kind = importlib.import_module(MODULES[provider]).MLPClassifier
    x, y = front_ends.data(case)
    settings = front_ends.parameters(case) | ours
    exact = where.device == "cpu" or not ours

    def run() -> Any:
        return front_ends.fitted(kind(**settings), x, y)

    on = "" if ours or where.device == "cpu" else "on the CPU"
    return Work(run, lambda: {"losses": run().loss_curve_, "exact": exact}, remark=lambda: on)


def _sklearn(data: StepData) -> Work:
    from sklearn.neural_network import MLPClassifier

    if data.batch * data.batches * data.widths[0] > LARGEST_EPOCH:
        raise Unsupported("an epoch of repeated rows would not fit into memory")
    x, y = data.data()
    order = np.concatenate([data.rows(i) for i in range(data.batches)])
    model = MLPClassifier(
        data.widths[1:-1], alpha=0.0, batch_size=data.batch, learning_rate_init=LEARNING_RATE,
        epsilon=EPS, shuffle=False,
    )  # fmt: skip
    classes = np.arange(data.widths[-1])
    labels = np.resize(classes, max(len(classes), 2))
    model.partial_fit(np.resize(x, (len(labels), x.shape[1])), labels, classes=classes)
    W, b = data.weights()
    mine = [*model.coefs_, *model.intercepts_]
    if mine[-1].shape != b[-1].shape:
        raise Unsupported("scikit-learn has one output unit for two classes, and another loss")
    for one, theirs in zip(mine, [*(w.T for w in W), *b], strict=True):
        one[...] = theirs
    del model._optimizer  # start again from these weights
    epoch_x, epoch_y = x[order], y[order]

    def losses() -> dict[str, Any]:
        found = []
        for number in range(data.steps_checked):
            rows = data.rows(number)
            model.partial_fit(x[rows], y[rows])
            found.append(float(model.loss_))
        return {"losses": found}

    return Work(lambda: model.partial_fit(epoch_x, epoch_y), losses, data.batches)


def _thinc(data: StepData) -> Work:
    api = importlib.import_module("thinc.api")
    x, y = data.data()
    sizes = list(zip(data.widths[1:], data.widths, strict=False))
    layers = [api.Relu(nO=o, nI=i) for o, i in sizes[:-1]]
    layers.append(api.Linear(nO=sizes[-1][0], nI=sizes[-1][1]))
    model = api.chain(*layers) if len(layers) > 1 else layers[0]
    model.initialize(X=x[:2], Y=np.zeros((2, data.widths[-1]), np.float32))
    for layer, W, b in zip(layers, *data.weights(), strict=True):
        layer.set_param("W", W.copy())
        layer.set_param("b", b.copy())
    adam = api.Adam(LEARNING_RATE, eps=EPS, L2=0.0, grad_clip=0.0, use_averages=False)
    arange = np.arange(data.batch)

    def step(rows: Any) -> Any:
        logits, backward = model.begin_update(x[rows])
        labels = y[rows]
        z = logits - logits.max(1, keepdims=True)
        delta = np.exp(z)
        total = delta.sum(1, keepdims=True)
        loss = (np.log(total[:, 0]) - z[arange, labels]).mean()
        delta /= total
        delta[arange, labels] -= 1
        delta /= data.batch
        backward(delta)
        model.finish_update(adam)
        adam.step_schedules()
        return loss

    batches = [data.rows(i) for i in range(data.batches)]

    def losses() -> dict[str, Any]:
        numbers = range(data.steps_checked)
        return {"losses": [float(step(batches[i % data.batches])) for i in numbers]}

    def run() -> None:
        for rows in batches:
            step(rows)

    return Work(run, losses, data.batches)
