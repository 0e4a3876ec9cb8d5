"""`gpubackprop.torch.convert`: what it must leave as it is, and what it carries along."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gpubackprop.torch as gt


class Residual(nn.Sequential):
    def forward(self, x):
        for module in self:
            x = x + module(x)
        return x


class QuickGELU(nn.GELU):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Shifted(nn.LeakyReLU):
    def forward(self, x):
        return super().forward(x) - 1


def bound_forward(self: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    return self[0](x) - self[1](x)


def watched(module: nn.Sequential) -> nn.Sequential:
    module.forward = bound_forward.__get__(module)
    return module


@pytest.mark.parametrize(
    "make",
    [
        lambda: Residual(nn.Linear(4, 4), nn.ReLU()),
        lambda: nn.Sequential(Residual(nn.Linear(4, 4), nn.Tanh()), nn.ReLU()),
        lambda: nn.Sequential(nn.Linear(4, 4), QuickGELU()),
        lambda: nn.Sequential(nn.Linear(4, 4), Shifted(0.1)),
        lambda: watched(nn.Sequential(nn.Linear(4, 4), nn.ReLU())),
    ],
    ids=["residual", "nested residual", "QuickGELU", "LeakyReLU", "forward of the instance"],
)
def test_convert_keeps_what_subclasses_compute(make):
    torch.manual_seed(0)
    module, x = make().double(), torch.randn(3, 4, dtype=torch.float64)
    before = module(x)
    report = gt.convert(module)
    torch.testing.assert_close(report.module(x), before, rtol=1e-12, atol=1e-14)
    assert len(report.replaced) == 1, "the Linear, by itself"
    assert "LinearAct" not in report.replaced[0]


def test_convert_fuses_in_a_subclass_of_sequential_that_keeps_its_forward():
    class Block(nn.Sequential):
        pass

    report = gt.convert(Block(nn.Linear(4, 4), nn.ReLU()))
    assert report.replaced == ["0: Linear, 1: ReLU -> LinearAct"]
