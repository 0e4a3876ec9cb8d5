"""The fuzzers: clean for a while, and able to fail."""

from __future__ import annotations

import ast
import copy
import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import gpubackprop
import gpubackprop.torch as gt
from gpubackprop.sklearn import rates
from gpubackprop.torch import operands
from tools.fuzz import __main__ as command
from tools.fuzz import estimators, network, programs, pytorch
from tools.fuzz.draw import Draw
from tools.fuzz.search import Tally, search
from tools.fuzz.shrink import shrunk

# Of a fuzzer in the suite: programs, of which so many at a time for at most so many seconds.
PROGRAMS, PART, SECONDS = 120, 30, 10
FUZZERS = {
    "estimators": estimators.FUZZER,
    "torch": pytorch.FUZZER,
    "patch": pytorch.PATCH_FUZZER,
    "network": network.FUZZER,
}
HISTORY = """
rng = np.random.RandomState(0); X = rng.standard_normal((9, 2)); z = X[:, 0]
m = MLPRegressor(hidden_layer_sizes=3, max_iter=2, random_state=0, solver='sgd')
m.fit(X, z)
m.predict(X)
"""
STEPS = """
P = [nn.Parameter(torch.randn(2, 3, 2, 2))]
P[0].data = P[0].data.to(memory_format=torch.channels_last)
opt = optim.Adam(P, lr=0.1)
for p in P: p.grad = torch.randn(p.shape)
opt.step()
opt.step()
"""
COPY = """
x = np.ones((2, 3)); y = np.array([0, 1])
n = MLP([3, 2], output='softmax')
o = copy.deepcopy(n)
o.W[0][...] = 0.5
n.predict(x)
"""


def plant_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    right = rates.chosen_optimizer

    def wrong(estimator: Any) -> Any:
        chosen = right(estimator)
        if "momentum" in chosen.hyperparameters:
            chosen.hyperparameters["momentum"] *= 0.999  # type: ignore[index]
        return chosen

    monkeypatch.setattr(rates, "chosen_optimizer", wrong)


def plant_beta(monkeypatch: pytest.MonkeyPatch) -> None:
    right = gt.Adam._settings

    def wrong(self: Any, group: dict[str, Any]) -> Any:
        return right(self, group | {"betas": (0.9 * group["betas"][0], group["betas"][1])})

    monkeypatch.setattr(gt.Adam, "_settings", wrong)


def plant_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operands, "same_order", lambda tensor, strides: True)


def plant_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpubackprop.MLP, "__deepcopy__", lambda self, memo: self, raising=False)


PLANTED = {
    "wrong momentum": ("estimators", plant_momentum, HISTORY),
    "wrong beta": ("torch", plant_beta, STEPS),
    "wrong memory order": ("torch", plant_order, STEPS),
    "a copy that is none": ("network", plant_copy, COPY),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FUZZERS)
def test_programs_of_a_fixed_seed_do_the_same_in_both_worlds(name, sweep):
    said: list[str] = []
    for start in sweep.cases(range(0, PROGRAMS, PART), keep=1):
        tally = search(FUZZERS[name], 0, SECONDS, PART, said.append, start=start)
        assert not tally.found, "\n".join(said)
        assert tally.programs


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_a_divergence_and_nothing_is_without_it(fault, monkeypatch):
    name, plant, program = PLANTED[fault]
    assert programs.difference(FUZZERS[name], programs.statements(program)) is None
    plant(monkeypatch)
    assert programs.difference(FUZZERS[name], programs.statements(program)) is not None


@pytest.mark.slow
@pytest.mark.parametrize("fault", PLANTED)
def test_a_search_finds_a_planted_fault_and_its_text_is_a_program_that_fails(fault, monkeypatch):
    name, plant, _ = PLANTED[fault]
    said: list[str] = []
    with monkeypatch.context() as planted:
        plant(planted)
        tally = search(FUZZERS[name], 0, 60, 200, said.append, first=True)
        assert tally.found
        text = said[0].partition("\n")[2]
        with pytest.raises(AssertionError, match="line "):
            exec(compile(text, "<pasted>", "exec"), {})
    exec(compile(text, "<pasted>", "exec"), {})


def test_a_program_of_a_seed_is_the_same_each_time_and_every_line_is_python():
    for fuzzer in FUZZERS.values():
        for seed in range(40):
            program = fuzzer.program(Draw(seed))
            assert program == fuzzer.program(Draw(seed))
            for line in program:
                ast.parse(line)


def test_shrinking_leaves_the_lines_and_arguments_that_matter():
    program = ["a = f(1, x=2, y=3)", "b = 2", "c = g(h(a.T), b)", "d = 4"]

    def fails(candidate: list[str]) -> bool:
        text = "\n".join(candidate)
        return "f(" in text and "y=3" in text and "h(" in text

    assert shrunk(program, fails, frozenset()) == ["a = f(1, y=3)", "c = h(a)"]


def test_an_error_of_another_class_and_one_at_another_moment_are_divergences():
    class Wrong:
        def __init__(self, **_: Any) -> None:
            pass

        def fit(self, X: Any, y: Any) -> None:
            raise KeyError("x")

    fuzzer = copy.copy(estimators.FUZZER)
    names = {"np": np, "MLPRegressor": Wrong}
    fuzzer.ours = programs.World("wrong", lambda: dict(names), programs.seeded)
    data = "X = np.ones((3, 1))\nm = MLPRegressor(max_iter=1)\n"
    for call in ("m.fit(X, X[:2])", "m.fit(X, X[:, 0])"):
        found = programs.difference(
            fuzzer, [*programs.statements(data)[:1], f"MLPRegressor().{call[2:]}"]
        )
        assert found is not None
        assert found.place == "error"
        assert "KeyError here" in found.kind


REFUSED = """
P = [nn.Parameter(torch.ones(3).to(bfloat16))]
opt = optim.Adam(P, lr=0.1)
for p in P: p.grad = torch.ones(3, dtype=p.dtype)
opt.step()
for p in P: p.data = p.data.to(float32)
for p in P: p.grad = torch.ones(3, dtype=p.dtype)
opt.step()
"""


def test_what_a_step_does_whose_types_pytorch_refuses_is_held_against_float64():
    class Wrong(gt.Adam):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step(closure)
            for p in self.param_groups[0]["params"]:
                if p.dtype == torch.float32:  # the step that PyTorch refuses
                    p.data.add_(1)

    lines, fuzzer = programs.statements(REFUSED), copy.copy(pytorch.FUZZER)
    assert programs.difference(fuzzer, lines) is None
    names = pytorch.DIRECT.names
    fuzzer.ours = dataclasses.replace(
        pytorch.DIRECT, names=lambda: names() | {"optim": SimpleNamespace(Adam=Wrong)}
    )
    found = programs.difference(fuzzer, lines)
    assert found is not None
    assert (found.place, found.kind) == ("P[0]", "values beyond theirs")


OTHER_TWINS = {
    "it went on where the reference raised": """
m = nn.Sequential(nn.Linear(1, 4)).to(bfloat16)
x = torch.ones(5, 1).to(bfloat16)
out = m(x)
opt = optim.AdamW(m.parameters())
m[0].weight.data.mul_(2)
m.to(float64)
out = m(x * x)
out.square().sum().backward()
opt.step()
""",
    "its loaded state is shared, and state of 16-bit parameters is a copy": """
P = [nn.Parameter(torch.ones(3).to(float16))]
opt = optim.Adam(P)
for p in P: p.grad = torch.ones(3, dtype=p.dtype)
there = torch.optim.Adam(P)
there.step()
opt.load_state_dict(there.state_dict())
for p in P: p.data = p.to(bfloat16)
for p in P: p.grad = torch.full_like(p, 5)
opt.step()
""",
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_TWINS)
def test_a_step_beyond_pytorchs_types_is_not_held_against_a_twin_that_did_other_things(case):
    lines = programs.statements(OTHER_TWINS[case])
    assert programs.difference(pytorch.FUZZER, lines) is None


ROUNDED = {
    "a gradient of roundings alone": ("network", """
x = np.random.default_rng(2).standard_normal((7, 3)); y = np.array([1, 0, 1, 1, 0, 0, 1])
n = MLP([3, 3, 3], 'relu', output='softmax', dtype='float32')
t = Trainer(n, 'adamw', batch_size=3)
n.parameters[...] = 0.125
t.fit(x, y, epochs=1)
"""),
    "a gradient below the roundings of the probabilities": ("network", """
rng = np.random.default_rng(2); x = rng.standard_normal((7, 3)); y = rng.integers(0, 2, 7)
n = MLP([3, 5, 4, 2], 'relu', output='softmax', dtype='float32', seed=1)
t = Trainer(n, 'adam', batch_size=4)
t.fit(x, y, epochs=4)
t = Trainer(n, 'adam', batch_size=4)
t.fit(x, y, epochs=3)
"""),
    "the loss of a float32 probability near 1": ("estimators", """
rng = np.random.RandomState(3); X = rng.standard_normal((2, 1)); y = rng.randint(0, 3, 2)
m = MLPClassifier(hidden_layer_sizes=3, max_iter=20, random_state=0, solver='lbfgs')
m.fit(X[::2].astype(np.float32), np.eye(3)[y[::2]])
"""),
    "a penalty divided by weights that sum to next to nothing": ("estimators", """
rng = np.random.RandomState(0); X = rng.standard_normal((7, 2)); z = X[:, 0]; w = rng.uniform(0.5, 2, 7)
m = MLPRegressor(hidden_layer_sizes=3, max_iter=3, random_state=0, n_iter_no_change=1)
m.fit(X, z, sample_weight=1e-200 * w)
"""),
    "a gradient times a weight and divided by it": ("estimators", """
rng = np.random.RandomState(2); X = rng.standard_normal((2, 1)); Z = rng.standard_normal((2, 3))
w = np.array([0.7, 1.0])
m = MLPRegressor(hidden_layer_sizes=3, max_iter=3, random_state=1, solver='lbfgs')
m.fit(X[:1], Z[:1], sample_weight=w[:1])
"""),
    "a Poisson loss near zero": ("estimators", """
rng = np.random.RandomState(2); X = rng.standard_normal((12, 4)); rng.standard_normal((12, 3)); y = rng.randint(0, 4, 12)
m = MLPRegressor(hidden_layer_sizes=3, max_iter=3, random_state=0, loss='poisson')
m.fit(X[:1].astype(np.float32), y[:1])
"""),
    "a gradient of probabilities that are those of the logits": ("patch", """
x = torch.tensor([4.625, -0.87890625]).requires_grad_()
y = torch.softmax(x.detach(), -1)
l = F.cross_entropy(x, y, weight=torch.tensor([1.0, 2.0]))
(3 * l).sum().backward()
"""),
    "a gradient that weight decay cancels, in two steps of Adam": ("torch", """
P = [nn.Parameter(torch.randn(3, 2, dtype=torch.double).bfloat16().to(float64)), nn.Parameter(torch.randn(5000, dtype=torch.double, device='cpu').bfloat16().to(float64))]
opt = optim.Adam([{'params': P, 'weight_decay': 0.3}])
for p in P:
    p.grad = torch.randn(p.shape, dtype=torch.double).bfloat16().to(p)
opt.step()
opt.step()
"""),
    "a parameter that Adam brings next to 0": ("estimators", """
rng = np.random.RandomState(2); X = rng.standard_normal((12, 1)); Z = rng.standard_normal((12, 3)); Y = (Z > 0).astype(int)
m = MLPClassifier(hidden_layer_sizes=3, max_iter=3, random_state=0, learning_rate_init=0.5, batch_size=1)
m.fit(X[::-1], Y[::-1][:, :1])
"""),
    "a loss that stays the same": ("estimators", """
rng = np.random.RandomState(3); X = rng.standard_normal((12, 2)); z = rng.standard_normal(12)
w = rng.uniform(0.5, 2, 12)
m = MLPRegressor(hidden_layer_sizes=3, max_iter=20, random_state=1)
m.fit(X, 1e39 * z, sample_weight=w)
"""),
}  # fmt: skip


@pytest.mark.parametrize("case", ROUNDED)
def test_what_only_roundings_decide_is_no_divergence(case):
    name, program = ROUNDED[case]
    assert programs.difference(FUZZERS[name], programs.statements(program)) is None


def test_rounding_is_no_divergence_and_more_than_other_roundings_make_is():
    there = np.array([1.0, 2.0])
    assert not estimators.same(there, there * (1 + 1e-15), [], [])
    assert estimators.same(there, there * (1 + 1e-12), [], [])
    assert not estimators.same(there, there * (1 + 1e-12), [there * (1 + 1e-13)], [])
    narrow = there.astype(np.float32)
    exact = there + 1e-8
    assert not pytorch.same(narrow, narrow * np.float32(1 + 2**-23), [exact], [])
    assert pytorch.same(narrow, narrow * np.float32(1 + 2**-19), [exact], [])
    cast = ["P = [torch.ones(2).to(float32)]", "opt.step()", "P[0].data = P[0].data.double()"]
    for other, alike in ((1 + 2.0**-23, True), (1 + 2.0**-19, False), (1 + 2.0**-24, False)):
        assert (not pytorch.same(there, there * other, [there], cast)) == alike
        assert pytorch.same(there, there * other, [there], cast[:2])


def test_the_command_ends_with_1_where_something_was_found(monkeypatch, capsys):
    def found(fuzzer: Any, seed: int, *_: Any, **__: Any) -> Tally:
        tally = Tally(programs=3)
        tally.found["step | P | values"] += seed
        return tally

    monkeypatch.setattr(command, "search", found)
    assert command.main(["--minutes", "0.1", "--only", "network", "--seed", "2"]) == 1
    assert "seed 2" in (shown := capsys.readouterr().out)
    assert "2  step | P | values" in shown
