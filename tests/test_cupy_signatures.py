"""What the stand-in for CuPy offers, real CuPy has, with the same parameters in the same order.

`make signatures` runs this with CuPy beside; elsewhere it is skipped where CuPy is not installed. CuPy
imports without a GPU. Its compiled functions carry their signature in the first line of their
docstring.
"""

from __future__ import annotations

import importlib
import inspect
import re
import types
from collections.abc import Iterator
from typing import Any

import pytest

from tests.emulator import cupy_stub

# CuPy's takes a shape and a pointer; here it is made of an array of the host, by tests alone.
OWN = {"ndarray"}
DUNDERS = {"__call__", "__len__", "__float__", "__bool__", "__getitem__", "__enter__", "__exit__"}
# The libraries themselves must be there for these.
NEED_LIBRARIES = {"cuda.cublas.gemmEx"}


def members(name: str, thing: Any) -> Iterator[tuple[str, Any]]:
    """Every public function and method below `thing`, by its dotted name in CuPy."""
    for key, value in vars(thing).items():
        dotted = f"{name}.{key}".lstrip(".")
        if key.startswith("_") and key not in DUNDERS:
            continue
        if isinstance(value, types.SimpleNamespace):
            yield from members(dotted, value)
        elif isinstance(value, type) and not issubclass(value, BaseException):
            if dotted not in OWN:
                yield dotted, value
            yield from members(dotted, value)
        else:
            yield dotted, value


OFFERED = dict(members("", cupy_stub.module()))


@pytest.fixture(scope="module")
def cupy() -> Any:
    pytest.importorskip("cupy", reason="CuPy is not installed; make signatures runs this")
    return importlib.import_module("cupy")


def parameters_of_cupys(function: Any) -> list[str] | None:
    """Names in order; None where nothing tells them."""
    try:
        return [p.name for p in inspect.signature(function).parameters.values()]
    except (ValueError, TypeError):
        pass
    lines = (function.__doc__ or "").splitlines()
    found = re.search(r"\((.*)\)", " ".join(lines[:2]))
    if not found:
        return None
    names = []
    for part in found[1].split(","):
        declared = part.split("=")[0].split(":")[0].replace("\\", "").strip()
        if declared:
            names.append(declared.split()[-1].lstrip("*"))
    return names


@pytest.mark.parametrize("name", sorted(set(OFFERED) - NEED_LIBRARIES))
def test_cupy_has_what_the_stand_in_offers_with_the_same_parameters(name, cupy):
    if name.startswith("cuda.nccl"):
        pytest.importorskip(
            "cupy_backends.cuda.libs.nccl", reason="libnccl is not installed", exc_type=ImportError
        )
    real = cupy
    for part in name.split("."):
        assert hasattr(real, part), f"CuPy has no {name}"
        real = getattr(real, part)
    mine = OFFERED[name]
    if not callable(mine) or (isinstance(mine, type) and issubclass(mine, BaseException)):
        return
    theirs = parameters_of_cupys(real)
    if theirs is None or name.endswith(("__getitem__", "__len__", "__float__", "__bool__")):
        return
    own = [
        p
        for p in inspect.signature(mine).parameters.values()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name != "self"
    ]
    theirs = [parameter for parameter in theirs if parameter != "self"]
    missing = [p.name for p in own if p.name not in theirs and not _positional_only(name)]
    assert not missing, f"CuPy's {name}({', '.join(theirs)}) has no {missing}"
    common = [p.name for p in own if p.kind is not p.KEYWORD_ONLY and p.name in theirs]
    assert common == [parameter for parameter in theirs if parameter in common], (
        f"CuPy's {name} has them in another order: {theirs}"
    )


def _positional_only(name: str) -> bool:
    """Arguments that nobody names in a call: their names may differ."""
    return name.startswith(("matmul", "may_share_memory", "asarray", "from_dlpack"))
