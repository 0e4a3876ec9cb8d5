"""The registries and whatever else goes by their names: no table says less, or more, than they do."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gpubackprop.torch as gt
from gpubackprop import optimizers
from gpubackprop.backends.cupy_launch import TABLE_UPDATES
from gpubackprop.formulas import (
    ACTIVATIONS,
    OUTPUTS,
    POINTWISE_LOSSES,
    UPDATES,
    activation,
    pointwise_loss,
)
from gpubackprop.formulas.registry import OTHER_NAMES
from gpubackprop.initializers import INITIALIZERS
from gpubackprop.losses import LOSSES, loss
from gpubackprop.onnx import formulas as onnxs
from gpubackprop.ops import activation_forward
from gpubackprop.optimizers import OPTIMIZERS
from gpubackprop.sklearn import MLPRegressor
from gpubackprop.torch import activations as torchs
from tests import references

ROOT = Path(__file__).parents[1]
REGISTRIES = {
    "activations": set(ACTIVATIONS),
    "losses": set(LOSSES),
    "optimizers": set(UPDATES) | set(OPTIMIZERS),
}
# Lists of the package that hold names of a registry by right: scikit-learn's own, and what is offered.
SELECTIONS = {
    ("gpubackprop/backends/cupy/epilogues.py", "FORWARD"),  # what cuBLASLt has
    ("gpubackprop/backends/cupy_launch.py", "TABLE_UPDATES"),
    ("gpubackprop/bench/shapes.py", "PEER_ACTIVATIONS"),
    ("gpubackprop/sklearn/objective.py", "OUTPUTS"),  # by scikit-learn's names of output functions
    ("gpubackprop/sklearn/parameters.py", "SKLEARN_LOSSES"),
    ("gpubackprop/sklearn/parameters.py", "SKLEARN_ACTIVATIONS"),
    ("gpubackprop/sklearn/parameters.py", "SKLEARN_SOLVERS"),
}
# Those that must name every entry; the test below them walks each.
COMPLETE = {
    ("gpubackprop/optimizers.py", "_FACTORIES"),
    ("gpubackprop/optimizers.py", "OPTIMIZERS"),
    ("gpubackprop/torch/activations.py", "FORMULAS"),
    ("gpubackprop/torch/activations.py", "_SLOPES_OF_VALUES"),
}


def tables() -> list[tuple[str, str, str, set[str]]]:
    """(file, name, registry, strings) of literals of the package with two names of a registry."""
    found = []
    for path in sorted((ROOT / "gpubackprop").rglob("*.py")):
        tree = ast.parse(path.read_text())
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            parts = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
            strings = {part.value for part in parts if isinstance(part, ast.Constant)}
            for registry, names in REGISTRIES.items():
                if len(strings & names) > 1:
                    at = str(path.relative_to(ROOT))
                    found.append((at, _assigned_to(node, parents), registry, strings))
    return found


def _assigned_to(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> str:
    while node in parents and not isinstance(node, (ast.Assign, ast.AnnAssign, ast.FunctionDef)):
        node = parents[node]
    if isinstance(node, ast.FunctionDef):
        return node.name
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    return "" if target is None else ast.unparse(target)


def test_every_table_of_the_package_by_a_registrys_names_is_held_to_the_registry():
    """A peer of the benchmarks may know fewer, and says so; nothing may know others."""
    seen = tables()
    for file, name, registry, strings in seen:
        if (file, name) in SELECTIONS | COMPLETE:
            continue
        assert file.startswith("gpubackprop/bench/"), (
            f"{file}: {name} is by the names of the {registry}: put it into their entries, or hold "
            f"it to the registry here"
        )
        assert strings <= REGISTRIES[registry], f"{file}: {name} names what is none"
    assert {(file, name) for file, name, _, _ in seen} >= SELECTIONS | COMPLETE


def test_tables_that_must_name_every_entry_do():
    assert set(torchs.FORMULAS) == set(ACTIVATIONS)
    assert all(entry.onnx for entry in ACTIVATIONS.values())
    assert set(onnxs.OUTPUTS) == set(OUTPUTS)
    of_values = {name for name, entry in ACTIVATIONS.items() if entry.saved == "h"}
    assert set(torchs._SLOPES_OF_VALUES) == of_values
    assert set(optimizers._FACTORIES) == set(UPDATES)
    assert set(TABLE_UPDATES) <= set(UPDATES)
    assert set(POINTWISE_LOSSES) < set(LOSSES)
    for table in (references.ACTIVATIONS, references.BY_MPMATH):
        assert set(table) == set(ACTIVATIONS)
    for table in (references.EXACT, references.SHORTFALLS):
        assert set(table) <= set(ACTIVATIONS)
    assert set(references.POINTWISE) == set(POINTWISE_LOSSES)


@pytest.mark.parametrize("name", UPDATES)
def test_an_optimizer_is_printed_as_the_call_that_makes_it(name):
    entry = UPDATES[name]
    made = optimizers.Optimizer(entry, 0.25, entry.hyperparameters, 0.125)
    assert eval(repr(made), vars(optimizers)).config() == made.config()


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_printed_as_the_call_that_makes_it_and_has_what_its_entry_says(name):
    made = loss(name, reduction="sum")
    entry = POINTWISE_LOSSES.get(name)
    assert made.output in OUTPUTS
    assert (
        eval(repr(made), {kind.__name__: kind for kind in LOSSES.values()}).config()
        == made.config()
    )
    if entry is None:
        return
    for what in ("output", "task", "default"):
        assert getattr(made, what) == getattr(entry, what)
    if entry.parameter_name:
        other = loss(f"{name}(0.625)")
        assert other.config()[entry.parameter_name] == 0.625
        assert loss(name, **{entry.parameter_name: 0.625}).config() == other.config()
        assert eval(repr(other), {type(other).__name__: type(other)}).config() == other.config()


OF_REGRESSION = [spec for spec in references.POINTWISE_SPECS if loss(spec).task == "regression"]


@pytest.mark.parametrize("spec", OF_REGRESSION)
@pytest.mark.parametrize(("solver", "slope"), [("lbfgs", 2e-3), ("adam", 2e-2)])
def test_the_regressor_minimises_and_reports_every_loss_of_real_targets(spec, solver, slope):
    """Reported as scikit-learn reports the squared error: half the mean over rows and outputs."""
    rng = np.random.default_rng(0)
    x, W = rng.normal(size=(60, 3)), rng.normal(size=(2, 3))
    y = x @ W.T + 3 * rng.standard_t(2, (60, 2))
    model = MLPRegressor(
        spec, (), solver=solver, alpha=0.0, batch_size=60, max_iter=400, tol=1e-9, random_state=0,
        learning_rate_init=0.05, device="cpu",
    ).fit(x, y)  # fmt: skip
    leaves = [torch.from_numpy(a).requires_grad_() for a in (*model.coefs_, *model.intercepts_)]
    formula = pointwise_loss(spec)
    value = references.POINTWISE[formula.name](
        torch.from_numpy(x) @ leaves[0] + leaves[1], torch.from_numpy(y), formula.parameter
    ).mean()
    value.backward()
    assert max(float(leaf.grad.abs().max()) for leaf in leaves) < slope
    assert model.loss_ == pytest.approx(value.item(), rel=1e-2)


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_the_regressor_names_its_losses_and_scikit_learns_form_says_which_it_lacks():
    x, y = np.eye(4), np.arange(4.0)
    for bad in ("poison", "binary_cross_entropy", "squared_error(1)", 7):
        with pytest.raises(ValueError, match=r"'loss' parameter .* must be a str among"):
            MLPRegressor(bad, max_iter=1).fit(x, y)
    for spec in OF_REGRESSION[1:]:
        model = MLPRegressor(spec, (2,), max_iter=1, solver="lbfgs").fit(x, y)
        with pytest.warns(UserWarning, match=r"scikit-learn has no loss"):
            assert model.to_sklearn().loss == "squared_error"


@pytest.mark.parametrize("spec", [*ACTIVATIONS, "leaky_relu(0.3)", "elu(0.5)"])
def test_the_stand_ins_of_pytorch_have_the_value_and_the_slope_of_the_entry(spec):
    entry, a = activation(spec), np.linspace(-30, 50, 4001)
    exact, exact_slope = references.activation_oracle(entry.name, a, entry.parameter)
    value = torchs.FORMULAS[entry.name](torch.from_numpy(a), entry.parameter)
    np.testing.assert_allclose(value.numpy(), exact, rtol=0, atol=1e-14)
    saved = a if entry.saved == "a" else activation_forward(a[None], entry)[0]
    slope = torchs.slope(entry, torch.from_numpy(saved))
    np.testing.assert_allclose(slope.numpy(), exact_slope, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", torchs.MODULES, ids=lambda kind: kind.__name__)
def test_every_module_that_is_offered_is_converted_and_trains_as_pytorchs(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8, dtype=torch.float64), kind(), nn.Linear(8, 2).double())
    x = torch.randn(5, 4, dtype=torch.float64)
    results = []
    for convert in (False, True):
        if convert:
            assert any("linear_act" in line for line in gt.convert(model).replaced)
        model.zero_grad()
        model(x).square().sum().backward()
        results.append([p.grad.clone() for p in model.parameters()])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert activation(torchs.name_of(kind())).name in ACTIVATIONS


def additions() -> dict[str, tuple[list[str], list[str]]]:
    """Of CONTRIBUTING: title of "Adding ...", to (entries named there as examples, files listed)."""
    text, found = (ROOT / "CONTRIBUTING.md").read_text(), {}
    for title, body in re.findall(r"^## (Adding an? .*)\n([\s\S]*?)(?=^## )", text, re.MULTILINE):
        examples = re.search(r"^Examples?: ([^.]*)\.", body, re.MULTILINE)
        if examples:
            found[title] = (
                re.findall(r"`(\w+)`", examples[1]),
                re.findall(r"^\d\. `([\w./]+)`", body, re.MULTILINE),
            )
    return found


@pytest.mark.parametrize("title", additions())
def test_an_addition_touches_the_files_that_contributing_lists_and_no_other(title):
    """Counted by the names of entries that were added so: where each stands as a whole word."""
    examples, listed = additions()[title]
    assert examples
    assert 1 <= len(listed) <= 4
    for name in examples:
        command = ["git", "grep", "-lwF", name, "--", "*.py", "*.cu", "*.cuh", "Makefile", "*.toml"]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if found.returncode > 1:
            pytest.skip("not in a git working tree")
        assert sorted(found.stdout.split()) == sorted(listed), name


def test_what_other_programs_call_an_entry_leads_to_an_entry_and_is_none():
    registries = [ACTIVATIONS, OUTPUTS, LOSSES, OPTIMIZERS, INITIALIZERS]
    for other, ours in OTHER_NAMES.items():
        homes = [registry for registry in registries if ours in registry]
        assert homes, ours
        assert not [home for home in homes if other in home]
