"""The layers, the output functions and the labels in ONNX's operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gpubackprop.errors import OptionError
from gpubackprop.formulas import Activation
from gpubackprop.onnx.graph import Nodes

Array = np.ndarray
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

    Raises
    ------
    OptionError
        An activation has no formula for ONNX.
    """
    for layer, (weight, bias) in enumerate(zip(W, b, strict=True), 1):
        weight_name = n.constant(weight.astype(n.dtype), f"W{layer}")
        bias_name = n.constant(bias.astype(n.dtype), f"b{layer}")
        x = n.op("Gemm", x, weight_name, bias_name, name=f"a{layer}", transB=1)
        if layer <= len(hidden):
            act = hidden[layer - 1]
            if act.onnx is None:
                raise OptionError(
                    f"the activation {act.name!r} has no formula for ONNX; give it one, as "
                    "its `onnx`"
                )
            x = act.onnx(n, x, act.parameter)
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
