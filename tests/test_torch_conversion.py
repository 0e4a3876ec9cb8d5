"""`gpubackprop.torch.convert`: what it lets the kernels compute, what it leaves, and its inverse."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import gpubackprop.torch as gt
from gpubackprop.torch import fused


def fusions(module: nn.Module, *inputs: torch.Tensor) -> list[str]:
    """The activations that a call of `module` runs in one pass with their Linear."""
    found: list[str] = []

    def watched(x: Any, W: Any, b: Any, name: str) -> torch.Tensor:
        found.append(name)
        return gt.linear_act(x, W, b, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "linear_act", watched)
        module(*inputs)
    return found


def pair(act: nn.Module | None = None, *after: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU() if act is None else act, *after)


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


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
    module = make()
    before, classes = module(X), [type(m) for m in module.modules()]
    report = gt.convert(module)
    assert torch.equal(report.module(X), before)
    assert report.replaced == []
    assert [type(m) for m in module.modules()] == classes


class Block(nn.Sequential):
    pass


@pytest.mark.parametrize("kind", [nn.Sequential, Block])
def test_convert_changes_nothing_but_the_class_of_the_sequential(kind):
    network = kind(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    network[0].register_buffer("scale", torch.ones(1))
    before = [(name, m, dict(vars(m))) for name, m in network.named_modules()]
    text, keys = str(network), list(network.state_dict())
    report = gt.convert(network)
    assert report.replaced == ["0: Linear, 1: ReLU -> linear_act"]
    assert report.left == ["2: Linear (no activation follows it in a Sequential)"]
    assert report.module is network
    assert fusions(network, X) == ["relu"]
    assert (str(network), list(network.state_dict())) == (text, keys)
    for (name, m, held), (other, now) in zip(before, network.named_modules(), strict=True):
        assert (name, m) == (other, now)
        assert vars(now) == held
    assert [type(m) for m in network] == [nn.Linear, nn.ReLU, nn.Linear]
    assert isinstance(network, kind)
    assert (type(network).__name__, type(network).__module__) == (kind.__name__, kind.__module__)


@pytest.mark.parametrize("kind", [nn.Sequential, Block])
@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: pickle.loads(pickle.dumps(m, protocol=2)),
        lambda m: m[:],
    ],
    ids=["copy", "deepcopy", "pickle", "protocol 2", "slice"],
)
def test_a_copy_of_a_converted_model_is_converted_and_can_be_restored(kind, copied):
    network = gt.convert(kind(nn.Linear(4, 4), nn.ReLU(), nn.CrossEntropyLoss())).module
    other = copied(network)
    assert type(other) is type(network)
    assert type(other[2]) is type(network[2])
    assert torch.equal(other[:2](X), network[:2](X))
    assert fusions(other[:2], X) == ["relu"]
    again = gt.convert(other)
    assert again.replaced == again.left == []
    again.restore()
    assert (type(other), type(other[2])) == (kind, nn.CrossEntropyLoss)


def test_children_of_any_name_are_found():
    for name in ("original", "forward_", "exchanged"):
        network = nn.Sequential()
        network.add_module(name, nn.Linear(4, 4))
        network.add_module("act", nn.ReLU())
        child = network[0]
        assert getattr(gt.convert(network).module, name) is child
        assert fusions(network, X) == ["relu"]


def test_restore_is_the_inverse_and_keeps_what_came_meanwhile():
    network = nn.Sequential(pair(nn.GELU()), nn.Linear(4, 3), nn.CrossEntropyLoss())
    classes, text = [type(m) for m in network.modules()], str(network)
    report = gt.convert(network)
    network[0][0].weight.data.zero_()
    copied = copy.deepcopy(report)
    assert report.restore() is network
    assert [type(m) for m in network.modules()] == classes
    assert str(network) == text
    assert not network[0][0].weight.any()
    assert fusions(network[0], X) == []
    assert fusions(copied.module[0], X) == ["gelu"], "a copy is restored by itself"
    assert type(copied.restore()[2]) is nn.CrossEntropyLoss
    assert gt.convert(network).replaced == report.replaced, "and again"


def test_restore_concerns_modules_that_were_taken_out_meanwhile():
    network = nn.Sequential(pair(), pair())
    report, taken = gt.convert(network), network[0]
    network[0] = nn.Identity()
    report.restore()
    assert type(taken) is type(network[1]) is nn.Sequential


def test_restore_changes_nothing_where_another_class_would_be_lost():
    network = nn.Sequential(pair(), pair())
    report = gt.convert(network)
    network[1].__class__ = type("Sharded", (type(network[1]),), {})
    with pytest.raises(RuntimeError, match="a Sharded got another class after `convert`"):
        report.restore()
    assert fusions(network[0], X) == ["relu"]


def hooked(module: nn.Sequential, add: Callable[[nn.Module], Any], number: int) -> None:
    add(module[number])


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "forward": lambda m: m.register_forward_hook(lambda m, x, y: y + 1),
    "pre": lambda m: m.register_forward_pre_hook(lambda m, x: (x[0] * 2,)),
    "full backward": lambda m: m.register_full_backward_hook(lambda m, gi, go: (gi[0] * 2,)),
    "backward pre": lambda m: m.register_full_backward_pre_hook(lambda m, go: (go[0] * 2,)),
    "own forward": lambda m: setattr(m, "forward", lambda x: x * 3),
    "compiled": lambda m: m.compile(backend="eager"),
}


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", HOOKS)
def test_hooks_see_what_they_see_in_pytorch_whenever_they_were_registered(name, number):
    results = []
    for converted in ("never", "before", "after"):
        network = pair(nn.Tanh())
        if converted == "after":
            HOOKS[name](network[number])
        if converted != "never":
            report = gt.convert(network)
            assert len(report.replaced) == (converted == "before")
        if converted != "after":
            HOOKS[name](network[number])
        x = X.clone().requires_grad_()
        network(x).sum().backward()
        results.append((network(x).detach(), x.grad))
        assert fusions(network, x) == []
    torch._dynamo.reset()
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


def test_a_global_hook_sees_every_module_of_a_converted_model():
    network, seen = gt.convert(pair()).module, []
    handle = nn.modules.module.register_module_forward_hook(lambda m, x, y: seen.append(m))
    try:
        network(X)
    finally:
        handle.remove()
    assert seen == [network[0], network[1], network]
    assert fusions(network, X) == ["relu"]


@pytest.mark.parametrize(
    "change",
    [
        lambda n: n.__setitem__(0, nn.Linear(4, 5)),
        lambda n: n.__setitem__(1, nn.Tanh()),
        lambda n: n.__setitem__(1, QuickGELU()),
        lambda n: n.__delitem__(1),
        lambda n: n.insert(1, nn.Dropout(0.0)),
        lambda n: n.append(nn.Linear(4, 2)).append(nn.SiLU()),
        lambda n: setattr(n[0], "weight", nn.Parameter(torch.ones(2, 4))) or setattr(n[0], "bias", None),
        lambda n: setattr(n[1], "inplace", True),
        lambda n: n.double().float(),
    ],
)  # fmt: skip
def test_children_that_are_changed_after_the_conversion_are_run_as_they_are(change):
    networks = [pair(), gt.convert(pair()).module]
    torch.manual_seed(1), change(networks[0])
    torch.manual_seed(1), change(networks[1])
    torch.testing.assert_close(networks[1](X), networks[0](X))


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (nn.LeakyReLU("steep"), "negative_slope=steep"),
        (nn.LeakyReLU(torch.tensor(0.5)), "negative_slope=0.5"),
        (nn.LeakyReLU(-0.1), "negative_slope=-0.1"),
        (nn.LeakyReLU(float("nan")), "negative_slope=nan"),
        (nn.ELU(None), "alpha=None"),
        (nn.ELU(torch.ones(2)), "ELU"),
        (nn.GELU("erf"), "approximate='erf'"),
        (nn.Softplus(torch.ones(2)), "Softplus"),
        (nn.Softplus(2), "beta=2"),
    ],
)
def test_an_option_that_is_not_offered_is_left_with_a_reason_and_the_rest_is_converted(act, why):
    network = nn.Sequential(pair(act), pair(), nn.CrossEntropyLoss())
    report = gt.convert(network)
    assert report.replaced == [
        "1.0: Linear, 1.1: ReLU -> linear_act",
        "2: CrossEntropyLoss -> cross_entropy",
    ]
    assert report.left[0].startswith("0.0: Linear (")
    assert why in report.left[0]
    assert "is not offered" in report.left[0]


@pytest.mark.parametrize("slope", [np.sqrt(5), np.float32(0.5), np.int64(1), 1, True, 0, 1e-300])
def test_numbers_of_numpy_and_python_are_numbers(slope):
    after = nn.Linear(4, 2)
    for act in (nn.LeakyReLU(slope), nn.ELU(slope)):
        network = pair(act, after).double()
        x = X.double()
        before = network(x)
        assert len(gt.convert(network).replaced) == 1
        torch.testing.assert_close(network(x), before, rtol=1e-12, atol=1e-14)


class Counted(nn.Sequential):
    made: ClassVar[list[type]] = []

    def __init_subclass__(cls) -> None:
        Counted.made.append(cls)


class Shared(nn.Sequential):
    def __new__(cls, *args: Any) -> Any:
        return super().__new__(cls)


class Pickled(nn.Sequential):
    def __reduce__(self) -> Any:
        return Pickled, tuple(self)


@pytest.mark.parametrize("kind", [Counted, Shared, Pickled])
def test_a_class_that_would_notice_is_left_and_the_report_says_why(kind):
    network = nn.Sequential(kind(nn.Linear(4, 4), nn.ReLU()), pair())
    report = gt.convert(network)
    assert type(network[0]) is kind
    assert report.replaced == ["1.0: Linear, 1.1: ReLU -> linear_act"]
    assert "of its own" in report.left[0]
    assert kind.__name__ in report.left[0]
    assert Counted.made == []


def test_a_module_that_is_used_twice_is_run_as_it_is_used():
    linear, act = nn.Linear(4, 4), nn.Tanh()
    network = nn.Sequential(linear, act, linear, nn.Sequential(linear, act), act)
    network.append(network[3])
    before = network(X)
    report = gt.convert(network)
    assert report.replaced == [
        "0: Linear, 1: Tanh -> linear_act",
        "3.0: Linear, 3.1: Tanh -> linear_act",
    ]
    assert report.left == []
    torch.testing.assert_close(network(X), before)
    assert fusions(network, X) == ["tanh"] * 3


def test_convert_reports_what_becomes_of_the_module_itself():
    own = nn.CrossEntropyLoss()
    own.forward = lambda x, y: x.sum()
    alone = "Linear (no activation follows it in a Sequential)"
    assert gt.convert(nn.Linear(2, 2)).left == [alone]
    assert gt.convert(own).left == ["CrossEntropyLoss (has a forward of its own)"]
    assert gt.convert(nn.LayerNorm(3)).left == ["LayerNorm (no counterpart)"]
    assert gt.convert(nn.NLLLoss()).left == ["NLLLoss (no counterpart)"]
    assert gt.convert(Residual(nn.ReLU())).left == []
    assert gt.convert(nn.CrossEntropyLoss()).replaced == ["CrossEntropyLoss -> cross_entropy"]
    assert gt.convert(gt.LinearAct(2, 2)).left == gt.convert(gt.Linear(2, 2)).left == []


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", [nn.LeakyReLU, nn.ELU, nn.Softplus, nn.SiLU, nn.GELU, nn.Mish])
@pytest.mark.parametrize(
    "after",
    [
        [],
        [nn.Dropout(0.5, inplace=True), nn.Linear(4, 4)],
        [nn.Flatten(), nn.Identity(), nn.ReLU(inplace=True), nn.Linear(4, 4)],
        [nn.Sequential(nn.Sequential(nn.Hardtanh(inplace=True)), nn.Linear(4, 5))],
        [nn.Sequential(nn.Identity(), nn.Hardtanh(inplace=True))],
        [nn.Dropout(0.5).eval(), nn.ReLU(inplace=True)],
        [nn.Sequential(nn.Identity())],
        [Residual(nn.Identity())],
    ],
    ids=["program", "dropout", "views", "nested", "nested views", "eval", "nothing", "unknown"],
)
def test_a_value_that_is_changed_in_place_afterwards_trains_as_before(kind, inplace, after):
    act = kind(inplace=True) if inplace and "inplace" in kind.__init__.__annotations__ else kind()
    results = []
    for convert in (False, True):
        network = copy.deepcopy(pair(act, *after)).double()
        if convert:
            gt.convert(network)
        torch.manual_seed(1)
        out = network(X.double())
        try:
            out += 1.0
            out.sum().backward()
        except RuntimeError:  # PyTorch kept the value too
            results.append(None)
        else:
            results.append(network[0].weight.grad)
    if results[0] is not None:
        torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-14)


def test_a_leaky_relu_is_fused_where_nothing_can_change_its_value():
    act = nn.LeakyReLU(0.2)
    for after in (
        [nn.Linear(4, 4)],
        [nn.Dropout(0.5), nn.LayerNorm(4)],
        [nn.Sequential(nn.Identity(), nn.Linear(4, 2))],
        [nn.Tanh()],
    ):
        assert fusions(gt.convert(pair(act, *after)).module, X) == ["leaky_relu(0.2)"]
    left = "what comes after the LeakyReLU may change its value in place"
    assert gt.convert(pair(act)).left == [f"0: Linear ({left})"]
    network = gt.convert(pair(act, nn.Linear(4, 4))).module
    network[2].register_forward_pre_hook(lambda m, x: x[0].mul_(2))
    assert fusions(network, X) == [], "a hook gets the value too"
    network(X).sum().backward()


@pytest.mark.parametrize("missing", ["x", "W"])
def test_what_the_backward_pass_does_not_need_may_be_changed_in_place(missing):
    network = gt.convert(pair(nn.GELU())).module
    x = X.clone().requires_grad_(missing == "W")
    network.requires_grad_(missing == "x")
    value = x * 1
    out = network(value)
    with torch.no_grad():  # by a step of an optimizer, or by the program
        (network[0].weight if missing == "x" else value).add_(1)
    out.sum().backward()


@pytest.mark.parametrize(
    ("place", "name"),
    [(nn.Linear, "forward"), (nn.ReLU, "forward"), (nn.functional, "linear"), (nn.Module, "__call__")],
)  # fmt: skip
def test_what_another_tool_has_put_in_pytorchs_place_is_called(place, name, monkeypatch):
    network, calls, original = gt.convert(pair()).module, [], getattr(place, name)
    monkeypatch.setattr(place, name, lambda *args: calls.append(args) or original(*args))
    network(X)
    assert calls
    assert fusions(network, X) == []


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(2, 5), torch.zeros(4).long(), torch.zeros(()), torch.zeros(4).double(),
        torch.zeros(4, dtype=torch.complex64), None, [1.0],
    ],
    ids=["shape", "integers", "0-d", "float64", "complex", "None", "list"],
)  # fmt: skip
def test_wrong_input_of_a_converted_model_is_pytorchs_own_error(value):
    errors = []
    for network in (pair(), gt.convert(pair()).module):
        with pytest.raises(Exception, match=r".+") as caught:
            network(value)
        errors.append((caught.type, str(caught.value)))
    assert errors[0] == errors[1]


def test_a_model_that_changes_its_type_between_the_passes_keeps_the_values_of_the_forward_pass():
    results = []
    for network in (
        pair(nn.ReLU(), nn.Linear(4, 4)),
        gt.convert(pair(nn.ReLU(), nn.Linear(4, 4))).module,
    ):
        x = X.clone().requires_grad_()
        out = network(x)
        network.to(torch.bfloat16)
        out.square().sum().backward()
        results.append([x.grad, *(p.grad for p in network.parameters())])
    torch.testing.assert_close(results[1], results[0])
