"""A training step is written once, in `gpubackprop.passes`, and is what PyTorch computes."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gpubackprop
from gpubackprop.backends import Backend, UpdateRule, get
from gpubackprop.formulas import UPDATES, Activation, activation
from gpubackprop.layout import ParameterLayout
from gpubackprop.losses import SoftmaxCrossEntropy
from gpubackprop.passes import Batch, PassUnits, Units, emit_forward, emit_step

PACKAGE = Path(gpubackprop.__file__).parent
LAYER_OPERATIONS = {"affine_forward", "affine_backward", "activation_backward", "column_sum"}
WIDTHS, ROWS, LR = (5, 7, 6, 4), 9, 0.3


@dataclass
class Shape:
    """An `Architecture` that is no network."""

    backend: Backend
    widths: tuple[int, ...]
    activations: tuple[Activation, ...]
    dropout: tuple[float, ...]
    precision: Any


def step_of_pytorch(x: np.ndarray, labels: np.ndarray, W: Any, b: Any) -> tuple[Any, ...]:
    """Loss, logits, and all parameters after a step of gradient descent."""
    parameters = [torch.tensor(array, requires_grad=True) for array in (*W, *b)]
    h, count = torch.tensor(x), len(W)
    for layer in range(count):
        a = h @ parameters[layer].T + parameters[count + layer]
        h = torch.tanh(a) if layer == 0 else torch.relu(a)
    loss = torch.nn.functional.cross_entropy(a, torch.tensor(labels))
    loss.backward()
    after = [p.detach() - LR * p.grad for p in parameters]
    return loss.item(), a.detach(), after


@pytest.mark.parametrize("separate", [False, True], ids=["in shared memory", "each in its own"])
@pytest.mark.parametrize("planned", [False, True], ids=["at once", "planned"])
def test_a_step_is_pytorchs_for_anything_that_has_the_attributes_of_a_network(separate, planned):
    rng, backend = np.random.default_rng(0), get("cpu")
    layout = ParameterLayout(WIDTHS, np.dtype(np.float64))
    flat, gradient = (backend.zeros(layout.size, np.float64) for _ in range(2))
    W, b = layout.views(flat)
    for array in (*W, *b):
        array[...] = rng.normal(size=array.shape)
    x, labels = rng.normal(size=(ROWS, WIDTHS[0])), rng.integers(0, WIDTHS[-1], ROWS)
    wanted_loss, wanted_logits, wanted = step_of_pytorch(x, labels, W, b)

    acts = (activation("tanh"), activation("relu"))
    network = Shape(backend, WIDTHS, acts, (0.0, 0.0), np.dtype(np.float64))
    units, loss = PassUnits(network, ROWS, separate=separate), SoftmaxCrossEntropy()
    result = loss.buffers(backend, ROWS, np.float64) | {"delta": units.delta[-1]}
    logits = np.empty((ROWS, WIDTHS[-1]))
    batch = Batch(x, labels, None, units, result, logits=logits)
    updater = backend.updater(UpdateRule(UPDATES["gradient_descent"], {}, LR), flat, gradient, ())
    updater.set(LR, 1)
    layers, gradients = (W, b), layout.views(gradient)
    if planned:
        backend.plan(lambda to: emit_step(to, loss, batch, layers, gradients, updater))()
    else:
        emit_step(backend, loss, batch, layers, gradients, updater)
    assert float(result["loss"]) == pytest.approx(wanted_loss, rel=1e-13)
    np.testing.assert_allclose(logits, wanted_logits, rtol=1e-12)
    for mine, theirs in zip((*W, *b), wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-11, atol=1e-14)


def test_the_units_of_a_forward_pass_alone_give_the_same_logits_in_two_pieces_of_memory():
    rng, backend, dtype = np.random.default_rng(1), get("cpu"), np.dtype(np.float64)
    widths, acts = (5, 7, 6, 8, 3), tuple(map(activation, ("tanh", "gelu", "relu")))
    layout = ParameterLayout(widths, dtype)
    layers = layout.views(rng.normal(size=layout.size))
    x = rng.normal(size=(ROWS, widths[0]))
    whole = PassUnits(Shape(backend, widths, acts, (0.0,) * 3, dtype), ROWS, separate=True)
    alone = Units(backend, ROWS, widths[1:], acts, dtype)
    for units in (whole, alone):
        emit_forward(backend, x, layers, units)
    np.testing.assert_array_equal(alone.a[-1], whole.a[-1])
    assert np.shares_memory(alone.h[0], alone.h[2])
    assert not np.shares_memory(alone.h[0], alone.h[1])


def calls_of_layers(path: Path) -> list[str]:
    """Where a file calls an operation of a layer."""
    return [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in LAYER_OPERATIONS
        and ast.unparse(node.func.value) != "super()"  # an operation of a backend itself
    ]


def test_networks_trainers_and_estimators_pass_through_the_layers_in_one_place_alone():
    places = [PACKAGE / "network.py", PACKAGE / "model.py"]
    places += [*(PACKAGE / "training").rglob("*.py"), *(PACKAGE / "sklearn").rglob("*.py")]
    assert len(places) > 30
    assert not [call for path in places for call in calls_of_layers(path)]
    assert len(calls_of_layers(PACKAGE / "passes.py")) == 4
