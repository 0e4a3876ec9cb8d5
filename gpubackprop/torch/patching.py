"""`patch`: a training script runs unchanged on these kernels."""

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
_depth = 0  # number of contexts that are open, in all threads


@contextmanager
def patch() -> Iterator[Patched]:
    """Replace functions, `nn.Linear` and optimizers of PyTorch by these kernels inside the context.

    Modules that were made before are affected too; optimizers that were made before are not. If a
    module brought a name into its own namespace (``from torch.optim import Adam``), the name is
    replaced there as well, and listed. Afterwards it is PyTorch's again, also in modules that were
    imported meanwhile; references that objects, classes and closures hold are not restored. The
    names belong to the process: all threads see the change. If contexts overlap, the last one to
    end restores.

    PyTorch computes what is not offered here (complex numbers, other devices, sparse gradients,
    ...); the list's `left` says so.

    Yields
    ------
    Patched
        The list of names that were replaced.

    Examples
    --------
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
    """Replace the first of each pair by the second, in all modules but PyTorch's and ours."""
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
