"""Loggers: TensorBoard's, MLflow's and W&B's own readers find every epoch's figures.

Where a package is absent, a stand-in for the few functions that are called takes its place, so that
the order of the calls is tested everywhere.
"""

from __future__ import annotations

import copy
import pickle
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpubackprop import MLP, Trainer
from gpubackprop.errors import MissingDependencyError
from gpubackprop.loggers import LOGGERS, MLflow, TensorBoard, WandB, settings
from gpubackprop.sklearn import MLPClassifier
from tests.small_training import some_data

X, Y = some_data(30)


def trained(logger: Any, epochs: int = 3) -> Trainer:
    trainer = Trainer(MLP([4, 5, 3]), batch_size=10, callbacks=[logger], progress=False)
    trainer.fit(X, Y, epochs=epochs, validation=0.2)
    return trainer


def events(folder: Any) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's own reader finds: (step, value) by tag."""
    module = "tensorboard.backend.event_processing.event_accumulator"
    accumulator = pytest.importorskip(module, reason="tensorboard is not installed")
    reader = accumulator.EventAccumulator(str(folder), {accumulator.TENSORS: 0})
    reader.Reload()
    return {
        tag: [(e.step, float(e.tensor_proto.float_val[0])) for e in reader.Tensors(tag)]
        for tag in reader.Tags()["tensors"]
    }


def test_tensorboards_own_reader_finds_the_history(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    with TensorBoard(tmp_path / "log") as logger:
        history = trained(logger).history
    found = events(tmp_path / "log")
    assert set(found) == set(history.columns) - {"epoch"}
    for name in ("loss", "val_loss", "val_accuracy", "lr"):
        assert [step for step, _ in found[name]] == [1, 2, 3]
        np.testing.assert_array_equal(
            [value for _, value in found[name]], np.float32(history[name])
        )


def test_an_estimator_logs_to_tensorboard_and_goes_on_after_a_pickle(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    logger = TensorBoard(tmp_path)
    options = {"max_iter": 2, "warm_start": True, "n_iter_no_change": 50, "random_state": 0}
    with pytest.warns(match="Maximum iterations"):
        fitted = MLPClassifier(5, callbacks=[logger], **options).fit(X, Y)
    again = pickle.loads(pickle.dumps(fitted))
    assert again.callbacks[0]._writer is None
    assert events(tmp_path)["loss"] == [
        (epoch, np.float32(loss)) for epoch, loss in enumerate(fitted.loss_curve_, 1)
    ]
    logger.close()


class Mlflow(ModuleType):
    """The functions of MLflow that are called, and what they were given."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.run: Any = None
        self.calls: list[Any] = []

    def active_run(self) -> Any:
        return self.run

    def start_run(self, **options: Any) -> None:
        self.run = options
        self.calls.append(("start", options))

    def end_run(self) -> None:
        self.run = None
        self.calls.append("end")

    def log_params(self, values: dict[str, Any]) -> None:
        self.calls.append(("params", values))

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.calls.append((step, values))


def test_mlflow_gets_a_run_with_settings_and_figures_or_the_active_one(monkeypatch):
    mlflow = Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    with MLflow(run_name="a") as logger:
        trainer = trained(logger, epochs=2)
    start, params, first, second, end = mlflow.calls
    assert (start, params, end) == (
        ("start", {"run_name": "a"}),
        ("params", settings(trainer)),
        "end",
    )
    assert [first[0], second[0]] == [1, 2]
    assert [first[1]["loss"], second[1]["loss"]] == trainer.history["loss"]
    mlflow.calls.clear()
    mlflow.run = "the program's"
    with MLflow() as logger:
        trained(logger, epochs=2)
    assert [call[0] for call in mlflow.calls] == [1, 2]
    assert mlflow.run == "the program's"


def test_wandb_gets_a_run_with_settings_and_figures_or_the_programs(monkeypatch):
    calls: list[Any] = []

    def run(name: str) -> Any:
        return SimpleNamespace(
            config=SimpleNamespace(update=lambda values, **options: calls.append((name, values))),
            log=calls.append, finish=lambda: calls.append("finish"),
        )  # fmt: skip

    wandb = ModuleType("wandb")
    wandb.run, wandb.init = None, lambda **options: run(options["project"])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with WandB(project="own") as logger:
        trainer = trained(logger, epochs=2)
    assert calls[0] == ("own", settings(trainer))
    assert [row["epoch"] for row in calls[1:3]] == [1, 2]
    assert calls[3] == "finish"
    calls.clear()
    wandb.run = run("the program's")  # type: ignore[attr-defined]
    with WandB() as logger:
        trained(logger, epochs=1)
    assert calls[0][0] == "the program's"
    assert "finish" not in calls


@pytest.mark.slow
def test_mlflow_itself_keeps_the_figures(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}/runs")
    with MLflow(run_name="a") as logger:
        trainer = trained(logger)
    (kept,) = mlflow.search_runs(output_format="list")
    assert kept.data.params["batch_size"] == "10"
    assert kept.data.metrics["val_loss"] == pytest.approx(trainer.history["val_loss"][-1])


@pytest.mark.slow
def test_wandb_itself_takes_the_figures_offline(tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed")
    with WandB(mode="offline", dir=str(tmp_path)) as logger:
        trainer = trained(logger)
        assert logger._writer.summary["loss"] == pytest.approx(trainer.history["loss"][-1])
    assert list(tmp_path.rglob("*.wandb"))


def test_a_logger_is_copied_and_pickled_without_its_writer():
    logger = TensorBoard("somewhere")
    logger._writer = open  # no pickle holds an open file
    for twin in (copy.deepcopy(logger), pickle.loads(pickle.dumps(logger))):
        assert twin._writer is None
        assert twin.folder == logger.folder


@pytest.mark.parametrize("name", LOGGERS)
def test_without_the_package_the_error_says_what_to_install(name, tmp_path, monkeypatch):
    for module in (name, f"{name}.summary"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"gpubackprop\[{name}\]"):
        trained(LOGGERS[name](tmp_path), epochs=1)


def test_settings_of_an_estimator_are_its_parameters_without_the_callbacks():
    found = settings(MLPClassifier((5, 4), callbacks=[print]))
    assert found["hidden_layer_sizes"] == "(5, 4)"
    assert found["alpha"] == 0.0001
    assert "callbacks" not in found
