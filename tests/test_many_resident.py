"""Fits on a GPU that run at the same time share launches, on the emulated card: `fit_many`,
`together`, `n_members`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.neural_network
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from gpubackprop import MLP, Trainer, fit_many
from gpubackprop.backends import devices, workload
from gpubackprop.backends.resident_plan import plan_resident
from gpubackprop.data.coded import CodedColumns, CodedInputs
from gpubackprop.optimizers import SGD, Adam
from gpubackprop.sklearn import MLPClassifier, MLPRegressor, together
from gpubackprop.training import epochs, resident, rounds
from gpubackprop.training.resident import ResidentJob
from gpubackprop.training.run import Run
from tests import emulator
from tests.emulator import cupy_stub
from tests.small_training import some_data

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.skipif(
        bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
    ),
]
X, LABELS = some_data(50)
X = X.astype(np.float32)
NUMBERS = X[:, :2] ** 2


@pytest.fixture(autouse=True)
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Have the emulated card; note how many networks each launch trains."""

    def choose(device: str) -> tuple[str, str]:
        return ("cpu", "asked for") if device == "cpu" else ("cuda:0", "emulated")

    found: list[int] = []

    def train_together(jobs: Sequence[ResidentJob]) -> None:
        found.append(len(jobs))
        resident.train_together(jobs)

    monkeypatch.setattr(devices, "choose", choose)
    monkeypatch.setattr(workload, "FIRST_USE", -1e6)
    monkeypatch.setattr(epochs, "train_together", train_together)
    monkeypatch.setattr(rounds, "LINGER", 30.0)  # the emulated card takes seconds for an epoch
    with cupy_stub.installed():
        yield found


def host(network: MLP) -> np.ndarray:
    return np.asarray(network.backend.to_host(network.parameters))


def networks(device: str) -> list[MLP]:
    hidden = [[6], [3, 4], []]
    return [MLP([4, *units, 3], "tanh", seed=1, device=device) for units in hidden]


def test_fit_many_trains_an_epoch_of_all_networks_in_one_launch(launches: list[int]) -> None:
    settings: dict[str, Any] = {
        "optimizer": [Adam(0.01), SGD(0.1), Adam(0.03)], "batch_size": [16, 50, 7],
        "epochs": [2, 3, 2], "schedule": [None, "cosine", None], "validation": 0.2,
    }  # fmt: skip
    many, reference = networks("cuda"), networks("cpu")
    histories = fit_many(many, X, LABELS, **settings)
    alone = fit_many(reference, X, LABELS, **settings)
    assert sorted(launches, reverse=True) == [3, 3, 1]
    for own, other, mine, theirs in zip(many, reference, histories, alone, strict=True):
        np.testing.assert_allclose(host(own), host(other), atol=1e-5)
        np.testing.assert_allclose(mine["loss"], theirs["loss"], rtol=1e-5)
        np.testing.assert_allclose(mine["val_loss"], theirs["val_loss"], rtol=1e-5)
        assert mine["steps"] == theirs["steps"]
        assert mine["lr"] == theirs["lr"]


CODED = CodedInputs(X[:, :1], (LABELS[:, None] + 1).astype(np.int32), CodedColumns(4, ((1, 4),)))
NOT_RESIDENT: dict[str, tuple[Any, dict[str, Any]]] = {
    "float64": (X, {"dtype": "float64"}), "one-hot codes": (CODED, {}),
    "float16": (X, {"precision": "float16"}),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_RESIDENT)
def test_what_has_an_obstacle_is_trained_batch_by_batch(case: str, launches: list[int]) -> None:
    x, options = NOT_RESIDENT[case]
    made = []
    for device in ("cuda", "cpu"):
        network = MLP([4, 5, 3], "tanh", seed=1, device=device, **options)
        Trainer(network, batch_size=16, progress=False).fit(x, LABELS, epochs=2)
        made.append(host(network))
    assert launches == []
    np.testing.assert_allclose(*made, atol=1e-5 if case != "float16" else 2e-3)


def test_the_environment_has_small_networks_trained_batch_by_batch(
    monkeypatch: pytest.MonkeyPatch, launches: list[int]
) -> None:
    monkeypatch.setenv(epochs.VARIABLE, "0")
    network, reference = (MLP([4, 5, 3], "tanh", seed=1, device=d) for d in ("cuda", "cpu"))
    for each in (network, reference):
        Trainer(each, batch_size=16, progress=False).fit(X, LABELS, epochs=1)
    MLPClassifier(4, max_iter=1, random_state=0, device="cuda").fit(X, LABELS)
    assert launches == []
    np.testing.assert_allclose(host(network), host(reference), atol=1e-5)


def test_the_rest_of_an_epoch_from_a_checkpoint_is_one_launch(
    monkeypatch: pytest.MonkeyPatch, launches: list[int], tmp_path: Path
) -> None:
    """50 rows are 4 batches of 16. Two are done one by one, and the rest at once."""

    def trained(device: str) -> np.ndarray:
        network = MLP([4, 5, 3], "tanh", seed=1, device=device)
        trainer = Trainer(network, optimizer=Adam(0.01), batch_size=16, progress=False)
        trainer.fit(X, LABELS, epochs=2, checkpoint=tmp_path / device)
        return host(network)

    with monkeypatch.context() as patched:
        patched.setenv(epochs.VARIABLE, "0")
        patched.setattr(Run, "_asked_to_stop", lambda run, guard: run.position.step == 2)
        trained("cuda")
    assert launches == []
    np.testing.assert_allclose(trained("cuda"), trained("cpu"), atol=1e-5)
    assert launches == [1, 1]


def test_what_else_is_in_a_launch_changes_no_bit() -> None:
    many, one = networks("cuda"), networks("cuda")[1]
    fit_many(many, X, LABELS, epochs=2, batch_size=16)
    Trainer(one, batch_size=16, progress=False).fit(X, LABELS, epochs=2)
    assert host(many[1]).tobytes() == host(one).tobytes()


def test_a_network_that_diverges_on_the_card_hurts_no_other(launches: list[int]) -> None:
    spoilt = X.copy()
    spoilt[3, 1] = np.nan
    many = networks("cuda")
    found = fit_many(many, [X, spoilt, X], LABELS, epochs=2, return_errors=True)
    assert [type(result).__name__ for result in found] == [
        "History", "NonFiniteLossError", "History",
    ]  # fmt: skip
    one = networks("cuda")[2]
    Trainer(one, progress=False).fit(X, LABELS, epochs=2)
    assert host(many[2]).tobytes() == host(one).tobytes()
    assert launches[0] == 3


NETS = {
    "classes": (MLPClassifier(5, early_stopping=True), LABELS),
    "two classes": (MLPClassifier(5, alpha=0.5), LABELS > 1),
    "labels": (MLPClassifier(5), np.stack([LABELS > 0, LABELS == 2], 1).astype(int)),
    "numbers": (MLPRegressor(hidden_layer_sizes=5), NUMBERS),
    "sgd": (MLPRegressor(hidden_layer_sizes=(4, 3), solver="sgd", alpha=0.1), NUMBERS[:, 0]),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_an_estimator_trains_an_epoch_in_one_launch_with_the_numbers_of_the_cpu(
    name: str, weighted: bool, launches: list[int]
) -> None:
    net, y = NETS[name]
    weights = np.random.default_rng(1).random(50) if weighted else None
    settings = {"max_iter": 3, "batch_size": 16, "random_state": 0, "learning_rate_init": 0.01}
    fitted = [
        clone(net).set_params(device=device, **settings).fit(X, y, weights)
        for device in ("cuda", "cpu")
    ]
    assert launches == [1, 1, 1]
    np.testing.assert_allclose(fitted[0].loss_curve_, fitted[1].loss_curve_, rtol=2e-5)
    for own, other in zip(fitted[0].coefs_, fitted[1].coefs_, strict=True):
        np.testing.assert_allclose(own, other, atol=2e-5)


SURE: dict[str, tuple[int, float]] = {  # what is added to the class predicted; factor of the inputs
    "right": (0, 1e4), "wrong": (1, 1e4), "near the bound": (1, 12.0),
}  # fmt: skip


def sure_of(kind: str, sure: str) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Return (settings, x, y), of which the initial network is sure, rightly or wrongly."""
    shift, scale = SURE[sure]
    settings: dict[str, Any] = {
        "hidden_layer_sizes": (5,), "activation": "identity", "solver": "sgd", "batch_size": 16,
        "learning_rate_init": 1e-9, "momentum": 0.0, "alpha": 0.0, "random_state": 0,
        "max_iter": 2,
    }  # fmt: skip
    y = NETS[kind][1].astype(int)
    net = sklearn.neural_network.MLPClassifier(**settings).fit(X.astype(np.float64), y)
    x = scale * X.astype(np.float64)
    p, predicted = net.predict_proba(x), net.predict(x)
    if sure != "near the bound":  # leave out rows that are not sure of each of the units
        clear = (np.minimum(p, 1 - p) < 1e-12).all(1)
        x, predicted = x[clear], predicted[clear]
    return settings, x.astype(np.float32), (predicted + shift) % (predicted.max() + 1)


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("sure", SURE)
@pytest.mark.parametrize("kind", ["classes", "two classes", "labels"])
def test_a_loss_that_is_trained_in_one_launch_has_the_bounds_of_scikit_learn(
    kind: str, sure: str, weighted: bool, launches: list[int]
) -> None:
    settings, x, y = sure_of(kind, sure)
    weights = np.random.default_rng(1).random(len(x)).astype(np.float32) if weighted else None
    reference = sklearn.neural_network.MLPClassifier(**settings).fit(x, y, weights)
    for device in ("cuda", "cpu"):
        net = MLPClassifier(**settings, device=device).fit(x, y, weights)
        np.testing.assert_allclose(net.loss_curve_, reference.loss_curve_, rtol=2e-5)
    assert launches == [1, 1]
    units = 2 if kind == "labels" else 1
    bounds = {"right": units * 2.0**-23, "wrong": units * -np.log(2.0**-23)}
    if sure in bounds:
        np.testing.assert_allclose(reference.loss_, bounds[sure], rtol=1e-5)


def test_a_trainers_loss_in_one_launch_is_unbounded(launches: list[int]) -> None:
    found = []
    for device in ("cuda", "cpu"):
        network = MLP([4, 5, 3], "identity", seed=1, device=device)
        trainer = Trainer(network, optimizer=SGD(1e-9), progress=False)
        found.append(trainer.fit(200 * X, LABELS, epochs=1)["loss"])
    assert launches == [1]
    assert found[1][0] > 20.0
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_a_search_in_threads_shares_launches_with_the_results_of_one_after_another(
    launches: list[int],
) -> None:
    net = MLPClassifier(4, max_iter=2, random_state=0, batch_size=25, device="cuda")
    grid = GridSearchCV(net, {"alpha": [0.0, 0.1], "solver": ["adam", "sgd"]}, cv=2, refit=False)
    alone = clone(grid).fit(X, LABELS)
    assert launches == [1] * 16
    launches.clear()
    with together():
        grid.set_params(n_jobs=8).fit(X, LABELS)
    assert sum(launches) == 16
    assert max(launches) > 1
    key = "mean_test_score"
    np.testing.assert_array_equal(grid.cv_results_[key], alone.cv_results_[key])


def test_members_of_an_ensemble_share_launches(launches: list[int]) -> None:
    net = MLPClassifier(4, max_iter=3, random_state=0, n_members=3, device="cuda").fit(X, LABELS)
    assert launches == [3, 3, 3]
    twin = clone(net).set_params(device="cpu").fit(X, LABELS)
    np.testing.assert_allclose(net.predict_proba(X), twin.predict_proba(X), atol=1e-5)


# -- what is said of it ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "Epochs: resident training: one block, 4,864 of 230,400 bytes, tiles of 52 rows"),
        (
            {"precision": "float64"},
            "Epochs: no resident training: its numbers are float64 and not float32",
        ),
        (
            {"hidden_layer_sizes": (300, 300)},
            "Epochs: no resident training: 834,336 bytes of parameters, gradients and slots "
            "in each of 8 blocks, 230,400 there",
        ),
    ],
)
def test_verbose_says_how_epochs_are_trained_on_a_card(
    options: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"hidden_layer_sizes": 4, "max_iter": 1, "random_state": 0} | options
    MLPClassifier(**settings, verbose=True, device="cuda").fit(X, LABELS)
    head = capsys.readouterr().out.splitlines()[:2]
    assert head[0].startswith("Computing on cuda:0")
    assert head[1] == says


def test_verbose_says_why_partial_fit_and_a_reported_loss_are_batch_by_batch(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = MLPClassifier(4, random_state=0, verbose=True, device="cuda")
    model.partial_fit(X, LABELS, classes=[0, 1, 2]).partial_fit(X, LABELS)
    said = capsys.readouterr().out
    assert said.count("Epochs: no resident training: a call of partial_fit is an epoch by") == 1
    MLPRegressor(hidden_layer_sizes=4, loss="poisson", max_iter=1, verbose=True, device="cuda").fit(
        X, NUMBERS
    )
    assert "the reported loss of exp outputs is not a sum" in capsys.readouterr().out


def test_the_cpu_says_nothing_of_launches(capsys: pytest.CaptureFixture[str]) -> None:
    MLPClassifier(4, max_iter=1, random_state=0, verbose=True, device="cpu").fit(X, LABELS)
    head = capsys.readouterr().out.splitlines()[:2]
    assert head[0].startswith("Computing on cpu")
    assert head[1].startswith("Iteration 1, loss = ")


def test_a_fit_is_planned_once(monkeypatch: pytest.MonkeyPatch, launches: list[int]) -> None:
    planned = []

    def plan(*args: Any, **options: Any) -> Any:
        planned.append(args)
        return plan_resident(*args, **options)

    monkeypatch.setattr(resident, "plan_resident", plan)
    network = MLP([4, 5, 3], "tanh", seed=1, device="cuda")
    trainer = Trainer(network, batch_size=50, progress=False)
    trainer.fit(X, LABELS, epochs=3)
    assert (len(planned), launches) == (1, [1, 1, 1])
    MLPClassifier(4, max_iter=2, random_state=0, device="cuda", verbose=True).fit(X, LABELS)
    assert (len(planned), len(launches)) == (2, 5)
    network.dropout = 0.2
    trainer.fit(X, LABELS, epochs=1)
    assert planned[-1] is not planned[0]
    assert len(planned) == 3
