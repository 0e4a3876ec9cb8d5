"""Hidden activations h = g(a): a value and a slope each, written in place on NumPy blocks.

An entry of ``ACTIVATIONS`` is all that the rest of the package knows of an activation. The CUDA
struct of the same name in ``kernels/activations.cuh`` computes the same.

Every formula is called as ``value(a, out, work, k)`` and ``slope(saved, out, work, k)`` with

* ``a``, ``saved``, ``out``: blocks of one shape, float32 or float64,
* ``work``: three more blocks of that shape, which the formula may overwrite,
* ``k``: the activation's one parameter (0.0 if it has none).

``out`` may be ``a`` itself if ``saved == "h"``: the slope then needs only the value, so the forward
pass overwrites a. The formulas follow IEEE: NaN stays NaN, and overflow gives infinity. The caller
silences the warnings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gpubackprop.formulas.registry import FINDERS, Entry, spelled, with_parameter

Array = np.ndarray
Formula = Callable[[Array, Array, "tuple[Array, ...]", float], None]
Backward = Callable[[Array, Array, Array, "tuple[Array, ...]", float], None]
OnnxFormula = Callable[[Any, str, float], str]  # of `gpubackprop.onnx.graph.Nodes`


def unit_gain(k: float) -> float:
    """1: no factor is known for this activation."""
    return 1.0


def rectifier_gain(k: float) -> float:
    """Return sqrt(2): half of the units are near 0 (He et al. 2015, section 2.2)."""
    return math.sqrt(2.0)


def leaky_gain(k: float) -> float:
    """Return sqrt(2 / (1 + k^2)), where k is the slope below 0 (He et al. 2015, section 2.2)."""
    return math.sqrt(2.0 / (1.0 + k * k))


@dataclass(frozen=True)
class Activation(Entry):
    """A pointwise function g and its derivative.

    Parameters
    ----------
    name : str
        Name in the registry, and of the CUDA struct.
    saved : {"a", "h"}
        What the slope is computed from: "h" is the value g(a), "a" the pre-activation.
    value : callable
        In-place block formula ``value(a, out, work, k)``; see the module's docstring.
    slope : callable
        In-place block formula ``slope(saved, out, work, k)``.
    parameter : float
        The formula's one parameter, e.g. the negative slope; 0.0 if it has none.
    parameter_name : str
        Name of the parameter; "" if the formula has none.
    kinks : bool
        True if the first or second derivative jumps at a = 0. The gradient check steps around it.
    homogeneous : bool
        True if g(c a) = c g(a) for c > 0. The slope at c h is then the slope at h, so that dropout
        may scale h in place.
    backward : callable or None
        ``backward(grad_h, saved, out, work, k)`` computes out = grad_h * slope in fewer passes than
        slope and product; ``out`` may be ``grad_h``. None if there is no shorter way.
    gain : callable
        ``gain(parameter)`` is the factor on the standard deviation of the weights before the
        activation with which signals keep their scale through many layers; 1 if none is known.
    onnx : callable or None
        ``onnx(nodes, a, k)`` adds the value of ``a`` to an ONNX graph and returns its name. None
        cannot be exported.
    torch : str
        Name of the module of torch.nn that computes it, whose parameter has the name
        `parameter_name`; "" if there is none.
    torch_options : tuple of pairs
        Names and values of that module's other options.

    References
    ----------
    K. He, X. Zhang, S. Ren and J. Sun, "Delving deep into rectifiers", 2015 (the gain).

    Examples
    --------
    >>> relu = activation("relu")
    >>> relu.saved, relu.homogeneous, round(relu.gain(relu.parameter), 4)
    ('h', True, 1.4142)
    """

    name: str
    saved: Literal["a", "h"]
    value: Formula
    slope: Formula
    parameter: float = 0.0
    parameter_name: str = ""
    kinks: bool = False
    homogeneous: bool = False
    backward: Backward | None = None
    gain: Callable[[float], float] = unit_gain
    onnx: OnnxFormula | None = None
    torch: str = ""
    torch_options: tuple[tuple[str, Any], ...] = ()

    def __repr__(self) -> str:
        return f"activation({str(self)!r})"

    def __str__(self) -> str:
        return spelled(ACTIVATIONS, self)


def identity_value(a: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = a."""
    if out is not a:
        np.copyto(out, a)


def identity_slope(h: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = 1."""
    out.fill(1.0)


def logistic_value(a: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = 1 / (1 + exp(-a)).

    For a << 0, exp overflows to infinity and the quotient is 0.
    """
    np.negative(a, out)
    np.exp(out, out)
    np.add(out, 1.0, out)
    np.divide(1.0, out, out)


def logistic_slope(h: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = h (1 - h)."""
    np.subtract(1.0, h, out)
    np.multiply(out, h, out)


_TANH_TAIL = 1.5


def tanh_value(a: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = tanh(a); for |a| > 1.5 it is sign(a) (1 - 2 / (1 + exp(2 |a|))).

    The second form is right to half a unit in the last place. NumPy's tanh is sometimes a whole
    unit off there, and the slope 1 - h^2 would then be off by twice its own value.
    """
    tail, far = work[0], _booleans(work[1])
    np.abs(a, tail)
    np.greater(tail, _TANH_TAIL, far)
    if not far.any():
        np.tanh(a, out)
        return
    np.multiply(tail, 2.0, tail)
    np.exp(tail, tail)
    np.add(tail, 1.0, tail)
    np.divide(2.0, tail, tail)
    np.subtract(1.0, tail, tail)
    np.copysign(tail, a, tail)
    np.tanh(a, out)
    np.copyto(out, tail, where=far)


def tanh_slope(h: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = 1 - h h for |h| <= 1/2, and (1 - h) (1 + h) beyond.

    Beyond 1/2 the factor 1 - h is exact. The product h h would lose the last bits there, and near
    |h| = 1 nothing else is left of the slope.
    """
    near, sum_, far = work[0], work[1], _booleans(work[2])
    np.subtract(1.0, h, near)
    np.add(h, 1.0, sum_)
    np.multiply(near, sum_, near)
    np.multiply(h, h, out)
    np.greater(out, 0.25, far)
    np.subtract(1.0, out, out)
    np.copyto(out, near, where=far)


def relu_value(a: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = max(a, 0)."""
    work[0].fill(0.0)
    np.maximum(a, work[0], out=out)  # three times as fast with an array of zeros as with 0.0


def _booleans(work: Array) -> Array:
    """A boolean array of the same shape in the memory of `work`."""
    return work.reshape(-1).view(np.bool_)[: work.size].reshape(work.shape)


def relu_slope(h: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = 0 if h <= 0, else 1.

    The slope at NaN is 1, so that a gradient passes there, as in PyTorch.
    """
    mask = _booleans(work[0])
    np.less_equal(h, 0.0, mask)
    np.logical_not(mask, out)


def relu_backward(g: Array, h: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = 0 if h <= 0, else g.

    A gradient that is not finite ends at h <= 0 too, as in PyTorch. The formula masks the bits of g
    with all ones or all zeros; a masked copy takes ten times as long.
    """
    mask = _booleans(work[0])
    np.less_equal(h, 0.0, mask)
    below = mask.view(np.int8)
    np.subtract(below, 1, below)  # 0 if h <= 0, else -1, which has all bits set
    bits = np.int32 if g.itemsize == 4 else np.int64
    np.bitwise_and(g.view(bits), below, out.view(bits))


def leaky_relu_value(a: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = max(a, 0) + k min(a, 0)."""
    np.maximum(a, 0.0, out=work[0])
    np.minimum(a, 0.0, out=out)
    np.multiply(out, k, out)
    np.add(out, work[0], out)


def leaky_relu_slope(h: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = k + (1 - k) max(sign(h), 0): 1 if h > 0, else k."""
    np.sign(h, out)
    np.maximum(out, 0.0, out=out)
    np.multiply(out, 1.0 - k, out)
    np.add(out, k, out)


# NumPy's float32 exp and expm1 err by two units in the last place. Computed in float64, they are
# rounded once, to half a unit.
_IN_FLOAT64: dict[str, Any] = {"dtype": np.float64, "casting": "same_kind"}


def elu_value(a: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = max(a, 0) + k (exp(min(a, 0)) - 1) (Clevert et al. 2016)."""
    np.minimum(a, 0.0, out=work[0])
    np.expm1(work[0], work[0], **_IN_FLOAT64)
    np.multiply(work[0], k, work[0])
    np.maximum(a, 0.0, out=out)
    np.add(out, work[0], out)


def elu_slope(a: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = 1 if a > 0, else k exp(a).

    The slope could also be had from h, as h + k. That sum keeps no digit of a slope that is smaller
    than the last bit of k.
    """
    above = _booleans(work[0])
    np.greater(a, 0.0, above)
    np.minimum(a, 0.0, out=out)
    np.exp(out, out, **_IN_FLOAT64)
    np.multiply(out, k, out)
    np.copyto(out, 1.0, where=above)


# log(erfc(x) exp(x^2) / (1 - w)) / w as a polynomial in w = x / (2 + x), highest power first. It
# was fitted with mpmath (docs/decisions/2026-11-23-normal-cdf.md). One formula covers the whole
# line, so no masks are needed. The factor w keeps the digits near 0, where a network's units are.
_ERFC_POLYNOMIAL = {
    np.dtype(np.float32): (
        -0.160354740335, 0.519616153668, -0.546667793414, 0.213015533736, -0.159874306828,
        0.0763142460897, 0.190753864355, 0.161595758958, -0.303241351065, -1.25675831797,
    ),
    np.dtype(np.float64): (
        -0.14146454866764167483, 1.437855063178408526, -6.7344902724917299431,
        19.375466009285071145, -38.575474860694800918, 56.793954100117355895,
        -64.409299126914465442, 57.676682801843192178, -41.410655154872290085,
        24.102796464960674029, -11.4159250484121234, 4.385448109649016166, -1.4019121567438161419,
        0.35061491019424719847, -0.045489137287562795769, 0.05174416320315549563,
        0.017454130506490631874, -0.034111461418111699326, -0.07978921270957653932,
        -0.058829371322042789043, 0.055155168499677290255, 0.19331707067730045374,
        0.16143599378184235073, -0.3032374236613312374, -1.2567583341910251622,
    ),
}  # fmt: skip
_SQRT_HALF = math.sqrt(0.5)
_FAR = 40.0  # beyond this x, exp(-x^2) is 0 even in float64; the bound keeps x / (2 + x) finite
_INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)
_SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)
_GELU_CUBIC = 0.044715


def normal_cdf(a: Array, out: Array, work: tuple[Array, ...]) -> None:
    """out = Phi(a) = erfc(-a / sqrt 2) / 2, the distribution function of the normal distribution.

    It overwrites work[0] and work[1]; out must not be a. The left tail keeps its relative accuracy,
    where 1 + erf would cancel.
    """
    x, series = work[0], work[1]
    np.abs(a, x)
    np.multiply(x, _SQRT_HALF, x)
    np.minimum(x, _FAR, out=x)
    np.add(x, 2.0, out)
    np.divide(x, out, out)  # w
    leading, *rest = _ERFC_POLYNOMIAL[a.dtype]
    np.multiply(out, leading, series)
    for coefficient in rest:
        np.add(series, coefficient, series)
        np.multiply(series, out, series)
    np.multiply(a, a, x)
    np.multiply(x, 0.5, x)  # x^2, rounded once: the exponential magnifies its error
    np.subtract(series, x, series)
    np.exp(series, series)
    np.multiply(out, -0.5, out)
    np.add(out, 0.5, out)  # (1 - w) / 2
    np.multiply(series, out, series)  # Phi(-|a|)
    np.sign(a, out)
    np.maximum(out, 0.0, out=out)
    np.subtract(out, series, out)
    np.abs(out, out)


def gelu_value(a: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = a Phi(a) (Hendrycks & Gimpel 2016)."""
    normal_cdf(a, out, work)
    np.multiply(out, a, out)


def gelu_slope(a: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = Phi(a) + a phi(a), where phi(a) = exp(-a^2 / 2) / sqrt(2 pi)."""
    normal_cdf(a, out, work)
    np.multiply(a, a, work[0])
    np.multiply(work[0], -0.5, work[0])
    np.exp(work[0], work[0])
    np.multiply(work[0], _INV_SQRT_2PI, work[0])
    np.multiply(work[0], a, work[0])
    np.add(out, work[0], out)


def _gelu_tanh_argument(a: Array, out: Array, square: Array) -> None:
    """out = 2 y = 2 sqrt(2 / pi) (a + 0.044715 a^3) and square = a^2.

    The argument is doubled because (1 + tanh y) / 2 = logistic(2 y).
    """
    np.multiply(a, a, square)
    np.multiply(square, 2.0 * _GELU_CUBIC * _SQRT_2_OVER_PI, out)
    np.add(out, 2.0 * _SQRT_2_OVER_PI, out)
    np.multiply(out, a, out)


def gelu_tanh_value(a: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = a / (1 + exp(-2 y)) with y = sqrt(2 / pi) (a + 0.044715 a^3).

    This is a (1 + tanh y) / 2, the tanh form of gelu (Hendrycks & Gimpel 2016).
    """
    _gelu_tanh_argument(a, out, work[0])
    np.negative(out, out)
    np.exp(out, out)
    np.add(out, 1.0, out)
    np.divide(a, out, out)


def gelu_tanh_slope(a: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = s + a s (1 - s) 2 sqrt(2 / pi) (1 + 3 * 0.044715 a^2) with s = logistic(2 y).

    The product s (1 - s) is computed as e / (1 + e)^2 with e = exp(-2 |y|), which cancels on
    neither side.
    """
    square, e, right = work[0], work[1], work[2]
    _gelu_tanh_argument(a, out, square)
    np.abs(out, e)
    np.negative(e, e)
    np.exp(e, e)
    np.add(e, 1.0, out)
    np.divide(e, out, e)  # logistic(-2 |y|)
    np.multiply(square, 6.0 * _GELU_CUBIC * _SQRT_2_OVER_PI, square)
    np.add(square, 2.0 * _SQRT_2_OVER_PI, square)
    np.multiply(e, a, right)
    np.divide(right, out, right)  # 0 if a is so large that its square is infinite
    np.multiply(square, right, square)
    np.sign(a, right)
    np.maximum(right, 0.0, out=right)
    np.subtract(right, e, out)
    np.abs(out, out)  # s
    np.add(out, square, out)


def silu_value(a: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = a / (1 + exp(-a)), which is a logistic(a) (Elfwing et al. 2018)."""
    np.negative(a, out)
    np.exp(out, out)
    np.add(out, 1.0, out)
    np.divide(a, out, out)


def silu_slope(a: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = s (1 + a (1 - s)) with s = logistic(a)."""
    logistic_value(a, work[0], work, k)
    np.subtract(1.0, work[0], out)
    np.multiply(out, a, out)
    np.add(out, 1.0, out)
    np.multiply(out, work[0], out)


def softplus_value(a: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = max(a, 0) + log1p(exp(-|a|)), which is log(1 + exp(a)) without overflow."""
    np.abs(a, work[0])
    np.negative(work[0], work[0])
    np.exp(work[0], work[0])
    np.log1p(work[0], work[0])
    np.maximum(a, 0.0, out=out)
    np.add(out, work[0], out)


def softplus_slope(a: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = logistic(a), as 1 / (1 + e) if a > 0, else e / (1 + e), with e = exp(-|a|).

    This is accurate down to subnormal numbers. The slope could also be had from h, as -expm1(-h),
    at the price of one more rounding and of an expm1.
    """
    e, above = work[0], _booleans(work[1])
    np.abs(a, e)
    np.negative(e, e)
    np.exp(e, e)
    np.add(e, 1.0, out)
    np.greater(a, 0.0, above)
    np.copyto(e, 1.0, where=above)
    np.divide(e, out, out)


def mish_value(a: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = a tanh(softplus(a)) (Misra 2020).

    It is computed as a (1 - c) s with s = exp(min(a, 0)), r = exp(-max(a, 0)), c = s (1 + s) r^2 /
    d and d = (s + r)^2 + r^2. This form has few roundings and subtracts no nearly equal numbers.
    """
    s, r, c = work
    np.minimum(a, 0.0, out=s)
    np.exp(s, s, **_IN_FLOAT64)
    np.maximum(a, 0.0, out=r)
    np.negative(r, r)
    np.exp(r, r, **_IN_FLOAT64)
    np.add(s, r, out)
    np.multiply(out, out, out)
    np.multiply(r, r, r)
    np.add(out, r, out)  # d
    np.divide(r, out, r)
    np.add(s, 1.0, c)
    np.multiply(c, s, c)
    np.multiply(c, r, c)
    np.minimum(a, _FAR, out=out)  # beyond it c is 0; the bound keeps a c from inf * 0
    np.multiply(out, c, c)
    np.subtract(a, c, c)
    np.multiply(c, s, out)


def mish_slope(a: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = t + a (1 - t^2) logistic(a) with t = tanh(softplus(a)).

    With e = exp(-|a|), it is computed below 0 as e (1 + a - (a (n + 2 e^2 / d) + e (1 + e)) / d),
    where n = e (e + 2) and d = n + 2, and above 0 as 1 + (4 a e^2 (1 + e) / d - 2 e^2) / d, where d
    = 1 + 2 e (1 + e).
    """
    e, x, d = work
    np.abs(a, e)
    np.negative(e, e)
    np.exp(e, e, **_IN_FLOAT64)
    np.add(e, 2.0, x)
    np.multiply(x, e, x)  # n
    np.add(x, 2.0, d)
    np.multiply(e, e, out)
    np.multiply(out, 2.0, out)
    np.divide(out, d, out)
    np.add(out, x, out)
    np.multiply(out, a, out)
    np.add(e, 1.0, x)
    np.multiply(x, e, x)  # e (1 + e)
    np.add(out, x, out)
    np.divide(out, d, out)
    np.add(a, 1.0, d)
    np.subtract(d, out, out)
    np.multiply(out, e, out)
    np.multiply(x, 2.0, d)
    np.add(d, 1.0, d)
    np.multiply(x, e, x)
    np.multiply(x, 4.0, x)
    np.multiply(x, a, x)
    np.divide(x, d, x)
    np.multiply(e, e, e)
    np.multiply(e, 2.0, e)
    np.subtract(x, e, x)
    np.divide(x, d, x)
    np.add(x, 1.0, x)
    above = _booleans(d)
    np.greater(a, 0.0, above)
    np.copyto(out, x, where=above)


# Klambauer et al. 2017: if the weights have variance 1 / fan_in (gain 1), the units keep mean 0 and
# variance 1.
_SELU_SCALE = 1.0507009873554804934
_SELU_BELOW = 1.7580993408473768600  # scale times alpha


def selu_value(a: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = scale max(a, 0) + scale alpha (exp(min(a, 0)) - 1) (Klambauer et al. 2017)."""
    np.minimum(a, 0.0, out=work[0])
    np.expm1(work[0], work[0], **_IN_FLOAT64)
    np.multiply(work[0], _SELU_BELOW, work[0])
    np.maximum(a, 0.0, out=out)
    np.multiply(out, _SELU_SCALE, out)
    np.add(out, work[0], out)


def selu_slope(a: Array, out: Array, work: tuple[Array, ...], k: float) -> None:
    """out = scale if a > 0, else scale alpha exp(a)."""
    above = _booleans(work[0])
    np.greater(a, 0.0, above)
    np.minimum(a, 0.0, out=out)
    np.exp(out, out, **_IN_FLOAT64)
    np.multiply(out, _SELU_BELOW, out)
    np.copyto(out, _SELU_SCALE, where=above)


# -- in ONNX's operators --------------------------------------------------------------------------
# onnxruntime has no kernel of Elu, Selu, Softplus and Erf for float64. The first three are composed
# there; erf is computed in float32, whose error of 6e-8 the gelu multiplies by abs(a).


def elu_onnx(n: Any, a: str, k: float) -> str:
    """Elu; in float64 max(a, 0) + k (exp(min(a, 0)) - 1)."""
    if n.dtype == np.float32:
        return str(n.op("Elu", a, alpha=k))
    zero = n.number(0.0)
    below = n.op("Sub", n.op("Exp", n.op("Min", a, zero)), n.number(1.0))
    return str(n.op("Add", n.op("Max", a, zero), n.op("Mul", below, n.number(k))))


def selu_onnx(n: Any, a: str, k: float) -> str:
    """Selu; in float64 scale elu(a, alpha)."""
    alpha = _SELU_BELOW / _SELU_SCALE
    if n.dtype == np.float32:
        return str(n.op("Selu", a, alpha=alpha, gamma=_SELU_SCALE))
    return str(n.op("Mul", elu_onnx(n, a, alpha), n.number(_SELU_SCALE)))


def softplus_onnx(n: Any, a: str, k: float) -> str:
    """Softplus; in float64 max(a, 0) + log(1 + exp(-|a|))."""
    if n.dtype == np.float32:
        return str(n.op("Softplus", a))
    e = n.op("Exp", n.op("Neg", n.op("Abs", a)))
    log = n.op("Log", n.op("Add", e, n.number(1.0)))
    return str(n.op("Add", n.op("Max", a, n.number(0.0)), log))


def gelu_onnx(n: Any, a: str, k: float) -> str:
    """a / 2 (1 + erf(a / sqrt(2)))."""
    z = n.op("Mul", a, n.number(math.sqrt(0.5)))
    erf = n.cast(n.op("Erf", n.cast(z, np.float32)), n.dtype)
    return _half_of_one_plus(n, a, erf)


def gelu_tanh_onnx(n: Any, a: str, k: float) -> str:
    """a / 2 (1 + tanh(sqrt(2 / pi) (a + 0.044715 a^3)))."""
    cubic = n.op("Mul", n.op("Mul", n.op("Mul", a, a), a), n.number(0.044715))
    z = n.op("Mul", n.op("Add", a, cubic), n.number(math.sqrt(2.0 / math.pi)))
    return _half_of_one_plus(n, a, n.op("Tanh", z))


def _half_of_one_plus(n: Any, a: str, inner: str) -> str:
    """a / 2 (1 + inner)."""
    return str(n.op("Mul", n.op("Mul", a, n.number(0.5)), n.op("Add", inner, n.number(1.0))))


_ENTRIES = (
    Activation(
        "identity", "h", identity_value, identity_slope, homogeneous=True, torch="Identity",
        onnx=lambda n, a, k: a,
    ),
    Activation(
        "logistic", "h", logistic_value, logistic_slope, torch="Sigmoid",
        onnx=lambda n, a, k: n.op("Sigmoid", a),
    ),
    Activation(
        "tanh", "h", tanh_value, tanh_slope, torch="Tanh", onnx=lambda n, a, k: n.op("Tanh", a)
    ),
    Activation(
        "relu", "h", relu_value, relu_slope, kinks=True, homogeneous=True, backward=relu_backward,
        gain=rectifier_gain, torch="ReLU", onnx=lambda n, a, k: n.op("Relu", a),
    ),
    Activation(
        "leaky_relu", "h", leaky_relu_value, leaky_relu_slope, 0.01, "negative_slope",
        kinks=True, homogeneous=True, gain=leaky_gain, torch="LeakyReLU",
        onnx=lambda n, a, k: n.op("LeakyRelu", a, alpha=k),
    ),
    Activation(
        "elu", "a", elu_value, elu_slope, 1.0, "alpha", kinks=True, gain=rectifier_gain,
        torch="ELU", onnx=elu_onnx,
    ),
    Activation(
        "gelu", "a", gelu_value, gelu_slope, gain=rectifier_gain, torch="GELU",
        torch_options=(("approximate", "none"),), onnx=gelu_onnx,
    ),
    Activation(
        "gelu_tanh", "a", gelu_tanh_value, gelu_tanh_slope, gain=rectifier_gain, torch="GELU",
        torch_options=(("approximate", "tanh"),), onnx=gelu_tanh_onnx,
    ),
    Activation(
        "silu", "a", silu_value, silu_slope, gain=rectifier_gain, torch="SiLU",
        onnx=lambda n, a, k: n.op("Mul", a, n.op("Sigmoid", a)),
    ),
    Activation(
        "softplus", "a", softplus_value, softplus_slope, gain=rectifier_gain, torch="Softplus",
        torch_options=(("beta", 1.0), ("threshold", 20.0)), onnx=softplus_onnx,
    ),
    Activation(
        "mish", "a", mish_value, mish_slope, gain=rectifier_gain, torch="Mish",
        onnx=lambda n, a, k: n.op("Mul", a, n.op("Tanh", softplus_onnx(n, a, k))),
    ),
    Activation(
        "selu", "a", selu_value, selu_slope, kinks=True, torch="SELU", onnx=selu_onnx
    ),
)  # fmt: skip
ACTIVATIONS: dict[str, Activation] = {entry.name: entry for entry in _ENTRIES}


def activation(spec: str | Activation) -> Activation:
    """Return the activation that `spec` names.

    Parameters
    ----------
    spec : str or Activation
        A registry name ("relu"), a name with its parameter ("leaky_relu(0.2)", "elu(0.5)"), or an
        `Activation`, which is returned as it is.

    Returns
    -------
    Activation
        The registry's entry, with the parameter that was given.

    Raises
    ------
    OptionError
        The name is unknown, the activation has no parameter, or the parameter is negative or not
        finite (the slope could then not be computed from the value).

    Examples
    --------
    >>> activation("leaky_relu(0.2)").parameter
    0.2
    """
    if isinstance(spec, Activation):
        return spec
    entry: Activation = with_parameter(ACTIVATIONS, spec, "activation")
    return entry


FINDERS[Activation] = activation
