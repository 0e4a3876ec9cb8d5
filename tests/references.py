"""References from outside the package: PyTorch's functions and its autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)

from gpubackprop.dtypes import STORAGES
from gpubackprop.formulas import pointwise_loss
from tests import ways

Array = np.ndarray
torch.set_num_threads(1)  # the tests run side by side
TORCH_DTYPE = {name: getattr(torch, name) for name in STORAGES}


def tensor(array: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return a tensor with a copy of `array`; bfloat16 passes through float32, exactly."""
    array = np.asarray(array)
    if array.dtype.name == "bfloat16":
        return tensor(array.astype(np.float32), dtype or torch.bfloat16)
    result = torch.from_numpy(np.array(array, order="C", copy=True))
    return result if dtype is None else result.to(dtype)


def numpy(result: torch.Tensor) -> Array:
    """Return an ndarray; bfloat16 becomes float32, exactly."""
    result = result.detach()
    return (result.float() if result.dtype == torch.bfloat16 else result).numpy()


# torch.nn.functional.softplus switches to the identity above 20, an error of 1e-10 in float64.
ACTIVATIONS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "identity": lambda a, k: a * 1.0,
    "logistic": lambda a, k: torch.sigmoid(a),
    "tanh": lambda a, k: torch.tanh(a),
    "relu": lambda a, k: F.relu(a),
    "leaky_relu": lambda a, k: F.leaky_relu(a, k),
    "elu": lambda a, k: F.elu(a, k),
    "gelu": lambda a, k: F.gelu(a),
    "gelu_tanh": lambda a, k: F.gelu(a, approximate="tanh"),
    "silu": lambda a, k: F.silu(a),
    "softplus": lambda a, k: -F.logsigmoid(-a),
    "mish": lambda a, k: F.mish(a),
    "selu": lambda a, k: F.selu(a),
}


def _gelu_tanh(a: torch.Tensor, k: float) -> torch.Tensor:
    # exp(logsigmoid) and not sigmoid: its derivative is s * sigmoid(-y), without 1 - s.
    return a * torch.exp(F.logsigmoid(2 * math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))


def _mish(a: torch.Tensor, k: float) -> torch.Tensor:
    # tanh(log(1 + u)) by its definition, with u or 1 / u, whichever is small.
    s, r = torch.exp(a.clamp(max=0)), torch.exp(-a.clamp(min=0))
    return a * (s * s + 2 * s * r) / (s * s + 2 * s * r + 2 * r * r)


# PyTorch's gelus cancel in the left tail, and gelu_tanh's slope is 4e-15 off near 3 too, so they are
# no oracle. The slope of mish is 4e-15 off near 2, where 1 - tanh^2 cancels.
EXACT = {
    "gelu": lambda a, k: 0.5 * a * torch.erfc(-math.sqrt(0.5) * a),
    "gelu_tanh": _gelu_tanh,
    "mish": _mish,
}


def _gelu_by_mpmath(x: Any, k: float) -> tuple[Any, Any]:
    cdf = mpmath.mpf(x > 0) if abs(x) > 1e3 else mpmath.ncdf(x)
    return x * cdf, cdf + x * mpmath.npdf(x)


def _gelu_tanh_by_mpmath(x: Any, k: float) -> tuple[Any, Any]:
    root, cubic = 2 * mpmath.sqrt(2 / mpmath.pi), mpmath.mpf("0.044715")
    y, bend = root * (x + cubic * x**3), root * (1 + 3 * cubic * x**2)
    s = _logistic(y)
    return x * s, s + x * s * _logistic(-y) * bend


def _mish_by_mpmath(x: Any, k: float) -> tuple[Any, Any]:
    t = mpmath.tanh(_softplus(x))
    return x * t, t + x * mpmath.sech(_softplus(x)) ** 2 * _logistic(x)


def _selu_by_mpmath(x: Any, k: float) -> tuple[Any, Any]:
    scale, alpha = mpmath.mpf("1.0507009873554804934"), mpmath.mpf("1.6732632423543772848")
    if x > 0:
        return scale * x, scale
    return scale * alpha * mpmath.expm1(x), scale * alpha * mpmath.exp(x)


def _logistic(x: Any) -> Any:
    return 1 / (1 + mpmath.exp(-x))


def _softplus(x: Any) -> Any:
    return max(x, mpmath.mpf(0)) + mpmath.log1p(mpmath.exp(-abs(x)))


# Value and slope at a number with many digits.
BY_MPMATH: dict[str, Callable[[Any, float], tuple[Any, Any]]] = {
    "identity": lambda x, k: (x, 1),
    "logistic": lambda x, k: (_logistic(x), _logistic(x) * _logistic(-x)),
    "tanh": lambda x, k: (mpmath.tanh(x), mpmath.sech(x) ** 2),
    "relu": lambda x, k: (x, 1) if x > 0 else (0, 0),
    "leaky_relu": lambda x, k: (x, 1) if x > 0 else (k * x, k),
    "elu": lambda x, k: (x, 1) if x > 0 else (k * mpmath.expm1(x), k * mpmath.exp(x)),
    "gelu": _gelu_by_mpmath,
    "gelu_tanh": _gelu_tanh_by_mpmath,
    "silu": lambda x, k: (x * _logistic(x), _logistic(x) * (1 + x * _logistic(-x))),
    "softplus": lambda x, k: (_softplus(x), _logistic(x)),
    "mish": _mish_by_mpmath,
    "selu": _selu_by_mpmath,
}


@dataclass(frozen=True)
class Shortfall:
    """How far float32 falls short of "no worse than PyTorch, or one unit", for the activations that do.

    NumPy's float32 exp errs by up to 2.4 units in the last place, tanh by 1.4, log1p and expm1 by
    2.2; PyTorch's by 0.6 (measured, AVX-512). A slope that passes 0 (silu, mish, the gelus)
    magnifies that. The emulator's libm stands for the card's: it errs by a unit where PyTorch's
    vectors err by half.

    Attributes
    ----------
    numpy : float
        Largest error of the NumPy way over the whole range, in multiples of what the rule allows.
    emulated : float
        The same for the emulated way.
    float64 : float
        The same in float64.
    native : float or None
        The same for the native way, if it is not NumPy's figure: its float32 exp errs by up to 0.9.
    numpy_draw : pair of float
        Largest errors of (value, slope) in draws of 20,000, in units of `tolerances`, rounded up.
    emulated_draw : pair of float
        The same for the emulated way.
    """

    numpy: float = 1.0
    emulated: float = 1.0
    float64: float = 1.0
    native: float | None = None
    numpy_draw: tuple[float, float] = (1.0, 1.0)
    emulated_draw: tuple[float, float] = (1.0, 1.0)


SHORTFALLS = {
    "logistic": Shortfall(2.0, 1.2, 1.4, numpy_draw=(1.4, 1.5)),
    "tanh": Shortfall(2.0, 1.2, 2.5, numpy_draw=(1.1, 1.3)),
    "elu": Shortfall(1.2, 1.2, numpy_draw=(1.5, 1.0), emulated_draw=(1.2, 1.0)),
    # 1.1 beside PyTorch's own gelu (4.2 units near 0); with AVX-512 it takes oneDNN's (1.0 there).
    "gelu": Shortfall(1.7, 1.3, 1.7, native=1.3, numpy_draw=(1.9, 1.0), emulated_draw=(1.6, 1.0)),
    "gelu_tanh": Shortfall(2.0, 1.5, 1.3, numpy_draw=(1.6, 2.0), emulated_draw=(1.3, 1.3)),
    "silu": Shortfall(2.0, 1.8, 2.0, numpy_draw=(1.5, 2.1), emulated_draw=(1.1, 1.1)),
    "softplus": Shortfall(2.0, 1.1, 1.2, numpy_draw=(1.4, 1.3)),
    "mish": Shortfall(2.0, 2.0, 1.8, numpy_draw=(1.6, 1.9), emulated_draw=(1.6, 1.9)),
    "selu": Shortfall(native=1.04),  # 1.03 in one window: exp, then a product
}


def activation_by_mpmath(name: str, a: float, k: float) -> tuple[float, float]:
    """Return (g(a), g'(a)), computed with 50 digits."""
    with mpmath.workdps(50):
        value, slope = BY_MPMATH[name](mpmath.mpf(a), k)
        return float(value), float(slope)


def activation(name: str, a: Array, k: float) -> tuple[Array, Array]:
    """Return (g(a), g'(a)) by PyTorch's function of that name in the dtype of a."""
    return _value_and_slope(ACTIVATIONS[name], a, k)


def activation_oracle(name: str, a: Array, k: float) -> tuple[Array, Array]:
    """Return (g(a), g'(a)) by PyTorch in float64."""
    return _value_and_slope(EXACT.get(name, ACTIVATIONS[name]), a.astype(np.float64), k)


def _value_and_slope(
    function: Callable[[torch.Tensor, float], torch.Tensor], a: Array, k: float
) -> tuple[Array, Array]:
    at = tensor(a).requires_grad_()
    h = function(at, k)
    (slope,) = torch.autograd.grad(h, at, torch.ones_like(h))
    return numpy(h), numpy(slope)


def cross_entropy(
    logits: Array,
    targets: Array,
    *,
    dtype: str = "float64",
    class_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    upstream: Any = 1.0,
) -> tuple[Array, Array]:
    """Return (loss, gradient wrt the logits) by torch.nn.functional.cross_entropy and autograd.

    PyTorch lacks sample weights and z-loss, so they are PyTorch expressions around it. The logits
    of ignored rows are replaced by zeros first: PyTorch's gradient of a NaN there is NaN.
    """
    kind = TORCH_DTYPE[dtype]
    leaf = tensor(logits, kind).requires_grad_()
    indices = targets.ndim == 1
    t = tensor(targets.astype(np.int64)) if indices else tensor(targets, kind)
    counted = torch.ones(len(leaf), dtype=torch.bool)
    if ignore_index is not None:
        counted = t != ignore_index
    z = torch.where(counted[:, None], leaf, 0.0)
    weight = None if class_weight is None else tensor(class_weight, kind)
    options = {
        "weight": weight,
        "label_smoothing": label_smoothing,
        "ignore_index": -100 if ignore_index is None else ignore_index,
    }
    if sample_weight is None and not z_loss:
        loss = F.cross_entropy(z, t, reduction=reduction, **options)
    else:
        row = F.cross_entropy(z, t, reduction="none", **options)
        row = row + z_loss * torch.where(counted, torch.logsumexp(z, 1) ** 2, 0.0)
        share = (
            torch.ones(len(z), dtype=kind) if sample_weight is None else tensor(sample_weight, kind)
        )
        loss = row * share
        share = torch.where(counted, share, 0.0)
        if weight is not None and indices:
            share = share * weight[torch.where(counted, t, 0)]
        if reduction != "none":
            loss = loss.sum() / (share.sum() if reduction == "mean" else 1.0)
    up = torch.as_tensor(np.asarray(upstream), dtype=kind)
    loss.backward(up.expand_as(loss))
    return numpy(loss), numpy(leaf.grad)


# Functions of pre-activations, targets and the loss's parameter.
POINTWISE: dict[str, Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]] = {
    "squared_error": lambda a, t, k: 0.5 * F.mse_loss(a, t, reduction="none"),
    "binary_cross_entropy": lambda a, t, k: F.binary_cross_entropy_with_logits(
        a, t, reduction="none"
    ),
    "poisson": lambda a, t, k: F.poisson_nll_loss(a, t, log_input=True, reduction="none"),
    "huber": lambda a, t, k: F.huber_loss(a, t, delta=k, reduction="none"),
}


# Every pointwise loss; if it has a parameter, also with another value of it.
POINTWISE_SPECS = (
    *POINTWISE,
    *(f"{name}(0.4)" for name in POINTWISE if pointwise_loss(name).parameter_name),
)


def targets(name: str, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return targets that the pointwise loss of that name takes: any numbers, 0 to 1, or counts."""
    domain = pointwise_loss(name).target_domain
    if domain == "unit":
        return rng.integers(0, 2, shape) * 1.0
    return rng.poisson(3, shape) * 1.0 if domain == "nonnegative" else rng.normal(0, 2, shape)


def pointwise(
    name: str,
    a: Array,
    targets: Array,
    *,
    dtype: str = "float64",
    sample_weight: Array | None = None,
    reduction: str = "mean",
) -> tuple[Array, Array]:
    """Return (loss, gradient wrt a) by PyTorch's loss of that name, maybe with a parameter."""
    kind, formula = TORCH_DTYPE[dtype], pointwise_loss(name)
    leaf, t = tensor(a, kind).requires_grad_(), tensor(targets, kind)
    row = POINTWISE[formula.name](leaf, t, formula.parameter).sum(1)
    weight = (
        torch.ones(len(leaf), dtype=kind) if sample_weight is None else tensor(sample_weight, kind)
    )
    loss = row * weight
    if reduction != "none":
        divisor = {"sum": 1.0, "mean": weight.sum(), "elementwise_mean": weight.sum() * a.shape[1]}
        loss = loss.sum() / divisor[reduction]
    loss.backward(torch.ones_like(loss))
    return numpy(loss), numpy(leaf.grad)


def network_loss(
    output: str, logits: torch.Tensor, targets: Array, weight: Array | None = None
) -> torch.Tensor:
    """Return the mean over rows of the loss that belongs to an output function, by PyTorch."""
    kind = logits.dtype
    if output == "softmax":
        t = tensor(targets.astype(np.int64)) if targets.ndim == 1 else tensor(targets, kind)
        row = F.cross_entropy(logits, t, reduction="none")
    else:
        name = {"linear": "squared_error", "logistic": "binary_cross_entropy", "exp": "poisson"}
        row = POINTWISE[name[output]](logits, tensor(targets, kind), 0.0).sum(1)
    share = torch.ones(len(row), dtype=kind) if weight is None else tensor(weight, kind)
    return (row * share).sum() / share.sum()


def network_gradients(
    network: Any, x: Array, targets: Array, *, dtype: str = "float64", weight: Array | None = None
) -> dict[str, Any]:
    """Return loss and gradients wrt logits, hidden units, pre-activations, W and b, by retain_grad."""
    kind = TORCH_DTYPE[dtype]
    W = [tensor(array, kind).requires_grad_() for array in ways.host(network.W)]
    b = [tensor(array, kind).requires_grad_() for array in ways.host(network.b)]
    h, a_all, h_all = tensor(x, kind), [], []
    for layer, act in enumerate([*network.activations, None]):
        a = F.linear(h, W[layer], b[layer])
        a.retain_grad()
        a_all.append(a)
        if act is not None:
            h = ACTIVATIONS[act.name](a, act.parameter)
            h.retain_grad()
            h_all.append(h)
    loss = network_loss(network.output, a_all[-1], targets, weight)
    loss.backward()
    grads = {"hidden": h_all, "pre_activation": a_all, "W": W, "b": b}
    result: dict[str, Any] = {
        key: [numpy(t.grad) for t in tensors] for key, tensors in grads.items()
    }
    yhat = {
        "softmax": lambda a: torch.softmax(a, 1), "linear": lambda a: a,
        "logistic": torch.sigmoid, "exp": torch.exp,
    }[network.output](a_all[-1])  # fmt: skip
    return result | {
        "a": [numpy(a) for a in a_all],
        "h": [numpy(h) for h in h_all],
        "yhat": numpy(yhat),
        "loss": numpy(loss),
        "output": numpy(a_all[-1].grad),
        "logits": numpy(a_all[-1]),
    }
