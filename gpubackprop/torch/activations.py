"""Activations in PyTorch's operators, and the module of PyTorch that computes each.

They are used where PyTorch has to see through an activation (second derivatives, `torch.func`). The
kernels' own formulas, and the names of PyTorch's modules, are in
`gpubackprop.formulas.ACTIVATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)
from torch import Tensor, nn

from gpubackprop import torch_modules
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


_NAMES = torch_modules.module_names(nn)
MODULES = tuple(kind for kind in _NAMES if kind is not nn.Identity)  # that `convert` may fuse


def name_of(module: nn.Module) -> str | None:
    """Return the activation that a module of PyTorch computes; see `torch_modules.name_of`."""
    return torch_modules.name_of(module, _NAMES)
