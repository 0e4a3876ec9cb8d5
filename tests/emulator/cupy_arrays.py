"""More of CuPy for the benchmarks: array expressions, events, pools, on the stand-in's arrays.

The CUDA backend needs none of this and must not use it: `cupy_stub` alone has what it may use. Here
expressions are computed on the host at once. During a capture they raise, as allocating does there.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from tests.emulator import cupy_stub
from tests.emulator.cupy_stub import STATE, ndarray

FUNCTIONS = (
    "abs", "arange", "empty", "empty_like", "exp", "full_like", "log", "log1p", "matmul", "maximum",
    "multiply", "ones", "sqrt", "subtract", "sum", "tanh", "where", "zeros", "zeros_like", "divide",
)  # fmt: skip
OPERATORS = ("add", "sub", "mul", "truediv", "pow", "matmul")
COMPARISONS = ("gt", "lt", "ge", "le", "eq", "ne")
METHODS = ("sum", "max", "mean")


def _host(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError(f"Unsupported type {type(value)}")  # CuPy's own words
    if not isinstance(value, ndarray):
        return value
    STATE.not_while_capturing("an expression computes at once here, which needs a wait")
    STATE.run_all()
    return value._host


def _device(value: Any) -> ndarray:
    STATE.not_while_capturing("allocation")
    return ndarray(np.array(value), STATE.device)


def _lifted(function: Any) -> Any:
    def call(*args: Any, out: ndarray | None = None, **options: Any) -> ndarray:
        with np.errstate(all="ignore"):
            result = function(*map(_host, args), **{k: _host(v) for k, v in options.items()})
        if out is None:
            return _device(result)
        assert out.shape == np.shape(result)
        np.copyto(_host(out), result, casting="same_kind")
        return out

    return call


def _swapped(function: Any) -> Any:
    return lambda a, b: function(b, a)


def _in_place(name: str) -> Any:
    function = getattr(operator, f"i{name}")

    def call(self: ndarray, other: Any) -> ndarray:
        function(_host(self), _host(other))
        return self

    return call


def _key(key: Any) -> Any:
    return tuple(map(_host, key)) if isinstance(key, tuple) else _host(key)


def _getitem(self: ndarray, key: Any) -> ndarray:
    part = _host(self)[_key(key)]
    view = isinstance(part, np.ndarray) and np.may_share_memory(part, self._host)
    return self._view(part) if view else _device(part)


def _setitem(self: ndarray, key: Any, value: Any) -> None:
    _host(self)[_key(key)] = _host(value)


def _asarray(array: Any, dtype: Any = None) -> ndarray:
    if isinstance(array, np.ndarray):
        return _device(np.asarray(array, dtype))
    return cupy_stub.asarray(array, dtype)


def _members() -> dict[str, Any]:
    found: dict[str, Any] = {"__getitem__": _getitem, "__setitem__": _setitem, "__hash__": None}
    for name in OPERATORS:
        found[f"__{name}__"] = _lifted(getattr(operator, name))
        found[f"__r{name}__"] = _lifted(_swapped(getattr(operator, name)))
        found[f"__i{name}__"] = _in_place(name)
    for name in COMPARISONS:
        found[f"__{name}__"] = _lifted(getattr(operator, name))
    found["__neg__"] = _lifted(operator.neg)
    for name in METHODS:
        found[name] = _lifted(getattr(np.ndarray, name))
    return found


@contextmanager
def installed() -> Iterator[Any]:
    """Install the stand-in with expressions, events and pools; give the module."""
    members, before = _members(), {}
    for name, member in members.items():
        before[name] = ndarray.__dict__.get(name)
        setattr(ndarray, name, member)
    with cupy_stub.installed():
        cupy = cupy_stub.module()
        saved = dict(vars(cupy)), dict(vars(cupy.cuda))
        for name in FUNCTIONS:
            setattr(cupy, name, _lifted(getattr(np, name)))
        cupy.asarray = _asarray
        cupy.empty = cupy_stub.empty
        cupy.cuda.MemoryPool = lambda: types.SimpleNamespace(malloc=None)
        cupy.cuda.using_allocator = lambda malloc: nullcontext()
        pool = types.SimpleNamespace(free_all_blocks=lambda: None, free_bytes=lambda: 0)
        cupy.get_default_memory_pool = lambda: pool
        cupy_stub.Device.use = lambda self: setattr(STATE, "device", self.id)
        try:
            yield cupy
        finally:
            del cupy_stub.Device.use
            for namespace, values in zip((cupy, cupy.cuda), saved, strict=True):
                vars(namespace).clear()
                vars(namespace).update(values)
            for name, member in before.items():
                if member is None:
                    delattr(ndarray, name)
                else:
                    setattr(ndarray, name, member)
