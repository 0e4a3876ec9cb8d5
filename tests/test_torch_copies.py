"""Copies and pickles of PyTorch modules and optimizers of this package, in the midst of training."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import gpubackprop.torch as gt
from tests.torch_paths import Path, path

__all__ = ["path"]


def saved(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "torch.save": saved,
}
EACH_COPY = pytest.mark.parametrize("how", COPIES.values(), ids=COPIES)
OPTIMIZERS = {
    "sgd": (gt.SGD, torch.optim.SGD, {"lr": 0.1}),
    "momentum": (gt.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    "adam": (gt.Adam, torch.optim.Adam, {"lr": 0.05}),
    "adamw": (gt.AdamW, torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.1}),
}


def model(device: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double().to(device)


def train(module: nn.Module, optimizer: Any, steps: int, device: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 4, generator=generator, dtype=torch.float64).to(device)
    y = torch.randint(3, (8,), generator=generator).to(device)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()


def values(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


@EACH_COPY
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_copied_module_and_optimizer_go_on_as_pytorchs_would(
    path: Path, name: str, how: Callable[[Any], Any]
) -> None:
    ours, theirs, options = OPTIMIZERS[name]
    module, reference = model(path.device), model(path.device)
    module = gt.convert(module).module
    optimizer, expected = (
        ours(module.parameters(), **options),
        theirs(reference.parameters(), **options),
    )
    train(module, optimizer, 3, path.device)
    twin, its_optimizer = how((module, optimizer))
    before = values(module)
    train(twin, its_optimizer, 2, path.device)
    assert all(map(torch.equal, values(module), before))
    train(module, optimizer, 2, path.device)
    assert all(map(torch.equal, values(module), values(twin)))
    train(reference, expected, 5, path.device)
    for found, wanted in zip(values(twin), values(reference), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
