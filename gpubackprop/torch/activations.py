"""Activations in PyTorch's operators: value, slope, and which module each is.

They stand in where PyTorch has to see through an activation (second derivatives, `torch.func`) and
tell `convert` what it may fuse. The kernels' own formulas are `gpubackprop.formulas.ACTIVATIONS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)
from torch import Tensor, nn

Formula = Callable[[Tensor, float], Tensor]


def _gelu_slope(a: Tensor, k: float) -> Tensor:
    density = torch.exp(-0.5 * a * a) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(a / math.sqrt(2))) + a * density


def _gelu_tanh_slope(a: Tensor, k: float) -> Tensor:
    c = math.sqrt(2 / math.pi)
    t = torch.tanh(c * (a + 0.044715 * a * a * a))
    return 0.5 * (1 + t) + 0.5 * a * (1 - t * t) * c * (1 + 3 * 0.044715 * a * a)


def _silu_slope(a: Tensor, k: float) -> Tensor:
    s = torch.sigmoid(a)
    return s * (1 + a * (1 - s))


def _piecewise(below: Formula) -> Formula:
    """1 above 0 and at NaN, `below` elsewhere."""
    return lambda h, k: torch.where(h <= 0, below(h, k), torch.ones_like(h))


# name: value of a, slope of what is saved (h or a, as the registry says)
FORMULAS: dict[str, tuple[Formula, Formula]] = {
    "identity": (lambda a, k: a, lambda h, k: torch.ones_like(h)),
    "logistic": (lambda a, k: torch.sigmoid(a), lambda h, k: h * (1 - h)),
    "tanh": (lambda a, k: torch.tanh(a), lambda h, k: 1 - h * h),
    "relu": (lambda a, k: F.relu(a), _piecewise(lambda h, k: torch.zeros_like(h))),
    "leaky_relu": (F.leaky_relu, _piecewise(lambda h, k: torch.full_like(h, k))),
    "elu": (F.elu, _piecewise(lambda a, k: k * torch.exp(a.clamp(max=0)))),
    "gelu": (lambda a, k: F.gelu(a), _gelu_slope),
    "gelu_tanh": (lambda a, k: F.gelu(a, approximate="tanh"), _gelu_tanh_slope),
    "silu": (lambda a, k: F.silu(a), _silu_slope),
    "softplus": (lambda a, k: F.softplus(a), lambda a, k: torch.sigmoid(a)),
}


def name_of(module: nn.Module) -> str | None:
    """The activation that a module of PyTorch's computes, e.g. "leaky_relu(0.2)"; None: none, or a
    subclass, which may compute something else."""
    plain = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "logistic", nn.SiLU: "silu"}
    if type(module) in plain:
        return plain[type(module)]
    if type(module) is nn.LeakyReLU and module.negative_slope >= 0:
        return f"leaky_relu({module.negative_slope!r})"
    if type(module) is nn.ELU and module.alpha >= 0:
        return f"elu({module.alpha!r})"
    if type(module) is nn.GELU:
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    if type(module) is nn.Softplus and (module.beta, module.threshold) == (1.0, 20.0):
        return "softplus"
    return None
