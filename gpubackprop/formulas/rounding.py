"""Rounding to 16 bits with probabilities in proportion to the distances (stochastic rounding).

The twin of `round_stochastic` in ``kernels/update.cu``: bit for bit the same from the same words.
"""

from __future__ import annotations

import numpy as np

from gpubackprop.formulas.dropout import Philox

Array = np.ndarray
_SMALLEST_NORMAL, _UNIT, _LARGEST = np.float32(2.0**-14), np.float32(2.0**-24), np.float32(65504)


def round_stochastic(x: Array, out: Array, words: Philox) -> None:
    """out = x, up where the random bits exceed what is cut off.

    Exact values stay; infinities and NaN take the rounding to nearest. `x` float32, `out` float16
    or bfloat16, both flat. Takes working memory of a few times the size of x.
    """
    np.copyto(out, x)
    random = words.words()
    if out.dtype == np.float16:
        _to_float16(x, out, random)
        return
    bits = (x.view(np.uint32) + (random & np.uint32(0xFFFF))) >> np.uint32(16)
    np.copyto(out.view(np.uint16), bits, casting="unsafe", where=np.isfinite(x))


def _to_float16(x: Array, out: Array, random: Array) -> None:
    """Below 2^-14 the spacing is 2^-24, above it 2^-10 of the leading power: 13 bits are cut."""
    size = np.abs(x)
    up = (x.view(np.uint32) + (random & np.uint32(0x1FFF))) & np.uint32(0xFFFFE000)
    count = x / _UNIT
    whole = np.floor(count)
    chance = (random >> np.uint32(8)).astype(np.float32) * _UNIT
    small = (whole + (chance < count - whole)) * _UNIT
    rounded = np.where(size < _SMALLEST_NORMAL, small, up.view(np.float32))
    np.copyto(out, rounded, where=size < _LARGEST)
