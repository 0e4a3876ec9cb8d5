"""The estimators on the emulated CUDA backend: as on the CPU."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import numpy as np
import pytest

from gpubackprop import backends
from gpubackprop.backends import devices, workload
from gpubackprop.errors import ModelFileError
from gpubackprop.sklearn import MLPClassifier, MLPRegressor, arrays
from tests import emulator
from tests.emulator import cupy_stub
from tests.sklearn_pairs import digits, multilabel, regression, weights

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.skipif(
        bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
    ),
]


@pytest.fixture(autouse=True)
def _emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def choose(device: str) -> tuple[str, str]:
        return ("cpu", "asked for") if device == "cpu" else ("cuda:0", "emulated")

    monkeypatch.setattr(devices, "choose", choose)
    monkeypatch.setattr(workload, "FIRST_USE", -1e6)  # any work is worth this card
    with cupy_stub.installed():
        yield


def both(cls, x, y, *sample_weight, **options):
    """(on the CPU, on the GPU) of a small fit."""
    settings = {
        "hidden_layer_sizes": 5,
        "max_iter": 3,
        "random_state": 0,
        "batch_size": 16,
    } | options
    pair = [cls(device=device, **settings).fit(x, y, *sample_weight) for device in ("cpu", "auto")]
    assert [model.device_ for model in pair] == ["cpu", "cuda:0"]
    return pair


def assert_same(cpu, gpu, x):
    assert gpu.n_iter_ == cpu.n_iter_
    np.testing.assert_allclose(gpu.loss_, cpu.loss_, rtol=1e-9)
    for name in ("loss_curve_", "validation_scores_", "validation_loss_curve_"):
        mine, other = getattr(gpu, name, None), getattr(cpu, name, None)
        assert (mine is None) == (other is None)
        if mine is not None:
            np.testing.assert_allclose(mine, other, rtol=1e-9)
    for mine, other in zip(gpu.coefs_ + gpu.intercepts_, cpu.coefs_ + cpu.intercepts_, strict=True):
        assert isinstance(mine, np.ndarray)
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-9)
    mine, other = gpu.predict(x), cpu.predict(x)
    assert isinstance(mine, np.ndarray)
    np.testing.assert_allclose(mine, other, rtol=0, atol=1e-9)


def test_a_classifier_fits_on_the_gpu_as_on_the_cpu():
    x, y = digits(40)
    assert_same(*both(MLPClassifier, x, y, weights(40), early_stopping=True), x)
    assert_same(*both(MLPClassifier, x, y > 4, activation="tanh"), x)


def test_a_multilabel_classifier_fits_on_the_gpu_as_on_the_cpu():
    x, y = multilabel()
    assert_same(*both(MLPClassifier, x[:40], y[:40], weights(40)), x[:40])


def test_a_regressor_fits_on_the_gpu_as_on_the_cpu():
    x, y = regression(2)
    x, y = x[:40], y[:40]
    pair = both(MLPRegressor, x, y, solver="sgd", learning_rate="invscaling")
    assert_same(*pair, x)
    assert_same(*both(MLPRegressor, x, abs(y), loss="poisson", early_stopping=True), x)


def test_lbfgs_runs_on_the_gpu_as_on_the_cpu():
    x, y = regression()
    assert_same(*both(MLPRegressor, x[:40], y[:40], solver="lbfgs", max_iter=4), x[:40])


def test_partial_fit_on_the_gpu_goes_on_also_after_pickling_and_on_the_other_device():
    x, y = digits(40)
    cpu, gpu = (
        MLPClassifier(5, random_state=0, batch_size=8, device=device) for device in ("cpu", "cuda")
    )
    for rows in (slice(0, 20), slice(20, 40), slice(0, 9)):
        for model in (cpu, gpu):
            model.partial_fit(x[rows], y[rows], classes=np.arange(10))
    assert_same(cpu, gpu, x)
    moved = pickle.loads(pickle.dumps(gpu)).set_params(device="cpu")
    for model in (cpu, gpu, moved):
        model.partial_fit(x, y)
    assert_same(cpu, gpu, x)
    assert_same(cpu, moved, x)


def test_a_checkpoint_of_the_gpu_goes_on_on_either_device_and_with_no_other_data(tmp_path):
    x, y = digits(40)
    settings = {"hidden_layer_sizes": 5, "random_state": 0, "batch_size": 16, "max_iter": 2}
    settings |= {"early_stopping": True, "checkpoint": tmp_path / "fit"}
    MLPClassifier(**settings).fit(x, y, weights(40))
    gpu = MLPClassifier(**settings).fit(x, y, weights(40))
    cpu = MLPClassifier(**settings, device="cpu").fit(x, y, weights(40))
    assert_same(cpu, gpu, x)
    with pytest.raises(ModelFileError, match="X, held-out rows differ"):
        MLPClassifier(**settings).fit(x + 1, y, weights(40))


def test_arrays_of_the_gpu_stay_there():
    on_gpu = backends.get("cuda").asarray
    x, y = regression(2)
    x, y = x[:40], y[:40]
    device_x = on_gpu(x)
    model = MLPRegressor(hidden_layer_sizes=5, max_iter=2, random_state=0).fit(device_x, on_gpu(y))
    host = MLPRegressor(hidden_layer_sizes=5, max_iter=2, random_state=0, device="cpu").fit(x, y)
    assert_same(host, model, x)
    out = model.predict(device_x)
    assert isinstance(out, cupy_stub.ndarray)
    np.testing.assert_allclose(out.get(), host.predict(x), atol=1e-9)
    x, y = digits(40)
    for labels in (y, y > 4, y + 100, np.array(list("abcdefghij"))[y], multilabel()[1][:40]):
        classifier = MLPClassifier(5, max_iter=2, random_state=0).fit(on_gpu(x), labels)
        probabilities = classifier.predict_proba(on_gpu(x))
        assert isinstance(probabilities, cupy_stub.ndarray)
        np.testing.assert_allclose(probabilities.get(), classifier.predict_proba(x), atol=1e-12)
        logarithms = classifier.predict_log_proba(on_gpu(x)).get()
        np.testing.assert_allclose(logarithms, np.log(probabilities.get()), rtol=1e-12)
        predicted = classifier.predict(on_gpu(x))
        assert isinstance(predicted, cupy_stub.ndarray) == (labels.dtype.kind in "iub")
        np.testing.assert_array_equal(arrays.to_host(predicted), classifier.predict(x))
    with pytest.raises(ValueError, match="NaN or infinity"):
        model.predict(on_gpu(np.full((3, 8), np.nan)))
    with pytest.raises(ValueError, match="is expecting 8 features"):
        model.predict(on_gpu(np.zeros((3, 7))))


@pytest.mark.parametrize("weighted", [False, True])
def test_scores_of_arrays_of_the_gpu_are_those_of_the_host(weighted):
    on_gpu = backends.get("cuda").asarray
    for cls, (x, y) in (
        (MLPRegressor, regression(2)), (MLPClassifier, digits(40)), (MLPClassifier, multilabel()),
    ):  # fmt: skip
        x, y, own = x[:40], y[:40], weights(40)
        model = cls(hidden_layer_sizes=4, random_state=0, max_iter=1).fit(x, y)
        host = model.score(x, y, own if weighted else None)
        score = model.score(on_gpu(x), on_gpu(y), on_gpu(own) if weighted else None)
        assert isinstance(score, float)
        assert score == pytest.approx(host, rel=1e-9)
        assert model.score(on_gpu(x), y, own if weighted else None) == pytest.approx(host)


def test_an_array_of_the_gpu_and_the_cpu_by_name_is_an_error():
    x, y = regression()
    with pytest.raises(ValueError, match=r'X lies on cuda:0; use device="cuda:0"'):
        MLPRegressor(device="cpu").fit(backends.get("cuda").asarray(x), y)


def test_partial_fit_writes_nothing_into_the_callers_arrays_of_the_gpu():
    x, y = regression()
    first, second = (backends.get("cuda").asarray(x[rows]) for rows in (slice(20), slice(20, 40)))
    model = MLPRegressor(hidden_layer_sizes=3, random_state=0).partial_fit(first, y[:20])
    model.partial_fit(second, y[20:40])
    np.testing.assert_array_equal(first.get(), x[:20])
    host = MLPRegressor(hidden_layer_sizes=3, random_state=0, device="cpu")
    host.partial_fit(x[:20], y[:20]).partial_fit(x[20:40], y[20:40])
    assert_same(host, model, x)


@pytest.mark.parametrize("order", ["f4 f8 f4", "f8 f4"])
def test_the_optimizers_state_goes_on_in_another_dtype_on_the_gpu_as_on_the_cpu(order):
    x, y = regression()
    cpu, gpu = (
        MLPRegressor(
            hidden_layer_sizes=(5, 3), solver="sgd", random_state=0, batch_size=8, device=device
        )
        for device in ("cpu", "cuda")
    )
    for dtype in order.split():
        for model in (cpu, gpu):
            model.partial_fit(x[:24].astype(dtype), y[:24])
    tolerance = 1e-9 if order == "f8 f4" else 1e-6
    for mine, other in zip(gpu.coefs_, cpu.coefs_, strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_allclose(mine, other, atol=tolerance)


def test_parameters_stored_in_16_bits_are_rounded_in_every_step_on_the_gpu_as_on_the_cpu():
    x, y = regression()
    models = [
        MLPRegressor(
            hidden_layer_sizes=5, random_state=0, batch_size=8, device=device,
            learning_rate_init=1e-2,
        )
        for device in ("cpu", "cuda")
    ]  # fmt: skip
    for model in models:
        model.partial_fit(x[:24], y[:24])
        model.coefs_[0] = model.coefs_[0].astype(np.float16)
        model.intercepts_[1] = model.intercepts_[1].astype(np.float16)
        model.partial_fit(x[:24], y[:24])
    for mine, other in zip(models[0].coefs_, models[1].coefs_, strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_allclose(mine.astype(float), other.astype(float), atol=1e-3)
    assert models[1].coefs_[0].dtype == np.float16


@pytest.mark.parametrize("verb", ["partial_fit", "fit"])
def test_a_later_call_with_y_of_another_width_changes_nothing_on_the_gpu(verb):
    x, y = regression(3)
    on_gpu = backends.get("cuda").asarray
    x, y = x[:20], y[:20]
    for given in (x, on_gpu(x)):
        for first, second in ((1, 2), (2, 1), (2, 3)):
            model = MLPRegressor(
                hidden_layer_sizes=4, random_state=0, max_iter=1, warm_start=verb == "fit"
            )
            model.fit(given, y[:, :first].squeeze())
            before = [array.copy() for array in model.coefs_ + model.intercepts_]
            names = {name: repr(value) for name, value in vars(model).items()}
            with pytest.raises(ValueError, match=rf"y has {second} col.* has {first} output"):
                getattr(model, verb)(given, y[:, :second].squeeze())
            assert {name: repr(value) for name, value in vars(model).items()} == names
            for old, new in zip(before, model.coefs_ + model.intercepts_, strict=True):
                np.testing.assert_array_equal(old, new)


def test_targets_and_x_beyond_float32_fit_on_the_gpu_as_on_the_cpu():
    x, y = regression()
    x, y = x[:20].astype(np.float32), y[:20]
    for scale, size in ((1.0, 1e39), (1e20, 1.0)):
        given = (x / 10 * scale).astype(np.float32)
        cpu, gpu = (
            MLPRegressor(hidden_layer_sizes=4, random_state=0, max_iter=2, device=device)
            for device in ("cpu", "cuda")
        )
        cpu.fit(given, y * size)
        gpu.fit(backends.get("cuda").asarray(given), y * size)
        np.testing.assert_allclose(gpu.loss_curve_, cpu.loss_curve_, rtol=1e-6)
        for mine, other in zip(gpu.coefs_, cpu.coefs_, strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-6)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # the stand-in casts in NumPy
def test_what_the_precision_does_not_hold_is_refused_on_the_gpu():
    x, y = regression()
    model = MLPRegressor(hidden_layer_sizes=4, max_iter=1, precision="float32")
    with pytest.raises(ValueError, match="NaN or infinity"):
        model.fit(backends.get("cuda").asarray(x * 1e39), y)
