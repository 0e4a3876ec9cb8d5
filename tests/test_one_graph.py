"""The same CUDA graphs train a network, an estimator and a network from PyTorch; what they count.

On the emulated card. A step of `gpubackprop.torch` is PyTorch's: its autograd issues the calls one
by one, and `torch.cuda.graph` captures them (test_torch_gpu).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from gpubackprop import MLP, Trainer, losses, optimizers
from gpubackprop.backends import devices, workload
from gpubackprop.backends.cupy import CupyBackend, Replay
from gpubackprop.backends.cupy.product_choice import Choices
from gpubackprop.sklearn import MLPClassifier, MLPRegressor
from gpubackprop.training.batches import Batches
from gpubackprop.training.step import Regularization, TrainStep
from tests import emulator
from tests.emulator import cupy_stub
from tests.emulator.cupy_queue import Graph
from tests.emulator.cupy_stub import STATE

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(
        bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
    ),
]
RNG = np.random.default_rng(0)
X, LABELS = RNG.normal(size=(40, 5)).astype(np.float32), np.arange(40) % 3
SHARED = {"gather_rows", "affine_epilogue", "softmax_cross_entropy", "activation_backward"}


@pytest.fixture(autouse=True)
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[cupy_stub.Counts]:
    def choose(device: str) -> tuple[str, str]:
        return ("cpu", "asked for") if device == "cpu" else ("cuda:0", "emulated")

    monkeypatch.setattr(devices, "choose", choose)
    monkeypatch.setattr(workload, "FIRST_USE", -1e6)  # any work is worth this card
    monkeypatch.setenv("GPUBACKPROP_RESIDENT", "0")  # the graphs of steps are tested here
    with cupy_stub.installed() as counted:
        yield counted


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Replay]:
    """All plans that are made."""
    made: list[Replay] = []
    plan = CupyBackend.plan

    def noted(self: CupyBackend, emit: Any) -> Replay:
        made.append(plan(self, emit))
        return made[-1]

    monkeypatch.setattr(CupyBackend, "plan", noted)
    return made


def modules() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))


def by_trainer(network: MLP) -> None:
    Trainer(network, optimizer="adam", batch_size=16, progress=False).fit(X, LABELS, epochs=2)


def by_estimator(kind: Any, targets: Any) -> None:
    with warnings.catch_warnings(action="ignore"):
        kind(hidden_layer_sizes=(6,), batch_size=16, max_iter=2, random_state=0).fit(X, targets)


TRAININGS = {
    "network": lambda: by_trainer(MLP([5, 6, 3], seed=0, device="cuda")),
    "from PyTorch": lambda: by_trainer(MLP.from_torch(modules(), output="softmax", device="cuda")),
    "classifier": lambda: by_estimator(MLPClassifier, LABELS),
    "regressor": lambda: by_estimator(MLPRegressor, X[:, 0] - X[:, 1]),
}


@pytest.mark.parametrize("who", TRAININGS)
def test_each_step_of_a_training_is_one_launch_of_a_captured_graph(who, plans, counts):
    """40 rows in batches of 16 are 3 steps an epoch, by two plans."""
    TRAININGS[who]()
    assert counts.graphs == 6
    assert len(plans) == 2
    assert [plan.uncaptured for plan in plans] == ["", ""]


def test_the_graph_of_an_estimator_has_the_nodes_of_a_networks(plans, counts):
    nodes = []
    for who in ("network", "classifier"):
        plans.clear()
        TRAININGS[who]()
        graph = plans[0]._plan._graph
        stems = [name.rpartition("_")[0] for name in graph.kernels]  # without the dtype
        nodes.append((Counter(stem for stem in stems if stem), graph.products))
    mine, theirs = nodes
    assert mine[1] == theirs[1] == 5
    assert abs(mine[0].total() - theirs[0].total()) <= 2  # scikit-learn's loss has its penalty
    assert {stem for stem in mine[0] if stem.startswith(tuple(SHARED))} == {
        stem for stem in theirs[0] if stem.startswith(tuple(SHARED))
    }


# -- counts ------------------------------------------------------------------------------------------


def step_of(widths: list[int], rows: int, batch: int) -> TrainStep:
    network, loss = MLP(widths, seed=0, device="cuda"), losses.SoftmaxCrossEntropy()
    x = np.zeros((rows, widths[0]), np.float32)
    data = Batches.check(network, loss, x, np.arange(rows) % widths[-1])
    return TrainStep(network, loss, data, batch, optimizers.Adam(0.01), Regularization())


def test_a_step_of_784_512_512_10_is_a_graph_of_21_nodes(plans, monkeypatch):
    """13 kernels and 8 products, at the sizes of the benchmark; nothing is computed."""
    monkeypatch.setattr(
        Choices, "_take_fastest", lambda self, product, results, *rest: product.take(results[0])
    )
    step_of([784, 512, 512, 10], 4096, 4096)._plan(4096)
    graph = plans[0]._plan._graph
    assert (len(graph.kernels), graph.products, len(graph.nodes)) == (13, 8, 21)


def test_an_epoch_is_replays_of_graphs_and_one_call_that_says_where_its_row_numbers_are(
    monkeypatch,
):
    """Each gather leaves the place of the next batch's numbers in the device's memory."""
    step = step_of([5, 6, 6, 3], 40, 16)
    order = step.place(np.arange(40))
    for start in (0, 16, 32):
        step.update(order[start : start + 16], 0.01)
    calls: list[str] = []
    queue, launch = type(STATE).queue, Graph.launch

    def queued(self: Any, call: Any, *args: Any, **options: Any) -> None:
        calls.append("call")
        queue(self, call, *args, **options)

    def launched(self: Graph, *args: Any) -> None:
        calls.append("graph")
        with pytest.MonkeyPatch.context() as inner:  # its nodes are no calls of the host
            inner.setattr(type(STATE), "queue", queue)
            launch(self, *args)

    monkeypatch.setattr(type(STATE), "queue", queued)
    monkeypatch.setattr(Graph, "launch", launched)
    for start in (0, 16, 32):
        step.update(order[start : start + 16], 0.01)
    monkeypatch.undo()
    assert calls == ["call"] + ["graph"] * 3
