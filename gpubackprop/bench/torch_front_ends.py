"""Linear layers with their loss or activation, and a whole fit, in PyTorch and
gpubackprop.torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from gpubackprop.bench.front_ends import data, parameters
from gpubackprop.bench.shapes import Case
from gpubackprop.bench.timers import Work
from gpubackprop.bench.torch_common import Torch

ALPHA, RATE, EPSILON, BETA2 = 1e-4, 1e-3, 1e-8, 0.999  # scikit-learn's defaults


def _linear_cross_entropy(t: Torch, case: Case) -> Work:
    functional, labels = t.torch.nn.functional, t.inputs(case)["labels"]

    def eager(x: Any, W: Any) -> Any:
        return functional.cross_entropy(functional.linear(x, W), labels)

    if t.ours:
        from gpubackprop import torch as gt

        return _with_gradients(t, case, lambda x, W: gt.linear_cross_entropy(x, W, labels))
    if t.provider == "Liger":
        liger = importlib.import_module("liger_kernel.transformers.functional")
        fused = liger.liger_fused_linear_cross_entropy
        return _with_gradients(t, case, lambda x, W: fused(x, W, labels))
    return _with_gradients(t, case, t.fast(eager))


def _linear_gelu(t: Torch, case: Case) -> Work:
    functional = t.torch.nn.functional

    def eager(x: Any, W: Any) -> Any:
        return functional.gelu(functional.linear(x, W)).square().mean()

    if t.ours:
        from gpubackprop import torch as gt

        return _with_gradients(
            t, case, lambda x, W: gt.linear_act(x, W, None, "gelu").square().mean()
        )
    return _with_gradients(t, case, t.fast(eager))


def _with_gradients(t: Torch, case: Case, loss_of: Callable[[Any, Any], Any]) -> Work:
    """Return a function that computes the loss and gradients of ``loss_of(x, W)``."""
    inputs = t.inputs(case)
    x, W = (inputs[name].requires_grad_() for name in ("x", "W"))

    def run() -> dict[str, Any]:
        loss = loss_of(x, W)
        grad_x, grad_W = t.torch.autograd.grad(loss, [x, W])
        return {"loss": loss.detach(), "grad_x": grad_x, "grad_W": grad_W}

    return t.work(run, capture=t.provider != "Liger")


def _fit(t: Torch, case: Case) -> Work:
    x, y = data(case)
    losses = TorchFit(t, case).fit(x, y, whole_loss=True)
    exact = t.where.device == "cpu"

    def run() -> None:
        TorchFit(t, case).fit(x, y)

    return Work(run, lambda: {"losses": losses, "exact": exact})


class TorchFit:
    """`MLPClassifier.fit` as a careful person writes it in PyTorch.

    Draws, weights, batches and penalty are scikit-learn's. Data are on the device, gradients are
    dropped instead of zeroed, and the host waits once an epoch.
    """

    def __init__(self, t: Torch, case: Case) -> None:
        self.t, self.parameters = t, parameters(case)
        self.units = case.shape[3:]

    def fit(self, x: np.ndarray, y: np.ndarray, *, whole_loss: bool = False) -> list[float]:
        """Return the loss of each epoch; `whole_loss` adds the penalty, which training does not
        need."""
        torch, device, p = self.t.torch, self.t.where.device, self.parameters
        draws = np.random.RandomState(p["random_state"])
        model, weights = self._model(draws, x.dtype)
        biases = [q for q in model.parameters() if q.ndim == 1]
        optimizer = torch.optim.Adam(
            [{"params": weights}, {"params": biases}], lr=RATE, fused=self.t.fused
        )
        rows_x, labels = torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)
        order, curve, steps = np.arange(len(x)), [], 0
        for _ in range(p["max_iter"]):
            order = order[draws.permutation(len(order))]
            total = torch.zeros((), dtype=torch.float64, device=device)
            for rows in torch.from_numpy(order).to(device).split(min(p["batch_size"], len(x))):
                steps += 1
                optimizer.param_groups[0]["weight_decay"] = ALPHA / len(rows)
                for group in optimizer.param_groups:  # scikit-learn adds eps to the plain root
                    group["eps"] = EPSILON / (1 - BETA2**steps) ** 0.5
                loss = torch.nn.functional.cross_entropy(model(rows_x[rows]), labels[rows])
                if whole_loss:
                    squares = sum(w.detach().double().square().sum() for w in weights)
                    total += 0.5 * ALPHA * squares
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(rows)
            curve.append(float(total) / len(x))
        return curve

    def _model(self, draws: Any, dtype: Any) -> tuple[Any, list[Any]]:
        """Return layers with the weights that scikit-learn draws for relu, and these weights."""
        torch, device = self.t.torch, self.t.where.device
        layers: list[Any] = []
        for fan_in, fan_out in pairwise(self.units):
            bound = np.sqrt(6.0 / (fan_in + fan_out))
            linear = torch.nn.Linear(fan_in, fan_out)
            weight = draws.uniform(-bound, bound, (fan_in, fan_out)).astype(dtype)
            bias = draws.uniform(-bound, bound, fan_out).astype(dtype)
            linear.weight.data = torch.from_numpy(np.ascontiguousarray(weight.T)).to(device)
            linear.bias.data = torch.from_numpy(bias).to(device)
            layers += [linear, torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers[:-1])
        return model, [layer.weight for layer in layers[::2]]


SETUPS: dict[str, Callable[[Torch, Case], Work]] = {
    "linear_cross_entropy": _linear_cross_entropy,
    "linear_gelu": _linear_gelu,
    "fit": _fit,
}
