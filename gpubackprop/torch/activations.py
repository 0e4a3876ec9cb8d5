"""Activations in PyTorch's operators, and the module of PyTorch that computes each.

They are used where PyTorch has to see through an activation (second derivatives, `torch.func`), and
they tell `convert` what it may fuse. The kernels' own formulas are
`gpubackprop.formulas.ACTIVATIONS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)
from torch import Tensor, nn

from gpubackprop.formulas import Activation

Formula = Callable[[Tensor, float], Tensor]


# The value of a, by name. Beyond its threshold softplus returns a itself: 40 is exact in float64,
# where PyTorch's default is 20.
FORMULAS: dict[str, Formula] = {
    "identity": lambda a, k: a,
    "logistic": lambda a, k: torch.sigmoid(a),
    "tanh": lambda a, k: torch.tanh(a),
    "relu": lambda a, k: F.relu(a),
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "gelu": lambda a, k: F.gelu(a),
    "gelu_tanh": lambda a, k: F.gelu(a, approximate="tanh"),
    "silu": lambda a, k: F.silu(a),
    "softplus": lambda a, k: F.softplus(a, threshold=40.0),
    "mish": lambda a, k: F.mish(a),
    "selu": lambda a, k: F.selu(a),
}


def _piecewise(below: Formula) -> Formula:
    """Return a formula that is `below` where h <= 0, and 1 elsewhere, also at NaN."""
    return lambda h, k: torch.where(h <= 0, below(h, k), torch.ones_like(h))


# Slopes as functions of the value, for the activations whose entry says saved == "h".
_SLOPES_OF_VALUES: dict[str, Formula] = {
    "identity": lambda h, k: torch.ones_like(h),
    "logistic": lambda h, k: h * (1 - h),
    "tanh": lambda h, k: 1 - h * h,
    "relu": _piecewise(lambda h, k: torch.zeros_like(h)),
    "leaky_relu": _piecewise(lambda h, k: torch.full_like(h, k)),
}


def slope(formula: Activation, saved: Tensor) -> Tensor:
    """Return g' from the saved value, or from the saved pre-activation by PyTorch's autograd."""
    name, k = formula.name, formula.parameter
    if formula.saved == "h":
        return _SLOPES_OF_VALUES[name](saved, k)
    value, pullback = torch.func.vjp(lambda a: FORMULAS[name](a, k), saved)
    result: Tensor = pullback(torch.ones_like(value))[0]
    return result


_NAMES = {
    nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "logistic", nn.SiLU: "silu", nn.Mish: "mish",
    nn.SELU: "selu",
}  # fmt: skip
_PARAMETERS = {nn.LeakyReLU: ("leaky_relu", "negative_slope"), nn.ELU: ("elu", "alpha")}
MODULES = (*_NAMES, *_PARAMETERS, nn.GELU, nn.Softplus)  # PyTorch's modules of the registry


def name_of(module: nn.Module) -> str | None:
    """Return the activation that a module of PyTorch computes, e.g. "leaky_relu(0.2)".

    None is returned for a module that is no activation, for a subclass, which may compute something
    else, and for an option that the registry does not have.
    """
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
    """Return a number of Python or NumPy as float; NaN for anything else, such as a tensor."""
    return float(value) if isinstance(value, Real) else math.nan
