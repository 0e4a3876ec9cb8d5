"""The visible parts of a value, by path: floating-point numbers become arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Leaves = dict[str, Any]
PLAIN = (int, str, bool, bytes, type(None), complex)
_name_of = functools.lru_cache(1000)(str)  # the name of a dtype


def leaves_of(value: Any, special: Callable[[Any, str], Leaves | None], path: str = "") -> Leaves:
    """Take `value` apart: containers by item, arrays by type, dtype, shape and numbers."""
    if type(value) in PLAIN:
        return {path: value}
    own = None if isinstance(value, (np.ndarray, np.generic)) else special(value, path)
    if own is not None:
        return own
    if isinstance(value, Mapping):
        kinds: Leaves = {f"{path}.keys": [str(key) for key in value]}
        for key, item in value.items():
            kinds |= leaves_of(item, special, f"{path}[{key!r}]")
        return kinds
    if isinstance(value, (list, tuple)):
        kinds = {f"{path}.type": type(value).__name__, f"{path}.len": len(value)}
        for index, item in enumerate(value):
            kinds |= leaves_of(item, special, f"{path}[{index}]")
        return kinds
    if isinstance(value, (np.ndarray, np.generic)):
        kinds = {f"{path}.type": type(value).__name__, f"{path}.dtype": _name_of(value.dtype)}
        if value.dtype.kind == "f":
            return kinds | {path: np.array(value)}
        return kinds | {path: value.tolist()}
    if isinstance(value, float):
        return {f"{path}.type": "float", path: np.array(value)}
    if isinstance(value, PLAIN):
        return {path: value}
    return {f"{path}.type": type(value).__name__}
