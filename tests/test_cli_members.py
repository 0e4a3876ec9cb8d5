"""`gpubackprop train --members`: networks of several seeds, and the mean of what they predict."""

from __future__ import annotations

import argparse
import csv
import functools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import VotingClassifier
from sklearn.model_selection import PredefinedSplit, cross_val_score
from sklearn.preprocessing import StandardScaler

from gpubackprop import MLP, Ensemble, Model, Trainer, losses
from gpubackprop.cli.train_members import seeds
from gpubackprop.data.folds import fold_numbers
from tests.cli_runs import houses, ok, read_table, run_cli, write_table
from tests.test_cli_folds import SETTINGS, noisy


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if matplotlib were not installed: drawing takes longer than these trainings."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_table(tmp_path / "flowers.csv", noisy())


def train(table: Path, output: Path, *options: Any, target: str = "kind") -> Any:
    ok("train", table, "--target", target, "--output", output, *SETTINGS, *options)
    return json.loads((output / "summary.json").read_text())


def members_of(output: Path) -> tuple[MLP, ...]:
    network = Model.load(output / "model.safetensors").network
    assert isinstance(network, Ensemble)
    return network.members


def seeds_of(count: int, seed: int = 4) -> list[int]:
    return [seed, *map(int, np.random.SeedSequence(seed).generate_state(count - 1))]


def test_each_member_is_the_network_that_its_seed_trains_alone(table: Path, tmp_path: Path) -> None:
    train(table, tmp_path / "three", "--members", "3", "--test", "0", "--validation", "0")
    found = members_of(tmp_path / "three")
    train(table, tmp_path / "one", "--test", "0", "--validation", "0")
    alone = Model.load(tmp_path / "one/model.safetensors").network
    assert isinstance(alone, MLP)
    assert found[0].parameters.tobytes() == alone.parameters.tobytes()
    for member, seed in zip(found[1:], seeds_of(3)[1:], strict=True):
        train(table, tmp_path / "one", "--test", "0", "--validation", "0", "--seed", seed)
        other = Model.load(tmp_path / "one/model.safetensors").network
        assert isinstance(other, MLP)
        assert member.parameters.tobytes() == other.parameters.tobytes()


def test_predict_export_and_info_take_the_mean_of_the_members(table: Path, tmp_path: Path) -> None:
    summary = train(table, tmp_path / "run", "--members", "3")
    tensors = load_file(tmp_path / "run/model.safetensors")
    columns = noisy()
    x = np.stack([columns["length"], columns["width"]], 1)
    x = ((x - tensors["input.mean"]) / tensors["input.scale"]).astype(np.float32)
    each = []
    for member in range(3):
        W, b = (
            [tensors[f"members.{member}.layers.{layer}.{kind}"] for layer in (0, 1)]
            for kind in ("weight", "bias")
        )
        a = np.maximum(x @ W[0].T + b[0], 0) @ W[1].T + b[1]
        e = np.exp(a - a.max(1, keepdims=True))
        each.append(e / e.sum(1, keepdims=True))
    mean = np.mean(each, 0)
    said = read_table(ok("predict", tmp_path / "run", table, "--probabilities").out)
    found = np.stack([said[f"probability_{name}"] for name in ("iris", "lily", "rose")], 1)
    np.testing.assert_allclose(found.astype(float), mean, rtol=1e-4, atol=1e-6)
    names = np.array(["iris", "lily", "rose"])[mean.argmax(1)]
    assert said["prediction"] == names.tolist()
    info = ok("info", tmp_path / "run")
    assert "3 members, each 2-6-3" in info.out
    assert ok("info", tmp_path / "run", "--json").json["members"] == 3
    assert [own["seed"] for own in summary["members"]] == seeds_of(3)
    onnxruntime = pytest.importorskip("onnxruntime")
    ok("export", tmp_path / "run", tmp_path / "run.onnx", "--input-dtype", "float32")
    session = onnxruntime.InferenceSession(tmp_path / "run.onnx")
    inputs = {name: columns[name].astype(np.float32)[:, None] for name in ("length", "width")}
    probabilities = session.run(["probabilities"], inputs)[0]
    np.testing.assert_allclose(probabilities, mean, rtol=1e-4, atol=1e-6)


def test_the_score_is_of_the_mean_and_each_member_has_its_own(table: Path, tmp_path: Path) -> None:
    result = ok(
        "train", table, "--target", "kind", "--output", tmp_path / "run", "--members", "4",
        "--test", table, *SETTINGS,
    )  # fmt: skip
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    model, columns = Model.load(tmp_path / "run/model.safetensors"), noisy()
    x = np.stack([columns["length"], columns["width"]], 1)
    right = [
        np.mean(
            Model(member, model.preprocessor, classes=model.classes).predict_labels(x)
            == columns["kind"]
        )
        for member in members_of(tmp_path / "run")
    ]
    assert [own["test_accuracy"] for own in summary["members"]] == pytest.approx(right)
    assert summary["test_accuracy"] == pytest.approx(
        np.mean(model.predict_labels(x) == columns["kind"])
    )
    says = f"4 networks, test accuracy of each {min(right):.4f} to {max(right):.4f}"
    assert says in result.out
    with open(tmp_path / "run/history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["member"], row["epoch"]) for row in rows] == [
        (str(member), str(epoch)) for member in (1, 2, 3, 4) for epoch in (1, 2, 3)
    ]


def test_members_for_numbers_predict_in_the_units_of_the_file(tmp_path: Path) -> None:
    table = write_table(tmp_path / "houses.csv", houses())
    summary = train(
        table, tmp_path / "run", "--members", "3", "--epochs", "60", "--test", table, target="price"
    )
    price = houses()["price"]
    said = read_table(ok("predict", tmp_path / "run", table).out)["prediction"]
    error = np.array(said, float) - price
    assert summary["test_rmse"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-4)
    assert summary["test_rmse"] < 200_000


class Net(ClassifierMixin, BaseEstimator):
    """The command's network of one seed for scikit-learn."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, x: np.ndarray, y: np.ndarray) -> Net:
        self.classes_, codes = np.unique(y, return_inverse=True)
        self.scaler = StandardScaler().fit(x)
        self.network = MLP([2, 6, 3], "relu", initializer="glorot_uniform", seed=self.seed)
        loss = losses.SoftmaxCrossEntropy(label_smoothing=0.05)
        trainer = Trainer(
            self.network, loss, schedule="cosine", batch_size=8, seed=self.seed, progress=False
        )
        trainer.fit(self.scaler.transform(x).astype(np.float32), codes, epochs=3)
        return self

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.network.predict(self.scaler.transform(x).astype(np.float32)))


def test_folds_score_the_mean_of_members_as_scikit_learns_voting_does(
    table: Path, tmp_path: Path
) -> None:
    folds = train(table, tmp_path / "run", "--folds", "4", "--members", "3")["folds"]
    columns = noisy()
    x, y = np.stack([columns["length"], columns["width"]], 1), columns["kind"]
    numbers = fold_numbers(90, 4, 4, np.unique(y, return_inverse=True)[1])
    nets = [(f"net {seed}", Net(seed)) for seed in seeds_of(3)]
    voting = VotingClassifier(nets, voting="soft")
    expected = cross_val_score(voting, x, y, cv=PredefinedSplit(numbers))
    np.testing.assert_allclose(folds["scores"]["accuracy"], expected)
    alone = train(table, tmp_path / "alone", "--folds", "4")["folds"]
    assert alone["scores"]["accuracy"] != pytest.approx(list(expected))


def killed_in_member(member: int, table: Path, output: Path, patch: pytest.MonkeyPatch) -> None:
    """Leave the checkpoints of a run that was killed in epoch 3 of a member, from 1."""
    fit, begun = Trainer.fit, []

    def kill(trainer: Trainer, row: dict[str, Any]) -> None:
        if len(begun) == member and row["epoch"] > 2:
            raise SystemExit(9)  # nothing that the command line handles

    def killed(self: Trainer, *args: Any, **options: Any) -> Any:
        begun.append(self)
        self.callbacks = [kill]
        return fit(self, *args, **options)

    with patch.context() as own:
        own.setattr(Trainer, "fit", killed)
        own.setattr("gpubackprop.cli.train_run.CHECKPOINT_SECONDS", 0.0)
        command = ("train", table, "--target", "kind", "--output", output, "--members", "3")
        assert run_cli(*command, *SETTINGS, "--epochs", "5").code == 9


def test_members_go_on_where_a_killed_run_has_stopped(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(table, tmp_path / "whole", "--members", "3", "--epochs", "5")
    killed_in_member(2, table, tmp_path / "run", monkeypatch)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoint-1.safetensors", "checkpoint-2.safetensors", "checkpoint.json",
    ]  # fmt: skip
    other = run_cli(
        "train", table, "--target", "kind", "--output", tmp_path / "run", *SETTINGS, "--epochs", "5"
    )
    assert other.code == 1
    assert "--members 3 there, None now" in other.err
    summary = train(table, tmp_path / "run", "--members", "3", "--epochs", "5")
    assert summary["resumed"] is True
    whole, found = ((tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert found.read_bytes() == whole.read_bytes()
    assert not list((tmp_path / "run").glob("checkpoint*"))


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_keeps_the_members_that_have_learned(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, begun = Trainer.fit, []

    def press(trainer: Trainer, row: dict[str, Any]) -> None:
        if len(begun) == 2 and row["epoch"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    @functools.wraps(fit)
    def pressed(self: Trainer, *args: Any, **options: Any) -> Any:
        begun.append(self)
        self.callbacks = [press]
        return fit(self, *args, **options)

    command = ("train", table, "--target", "kind", "--output", tmp_path / "run", "--members", "3")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", pressed)
        result = run_cli(*command, *SETTINGS, "--epochs", "5")
    assert result.code == 130
    assert len(members_of(tmp_path / "run")) == 2
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert [own["epochs"] for own in summary["members"]][0::2] == [5, 0]
    ok(*command, *SETTINGS, "--epochs", "5")
    train(table, tmp_path / "whole", "--members", "3", "--epochs", "5")
    whole, found = ((tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert found.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_processes_change_no_bit_of_the_members(table: Path, tmp_path: Path) -> None:
    train(table, tmp_path / "one", "--members", "3")
    train(table, tmp_path / "two", "--members", "3", "--jobs", "2")
    one, two = ((tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--members", "1"], 2, "at least 2"),
        (["--members", "3", "--log", "tensorboard"], 2, "leave one of the two out"),
        (["--members", "3", "--lr", "1e30", "--activation", "identity"], 1, "member 1 of 3: the"),
    ],
)
def test_members_that_cannot_be_are_refused(
    table: Path, tmp_path: Path, options: list[str], code: int, says: str
) -> None:
    result = run_cli(
        "train", table, "--target", "kind", "--output", tmp_path / "run", *SETTINGS, *options
    )
    assert (result.code, says in result.err) == (code, True), result.err
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_seeds_of_members_are_distinct() -> None:
    for seed in (0, 1, 2**40):
        found = seeds(argparse.Namespace(seed=seed, members=100))
        assert (found[0], len(set(found))) == (seed, 100)
