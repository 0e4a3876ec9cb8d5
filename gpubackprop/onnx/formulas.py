"""The activations, the output functions and the layers in ONNX's operators.

onnxruntime has no kernel of Elu, Selu, Softplus and Erf for float64. The first three are composed
there; erf is computed in float32, whose error of 6e-8 the gelu multiplies by abs(a).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from gpubackprop.formulas import Activation
from gpubackprop.onnx.graph import Nodes

Array = np.ndarray
Formula = Callable[[Nodes, str, float], str]
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934, 1.6732632423543772848


def _single(n: Nodes) -> bool:
    return n.dtype == np.float32


def _elu(n: Nodes, a: str, k: float) -> str:
    """max(a, 0) + k (exp(min(a, 0)) - 1)."""
    if _single(n):
        return n.op("Elu", a, alpha=k)
    zero = n.number(0.0)
    below = n.op("Sub", n.op("Exp", n.op("Min", a, zero)), n.number(1.0))
    return n.op("Add", n.op("Max", a, zero), n.op("Mul", below, n.number(k)))


def _selu(n: Nodes, a: str, k: float) -> str:
    if _single(n):
        return n.op("Selu", a, alpha=_SELU_ALPHA, gamma=_SELU_SCALE)
    return n.op("Mul", _elu(n, a, _SELU_ALPHA), n.number(_SELU_SCALE))


def _softplus(n: Nodes, a: str, k: float) -> str:
    """max(a, 0) + log(1 + exp(-|a|))."""
    if _single(n):
        return n.op("Softplus", a)
    e = n.op("Exp", n.op("Neg", n.op("Abs", a)))
    log = n.op("Log", n.op("Add", e, n.number(1.0)))
    return n.op("Add", n.op("Max", a, n.number(0.0)), log)


def _half_of_one_plus(n: Nodes, a: str, inner: str) -> str:
    """a / 2 (1 + inner)."""
    return n.op("Mul", n.op("Mul", a, n.number(0.5)), n.op("Add", inner, n.number(1.0)))


def _gelu(n: Nodes, a: str, k: float) -> str:
    """a / 2 (1 + erf(a / sqrt(2)))."""
    z = n.op("Mul", a, n.number(math.sqrt(0.5)))
    if _single(n):
        return _half_of_one_plus(n, a, n.op("Erf", z))
    erf = n.op("Erf", n.cast(z, np.float32))
    return _half_of_one_plus(n, a, n.cast(erf, n.dtype))


def _gelu_tanh(n: Nodes, a: str, k: float) -> str:
    """a / 2 (1 + tanh(sqrt(2 / pi) (a + 0.044715 a^3)))."""
    cubic = n.op("Mul", n.op("Mul", n.op("Mul", a, a), a), n.number(0.044715))
    z = n.op("Mul", n.op("Add", a, cubic), n.number(math.sqrt(2 / math.pi)))
    return _half_of_one_plus(n, a, n.op("Tanh", z))


ACTIVATIONS: dict[str, Formula] = {
    "identity": lambda n, a, k: a,
    "logistic": lambda n, a, k: n.op("Sigmoid", a),
    "tanh": lambda n, a, k: n.op("Tanh", a),
    "relu": lambda n, a, k: n.op("Relu", a),
    "leaky_relu": lambda n, a, k: n.op("LeakyRelu", a, alpha=k),
    "elu": _elu,
    "selu": _selu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": lambda n, a, k: n.op("Mul", a, n.op("Sigmoid", a)),
    "softplus": _softplus,
    "mish": lambda n, a, k: n.op("Mul", a, n.op("Tanh", _softplus(n, a, k))),
}
OUTPUTS: dict[str, Callable[[Nodes, str], str]] = {
    "linear": lambda n, a: a,
    "softmax": lambda n, a: n.op("Softmax", a, axis=-1),
    "logistic": lambda n, a: n.op("Sigmoid", a),
    "exp": lambda n, a: n.op("Exp", a),
}


def forward(
    n: Nodes,
    x: str,
    W: Sequence[Array],
    b: Sequence[Array],
    hidden: Sequence[Activation],
    output: str,
) -> str:
    """Add the forward pass; return the name of yhat (N, K).

    Parameters
    ----------
    n : Nodes
        The graph.
    x : str
        Name of the inputs (N, D_0), in the float type of the graph.
    W : sequence of (D_l, D_{l-1}) arrays
        Weights of each layer.
    b : sequence of (D_l,) arrays
        Biases of each layer.
    hidden : sequence of Activation
        The activation of each hidden layer.
    output : str
        Name of the output function.
    """
    for layer, (weight, bias) in enumerate(zip(W, b, strict=True), 1):
        weight_name = n.constant(weight.astype(n.dtype), f"W{layer}")
        bias_name = n.constant(bias.astype(n.dtype), f"b{layer}")
        x = n.op("Gemm", x, weight_name, bias_name, name=f"a{layer}", transB=1)
        if layer <= len(hidden):
            act = hidden[layer - 1]
            x = ACTIVATIONS[act.name](n, x, act.parameter)
    return OUTPUTS[output](n, x)


def labels(n: Nodes, yhat: str, classes: Array, *, one_unit: bool) -> str:
    """Add the most probable class of each row; return its name, (N,).

    Parameters
    ----------
    n : Nodes
        The graph.
    yhat : str
        Probabilities (N, K), or (N, 1) of the second of two classes.
    classes : (K,) array
        Labels; see `as_labels`.
    one_unit : bool
        Whether yhat is (N, 1).
    """
    if one_unit:
        column = n.op("Reshape", yhat, n.constant(np.array([-1], np.int64)))
        index = n.cast(n.op("Greater", column, n.number(0.5)), np.int64)
    else:
        index = n.op("ArgMax", yhat, axis=1, keepdims=0)
    return n.op("Gather", n.constant(classes, "classes"), index)


def indicators(n: Nodes, yhat: str) -> str:
    """Add 1 where a label's probability is above 1/2; return the name, (N, K) of int64."""
    return n.cast(n.op("Greater", yhat, n.number(0.5)), np.int64)


def as_labels(classes: Array) -> Array:
    """Return labels in a type that ONNX has: booleans, int64, float64, or text."""
    kind = classes.dtype.kind
    if kind == "O":
        classes = np.array(classes.tolist())
        kind = classes.dtype.kind
    if kind == "b":
        return classes
    if kind in "iu" and int(classes.max()) < 2**63:
        return classes.astype(np.int64)
    if kind == "f":
        return classes.astype(np.float64)
    texts = [c.decode() if isinstance(c, bytes) else str(c) for c in classes.tolist()]
    if kind in "Mm":
        texts = [str(c) for c in classes]
    return np.array(texts, dtype=object)
