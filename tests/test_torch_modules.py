"""`MLP.from_torch` and `MLP.to_torch`: the same numbers as PyTorch's modules, or an error that names."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import gpubackprop.torch as gt
from gpubackprop import MLP, Trainer
from gpubackprop.errors import MissingDependencyError, OptionError
from gpubackprop.formulas import ACTIVATIONS, OUTPUTS

X = np.random.default_rng(0).normal(size=(20, 4)) * 3


def predicted(module: nn.Module, x: np.ndarray = X) -> np.ndarray:
    dtype = next(module.parameters()).dtype
    with torch.no_grad():
        return module(torch.from_numpy(x).to(dtype)).numpy()


def sequence(*between: nn.Module, end: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), *between, nn.Linear(6, 3), *([] if end is None else [end])
    )


SPECS = [*ACTIVATIONS, "leaky_relu(0.3)", "elu(0.5)"]


@pytest.mark.parametrize("activation", SPECS)
def test_every_activation_goes_to_pytorch_and_comes_back(activation):
    network = MLP([4, 6, 5, 3], activation, output="linear", dtype="float64", seed=1)
    module = network.to_torch()
    np.testing.assert_allclose(predicted(module), network.predict(X), rtol=0, atol=1e-8)
    again = MLP.from_torch(module)
    assert again.config() == network.config()
    for one, other in zip([*again.W, *again.b], [*network.W, *network.b], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("output", [name for name in OUTPUTS if name != "exp"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_output_function_with_a_module_goes_to_pytorch_and_comes_back(output, dtype):
    network = MLP([4, 6, 3], output=output, dtype=dtype, seed=2)
    module = network.to_torch()
    np.testing.assert_allclose(predicted(module), network.predict(X), rtol=0, atol=1e-6)
    assert MLP.from_torch(module).config() == network.config()
    logits = network.to_torch(logits=True)
    np.testing.assert_allclose(predicted(logits), network.logits(X), rtol=0, atol=1e-5)
    assert isinstance(logits[-1], nn.Linear)
    again = MLP.from_torch(logits, output=output)
    np.testing.assert_allclose(again.predict(X), network.predict(X), rtol=0, atol=1e-7)


def test_an_output_function_without_a_module_is_left_to_the_caller():
    network = MLP([4, 3], output="exp")
    with pytest.raises(OptionError, match="'exp'; pass logits=True"):
        network.to_torch()
    np.testing.assert_allclose(
        np.exp(predicted(network.to_torch(logits=True))), network.predict(X), rtol=1e-5
    )


SAME: dict[str, Any] = {
    "one Linear": lambda: nn.Linear(4, 3),
    "no activation between": lambda: sequence(),
    "no bias": lambda: nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3)),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Linear(4, 6), nn.Tanh()), nn.Linear(6, 3)),
    "flatten first": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3)),
    "identity between": lambda: sequence(nn.Identity(), nn.SiLU(), nn.Identity()),
    "softmax over 1": lambda: sequence(nn.ReLU(), end=nn.Softmax(1)),
    "dropout of 0": lambda: nn.Sequential(nn.Dropout(0.0), nn.Linear(4, 3)),
    "float64": lambda: sequence(nn.GELU("tanh")).double(),
    "converted": lambda: gt.convert(sequence(nn.ReLU())).module,
    "of gpubackprop.torch": lambda: nn.Sequential(
        gt.LinearAct(4, 6, "elu(0.5)"), gt.Linear(6, 3), nn.Sigmoid()
    ),
    "one activation used twice": lambda: shared(nn.Tanh()),
    "one Linear used twice": lambda: nn.Sequential(nn.Linear(4, 4), *[nn.ELU(), LINEAR] * 2),
    "one Sequential used twice": lambda: nn.Sequential(*[sequence4()] * 2, nn.Linear(4, 3)),
    "weights that are not contiguous": lambda: transposed(sequence(nn.ReLU())),
}


LINEAR = nn.Linear(4, 4)


def shared(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 6), activation, nn.Linear(6, 5), activation, nn.Linear(5, 3), nn.Softmax(1)
    )


def sequence4() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.SiLU())


def transposed(module: nn.Sequential) -> nn.Sequential:
    module[0].weight = nn.Parameter(torch.randn(4, 6).t())
    return module


@pytest.mark.parametrize("name", SAME)
def test_a_module_of_known_layers_gives_its_own_predictions(name):
    module = SAME[name]().eval()
    network = MLP.from_torch(module)
    assert network.dtype == ("float64" if name == "float64" else "float32")
    np.testing.assert_allclose(network.predict(X), predicted(module), rtol=0, atol=1e-5)


def test_parameters_that_are_frozen_beside_others_are_named_since_a_network_trains_all():
    module = sequence()
    MLP.from_torch(module.requires_grad_(False))  # for predictions: nothing to say
    module[-1].requires_grad_(True)
    with pytest.warns(
        UserWarning, match=r"^0\.weight, 0\.bias.* require no gradient, but a training"
    ):
        network = MLP.from_torch(module)
    np.testing.assert_allclose(network.predict(X), predicted(module), rtol=1e-5, atol=1e-6)


def test_the_parameters_are_copies():
    module = sequence(nn.ReLU())
    network = MLP.from_torch(module)
    before = predicted(module)
    network.W[0][...] = 0
    np.testing.assert_array_equal(predicted(module), before)
    back = MLP.from_torch(module).to_torch()
    with torch.no_grad():
        back[0].weight.zero_()
    np.testing.assert_array_equal(predicted(module), before)


def test_parameters_of_16_bits_become_float32():
    module = sequence(nn.ReLU()).to(torch.bfloat16)
    network = MLP.from_torch(module, precision="bfloat16")
    assert network.dtype == "float32"
    np.testing.assert_array_equal(network.W[0], module[0].weight.detach().float().numpy())


def test_dropout_goes_both_ways_and_the_module_is_in_eval_mode():
    network = MLP([4, 50, 40, 3], dropout=[0.25, 0.0], seed=3)
    module = network.to_torch()
    assert not module.training
    np.testing.assert_allclose(predicted(module), network.predict(X), rtol=0, atol=1e-6)
    assert [child.p for child in module if isinstance(child, nn.Dropout)] == [0.25]
    assert MLP.from_torch(module.train()).dropout == (0.25, 0.0)


def test_a_network_of_a_module_trains_on_as_the_module_would():
    torch.manual_seed(1)
    module = sequence(nn.Tanh()).double()
    network = MLP.from_torch(module, output="softmax")
    labels = np.arange(20) % 3
    trainer = Trainer(network, optimizer="gradient_descent", batch_size=20, progress=False)
    rate = trainer.optimizer.lr
    trainer.fit(X, labels, epochs=3)
    optimizer = torch.optim.SGD(module.parameters(), lr=rate)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(
            module(torch.from_numpy(X)), torch.from_numpy(labels)
        ).backward()
        optimizer.step()
    np.testing.assert_allclose(network.logits(X), predicted(module), rtol=0, atol=1e-12)


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class OwnReLU(nn.ReLU):
    pass


def with_own_forward() -> nn.Sequential:
    module = sequence(nn.ReLU())
    module[1].forward = lambda x: x
    return module


def hooked(place: int | None, what: str, hook: Any) -> nn.Sequential:
    module = sequence(nn.ReLU())
    getattr(module if place is None else module[place], f"register_forward_{what}")(hook)
    return module


def pruned() -> nn.Sequential:
    module = sequence(nn.ReLU())
    prune.l1_unstructured(module[2], "weight", 0.5)
    return module


REFUSED: dict[str, tuple[Any, str]] = {
    "a hook of a layer": (lambda: hooked(0, "hook", lambda m, i, h: 2 * h), "^0 is Linear.*hooks"),
    "a hook of an activation": (
        lambda: hooked(1, "pre_hook", lambda m, i: (2 * i[0],)),
        "^1 is ReLU.*hooks",
    ),
    "a hook of the Sequential": (
        lambda: hooked(None, "hook", lambda m, i, h: 2 * h),
        "(?s)^the module is Sequential.*hooks that change what it computes",
    ),
    "pruning": (pruned, r"^2 is Linear.*torch.nn.utils.prune.remove"),
    "unknown": (lambda: sequence(nn.BatchNorm1d(6)), r"^1 is BatchNorm1d\(6.*no counterpart"),
    "nested unknown": (lambda: nn.Sequential(sequence(nn.PReLU())), r"^0\.1 is PReLU"),
    "a subclass": (lambda: sequence(OwnReLU()), "^1 is OwnReLU"),
    "an option": (lambda: sequence(nn.Softplus(beta=2)), r"^1 is Softplus\(beta=2"),
    "its own forward": (with_own_forward, "^1 is ReLU.*forward of its own"),
    "a subclass of Sequential": (lambda: Residual(nn.Linear(4, 4)), "^the module is Residual"),
    "another module": (lambda: nn.LSTM(4, 4), "^the module is LSTM"),
    "two activations": (lambda: sequence(nn.ReLU(), nn.Tanh()), "^2 is Tanh.*follow a Linear"),
    "activation first": (lambda: nn.Sequential(nn.ReLU(), nn.Linear(4, 3)), "^0 is ReLU"),
    "dropout before the activation": (lambda: sequence(nn.Dropout(0.5), nn.ReLU()), "^2 is ReLU"),
    "dropout of inputs": (lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)), "^0 is Dropout"),
    "dropout of outputs": (lambda: sequence(end=nn.Dropout(0.5)), "drops output units"),
    "softmax over rows": (lambda: sequence(end=nn.Softmax(0)), "^2 is Softmax.*over the columns"),
    "after the softmax": (
        lambda: nn.Sequential(sequence(end=nn.Softmax(1)), nn.ReLU()),
        "^1 is ReLU",
    ),
    "log-softmax": (lambda: sequence(end=nn.LogSoftmax(1)), "^2 is LogSoftmax"),
    "an activation at the end": (lambda: sequence(end=nn.ReLU()), "ends with the activation relu"),
    "no Linear": (lambda: nn.Sequential(nn.Flatten()), "no Linear"),
    "no module": (lambda: np.zeros(3), "module is a ndarray but must be a torch.nn.Module"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_counterpart_is_refused_by_name(name):
    make, message = REFUSED[name]
    with pytest.raises(OptionError, match=message):
        MLP.from_torch(make())


def test_an_output_that_contradicts_the_modules_end_is_refused():
    with pytest.raises(OptionError, match="ends with softmax; leave output out"):
        MLP.from_torch(sequence(end=nn.Softmax(-1)), output="logistic")


def test_an_activation_of_the_program_has_no_module():
    own = replace(ACTIVATIONS["relu"], name="own", torch="")
    with pytest.raises(OptionError, match=r"'own' has no module in torch\.nn"):
        MLP([4, 5, 3], own).to_torch()


def test_without_pytorch_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"gpubackprop\[torch\]"):
        MLP([4, 3]).to_torch()
    with pytest.raises(MissingDependencyError, match=r"gpubackprop\[torch\]"):
        MLP.from_torch(object())
