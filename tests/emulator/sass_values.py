"""What the code of `sass_code.py` calls: words of 32 bits as numbers, and back."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

M, A = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
_WORD, _SINGLE = struct.Struct("<I"), struct.Struct("<f")
_WORDS, _DOUBLE = struct.Struct("<Q"), struct.Struct("<d")
NAN = 0x7FFFFFFF


def s32(word: int) -> int:
    return word - 0x100000000 if word & 0x80000000 else word


def s64(words: int) -> int:
    return words - (1 << 64) if words >> 63 else words


def f32(word: int) -> float:
    return _SINGLE.unpack(_WORD.pack(word))[0]


def b32(value: float) -> int:
    try:
        return _WORD.unpack(_SINGLE.pack(value))[0]
    except OverflowError:
        return 0x7F800000 if value > 0 else 0xFF800000


def f64(low: int, high: int) -> float:
    return _DOUBLE.unpack(_WORDS.pack(low | high << 32))[0]


def b64(value: float) -> int:
    return _WORDS.unpack(_DOUBLE.pack(value))[0]


def half(word: int) -> float:
    return float(np.uint16(word & 0xFFFF).view(np.float16))


def half_bits(value: float) -> int:
    with np.errstate(over="ignore"):
        return int(np.float32(value).astype(np.float16).view(np.uint16))


def bfloat_bits(value: float) -> int:
    word = b32(value)
    if word & 0x7FFFFFFF > 0x7F800000:
        return 0x7FFF
    return (word + 0x7FFF + (word >> 16 & 1)) >> 16


def bfloat(word: int) -> float:
    return f32((word & 0xFFFF) << 16)


def up(value: int) -> int:
    """Return the float32 at or above an integer."""
    word = b32(float(value))
    return word + 1 if f32(word) < value else word


def reciprocal(x: float) -> float:
    return math.copysign(math.inf, x) if x == 0 else 1 / x


def exp2(x: float) -> float:
    return math.inf if x > 1023 else math.nan if x != x else 2.0**x if x > -1070 else 0.0


def log2(x: float) -> float:
    return -math.inf if x == 0 else math.nan if not x > 0 else math.log2(x) if x < math.inf else x


def rsqrt(x: float) -> float:
    return math.inf if x == 0 else math.nan if not x > 0 else 1 / math.sqrt(x)


def root(x: float) -> float:
    return math.nan if not x >= 0 else math.sqrt(x)


def fused(a: float, b: float, c: float) -> float:
    """DFMA, with a rounding too many."""
    return a * b + c


def high_of(function: Any, high: int) -> int:
    """Return the upper word of the float64 `function` of a number of which that is the upper word."""
    return b64(function(f64(0, high))) >> 32


def truncated(x: float, low: int, high: int) -> int:
    """Return x as an integer, moved to the nearest one in range; NaN is 0."""
    return 0 if x != x else high if x >= high else low if x <= low else int(x)


def needs_slow_division(a: float, b: float) -> bool:
    """FCHK: the quick division of float32 is not exact for such numbers."""
    tiny, huge = 2.0**-126, 2.0**126
    if not tiny <= abs(b) < huge or not abs(a) < huge:
        return True
    return a != 0 and (abs(a) < 2.0**-100 or not 2.0**-124 < abs(a / b) < huge)


def smaller(a: float, b: float, least: bool, nan: bool) -> float:
    """FMNMX: a NaN counts for nothing, or with `nan` for everything."""
    if a != a or b != b:
        return math.nan if nan else b if a != a else a
    if a == b == 0:  # -0 is below +0
        return a if (math.copysign(1, a) < 0) == least else b
    return min(a, b) if least else max(a, b)


def permuted(low: int, selector: int, high: int) -> int:
    """PRMT: four bytes of eight; the fourth bit of a choice repeats the byte's sign."""
    both, result = high << 32 | low, 0
    for place in range(4):
        choice = selector >> 4 * place & 15
        byte = both >> 8 * (choice & 7) & 255
        if choice & 8:
            byte = 255 if byte & 128 else 0
        result |= byte << 8 * place
    return result


NAMES = {name: value for name, value in globals().items() if not name.startswith("_")}
