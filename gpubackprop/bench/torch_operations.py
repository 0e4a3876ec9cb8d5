"""The operations and the training step in PyTorch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from gpubackprop.bench.losses import IGNORED, peer_options
from gpubackprop.bench.operations import LEARNING_RATE
from gpubackprop.bench.problems import Unsupported, storage
from gpubackprop.bench.shapes import Case
from gpubackprop.bench.steps import EPS, StepData
from gpubackprop.bench.timers import Work
from gpubackprop.bench.torch_common import Torch, Update, optimizer_of

MANY = 4096  # elements of each tensor of "update_many"


def _cross_entropy(t: Torch, case: Case) -> Work:
    arrays, options = t.inputs(case), peer_options(case)
    functional = t.torch.nn.functional
    weight, smooth = arrays.get("class_weight"), options["label_smoothing"]
    z_loss, labels = options["z_loss"], arrays["labels"]
    if weight is not None:
        weight = weight.to(arrays["logits"].dtype)

    def plain(z: Any) -> Any:
        loss = functional.cross_entropy(
            z, labels, weight=weight, ignore_index=IGNORED, label_smoothing=smooth
        )
        if not z_loss:
            return loss
        counts = labels != IGNORED
        lse = t.torch.logsumexp(z.float(), 1)
        per_class = 1.0 if weight is None else weight[labels.clamp_min(0)]
        return loss + z_loss * (lse * lse * counts).sum() / (counts * per_class).sum()

    liger = t.provider == "Liger"
    if t.ours:
        function = _ours(labels, case)
    else:
        function = _liger_loss(labels, options) if liger else t.fast(plain)
    z = arrays["logits"].requires_grad_()

    def run() -> dict[str, Any]:
        z.grad = None
        loss = function(z)
        loss.backward()
        return {"loss": loss.detach(), "delta": z.grad}

    return t.work(run, capture=not liger)


def _ours(labels: Any, case: Case) -> Callable[[Any], Any]:
    from gpubackprop import torch as gt

    if case.variant:
        raise Unsupported("gpubackprop.torch is measured without options")
    return lambda z: gt.cross_entropy(z, labels)


def _liger_loss(labels: Any, options: dict[str, Any]) -> Callable[[Any], Any]:
    """Return Liger's loss; it overwrites the logits by the gradient, and later runs start from it.

    It reads a count back to the host, so it cannot be captured.
    """
    if options["class_weight"]:
        raise Unsupported("Liger's means with class weights are not compared")
    loss = importlib.import_module("liger_kernel.transformers").LigerCrossEntropyLoss(
        ignore_index=IGNORED, lse_square_scale=options["z_loss"],
        label_smoothing=options["label_smoothing"],
    )  # fmt: skip
    return lambda z: loss(z, labels)


def _pointwise(t: Torch, case: Case) -> Work:
    arrays, functional = t.inputs(case), t.torch.nn.functional
    losses: dict[str, Callable[[Any, Any], Any]] = {
        "squared_error": lambda a, y: 0.5 * functional.mse_loss(a, y, reduction="sum"),
        "binary_cross_entropy": lambda a, y: functional.binary_cross_entropy_with_logits(
            a, y, reduction="sum"
        ),
        "poisson": lambda a, y: functional.poisson_nll_loss(a, y, reduction="sum"),
    }
    if case.variant not in losses:
        raise Unsupported(f"PyTorch has no {case.variant}")
    a, targets = arrays["a"].requires_grad_(), arrays["targets"]
    loss_of = t.fast(lambda a: losses[case.variant](a, targets) / len(targets))

    def run() -> dict[str, Any]:
        a.grad = None
        loss = loss_of(a)
        loss.backward()
        return {"loss": loss.detach(), "delta": a.grad}

    return t.work(run)


def _forward(t: Torch, case: Case) -> Work:
    a = t.inputs(case)["a"]
    function = t.fast(_activation(t, case.variant))
    return t.work(lambda: {"h": function(a)})


def _activation(t: Torch, name: str) -> Callable[[Any], Any]:
    functions = {"relu": t.torch.relu, "tanh": t.torch.tanh, "gelu": t.torch.nn.functional.gelu}
    if name not in functions:
        raise Unsupported(f"peers are set up for {', '.join(functions)}")
    function: Callable[[Any], Any] = functions[name]
    return function


def _backward(t: Torch, case: Case) -> Work:
    aten = t.torch.ops.aten
    slopes: dict[str, Callable[[Any, Any], Any]] = {
        "relu": lambda g, h: aten.threshold_backward(g, h, 0),
        "tanh": lambda g, h: aten.tanh_backward(g, h),
        "gelu": lambda g, a: aten.gelu_backward(g, a),
    }
    if case.variant not in slopes:
        raise Unsupported(f"peers are set up for {', '.join(slopes)}")
    arrays = t.inputs(case)

    def both(grad_h: Any, saved: Any) -> tuple[Any, Any]:
        delta = slopes[case.variant](grad_h, saved)
        return delta, delta.sum(0)

    function = t.fast(both)
    names = ("delta", "grad_b")
    return t.work(
        lambda: dict(zip(names, function(arrays["grad_h"], arrays["saved"]), strict=True))
    )


def _reduction(t: Torch, case: Case) -> Work:
    x = t.inputs(case)["x"]
    if case.op == "column_sum":
        function = t.fast(lambda x: x.sum(0))
    else:
        function = t.fast(lambda x: (x * x).sum())
    return t.work(lambda: {"out": function(x)})


def _gather(t: Torch, case: Case) -> Work:
    arrays, stored = t.inputs(case), t.tensor(np.empty(0, storage(case))).dtype
    function = t.fast(lambda x, rows: x.index_select(0, rows).to(stored))
    return t.work(lambda: {"out": function(arrays["x"], arrays["rows"])})


def _update(t: Torch, case: Case) -> Work:
    arrays = t.inputs(case)
    p, g = arrays["p"], arrays["g"]
    size = MANY if case.op == "update_many" else p.numel()
    parts = [t.torch.nn.Parameter(part.clone()) for part in p.split(size)]
    for part, gradient in zip(parts, g.split(size), strict=True):
        part.grad = gradient.clone()
    step = Update(t, optimizer_of(t, case.variant or "adam", parts))

    def outputs() -> dict[str, Any]:
        step()
        return t.host({"p": t.torch.cat([part.detach() for part in parts])})

    return t.in_place(Work(step, outputs, remark=step.remark))


def _affine(t: Torch, case: Case) -> Work:
    arrays, activation = t.inputs(case), _activation(t, case.variant)
    x, W, b = (arrays[name].requires_grad_() for name in ("x", "W", "b"))
    function = t.fast(lambda x, W, b: activation(t.torch.nn.functional.linear(x, W, b)))

    def run() -> dict[str, Any]:
        x.grad = W.grad = b.grad = None
        h = function(x, W, b)
        h.backward(arrays["grad_h"])
        return {"h": h, "grad_W": W.grad, "grad_b": b.grad, "grad_x": x.grad}

    return t.work(run)


def _training_step(t: Torch, case: Case) -> Work:
    torch, data = t.torch, StepData(case)
    host_x, host_y = data.data()
    x, y = t.tensor(host_x), t.tensor(host_y)
    layers: list[Any] = []
    for W, b in zip(*data.weights(), strict=True):
        linear = torch.nn.Linear(W.shape[1], W.shape[0])
        linear.weight.data, linear.bias.data = t.tensor(W), t.tensor(b)
        layers += [linear, torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    how: dict[str, Any] = {"fused": True} if t.fused else {}
    if t.where.device != "cpu":
        how["capturable"] = True
    adam = torch.optim.Adam(model.parameters(), LEARNING_RATE, eps=EPS, **how)
    update = Update(t, adam)
    loss_of = t.fast(lambda x, y: torch.nn.functional.cross_entropy(model(x), y))
    batches = [t.tensor(data.rows(i)) for i in range(data.batches)]

    def step(rows: Any) -> Any:
        adam.zero_grad()
        loss = loss_of(x[rows], y[rows])
        loss.backward()
        update()
        return loss.detach()

    def losses() -> dict[str, Any]:
        numbers = range(data.steps_checked)
        return {"losses": [float(step(batches[i % data.batches])) for i in numbers]}

    def run() -> None:
        for rows in batches:
            step(rows)

    return t.in_place(Work(run, losses, data.batches, remark=update.remark))


SETUPS: dict[str, Callable[[Torch, Case], Work]] = {
    "softmax_cross_entropy": _cross_entropy,
    "pointwise_loss": _pointwise,
    "activation_forward": _forward,
    "activation_backward": _backward,
    "column_sum": _reduction,
    "sum_of_squares": _reduction,
    "gather_rows": _gather,
    "update": _update,
    "update_many": _update,
    "affine_layer": _affine,
    "training_step": _training_step,
}
