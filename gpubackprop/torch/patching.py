"""`patch`: an unchanged training script on these kernels."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gpubackprop.torch import stand_ins
from gpubackprop.torch.stand_ins import PLACES, Patched

_LOCK = threading.Lock()
_depth = 0  # of contexts that last, in all threads


@contextmanager
def patch() -> Iterator[Patched]:
    """Functions, `nn.Linear` and optimizers of PyTorch are these kernels while this lasts.

    Gives the list of what was replaced. Modules made before are concerned too, optimizers made
    before are not. A name that a module brought into its own namespace (``from torch.optim import
    Adam``) is replaced there as well, and listed; it is PyTorch's again afterwards, in modules
    imported meanwhile too, but not what objects, classes and closures hold. The places are those
    of the process: all threads see them, and of contexts that overlap the last to end restores.

    What is not offered here (complex numbers, other devices, sparse gradients, ...)
    PyTorch computes; the list's `left` says so.

    >>> with patch() as replaced:
    ...     optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    ...     other = torch.optim.Adam([torch.zeros(1, requires_grad=True)], differentiable=True)
    >>> type(optimizer).__mro__[2].__module__
    'gpubackprop.torch.optimizers'
    >>> print("torch.optim.Adam" in replaced, torch.optim.Adam.__module__)
    True torch.optim.adam
    >>> print(replaced.left[0].split(";")[0])
    torch.optim.Adam: left to PyTorch (OptionError: differentiable=True is not offered
    """
    global _depth
    with _LOCK:
        _depth += 1
        try:
            if _depth == 1:
                _replace()
        except BaseException:
            _end()
            raise
    report = stand_ins.report
    try:
        yield report
    finally:
        with _LOCK:
            _end()


def _end() -> None:
    global _depth
    _depth -= 1
    if not _depth:
        _restore()


def _replace() -> None:
    report = stand_ins.report = Patched()
    exchange = []
    for place, name, new in PLACES:
        old = getattr(place, name, None)
        if old is None:  # an older PyTorch
            continue
        label = f"{_label(place)}.{name}"
        report.originals[label] = old
        setattr(place, name, new)
        report.append(label)
        if place is not torch.nn.Linear:
            exchange.append((old, new))
    report += _in_modules(exchange)


def _restore() -> None:
    originals = stand_ins.report.originals
    exchange = []
    for place, name, new in PLACES:
        old = originals.get(f"{_label(place)}.{name}")
        if old is not None:
            setattr(place, name, old)
            exchange.append((new, old))
    _in_modules(exchange)


def _label(place: Any) -> str:
    return "torch.nn.Linear" if place is torch.nn.Linear else str(place.__name__)


def _in_modules(exchange: list[tuple[Any, Any]]) -> list[str]:
    """The first of each pair by the second in all modules outside of PyTorch and this package."""
    by_id = {id(old): new for old, new in exchange}
    found = []
    for label, module in list(sys.modules.items()):
        if label.partition(".")[0] in ("torch", "gpubackprop"):
            continue
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if id(value) in by_id:
                setattr(module, name, by_id[id(value)])
                found.append(f"{label}.{name}")
    return found
