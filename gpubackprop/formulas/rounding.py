"""Stochastic rounding to 16 bits: the nearer neighbour is the more probable one.

``kernels/include/rounding.cuh`` gives the same bits for the same random words.
"""

from __future__ import annotations

import numpy as np

from gpubackprop.formulas.dropout import Philox

Array = np.ndarray
_SMALLEST_NORMAL, _UNIT, _LARGEST = np.float32(2.0**-14), np.float32(2.0**-24), np.float32(65504)


def round_stochastic(x: Array, out: Array, words: Philox) -> None:
    """out = x, rounded up if the random bits exceed the bits that are cut off.

    Exact values stay; infinities and NaN are rounded to nearest. `x` is float32 and `out` float16
    or bfloat16; both are flat. The call needs working memory of a few times the size of x.
    """
    np.copyto(out, x)
    random = words.words()
    if out.dtype == np.float16:
        _to_float16(x, out, random)
        return
    bits = (x.view(np.uint32) + (random & np.uint32(0xFFFF))) >> np.uint32(16)
    np.copyto(out.view(np.uint16), bits, casting="unsafe", where=np.isfinite(x))


def _to_float16(x: Array, out: Array, random: Array) -> None:
    """Round to float16: its spacing is 2^-24 below 2^-14; above, 13 bits of float32 are cut off."""
    size = np.abs(x)
    up = (x.view(np.uint32) + (random & np.uint32(0x1FFF))) & np.uint32(0xFFFFE000)
    count = x / _UNIT
    whole = np.floor(count)
    chance = (random >> np.uint32(8)).astype(np.float32) * _UNIT
    small = (whole + (chance < count - whole)) * _UNIT
    rounded = np.where(size < _SMALLEST_NORMAL, small, up.view(np.float32))
    np.copyto(out, rounded, where=size < _LARGEST)
