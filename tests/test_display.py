"""How public objects print: in words and figures of theirs, on few lines, and as HTML."""

from __future__ import annotations

import inspect
from html.parser import HTMLParser
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import gpubackprop
import gpubackprop.torch
from gpubackprop import (
    MLP,
    Ensemble,
    History,
    Model,
    Trainer,
    backends,
    data,
    formulas,
    gradient_check,
    losses,
    ops,
    optimizers,
    schedules,
    sklearn,
    training,
)
from gpubackprop.data import Dataset, Standardizer, TablePreprocessor, TableRows
from gpubackprop.formulas.dropout import Dropout
from gpubackprop.optimizers import OPTIMIZERS, SGD, Adam, Momentum
from gpubackprop.schedules import SCHEDULES
from gpubackprop.training.evaluation import EvaluationStep
from tests.small_training import some_data

LINES, CHARACTERS, WIDTH = 14, 2500, 200
MODULES = (
    gpubackprop, backends, data, formulas, losses, ops, optimizers, schedules, sklearn,
    gpubackprop.torch, training,
)  # fmt: skip
# Bases, protocols, and what is never an object that a user holds.
NOT_HELD = {"Loss", "Total", "LabelError", "Backend", "Updater"}


def trained() -> Trainer:
    x, labels = some_data(60)
    trainer = Trainer(MLP([4, 30, 30, 3], "tanh"), batch_size=7, l2=0.1, clip_norm=2.0)
    trainer.fit(x, labels, epochs=30, validation=0.25)
    return trainer


def samples() -> list[Any]:
    """Objects of all public classes, most of them larger than a screen."""
    trainer, (x, labels) = trained(), some_data(300)
    step = trainer.state.step
    wide = np.random.default_rng(0).normal(size=(9, 900))
    names = [f"column {i}" for i in range(900)]
    network = MLP([900, 20, 40], precision="bfloat16", dropout=0.5)
    linear = torch.nn.Linear(900, 40)
    fitted = Standardizer.fit(wide)
    plain = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Conv1d(1, 1, 1))
    loss = losses.SoftmaxCrossEntropy
    prepared = TablePreprocessor.fit({name: wide[:, j] for j, name in enumerate(names)})
    nine = np.arange(9)
    return [
        trainer, trainer.history, trainer.state, trainer.network, network, step, training.History(),
        trainer.memory_estimate(1000), trainer.profile(x, labels, repeats=1),
        trainer.profile(x, labels, repeats=1).rows[0],
        step.snapshot(), step.data, EvaluationStep(trainer.network, trainer.loss, step.data, 9),
        network.gradients(wide, np.arange(9)), network.gradients(wide, np.arange(9), loss(reduction="none")),
        Model(network, fitted, names, None, np.arange(40)), Model(trainer.network), fitted,
        Standardizer.fit(x), prepared,
        TableRows(wide, nine, nine, nine[:0], prepared, nine, "classification", ("y",), nine, ()),
        Ensemble([MLP([900, 20, 40], seed=seed) for seed in range(50)]),
        Dataset(wide, labels, tuple(names), ("y",), "a.csv"),
        *map(optimizers.optimizer, OPTIMIZERS), *map(schedules.schedule, SCHEDULES),
        Adam().hyperparameters, network.backend, backends.get("cpu:numpy"), network.layout,
        *map(losses.loss, losses.LOSSES), loss(class_weight=np.ones(1000)), schedules.Schedule(),
        schedules.Progress(1, 2, 3), gradient_check(MLP([4, 3, 3]), x, labels),
        *formulas.ACTIVATIONS.values(), *formulas.UPDATES.values(),
        *formulas.POINTWISE_LOSSES.values(), Dropout(0.5, 1, None),
        backends.LossOptions(), backends.LossScaling(), trainer.regularization,
        backends.UpdateRule(trainer.optimizer.formula, {}, 0.1),
        ops.softmax_cross_entropy(x, labels % 4, details=True)[-1],
        ops.linear_cross_entropy(x, x[:5], x[:5, 0], labels % 5),
        sklearn.MLPClassifier(solver=Adam()), sklearn.MLPRegressor(),
        gpubackprop.torch.SGD([linear.weight], 0.1), gpubackprop.torch.Adam([linear.weight]),
        gpubackprop.torch.AdamW([linear.weight]), gpubackprop.torch.CrossEntropyLoss(),
        gpubackprop.torch.Linear(900, 40), gpubackprop.torch.LinearAct(900, 40, "relu"),
        gpubackprop.torch.convert(plain),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def shown() -> list[Any]:
    return samples()


def public_classes(module: ModuleType) -> set[str]:
    listed = getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")])
    found = {name: getattr(module, name) for name in listed}
    return {
        name
        for name, value in found.items()
        if inspect.isclass(value) and value.__module__.startswith("gpubackprop")
        if not issubclass(value, BaseException) and name not in NOT_HELD
    }


def test_every_public_class_has_a_repr_that_a_person_reads(shown: list[Any]) -> None:
    wanted = set().union(*map(public_classes, MODULES))
    assert not wanted - {type(value).__name__ for value in shown}, "add objects to `samples`"
    assert {"Trainer", "History", "Optimizer", "Gradients", "Conversion"} <= wanted
    for value in shown:
        text = repr(value)
        assert " at 0x" not in text, text
        assert text.count("\n") < LINES, text
        assert len(text) < CHARACTERS, text
        assert max(map(len, text.split("\n")[1:]), default=0) < WIDTH, text
        assert "\n" not in repr([value]) or not isinstance(value, optimizers.Optimizer)


class Cells(HTMLParser):
    """Text by tag; every tag must be closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: dict[str, list[str]] = {}
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.found.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        self.found[self.open[-1]][-1] += text


def test_what_a_notebook_shows_is_well_formed_and_small(shown: list[Any]) -> None:
    ours = [value for value in shown if type(value).__module__.startswith("gpubackprop")]
    kinds = {type(value).__name__ for value in ours if hasattr(value, "_repr_html_")}
    assert {"Trainer", "History", "MLP", "Model", "Gradients"} <= kinds
    for value in ours:
        if hasattr(value, "_repr_html_") and not isinstance(
            value, sklearn.MLPClassifier | sklearn.MLPRegressor
        ):
            cells = Cells(value._repr_html_()).found
            assert {"table", "caption"} <= set(cells), cells
            assert set(cells) <= {"table", "caption", "thead", "tbody", "tr", "th", "td"}, cells
            assert len(cells["tr"]) < 40


def test_names_are_escaped_in_html_and_kept_on_their_line_in_text() -> None:
    name = "<script>alert('&')</script>"
    history = History([{"epoch": 1, name: 2.0}])
    model = Model(MLP([2, 2]), None, [name, "two\nlines"], None, np.array([name, "b"]))
    for value in (history, model):
        page = value._repr_html_()
        assert "<script" not in page
        assert any(name in text for tag in ("th", "td") for text in Cells(page).found.get(tag, ()))
        assert name in repr(value)
    assert repr(model).count("\n") == 2
    long = Model(MLP([2, 2]), None, ["x" * 10_000, "y"], None, ["a" * 10_000, "b"])
    assert len(repr(long)) < 300
    assert len(long._repr_html_()) < 3000


def test_a_history_shows_its_first_and_last_epochs_what_was_best_and_why_it_ended() -> None:
    history = History([{"epoch": i, "loss": 1 / i} for i in range(1, 31)])
    assert repr(history).splitlines()[0] == "History of 30 epochs"
    assert repr(history).splitlines()[1:3] == ["epoch     loss", "    1        1"]
    assert repr(history).splitlines()[-1] == "   30  0.03333"
    history.best_epoch, history.stopped = 30, "patience"
    assert repr(history).startswith("History of 30 epochs, best epoch 30, ended by patience\n")
    history.rows[-1]["val_loss"] = 0.5  # a column that came later
    assert repr(history).splitlines()[2].split() == ["1", "1"]
    assert repr(History()) == "History of 0 epochs"
    assert repr(History([{"epoch": 1}])).startswith("History of 1 epoch\n")


def test_gradients_show_shapes_and_norms() -> None:
    network = MLP([3, 5, 2], "tanh", dtype="float64")
    gradients = network.gradients(np.ones((4, 3)), np.array([0, 1, 0, 1]))
    first, second = repr(gradients).splitlines()[2:]
    assert first.split()[:4] == ["1", "(5,", "3)", f"{np.linalg.norm(gradients.W[0]):.4g}"]
    assert f"{np.linalg.norm(gradients.output):.4g}" in second
    assert f"loss {float(gradients.loss):.4g}" in repr(gradients)


@pytest.mark.parametrize(
    "made",
    [*map(optimizers.optimizer, OPTIMIZERS), SGD(0.5, momentum=0.9, dampening=0.1),
     SGD(0.1, momentum=0.5, nesterov=True, weight_decay=0.2), SGD(0.3, weight_decay=0.1),
     Momentum(nesterov=True), Adam(eps_placement="sklearn", beta1=0.5),
     optimizers.AdamW(weight_decay=0.0), *map(schedules.schedule, SCHEDULES)],
    ids=repr,
)  # fmt: skip
def test_the_repr_of_an_optimizer_or_schedule_is_the_call_that_makes_it(made: Any) -> None:
    assert eval(repr(made), vars(optimizers) | vars(schedules)) == made


def test_a_trainer_says_what_it_trains_with_and_how_far_it_is() -> None:
    x, labels = some_data(60)
    trainer = Trainer(MLP([4, 3]), optimizer=SGD(0.1), batch_size=30, l2=0.5)
    assert repr(trainer) == (
        "Trainer(MLP([4, 3], activation=[], output='softmax', dtype='float32'), "
        "loss=SoftmaxCrossEntropy(), optimizer=GradientDescent(lr=0.1), batch_size=30, l2=0.5, "
        "seed=0)"
    )
    trainer.fit(x, labels, epochs=3)
    assert repr(trainer).endswith("seed=0) with 3 epochs, 6 steps done")
