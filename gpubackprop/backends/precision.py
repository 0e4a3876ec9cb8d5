"""Which precision matrix products have: `precision="auto"`, and TF32 where no card rounds to it."""

from __future__ import annotations

import numpy as np

TF32_SINCE = 80  # Ampere: the first compute capability with TF32, as CuPy writes it
# Of float32's 23 bits of fraction, 10 stay.
_CUT, _HALF, _ONE, _KEPT = np.uint32(13), np.uint32(0x0FFF), np.uint32(1), np.uint32(0xFFFFE000)


def automatic(capability: int | None) -> str:
    """Return the precision that "auto" takes for float32 parameters.

    TF32 keeps float32's storage, range and files, and the tensor cores multiply it. 16 bits save
    memory too, but a training has to be looked at, so they are asked for by name.

    Parameters
    ----------
    capability : int or None
        Compute capability of the card, such as 90; None for a CPU.

    Returns
    -------
    str
        "tf32" or "float32".

    Examples
    --------
    >>> automatic(90), automatic(75), automatic(None)
    ('tf32', 'float32', 'float32')
    """
    return "tf32" if capability is not None and has_tf32(capability) else "float32"


def has_tf32(capability: int) -> bool:
    """Return whether a card of that compute capability, such as 90, multiplies in TF32."""
    return capability >= TF32_SINCE


def round_to_tf32(x: np.ndarray, out: np.ndarray) -> None:
    """Set out = x with 10 bits of fraction, to nearest, ties to even. NaN and infinities stay.

    Parameters
    ----------
    x : array
        Float32 values.
    out : array
        Float32, of the shape of x, without memory of it.

    Examples
    --------
    >>> out = np.empty(2, np.float32)
    >>> round_to_tf32(np.array([1 + 2**-11, 1 + 3 * 2**-11], np.float32), out)
    >>> print((out - 1) * 2**10)
    [0. 2.]
    """
    bits, rounded = x.view(np.uint32), out.view(np.uint32)
    np.right_shift(bits, _CUT, out=rounded)
    rounded &= _ONE
    rounded += _HALF
    rounded += bits
    rounded &= _KEPT
    np.copyto(out, x, where=~np.isfinite(x))
