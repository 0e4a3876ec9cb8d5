"""`devices`: an estimator that several devices train is the one that a single device trains."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gpubackprop.backends import devices
from gpubackprop.errors import DeviceUnavailable, OptionError, StopTraining
from gpubackprop.sklearn import MLPClassifier, MLPRegressor, together
from gpubackprop.sklearn import team as teams
from gpubackprop.sklearn.parameters import LossName
from gpubackprop.sklearn.team import RankStep
from tests import emulator
from tests.emulator import cupy_stub

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

ROWS = 103  # batches of 25, and a last one of 3: with four ranks one of them has no row there
RNG = np.random.default_rng(4)
X = RNG.normal(size=(ROWS, 6))
LABELS = X[:, :3].argmax(1)
NUMBERS = np.stack([X[:, 0] - X[:, 1], np.exp(X[:, 2])], 1)
WEIGHTS = RNG.uniform(0, 2, ROWS)
CASES: dict[str, dict[str, Any]] = {
    "adam": {},
    "sgd": {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.1},
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.1, "n_iter_no_change": 1},
    "a schedule": {"solver": "rmsprop", "learning_rate": "cosine"},
    "dropout": {"dropout": 0.3},
    "early stopping": {"early_stopping": True, "validation_fraction": 0.2, "n_iter_no_change": 2},
    "without penalty": {"alpha": 0.0, "shuffle": False},
    "all rows": {"batch_size": "full"},
    "fewer rows than ranks": {"batch_size": 2, "max_iter": 2},
}


def net(kind: Any = MLPClassifier, size: int | None = None, **options: Any) -> Any:
    named = {} if size is None else {"devices": ["cpu:numpy"] * size}
    plain = {"hidden_layer_sizes": (12, 5), "max_iter": 8, "batch_size": 25, "random_state": 3}
    return kind(**(plain | {"device": "cpu:numpy", "learning_rate_init": 0.01} | named | options))


def same(found: Any, wanted: Any, tolerance: float = 1e-12) -> None:
    """The curves and weights agree to the tolerance, the decisions exactly."""
    assert found.n_iter_ == wanted.n_iter_
    for name in ("loss_curve_", "validation_scores_", "validation_loss_curve_"):
        mine, other = getattr(found, name, None), getattr(wanted, name, None)
        assert (mine is None) == (other is None)
        if other is not None:
            np.testing.assert_allclose(mine, other, rtol=tolerance, atol=tolerance)
    pairs = zip(found.coefs_ + found.intercepts_, wanted.coefs_ + wanted.intercepts_, strict=True)
    for mine, other in pairs:
        np.testing.assert_allclose(mine, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [2, 4])
def test_devices_learn_what_one_device_learns_and_repeat_each_bit(case: str, size: int) -> None:
    for y in (LABELS, LABELS == 1):
        one = net(**CASES[case]).fit(X, y)
        several, again = (net(size=size, **CASES[case]).fit(X, y) for _ in range(2))
        same(several, one)
        same(again, several, 0.0)
    assert several.device_ == ", ".join(["cpu:numpy"] * size)


@pytest.mark.parametrize("loss", sorted(LossName().options))
def test_regressors_learn_what_one_device_learns(loss: str) -> None:
    y = np.abs(NUMBERS)
    several, one = (net(MLPRegressor, size, loss=loss).fit(X, y) for size in (3, None))
    same(several, one)


def test_weights_of_rows_and_of_classes_are_those_of_one_device() -> None:
    for options in ({}, {"class_weight": "balanced"}, {"class_weight": {0: 3.0, 1: 1.0, 2: 0.5}}):
        weights = [net(size=size, **options).fit(X, LABELS, WEIGHTS) for size in (3, None)]
        same(*weights)


def test_sparse_rows_and_the_native_kernels_and_float32() -> None:
    rows = sparse.csr_matrix(np.where(X > 0, X, 0))
    same(net(size=3).fit(rows, LABELS), net().fit(rows, LABELS))
    host = {"device": "cpu"}
    same(net(**host, devices=["cpu"] * 3).fit(X, LABELS), net(**host).fit(X, LABELS))
    single = net(size=2, precision="float32").fit(X, LABELS)
    same(single, net(precision="float32").fit(X, LABELS), 1e-4)
    assert single.coefs_[0].dtype == np.float32


def test_every_rank_computes_its_part_of_a_batch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[tuple[int, int]] = []
    plan = RankStep._plan

    def counted(self: RankStep, rows: int) -> Any:
        batch = plan(self, rows)
        counts.append((self.ranks.rank, len(batch.targets)))
        return batch

    monkeypatch.setattr(RankStep, "_plan", counted)
    net(size=4, max_iter=1).fit(X, LABELS)
    assert sorted(counts) == [(0, 1), (0, 6), (1, 1), (1, 6), (2, 1), (2, 6), (3, 1), (3, 7)]


def test_partial_fits_a_warm_start_and_edited_weights_go_on_as_on_one_device() -> None:
    one, three = net(warm_start=True, dropout=0.2), net(size=3, warm_start=True, dropout=0.2)
    for model in (one, three):
        model.partial_fit(X[:50], LABELS[:50], classes=[0, 1, 2])
        model.partial_fit(X[50:], LABELS[50:])
        model.coefs_[0][1] = 0.5
        model.partial_fit(X[:40], LABELS[:40])
        model.fit(X, LABELS)
        model.partial_fit(X, LABELS, WEIGHTS)
    same(three, one)


def test_a_callback_may_write_weights_and_stop() -> None:
    def halve(model: Any, row: dict[str, float]) -> None:
        if row["epoch"] == 2:
            model.coefs_[0] *= 0.5
        if row["epoch"] == 5:
            raise StopTraining

    several, one = (net(size=size, callbacks=[halve]).fit(X, LABELS) for size in (3, None))
    same(several, one)
    assert several.n_iter_ == 5


def test_a_checkpoint_goes_on_bit_for_bit(tmp_path: Any) -> None:
    whole = net(size=2).fit(X, LABELS)
    for epochs in (3, 8):
        parts = net(size=2, checkpoint=tmp_path / "own.ckpt", max_iter=epochs).fit(X, LABELS)
    same(parts, whole, 0.0)


def test_ctrl_c_in_an_epoch_keeps_what_was_learned_and_training_goes_on() -> None:
    model, update, steps = net(size=3, dropout=0.2), RankStep.update, []

    def interrupted(self: RankStep, *given: Any) -> Any:
        steps.append(self.ranks.rank)
        if self.ranks.rank == 0 and steps.count(0) == 7:
            raise KeyboardInterrupt
        return update(self, *given)

    model.partial_fit(X, LABELS, classes=[0, 1, 2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RankStep, "update", interrupted)
        model.partial_fit(X, LABELS)
        with pytest.warns(UserWarning, match="interrupted"):
            model.partial_fit(X, LABELS)
    twin = pickle.loads(pickle.dumps(model)).set_params(devices=None)
    same(model.partial_fit(X, LABELS), twin.partial_fit(X, LABELS))


def test_an_error_on_one_device_is_raised_and_another_fit_works() -> None:
    update = RankStep.update

    def fails(self: RankStep, *given: Any) -> Any:
        if self.ranks.rank == 1:
            raise MemoryError("the second device is full")
        return update(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RankStep, "update", fails)
        with pytest.raises(MemoryError, match="the second device is full"):
            net(size=2).fit(X, LABELS)
    same(net(size=2).fit(X, LABELS), net().fit(X, LABELS))


def test_an_ensemble_trains_its_members_on_the_devices_one_after_another() -> None:
    several, one = (net(size=size, n_members=2).fit(X, LABELS) for size in (2, None))
    for mine, other in zip(several.members_, one.members_, strict=True):
        same(mine, other)
        assert mine.device_ == "cpu:numpy, cpu:numpy"


def test_clones_pickles_pipelines_and_together_keep_the_devices() -> None:
    model = net(size=2)
    assert clone(model).get_params()["devices"] == ["cpu:numpy"] * 2
    fitted = pickle.loads(pickle.dumps(model.fit(X, LABELS)))
    np.testing.assert_array_equal(fitted.predict(X), model.predict(X))
    same(fitted.fit(X, LABELS), model, 0.0)
    pipe = make_pipeline(StandardScaler(), net(size=2)).fit(X, LABELS)
    assert pipe.score(X, LABELS) > 0.3
    with together():
        same(net(size=2).fit(X, LABELS), model, 0.0)


def test_one_device_in_the_list_is_that_device() -> None:
    lbfgs = [net(size=size, solver="lbfgs").fit(X, LABELS) for size in (1, None)]
    np.testing.assert_array_equal(lbfgs[0].coefs_[0], lbfgs[1].coefs_[0])
    same(net(size=1).fit(X, LABELS), net().fit(X, LABELS), 0.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"solver": "lbfgs"}, "leave devices out"),
        ({"device": "cuda:1"}, "leave one of the two out"),
        ({"devices": []}, 'must be "all", a number of GPUs'),
        ({"devices": ["cpu", 3]}, 'must be "all", a number of GPUs'),
        ({"devices": ["cpu:numpy", "cuda:0"]}, "name GPUs alone, or CPUs alone"),
        ({"devices": ["cpu", "cpux"]}, "device='cpux' is not a device; valid are"),
    ],
)
def test_what_several_devices_cannot_do_is_an_error_that_says_what_to_do(
    options: dict[str, Any], says: str
) -> None:
    with pytest.raises(OptionError, match=says):
        net(size=2).set_params(**options).fit(X, LABELS)
    with pytest.raises(OptionError, match="leave devices out, or pass X"):
        net(device="auto", devices=2).fit(sparse.csr_matrix(X), LABELS)


@pytest.mark.parametrize("wrong", ["cuda:0", 0, True, 1.5])
def test_devices_of_another_kind_are_scikit_learns_error(wrong: Any) -> None:
    with pytest.raises(ValueError, match="devices"):
        net(devices=wrong).fit(X, LABELS)


def test_all_devices_where_there_is_no_gpu_says_so() -> None:
    if devices.probe_driver().gpus:
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceUnavailable, match="there is none here"):
        MLPClassifier(devices="all").fit(X, LABELS)


@pytest.mark.emulated
@pytest.mark.skipif(bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-")
def test_two_gpus_learn_what_the_host_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "choose", lambda name: (name, "emulated"))
    monkeypatch.setattr(teams, "IDLE", {})
    options = {"device": "auto", "devices": 2, "max_iter": 2, "early_stopping": True}
    with cupy_stub.installed(seed=3) as counts:
        found = net(**options).fit(X, LABELS, WEIGHTS)
        more = net(**options | {"dropout": 0.2}).fit(X, LABELS)
        calls = counts.kernels.count("nccl allReduce")
    plain = {"max_iter": 2, "early_stopping": True}
    same(found, net(**plain).fit(X, LABELS, WEIGHTS))
    same(more, net(**plain, dropout=0.2).fit(X, LABELS))
    assert found.device_ == "cuda:0, cuda:1"
    assert calls == 2 * (1 + 2 * 2 * 4), "connected once, and one call a step"
