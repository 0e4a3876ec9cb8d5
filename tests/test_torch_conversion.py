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


def test_convert_leaves_a_linear_with_something_of_its_own_and_says_what():
    network = nn.Sequential(*(nn.Linear(2, 2) for _ in range(6)), nn.ReLU())
    network[0].register_buffer("scale", torch.ones(1))
    network[1].lora = nn.Linear(2, 2)
    network[2].register_parameter("gain", nn.Parameter(torch.ones(1)))
    network[3].register_state_dict_post_hook(lambda *_: None)
    network[4].helper = lambda: None
    network[5].activation = "relu"
    keys, modules = list(network.state_dict()), list(network)
    report = gt.convert(network)
    assert list(network) == modules
    assert list(network.state_dict()) == keys
    assert str(report).splitlines() == [
        "replaced 1:",
        "  1.lora: Linear -> Linear",
        "left 6:",
        "  0: Linear (has something of its own: scale)",
        "  1: Linear (has something of its own: lora)",
        "  2: Linear (has something of its own: gain)",
        "  3: Linear (has hooks)",
        "  4: Linear (has something of its own: helper)",
        "  5: Linear (has something of its own: activation)",
    ]


def test_convert_carries_attributes_and_mode_along():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU(), nn.CrossEntropyLoss())
    for number, module in enumerate(network.eval()):
        module.label = number
    report = gt.convert(network)
    assert len(report.replaced) == 3
    assert [module.label for module in network] == [0, 1, 2, 3]
    assert not any(module.training for module in network.modules())


def test_convert_does_not_fuse_an_activation_with_something_of_its_own():
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    network[1].register_buffer("seen", torch.zeros(1))
    gt.convert(network)
    assert list(network.state_dict()) == ["0.weight", "0.bias", "1.seen"]
    assert type(network[0]) is gt.Linear


@pytest.mark.parametrize("last", [nn.Identity(), nn.ReLU()], ids=["Linear", "LinearAct"])
def test_a_converted_layer_without_bias_can_be_given_one(last):
    layer = gt.convert(nn.Sequential(nn.Linear(2, 3, bias=False), last)).module[0]
    assert "bias" in layer._parameters, "as in PyTorch, where it is None"
    layer.register_parameter("bias", nn.Parameter(torch.ones(3)))
    assert layer(torch.zeros(1, 2)).tolist() == [[1.0, 1.0, 1.0]]
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_convert_reports_what_becomes_of_the_module_itself():
    hooked, own = nn.Linear(2, 2), nn.Linear(2, 2)
    hooked.register_forward_hook(lambda *_: None)
    own.register_buffer("scale", torch.ones(1))
    assert gt.convert(hooked).left == ["Linear (has hooks)"]
    assert gt.convert(own).left == ["Linear (has something of its own: scale)"]
    assert gt.convert(nn.LayerNorm(3)).left == ["LayerNorm (no counterpart)"]
    assert gt.convert(Residual(nn.ReLU())).left == []


@pytest.mark.parametrize("act", [nn.LeakyReLU(0.2), nn.ELU(), nn.Softplus()], ids=str)
@pytest.mark.parametrize(
    "after",
    [
        [nn.Dropout(0.5, inplace=True)],
        [nn.Flatten(), nn.Identity(), nn.ReLU(inplace=True)],
        [nn.Sequential(nn.Sequential(nn.Hardtanh(inplace=True)), nn.Linear(5, 5))],
    ],
    ids=["dropout", "views", "nested"],
)
def test_a_module_that_works_in_place_after_an_activation_trains_as_before(act, after):
    network = nn.Sequential(nn.Linear(4, 5), act, *after, nn.Linear(5, 2))
    report = gt.convert(network)
    network(torch.randn(3, 4)).sum().backward()
    reason = "not fused: what comes after it works in place"
    assert report.left == [f"1: {type(act).__name__} ({reason})"]


def test_what_does_not_work_in_place_after_an_activation_does_not_keep_it_from_being_fused():
    block = nn.Sequential(nn.Linear(4, 5), nn.ELU(), nn.Dropout(0.5), nn.ReLU(inplace=True))
    assert gt.convert(block).replaced == ["0: Linear, 1: ELU -> LinearAct"]
    block = nn.Sequential(nn.Linear(4, 5), nn.SiLU(), nn.Dropout(0.5, inplace=True))
    assert gt.convert(block).replaced == ["0: Linear, 1: SiLU -> LinearAct"]
    block(torch.randn(3, 4)).sum().backward()
