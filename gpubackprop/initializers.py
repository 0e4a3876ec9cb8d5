"""Initial weights and biases, by the names of the field.

``INITIALIZERS[name](generator, W, b, gain)`` fills W (D_out, D_in) and b (D_out,) in place, W
first. It draws float64 numbers from a `numpy.random.Generator`. `gain` is the layer's: see
`gain_of`.

fan_in is D_in and fan_out is D_out.
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
    """Return (fan_in, fan_out), each at least 1."""
    return max(1, W.shape[1]), max(1, W.shape[0])


def glorot_uniform(rng: np.random.Generator, W: Array, b: Array, gain: float) -> None:
    """Draw W ~ U(-r, r) with r = gain sqrt(6 / (fan_in + fan_out)); set b = 0.

    Parameters
    ----------
    rng : Generator
        Source of the random numbers.
    W : (D_out, D_in) float array
        Filled in place.
    b : (D_out,) float array
        Filled in place.
    gain : float
        Factor of the layer; see `gain_of`.

    References
    ----------
    X. Glorot and Y. Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", 2010, equation 16.

    Examples
    --------
    >>> W, b = np.empty((3, 3)), np.empty(3)
    >>> glorot_uniform(np.random.default_rng(0), W, b, 1.0)
    >>> bool(abs(W).max() <= 1.0), b
    (True, array([0., 0., 0.]))
    """
    _uniform(rng, W, gain * math.sqrt(6.0 / sum(_fans(W))))
    b.fill(0)


def glorot_normal(rng: np.random.Generator, W: Array, b: Array, gain: float) -> None:
    """Draw W ~ N(0, gain^2 2 / (fan_in + fan_out)); set b = 0.

    Parameters
    ----------
    rng : Generator
        Source of the random numbers.
    W : (D_out, D_in) float array
        Filled in place.
    b : (D_out,) float array
        Filled in place.
    gain : float
        Factor of the layer; see `gain_of`.

    References
    ----------
    X. Glorot and Y. Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", 2010, equation 12.

    Examples
    --------
    >>> W, b = np.empty((200, 300)), np.empty(200)
    >>> glorot_normal(np.random.default_rng(0), W, b, 1.0)
    >>> round(float(W.std() / (2 / 500) ** 0.5), 2)
    1.0
    """
    W[...] = rng.normal(0.0, gain * math.sqrt(2.0 / sum(_fans(W))), W.shape)
    b.fill(0)


def he_uniform(rng: np.random.Generator, W: Array, b: Array, gain: float) -> None:
    """Draw W ~ U(-r, r) with r = gain sqrt(3 / fan_in); set b = 0.

    Parameters
    ----------
    rng : Generator
        Source of the random numbers.
    W : (D_out, D_in) float array
        Filled in place.
    b : (D_out,) float array
        Filled in place.
    gain : float
        Factor of the layer; see `gain_of`.

    References
    ----------
    K. He, X. Zhang, S. Ren and J. Sun, "Delving deep into rectifiers", 2015, section 2.2.

    Examples
    --------
    >>> W, b = np.empty((2, 3)), np.empty(2)
    >>> he_uniform(np.random.default_rng(0), W, b, 1.0)
    >>> bool(abs(W).max() <= 1.0), b
    (True, array([0., 0.]))
    """
    _uniform(rng, W, gain * math.sqrt(3.0 / _fans(W)[0]))
    b.fill(0)


def he_normal(rng: np.random.Generator, W: Array, b: Array, gain: float) -> None:
    """Draw W ~ N(0, gain^2 / fan_in); set b = 0.

    Parameters
    ----------
    rng : Generator
        Source of the random numbers.
    W : (D_out, D_in) float array
        Filled in place.
    b : (D_out,) float array
        Filled in place.
    gain : float
        Factor of the layer; see `gain_of`.

    References
    ----------
    K. He, X. Zhang, S. Ren and J. Sun, "Delving deep into rectifiers", 2015, section 2.2.

    Examples
    --------
    >>> W, b = np.empty((200, 300)), np.empty(200)
    >>> he_normal(np.random.default_rng(0), W, b, 2**0.5)
    >>> round(float(W.std() / (2 / 300) ** 0.5), 2)
    1.0
    """
    W[...] = rng.normal(0.0, gain / math.sqrt(_fans(W)[0]), W.shape)
    b.fill(0)


def torch_default(rng: np.random.Generator, W: Array, b: Array, gain: float) -> None:
    """Draw W and b ~ U(-r, r) with r = 1 / sqrt(fan_in), as PyTorch's Linear does.

    Parameters
    ----------
    rng : Generator
        Source of the random numbers.
    W : (D_out, D_in) float array
        Filled in place.
    b : (D_out,) float array
        Filled in place.
    gain : float
        Not used.

    References
    ----------
    `torch.nn.Linear`.

    Examples
    --------
    >>> W, b = np.empty((2, 4)), np.empty(2)
    >>> torch_default(np.random.default_rng(0), W, b, 1.0)
    >>> bool(abs(W).max() <= 0.5 and abs(b).max() <= 0.5)
    True
    """
    bound = 1.0 / math.sqrt(_fans(W)[0])
    _uniform(rng, W, bound)
    _uniform(rng, b, bound)


def sklearn_default(rng: np.random.Generator, W: Array, b: Array, gain: float) -> None:
    """Draw W and b ~ U(-r, r) with r = gain sqrt(6 / (fan_in + fan_out)), as scikit-learn does.

    Before a logistic layer scikit-learn has 2 instead of 6; the network passes gain = sqrt(1 / 3)
    there. W is drawn in scikit-learn's order, (D_in, D_out).

    Parameters
    ----------
    rng : Generator
        Source of the random numbers.
    W : (D_out, D_in) float array
        Filled in place.
    b : (D_out,) float array
        Filled in place.
    gain : float
        Factor of the layer; see `gain_of`.

    References
    ----------
    `sklearn.neural_network.MLPClassifier`.

    Examples
    --------
    >>> W, b = np.empty((3, 3)), np.empty(3)
    >>> sklearn_default(np.random.default_rng(0), W, b, 1.0)
    >>> bool(abs(W).max() <= 1.0 and abs(b).max() <= 1.0)
    True
    """
    bound = gain * math.sqrt(6.0 / sum(_fans(W)))
    W[...] = rng.uniform(-bound, bound, W.shape[::-1]).T
    _uniform(rng, b, bound)


def zeros(rng: np.random.Generator, W: Array, b: Array, gain: float) -> None:
    """Set W = 0 and b = 0, for tests and linear models; hidden units would stay equal.

    Parameters
    ----------
    rng : Generator
        Not used.
    W : (D_out, D_in) float array
        Filled in place.
    b : (D_out,) float array
        Filled in place.
    gain : float
        Not used.

    Examples
    --------
    >>> W, b = np.empty((1, 2)), np.empty(1)
    >>> zeros(np.random.default_rng(0), W, b, 1.0)
    >>> W, b
    (array([[0., 0.]]), array([0.]))
    """
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
    """Return the factor on the weights' scale that keeps signals at one scale through `activation`.

    Parameters
    ----------
    activation : Activation
        The activation after the weights.
    initializer : str
        A name of `INITIALIZERS`.

    Returns
    -------
    float
        The activation's own gain for the He initialisers and 1 for Glorot's; for scikit-learn's see
        `sklearn_default`.

    Examples
    --------
    >>> from gpubackprop.formulas import activation
    >>> gain_of(activation("tanh"), "he_normal"), round(gain_of(activation("relu"), "he_normal"), 4)
    (1.0, 1.4142)
    """
    if initializer == "sklearn":
        return math.sqrt(1.0 / 3.0) if activation.name == "logistic" else 1.0
    if not initializer.startswith("he_"):
        return 1.0
    return activation.gain(activation.parameter)
