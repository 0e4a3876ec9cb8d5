"""The kind of a Python object in an array of objects: text, a number, missing, or none of these."""

from __future__ import annotations

from decimal import Decimal
from numbers import Real
from typing import Any, Literal

import numpy as np

Kind = Literal["missing", "text", "bytes", "number", "other"]
_MISSING = {"NoneType", "NAType", "NaTType", "MaskedConstant"}  # pandas', NumPy's, by their names


def kind_of(value: Any) -> Kind:
    """Return the kind of one object; NaN is missing.

    >>> [kind_of(v) for v in ("a", b"a", 1, True, None, float("nan"), (1, 2))]
    ['text', 'bytes', 'number', 'number', 'missing', 'missing', 'other']
    """
    if type(value).__name__ in _MISSING:
        return "missing"
    if isinstance(value, str):
        return "text"
    if isinstance(value, bytes):
        return "bytes"
    if isinstance(value, Decimal):
        return "missing" if value.is_nan() else "number"
    if isinstance(value, Real | np.bool_):
        return "missing" if value != value else "number"
    if isinstance(value, np.datetime64 | np.timedelta64) and np.isnat(value):
        return "missing"
    return "other"
