"""Initial weights and biases, by the names of the field.

``INITIALIZERS[name](generator, W, b, gain)`` fills W (D_out, D_in) and b (D_out,) in place, weights
before biases, drawing float64 numbers from a `numpy.random.Generator`. `gain` is the layer's: see
`gain_of`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from gpubackprop.formulas import Activation

Array = np.ndarray
Initializer = Callable[[np.random.Generator, Array, Array, float], None]


def _uniform(rng: np.random.Generator, array: Array, bound: float) -> None:
    array[...] = rng.uniform(-bound, bound, array.shape)


def _fans(W: Array) -> tuple[int, int]:
    """(fan_in, fan_out), at least 1 each."""
    return max(1, W.shape[1]), max(1, W.shape[0])


def glorot_uniform(rng: np.random.Generator, W: Array, b: Array, gain: float) -> None:
    """W ~ U(-r, r), r = gain sqrt(6 / (fan_in + fan_out)); b = 0 (Glorot & Bengio 2010)."""
    _uniform(rng, W, gain * math.sqrt(6.0 / sum(_fans(W))))
    b.fill(0)


def glorot_normal(rng: np.random.Generator, W: Array, b: Array, gain: float) -> None:
    """W ~ N(0, gain^2 2 / (fan_in + fan_out)); b = 0."""
    W[...] = rng.normal(0.0, gain * math.sqrt(2.0 / sum(_fans(W))), W.shape)
    b.fill(0)


def he_uniform(rng: np.random.Generator, W: Array, b: Array, gain: float) -> None:
    """W ~ U(-r, r), r = gain sqrt(3 / fan_in); b = 0 (He et al. 2015)."""
    _uniform(rng, W, gain * math.sqrt(3.0 / _fans(W)[0]))
    b.fill(0)


def he_normal(rng: np.random.Generator, W: Array, b: Array, gain: float) -> None:
    """W ~ N(0, gain^2 / fan_in); b = 0."""
    W[...] = rng.normal(0.0, gain / math.sqrt(_fans(W)[0]), W.shape)
    b.fill(0)


def torch_default(rng: np.random.Generator, W: Array, b: Array, gain: float) -> None:
    """PyTorch's Linear: W, b ~ U(-r, r), r = 1 / sqrt(fan_in); the gain is not used."""
    bound = 1.0 / math.sqrt(_fans(W)[0])
    _uniform(rng, W, bound)
    _uniform(rng, b, bound)


def sklearn_default(rng: np.random.Generator, W: Array, b: Array, gain: float) -> None:
    """scikit-learn's MLP: W, b ~ U(-r, r), r = sqrt(f / (fan_in + fan_out)).

    f = 6, or 2 before a logistic layer, for which the network passes gain = sqrt(1/3). W is drawn
    in scikit-learn's (D_in, D_out) order.
    """
    bound = gain * math.sqrt(6.0 / sum(_fans(W)))
    W[...] = rng.uniform(-bound, bound, W.shape[::-1]).T
    _uniform(rng, b, bound)


def zeros(rng: np.random.Generator, W: Array, b: Array, gain: float) -> None:
    """W = 0, b = 0: for tests and for linear models; hidden units would stay equal."""
    W.fill(0)
    b.fill(0)


INITIALIZERS: dict[str, Initializer] = {
    "glorot_uniform": glorot_uniform,
    "glorot_normal": glorot_normal,
    "he_uniform": he_uniform,
    "he_normal": he_normal,
    "torch": torch_default,
    "sklearn": sklearn_default,
    "zeros": zeros,
}


def gain_of(activation: Activation, initializer: str) -> float:
    """Factor on the standard deviation that keeps signals at one scale through `activation`.

    The activation's own for the He initialisers, 1 for Glorot's; see `sklearn_default` for
    scikit-learn's.
    """
    if initializer == "sklearn":
        return math.sqrt(1.0 / 3.0) if activation.name == "logistic" else 1.0
    if not initializer.startswith("he_"):
        return 1.0
    return activation.gain(activation.parameter)
