"""`patch`: an unchanged training script on these kernels."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gpubackprop.torch.cross_entropy import cross_entropy
from gpubackprop.torch.layers import linear_act
from gpubackprop.torch.linear_cross_entropy import linear_cross_entropy
from gpubackprop.torch.optimizers import SGD, Adam, AdamW


def _linear_forward(self: torch.nn.Linear, input: torch.Tensor) -> torch.Tensor:
    return linear_act(input, self.weight, self.bias, "identity")


# place, name, what takes its place. nn.CrossEntropyLoss calls functional.cross_entropy.
_REPLACEMENTS: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
    (torch.nn.functional, "cross_entropy", cross_entropy),
    (torch.nn.functional, "linear_cross_entropy", linear_cross_entropy),
    (torch.nn.Linear, "forward", _linear_forward),
    (torch.optim, "SGD", SGD),
    (torch.optim, "Adam", Adam),
    (torch.optim, "AdamW", AdamW),
)


@contextmanager
def patch() -> Iterator[list[str]]:
    """Functions, `nn.Linear` and optimizers of PyTorch are these kernels while this lasts.

    Gives the list of what was replaced. Modules made before are concerned too, optimizers made
    before are not. A name that a module brought into its own namespace before (``from torch.optim
    import Adam``) is replaced there as well, and listed. The places are those of the process: all
    threads see them.

    >>> with patch() as replaced:
    ...     optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    >>> type(optimizer).__module__
    'gpubackprop.torch.optimizers'
    >>> print("torch.optim.Adam" in replaced, torch.optim.Adam.__module__)
    True torch.optim.adam
    """
    undo: list[tuple[Any, str, Any]] = []
    listed: list[str] = []
    try:
        for place, name, new in _REPLACEMENTS:
            old = getattr(place, name, None)
            if old is None:  # an older PyTorch
                continue
            for holder, label in [(place, _label(place)), *_borrowers(place, name, old)]:
                undo.append((holder, name, old))
                setattr(holder, name, new)
                listed.append(f"{label}.{name}")
        yield listed
    finally:
        for holder, name, old in reversed(undo):
            setattr(holder, name, old)


def _label(place: Any) -> str:
    return "torch.nn.Linear" if place is torch.nn.Linear else str(place.__name__)


def _borrowers(place: Any, name: str, old: Any) -> list[tuple[Any, str]]:
    """Modules outside of PyTorch and of this package that hold `old` under its own name."""
    if place is torch.nn.Linear:
        return []
    found = []
    for label, module in list(sys.modules.items()):
        if label.partition(".")[0] in ("torch", "gpubackprop") or module is None:
            continue
        if getattr(module, "__dict__", {}).get(name) is old:
            found.append((module, label))
    return found
