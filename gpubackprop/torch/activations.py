"""Activations in PyTorch's operators: value, slope, and which module each is.

They stand in where PyTorch has to see through an activation (second derivatives, `torch.func`) and
tell `convert` what it may fuse. The kernels' own formulas are `gpubackprop.formulas.ACTIVATIONS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

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


_NAMES = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "logistic", nn.SiLU: "silu"}
_PARAMETERS = {nn.LeakyReLU: ("leaky_relu", "negative_slope"), nn.ELU: ("elu", "alpha")}
MODULES = (*_NAMES, *_PARAMETERS, nn.GELU, nn.Softplus)  # of PyTorch, that the registry has


def name_of(module: nn.Module) -> str | None:
    """The activation that a module of PyTorch's computes, e.g. "leaky_relu(0.2)"; None: none, or a
    subclass, which may compute something else, or an option that the registry does not have."""
    kind = type(module)
    if kind in _NAMES:
        return _NAMES[kind]
    if kind in _PARAMETERS:
        name, option = _PARAMETERS[kind]
        parameter = _number(getattr(module, option))
        return f"{name}({parameter!r})" if 0 <= parameter < math.inf else None
    if kind is nn.GELU:
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(str(module.approximate))
    if kind is nn.Softplus:
        options = _number(module.beta), _number(module.threshold)
        return "softplus" if options == (1.0, 20.0) else None
    return None


def _number(value: Any) -> float:
    """A number of Python's or NumPy's; NaN for anything else, such as a tensor."""
    return float(value) if isinstance(value, Real) else math.nan
