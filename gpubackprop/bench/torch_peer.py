"""PyTorch: eager, with its fused optimizers, compiled by default and max-autotune; and Liger."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from gpubackprop.bench import operations
from gpubackprop.bench.losses import IGNORED, peer_options
from gpubackprop.bench.operations import LEARNING_RATE
from gpubackprop.bench.peer_places import TorchPlace
from gpubackprop.bench.places import Place, Work
from gpubackprop.bench.problems import Unsupported
from gpubackprop.bench.shapes import Case
from gpubackprop.bench.steps import EPS, StepData

MANY = 4096  # elements of each tensor of "update_many"
Fast = Callable[[Callable[..., Any]], Callable[..., Any]]  # what compiles a function, or nothing


def place(device: str, contestant: str) -> Place:
    if contestant == "Liger":
        for package in ("liger_kernel", "triton"):
            if importlib.util.find_spec(package) is None:
                raise ImportError(f"No module named {package!r}")
    if device == "cpu":
        importlib.import_module("torch")
        return Place()
    if not importlib.import_module("torch").cuda.is_available():
        raise ImportError("the installed PyTorch has no CUDA")
    return TorchPlace(device)


def setup(case: Case, where: Place, contestant: str) -> Work:
    import torch

    chosen = Torch(torch, where, contestant)
    make = _SETUPS.get(case.op)
    if make is None:
        raise Unsupported(f"PyTorch is not set up for {case.op}")
    return make(chosen, case)


class Torch:
    """The module, the device, and how functions are compiled."""

    def __init__(self, torch: Any, where: Place, contestant: str) -> None:
        self.torch, self.where, self.contestant = torch, where, contestant
        self.fused = contestant == "torch fused"
        self.compiled = "compile" in contestant

    def fast(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if not self.compiled:
            return function
        mode = "max-autotune" if "max-autotune" in self.contestant else None
        compiled: Callable[..., Any] = self.torch.compile(function, mode=mode, fullgraph=True)
        return compiled

    def tensor(self, array: Any) -> Any:
        """A copy on the device; bfloat16 by its bits, which NumPy has no name for."""
        array = np.ascontiguousarray(array)
        if array.dtype.name == "bfloat16":
            bits = self.torch.from_numpy(array.view(np.int16).copy())
            return bits.view(self.torch.bfloat16).to(self.where.device)
        return self.torch.from_numpy(array.copy()).to(self.where.device)

    def inputs(self, case: Case) -> dict[str, Any]:
        found = operations.get(case.op).inputs(case)
        return {name: self.tensor(array) for name, array in found.items()}

    def host(self, values: dict[str, Any]) -> dict[str, Any]:
        convert = self.where.host if isinstance(self.where, TorchPlace) else _host
        return {name: convert(tensor) for name, tensor in values.items()}

    def work(self, run: Callable[[], dict[str, Any]], *, capture: bool = True) -> Work:
        """`run` gives the results by name; eager work on a GPU is captured as well."""
        work = Work(run, lambda: self.host(run()))
        if capture and not self.compiled and self.where.device != "cpu":
            work.replay, work.uncaptured = self.where.capture(run)
        return work

    def in_place(self, work: Work) -> Work:
        """Work that changes what it starts from: its graph is captured after the comparison."""
        if not self.compiled and isinstance(self.where, TorchPlace):
            work.capture = lambda: self.where.capture(work.run)
        return work


def _host(tensor: Any) -> Any:
    return tensor.detach().numpy()


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

    liger = t.contestant == "Liger"
    function = _liger_loss(labels, options) if liger else t.fast(plain)
    z = arrays["logits"].requires_grad_()

    def run() -> dict[str, Any]:
        z.grad = None
        loss = function(z)
        loss.backward()
        return {"loss": loss.detach(), "delta": z.grad}

    return t.work(run, capture=not liger)


def _liger_loss(labels: Any, options: dict[str, Any]) -> Callable[[Any], Any]:
    """It writes the gradient over the logits, which later runs then start from, and reads a count
    back to the host, so that it cannot be captured."""
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
    arrays = t.inputs(case)
    function = t.fast(lambda x, rows: x.index_select(0, rows))
    return t.work(lambda: {"out": function(arrays["x"], arrays["rows"])})


def _optimizer(t: Torch, name: str, parameters: list[Any]) -> Any:
    how: dict[str, Any] = {"fused": True} if t.fused else {}
    if t.where.device != "cpu" and name in ("adam", "adamw"):
        how["capturable"] = True  # the step count on the GPU: a graph would freeze the host's
    optim = t.torch.optim
    makers: dict[str, Callable[[], Any]] = {
        "adam": lambda: optim.Adam(parameters, LEARNING_RATE, **how),
        "adamw": lambda: optim.AdamW(parameters, LEARNING_RATE, weight_decay=0.0, **how),
        "sgd": lambda: optim.SGD(parameters, LEARNING_RATE, momentum=0.9, **how),
    }
    if name not in makers:
        raise Unsupported(f"PyTorch is set up for {', '.join(makers)}")
    return makers[name]()


class Update:
    """An optimizer's step, compiled where the contestant is; eager, and a remark, if it fails."""

    def __init__(self, t: Torch, optimizer: Any) -> None:
        self._eager = self._step = optimizer.step
        self._remark = ""
        if t.compiled:
            self._step = t.torch.compile(optimizer.step)

    def __call__(self) -> None:
        try:
            self._step()
        except Exception as error:
            if self._step is self._eager:
                raise
            self._remark = f"optimizer eager: {type(error).__name__}"
            self._step = self._eager
            self._step()

    def remark(self) -> str:
        return self._remark


def _update(t: Torch, case: Case) -> Work:
    arrays = t.inputs(case)
    p, g = arrays["p"], arrays["g"]
    size = MANY if case.op == "update_many" else p.numel()
    parts = [t.torch.nn.Parameter(part.clone()) for part in p.split(size)]
    for part, gradient in zip(parts, g.split(size), strict=True):
        part.grad = gradient.clone()
    step = Update(t, _optimizer(t, case.variant or "adam", parts))

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


_SETUPS: dict[str, Callable[[Torch, Case], Work]] = {
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
