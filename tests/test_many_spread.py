"""`fit_many` over ranks and devices: each network on one of them, all results on all ranks."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import BaggingClassifier

from gpubackprop import MLP, History, Trainer, fit_many
from gpubackprop.backends import devices
from gpubackprop.distributed import Communicator, in_threads
from gpubackprop.errors import DistributedError, NonFiniteLossError, OptionError
from gpubackprop.losses import SoftmaxCrossEntropy
from gpubackprop.many.settings import Training
from gpubackprop.optimizers import Adam
from gpubackprop.schedules import ReduceOnPlateau
from gpubackprop.sklearn import MLPClassifier, together
from gpubackprop.training import epochs, resident, rounds
from gpubackprop.training.resident import ResidentJob
from tests import emulator
from tests.emulator import cupy_stub
from tests.test_distributed_mpi import mpiexec, with_mpi
from tests.test_many import LABELS, X, alone, each, figures, networks


def test_networks_over_ranks_get_the_bits_of_the_fits_alone_on_every_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, who = Training.run, []

    def noted(training: Training) -> None:
        who.append(threading.current_thread())
        run(training)

    monkeypatch.setattr(Training, "run", noted)

    def work(ranks: Communicator) -> tuple[list[MLP], list[History]]:
        many = networks()
        return many, fit_many(many, X, LABELS, distributed=ranks, validation=0.2, **each())

    for size in (2, 3, 7):
        who.clear()
        found = in_threads(size, work)
        assert len(who) == 5, "each network is trained by one rank"
        assert len(set(who)) == min(5, size)
        for many, histories in found:
            for place, (network, history) in enumerate(zip(many, histories, strict=True)):
                reference = alone(place, validation=0.2)
                assert network.parameters.tobytes() == reference.network.parameters.tobytes()
                assert figures(history) == figures(reference.history)
                assert history.best_epoch == reference.history.best_epoch
                assert history.stopped == reference.history.stopped


def trainers() -> list[Trainer]:
    schedules = [None, ReduceOnPlateau(0.5, patience=0), None]
    return [
        Trainer(network, optimizer=Adam(0.05), batch_size=16, schedule=schedule, progress=False)
        for network, schedule in zip(networks(), schedules, strict=False)
    ]


def test_trainers_go_on_alike_on_every_rank_also_where_another_one_trained_them() -> None:
    reference = trainers()
    for trainer in reference:
        trainer.fit(X, LABELS, epochs=3)
        trainer.fit(X, LABELS, epochs=2)

    def work(ranks: Communicator) -> list[Trainer]:
        many = trainers()
        fit_many(many, X, LABELS, epochs=3, distributed=ranks)
        for trainer in many:
            trainer.fit(X, LABELS, epochs=2)
        return many

    for many in in_threads(2, work):
        for trainer, other in zip(many, reference, strict=True):
            assert trainer.network.parameters.tobytes() == other.network.parameters.tobytes()
            assert figures(trainer.history) == figures(other.history)


def test_a_network_that_fails_on_one_rank_is_named_on_all_and_hurts_no_other() -> None:
    labels = [LABELS, LABELS, LABELS, LABELS + 3, LABELS]
    spoilt = X.copy()
    spoilt[3, 1] = np.nan
    x = [X, spoilt, X, X, X]

    def work(ranks: Communicator, **options: Any) -> tuple[list[MLP], Any]:
        many = networks()
        try:
            return many, fit_many(many, x, labels, epochs=2, distributed=ranks, **options)
        except NonFiniteLossError as error:
            return many, error

    for many, error in in_threads(2, work):
        (note,) = error.__notes__
        assert note == (
            "fit_many: this is network 2 of 5; networks 2, 4 have failed; the others are trained"
        )
        for place in (0, 2, 4):
            reference = networks()[place]
            Trainer(reference, progress=False).fit(X, LABELS, epochs=2)
            assert many[place].parameters.tobytes() == reference.parameters.tobytes()
    for _, found in in_threads(2, lambda ranks: work(ranks, return_errors=True)):
        assert [type(result).__name__ for result in found] == [
            "History", "NonFiniteLossError", "History", "TargetRangeError", "History",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("differ", "says"),
    [
        ({"seed": 3}, r"rank 1 of 2 has the settings of network 1 = .*'seed': 3"),
        ({"optimizer": Adam(0.5)}, "the settings of network 1"),
        ({"loss": SoftmaxCrossEntropy(label_smoothing=0.1)}, "the settings of network 1"),
        ({"weights": 7}, "the weights of network 2"),
        ({"count": 2}, "networks = 2"),
        ({"batch_size": 0}, "rank 1 of 2 stopped all ranks: OptionError: .*batch_size"),
    ],
)
def test_networks_and_settings_that_differ_between_ranks_are_found_before_the_training(
    differ: dict[str, Any], says: str
) -> None:
    def work(ranks: Communicator) -> Any:
        many, own = networks()[:3], dict(differ) if ranks.rank else {}
        if seed := own.pop("weights", None):
            many[1].initialize("glorot_uniform", seed)
        many = many[: own.pop("count", 3)]
        before = [network.parameters.tobytes() for network in many]
        with pytest.raises(DistributedError, match=says):
            fit_many(many, X, LABELS, distributed=ranks, epochs=1, **own)
        return before == [network.parameters.tobytes() for network in many]

    assert in_threads(2, work) == [True, True]


def test_callbacks_need_not_travel_and_are_called_where_the_network_is_trained() -> None:
    called: list[tuple[int, str]] = []

    def work(ranks: Communicator) -> None:
        def note(trainer: Trainer, row: Any) -> None:
            called.append((ranks.rank, str(trainer.network.widths)))

        fit_many(networks()[:4], X, LABELS, distributed=ranks, epochs=1, callbacks=(note,))

    in_threads(2, work)
    names = [str(network.widths) for network in networks()[:4]]
    assert sorted(called) == sorted((place % 2, name) for place, name in enumerate(names))


def test_a_trainer_of_several_ranks_or_devices_is_refused_where_it_would_be_spread() -> None:
    def work(ranks: Communicator) -> None:
        many = [networks()[0], Trainer(networks()[1], distributed=ranks)]
        with pytest.raises(OptionError, match="network 2 of 2 is a Trainer of several ranks"):
            fit_many(many, X, LABELS, distributed=ranks)

    in_threads(2, work)
    many = [networks()[0], Trainer(networks()[1], devices=["cpu", "cpu"])]
    with pytest.raises(OptionError, match="network 2 of 2 is a Trainer of several devices"):
        fit_many(many, X, LABELS, devices=("cpu", "cpu"))
    with pytest.raises(OptionError, match="two ways"):
        fit_many(networks(), X, LABELS, devices=("cpu", "cpu"), n_jobs=2)
    with pytest.raises(OptionError, match="gpu:0"):
        fit_many(networks(), X, LABELS, devices=["gpu:0"])


def test_a_trainer_keeps_devices_of_its_own() -> None:
    many = [Trainer(network, devices=["cpu", "cpu"], progress=False) for network in networks()[:2]]
    fit_many(many, X, LABELS, epochs=1)
    for trainer, other in zip(many, networks(), strict=False):
        Trainer(other, devices=["cpu", "cpu"], progress=False).fit(X, LABELS, epochs=1)
        assert trainer.network.parameters.tobytes() == other.parameters.tobytes()


def test_networks_are_spread_over_devices_in_turn_and_stay_where_they_lie() -> None:
    """Networks of device 1 are trained as copies there; "cpu:numpy" computes without kernels."""
    many = networks()
    histories = fit_many(many, X, LABELS, devices=("cpu", "cpu:numpy"), epochs=2)
    for place, (network, history) in enumerate(zip(many, histories, strict=True)):
        reference = networks()[place].copy(("cpu", "cpu:numpy")[place % 2])
        own = Trainer(reference, progress=False).fit(X, LABELS, epochs=2)
        assert network.device == "cpu"
        assert network.parameters.tobytes() == reference.parameters.tobytes()
        assert figures(history) == figures(own)


def test_trainers_that_were_trained_on_another_device_go_on_there_and_here() -> None:
    many = trainers()
    fit_many(many, X, LABELS, devices=("cpu:numpy",), epochs=2)
    for trainer in many:
        trainer.fit(X, LABELS, epochs=1)
    reference = trainers()
    for trainer, other in zip(many, reference, strict=True):
        other.fit(X, LABELS, epochs=3)
        assert trainer.history["steps"] == other.history["steps"]
        np.testing.assert_allclose(
            trainer.network.parameters, other.network.parameters, rtol=1e-9, atol=1e-12
        )


@with_mpi
@pytest.mark.slow
def test_mpis_ranks_train_their_shares_and_both_have_all_results(tmp_path: Path) -> None:
    result = mpiexec(2, "tests.ranks_programs", "many", tmp_path / "found")
    assert result.returncode == 0, result.stderr
    by_rank = [json.loads((tmp_path / f"found.{rank}").read_text()) for rank in (0, 1)]
    assert [found["trained here"] for found in by_rank] == [[0, 2, 4], [1, 3]]
    assert by_rank[0]["networks"] == by_rank[1]["networks"]
    for place, found in enumerate(by_rank[0]["networks"]):
        reference = alone(place, **({"epochs": 1} if place == 3 else {}))
        assert found["parameters"] == reference.network.parameters.tobytes().hex()
        assert found["loss"] == reference.history["loss"]


# -- cards ----------------------------------------------------------------------------------------


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """Have two emulated cards; note the card, and how many networks, of each launch."""

    def choose(device: str) -> tuple[str, str]:
        return (device if ":" in device or device == "cpu" else "cuda:0"), "emulated"

    found: list[tuple[str, int]] = []

    def train_together(jobs: Sequence[ResidentJob]) -> None:
        found.append((jobs[0].step.network.device, len(jobs)))
        resident.train_together(jobs)

    monkeypatch.setattr(devices, "choose", choose)
    monkeypatch.setattr(epochs, "train_together", train_together)
    monkeypatch.setattr(rounds, "LINGER", 30.0)  # the emulated card takes seconds for an epoch
    with cupy_stub.installed():
        yield found


emulated = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
SMALL = X[:50].astype(np.float32)


def on_card(number: int = 0) -> list[MLP]:
    hidden = [[6], [3, 4], []]
    return [MLP([4, *units, 3], "tanh", seed=1, device=f"cuda:{number}") for units in hidden]


def host(network: MLP) -> np.ndarray:
    return np.asarray(network.backend.to_host(network.parameters))


@emulated
@pytest.mark.emulated
def test_networks_over_two_cards_have_a_launch_on_each_and_the_bits_of_one(
    launches: list[tuple[str, int]],
) -> None:
    one, two, there = on_card(), on_card(), on_card(1)
    first = fit_many(one, SMALL, LABELS[:50], epochs=2, batch_size=16)
    assert launches == [("cuda:0", 3)] * 2
    launches.clear()
    found = fit_many(two, SMALL, LABELS[:50], epochs=2, batch_size=16, devices=2)
    assert sorted(launches) == [("cuda:0", 2)] * 2 + [("cuda:1", 1)] * 2
    launches.clear()
    fit_many(there, SMALL, LABELS[:50], epochs=2, batch_size=16)
    assert launches == [("cuda:1", 3)] * 2
    for own, other, third, mine, theirs in zip(one, two, there, first, found, strict=True):
        assert other.device == "cuda:0"
        assert host(own).tobytes() == host(other).tobytes() == host(third).tobytes()
        assert figures(mine) == figures(theirs)


@emulated
@pytest.mark.emulated
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_fits_of_a_meta_estimator_are_spread_over_two_cards(
    launches: list[tuple[str, int]],
) -> None:
    net = MLPClassifier(4, max_iter=2, batch_size=25, random_state=0, device="cuda")
    bagging = BaggingClassifier(net, 3, n_jobs=3, random_state=0)
    with together():
        alone = bagging.fit(SMALL, LABELS[:50]).predict_proba(SMALL)
    assert {device for device, _ in launches} == {"cuda:0"}
    launches.clear()
    with together(devices=["cuda:0", "cuda:1"]):
        spread = bagging.fit(SMALL, LABELS[:50]).predict_proba(SMALL)
    assert sorted(fitted.device_ for fitted in bagging.estimators_) == [
        "cuda:0",
        "cuda:0",
        "cuda:1",
    ]
    assert {device for device, _ in launches} == {"cuda:0", "cuda:1"}
    np.testing.assert_array_equal(spread, alone)
    assert net.fit(SMALL, LABELS[:50]).device_ == "cuda:0"


def test_together_spreads_over_cards_alone() -> None:
    with pytest.raises(OptionError, match="over GPUs"):
        together(devices=["cpu", "cpu"])


# -- searches by MPI ------------------------------------------------------------------------------


@with_mpi
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="needs mpi4py")
def test_the_example_of_a_search_over_ranks_runs(tmp_path: Path) -> None:
    result = mpiexec(3, "mpi4py.futures", "examples/search_over_ranks.py")
    assert result.returncode == 0, result.stderr
    assert "of 12 settings" in result.stdout
