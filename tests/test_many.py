"""`fit_many`: many networks trained in one call, each as `Trainer.fit` alone would."""

from __future__ import annotations

import copy
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubackprop import MLP, History, Trainer, fit_many
from gpubackprop.errors import GpubackpropError, NonFiniteLossError, OptionError
from gpubackprop.many import fit
from gpubackprop.many.shared import SHARED_BYTES, Shared, Unpickler
from gpubackprop.optimizers import SGD, Adam, Momentum
from gpubackprop.schedules import Cosine, StepDecay
from tests import many_callbacks
from tests.small_training import some_data

ROOT = Path(__file__).resolve().parents[1]
BOTH = pytest.mark.parametrize("n_jobs", [None, 2], ids=["in turn", "processes"])
X, LABELS = some_data(150)
FOLDS = [np.flatnonzero(np.arange(150) % 5 != fold) for fold in range(5)]


def networks() -> list[MLP]:
    """Five of different widths, depths and activations, one without a hidden layer."""
    hidden = [[8], [3, 5], [], [16], [4, 4, 4]]
    names = ["relu", "tanh", "relu", "gelu", "tanh"]
    return [
        MLP([4, *units, 3], name, seed=seed, dtype="float64")
        for seed, (units, name) in enumerate(zip(hidden, names, strict=True))
    ]


def each() -> dict[str, list[Any]]:
    """A value of each setting for each of the five networks."""
    return {
        "optimizer": [Adam(0.01), SGD(0.5), Adam(0.3), Momentum(0.1), Adam(0.001)],
        "schedule": [None, Cosine(), StepDecay(), None, None],
        "batch_size": [7, 32, 200, 10, 50],
        "seed": [0, 1, 2, 3, 4],
        "l2": [0.0, 0.1, 0.0, 1e-3, 0.0],
        "epochs": [4, 3, 9, 0, 30],
        "rows": FOLDS,
        "patience": [None, 2, 2, None, 3],
    }


def of_fit(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    names = ("epochs", "rows", "patience", "validation", "sample_weight", "checkpoint")
    fitted = {name: settings[name] for name in names if name in settings}
    return {k: v for k, v in settings.items() if k not in fitted}, fitted


def alone(place: int, **shared: Any) -> Trainer:
    """Return the trainer of network `place`, trained by `Trainer.fit`."""
    own = {name: values[place] for name, values in each().items()} | shared
    built, fitted = of_fit(own)
    trainer = Trainer(networks()[place], progress=False, **built)
    trainer.fit(X, LABELS, **fitted)
    return trainer


def figures(history: History) -> list[dict[str, float]]:
    """The rows without times, which differ from run to run."""
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "samples_per_second")}
        for row in history.rows
    ]


def script(body: str, *arguments: str) -> subprocess.Popen[str]:
    code = textwrap.dedent(body)
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, text=True, process_group=0,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


# -- the numbers ----------------------------------------------------------------------------------


@BOTH
def test_networks_that_differ_in_every_setting_get_the_bits_of_the_fits_alone(
    n_jobs: int | None,
) -> None:
    many = networks()
    histories = fit_many(many, X, LABELS, n_jobs=n_jobs, validation=0.2, **each())
    for place, (network, history) in enumerate(zip(many, histories, strict=True)):
        reference = alone(place, validation=0.2)
        assert network.parameters.tobytes() == reference.network.parameters.tobytes()
        assert figures(history) == figures(reference.history)
        assert history.stopped == reference.history.stopped
        assert history.best_epoch == reference.history.best_epoch
    assert {history.stopped for history in histories} == {"epochs", "patience"}


def test_one_network_is_the_case_of_one() -> None:
    network = networks()[0]
    (history,) = fit_many(network, X, LABELS, epochs=2)
    reference = Trainer(networks()[0], progress=False)
    reference.fit(X, LABELS, epochs=2)
    assert network.parameters.tobytes() == reference.network.parameters.tobytes()
    assert len(history) == 2


@BOTH
def test_each_network_may_have_data_of_its_own(n_jobs: int | None) -> None:
    rng = np.random.default_rng(1)
    xs = [rng.normal(size=(rows, columns)) for rows, columns in ((40, 2), (4000, 3))]
    targets = [x.sum(1, keepdims=True) for x in xs]
    weights = [None, rng.random(4000)]
    many = [MLP([x.shape[1], 5, 1], output="linear", seed=2) for x in xs]
    fit_many(many, xs, targets, n_jobs=n_jobs, sample_weight=weights, epochs=2)
    for place, network in enumerate(many):
        single = MLP([xs[place].shape[1], 5, 1], output="linear", seed=2)
        trainer = Trainer(single, progress=False)
        trainer.fit(xs[place], targets[place], sample_weight=weights[place], epochs=2)
        assert network.parameters.tobytes() == single.parameters.tobytes()


@BOTH
def test_trainers_go_on_from_where_they_stand(n_jobs: int | None) -> None:
    trainers = [Trainer(network, seed=4, progress=False) for network in networks()[:2]]
    for _ in range(2):
        fit_many(trainers, X, LABELS, n_jobs=n_jobs, epochs=3)
    for trainer, network in zip(trainers, networks(), strict=False):
        whole = Trainer(network, seed=4, progress=False)
        whole.fit(X, LABELS, epochs=6)
        assert trainer.network.parameters.tobytes() == whole.network.parameters.tobytes()
        assert figures(trainer.history) == figures(whole.history)
        assert trainer.network is not whole.network
        assert trainer.epochs == 6


# -- failures -------------------------------------------------------------------------------------


@BOTH
def test_a_network_that_diverges_hurts_no_other_and_is_named(n_jobs: int | None) -> None:
    spoilt = X.copy()
    spoilt[33, 1] = np.nan
    many = networks()[:3]
    with pytest.raises(NonFiniteLossError, match="row 34") as caught:
        fit_many(many, [X, spoilt, X], LABELS, n_jobs=n_jobs, epochs=2)
    assert any("network 2 of 3" in note for note in caught.value.__notes__)
    assert caught.value.step == 0
    for place in (0, 2):
        trainer = Trainer(networks()[place], progress=False)
        trainer.fit(X, LABELS, epochs=2)
        assert many[place].parameters.tobytes() == trainer.network.parameters.tobytes()
    # As after Trainer.fit: the weights from before training.
    assert many[1].parameters.tobytes() == networks()[1].parameters.tobytes()


@BOTH
def test_errors_may_stand_in_the_place_of_histories(n_jobs: int | None) -> None:
    labels = [LABELS, LABELS + 3, LABELS]
    found = fit_many(networks()[:3], X, labels, n_jobs=n_jobs, epochs=1, return_errors=True)
    assert [type(result).__name__ for result in found] == [
        "History", "TargetRangeError", "History",
    ]  # fmt: skip


def test_a_callback_that_cannot_go_to_a_process_is_an_error_that_says_what_to_do() -> None:
    many = networks()[:2]
    watched: list[Any] = [(lambda trainer, row: None,), ()]
    with pytest.raises(OptionError, match="n_jobs=1"):
        fit_many(many, X, LABELS, n_jobs=2, callbacks=watched, epochs=1)
    assert many[1].parameters.tobytes() != networks()[1].parameters.tobytes()


def test_a_process_that_ends_fails_its_network_alone() -> None:
    many = networks()[:4]
    watched = [(), (many_callbacks.die,), (many_callbacks.stop_printing,), ()]
    found = fit_many(many, X, LABELS, n_jobs=2, callbacks=watched, epochs=1, return_errors=True)
    assert [isinstance(result, History) for result in found] == [True, False, True, True]
    assert isinstance(found[1], GpubackpropError)
    assert "exit status 7" in str(found[1])
    assert all(len(found[place]) == 1 for place in (0, 2, 3))


@pytest.mark.parametrize(
    ("settings", "says"),
    {
        "unknown": ({"lr": 0.1}, "no setting 'lr'"),
        "short list": ({"seed": [1]}, "a list of 1 but there are 2 networks"),
        "out of range": ({"batch_size": [8, 0]}, "network 2 of 2: batch_size"),
        "one file": ({"checkpoint": "one.safetensors"}, "a list with a file for each"),
        "no process": ({"n_jobs": 0}, "n_jobs is 0.*-2 for one less"),
        "functions": ({"callbacks": [print, print]}, r"callbacks is a list.*callbacks=\(f, g\)"),
        "no function": ({"callbacks": print}, "callbacks is <built.* must be a sequence of func"),
        "metric": ({"metrics": [{}, 1]}, "metrics is a list.* network 2 is 1 .* a dictionary"),
        "no metric": ({"metrics": 1}, "metrics is 1 but must be a dictionary"),
        "devices": ({"devices": [["cpu"], ["cpu"]]}, 'names such as ."cuda:0", "cuda:1"'),
        "rows": ({"rows": [3, 4]}, r"rows is a list.*np.array\(rows\)"),
        "weights": ({"sample_weight": [0.5, 1.0]}, r"list.*np.array\(sample_weight\)"),
        "held out": ({"validation": [3, 4]}, r"list.*np.array\(validation\)"),
    }.values(),
)  # fmt: skip
def test_bad_settings_are_refused_before_anything_is_trained(
    settings: dict[str, Any], says: str
) -> None:
    many = networks()[:2]
    before = copy.deepcopy(many)
    with pytest.raises(OptionError, match=says):
        fit_many(many, X, LABELS, **settings)
    for network, old in zip(many, before, strict=True):
        assert network.parameters.tobytes() == old.parameters.tobytes()


def test_a_list_for_one_network_is_an_error_that_says_how_to_write_it() -> None:
    one = networks()[:1]
    with pytest.raises(OptionError, match=r"network 1 is 0 .* pass an array, np.array\(targets\)"):
        fit_many(networks()[:2], X[:2], [0, 1])
    with pytest.raises(OptionError, match="a list of 2 but there is 1 network;"):
        fit_many(one, X[:2], [0, 1])
    with pytest.raises(OptionError, match="callbacks is a list, which has one entry for each"):
        fit_many(one[0], X, LABELS, callbacks=[print])


@pytest.mark.parametrize(
    ("bad", "note"),
    [(1, "network 1 of 3; the others are trained"),
     (2, "network 1 of 3; networks 1, 2 have failed; the others are trained"),
     (3, "network 1 of 3; networks 1, 2, 3 have failed")],
)  # fmt: skip
def test_the_note_of_a_failure_counts_the_networks_that_failed(bad: int, note: str) -> None:
    labels = [LABELS + 3] * bad + [LABELS] * (3 - bad)
    with pytest.raises(GpubackpropError) as caught:
        fit_many(networks()[:3], X, labels, epochs=1)
    assert caught.value.__notes__ == [f"fit_many: this is {note}"]


def test_minus_two_jobs_are_one_less_than_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(fit, "available_cores", lambda: 4)
    monkeypatch.setattr(
        fit, "train_in_processes", lambda todo, count: asked.append(count) or [None] * len(todo)
    )
    for n_jobs in (-1, -2):
        fit_many(networks(), X, LABELS, n_jobs=n_jobs)
    assert asked == [4, 3]


def test_networks_must_be_several_and_different() -> None:
    network = networks()[0]
    with pytest.raises(OptionError, match="a network twice"):
        fit_many([network, Trainer(network)], X, LABELS)
    with pytest.raises(OptionError, match="empty"):
        fit_many([], X, LABELS)
    with pytest.raises(OptionError, match="assign them to the trainer"):
        fit_many([Trainer(network)], X, LABELS, seed=3)
    with pytest.raises(OptionError, match=r"networks\[0\] is a str"):
        fit_many(["MLP"], X, LABELS)  # type: ignore[list-item]
    with pytest.raises(OptionError, match=r"networks\[1\] is an int"):
        fit_many([network, 3], X, LABELS)  # type: ignore[list-item]


# -- Ctrl-C ---------------------------------------------------------------------------------------


def test_ctrl_c_ends_the_training_and_those_after_it_do_not_begin() -> None:
    many = networks()[:3]
    watched = [(), (many_callbacks.ctrl_c_after_one,), ()]
    histories = fit_many(many, X, LABELS, callbacks=watched, epochs=3)
    assert [history.stopped for history in histories] == ["epochs", "interrupted", "interrupted"]
    assert [len(history) for history in histories] == [3, 2, 0]
    assert many[2].parameters.tobytes() == networks()[2].parameters.tobytes()


@pytest.mark.slow
def test_ctrl_c_ends_the_trainings_of_processes_after_a_step(tmp_path: Path) -> None:
    process = script(
        """
        import sys
        from pathlib import Path
        from gpubackprop import MLP, fit_many
        from tests.many_callbacks import Slowly
        from tests.small_training import some_data

        x, labels = some_data(150)
        many = [MLP([4, 8, 3], seed=seed) for seed in range(3)]
        watched = [(Slowly(Path(sys.argv[1]) / str(place)),) for place in range(3)]
        found = fit_many(many, x, labels, n_jobs=2, callbacks=watched, epochs=100_000)
        print(*(history.stopped for history in found), *(bool(len(h)) for h in found))
        """,
        str(tmp_path),
    )
    deadline = time.monotonic() + 60
    while not all((tmp_path / name).exists() for name in "01") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert out.split() == ["interrupted"] * 3 + ["True", "True", "False"], err


# -- data -----------------------------------------------------------------------------------------


def test_data_are_written_once_and_a_pickle_has_their_place(tmp_path: Path) -> None:
    x = np.arange(SHARED_BYTES, dtype=np.float64).reshape(-1, 4)
    shared = Shared(tmp_path, [x, (x, x[:2])])
    content = shared.dumps({"x": x, "again": (x, x[:2])})
    assert len([*tmp_path.iterdir()]) == 1
    assert len(content) < 2000 < x.nbytes
    opened: dict[Any, Any] = {}
    first = Unpickler(content, opened).load()
    assert np.array_equal(first["x"], x)
    assert np.array_equal(first["again"][1], x[:2])
    assert first["x"] is first["again"][0] is Unpickler(content, opened).load()["x"]
    assert not first["x"].flags.writeable


def test_a_memory_map_goes_to_processes_by_the_name_of_its_file(tmp_path: Path) -> None:
    whole = np.random.default_rng(0).normal(size=(20_000, 8))
    np.save(tmp_path / "x.npy", whole)
    folder = tmp_path / "shared"
    folder.mkdir()
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")[100:]
    found = Unpickler(Shared(folder, [mapped]).dumps(mapped), {}).load()
    assert not [*folder.iterdir()]
    assert isinstance(found, np.memmap)
    assert np.array_equal(found, whole[100:])


def test_results_of_processes_can_be_pickled_again() -> None:
    trainers = [Trainer(network, progress=False) for network in networks()[:2]]
    fit_many(trainers, X, LABELS, n_jobs=2, epochs=1)
    twin = pickle.loads(pickle.dumps(trainers[0]))
    twin.fit(X, LABELS, epochs=1)
    trainers[0].fit(X, LABELS, epochs=1)
    assert twin.network.parameters.tobytes() == trainers[0].network.parameters.tobytes()


def test_more_jobs_than_cores_or_networks_are_fine() -> None:
    many = networks()[:2]
    fit_many(many, X, LABELS, n_jobs=-1, epochs=1)
    other = networks()[:2]
    fit_many(other, X, LABELS, n_jobs=5, epochs=1)
    for one, two in zip(many, other, strict=True):
        assert one.parameters.tobytes() == two.parameters.tobytes()
