"""What the estimators have beyond scikit-learn, and how they live in its programs."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref

import joblib
import numpy as np
import pytest
import scipy
import sklearn
import sklearn.neural_network
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from gpubackprop import optimizers, schedules
from gpubackprop.backends import cuda_driver, devices
from gpubackprop.errors import (
    DeviceUnavailable,
    DtypeError,
    GpubackpropError,
    ModelFileError,
    OptionError,
    ShapeError,
    StopTraining,
)
from gpubackprop.formulas import ACTIVATIONS
from gpubackprop.optimizers import OPTIMIZERS
from gpubackprop.schedules import SCHEDULES
from gpubackprop.sklearn import MLPClassifier, MLPRegressor, arrays, lbfgs
from tests.sklearn_pairs import digits, regression

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
BOTH = [MLPClassifier, MLPRegressor]


def data(cls):
    return digits(150) if cls is MLPClassifier else regression()


def small(cls=MLPClassifier, **options):
    return cls(**({"hidden_layer_sizes": 8, "max_iter": 6, "random_state": 0} | options))


def same(a, b):
    assert a.loss_curve_ == b.loss_curve_
    for mine, other in zip(a.coefs_ + a.intercepts_, b.coefs_ + b.intercepts_, strict=True):
        np.testing.assert_array_equal(mine, other)


# -- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", BOTH)
def test_parameters_and_defaults_are_scikit_learns_and_more(cls):
    theirs = getattr(sklearn.neural_network, cls.__name__)().get_params()
    ours = cls().get_params()
    assert {name: ours[name] for name in theirs} == theirs
    assert list(ours) == sorted(ours)
    additions = {
        "device": "auto", "precision": None, "callbacks": (), "progress": False,
        "checkpoint": None, "checkpoint_every": 1, "dropout": 0.0, "n_members": None,
        "devices": None,
    }  # fmt: skip
    additions |= {"class_weight": None} if cls is MLPClassifier else {}
    assert {name: ours[name] for name in set(ours) - set(theirs)} == additions
    assert repr(cls()) == f"{cls.__name__}()"


@pytest.mark.slow
@pytest.mark.parametrize("activation", [*ACTIVATIONS, "leaky_relu(0.2)"])
def test_every_activation_trains(activation):
    x, y = digits(150)
    model = small(activation=activation, max_iter=30, learning_rate_init=0.01).fit(x, y)
    assert model.loss_curve_[-1] < 0.9 * model.loss_curve_[0]


def test_each_hidden_layer_may_have_its_own_activation():
    x, y = digits(100)
    listed = small(hidden_layer_sizes=(8, 8), activation=["tanh", "tanh"]).fit(x, y)
    same(listed, small(hidden_layer_sizes=(8, 8), activation="tanh").fit(x, y))
    mixed = small(hidden_layer_sizes=(8, 8), activation=["tanh", "gelu"]).fit(x, y)
    assert mixed.loss_curve_ != listed.loss_curve_
    with pytest.raises(GpubackpropError, match="2 hidden layers"):
        small(hidden_layer_sizes=(8, 8), activation=["tanh"]).fit(x, y)


@pytest.mark.slow
@pytest.mark.parametrize("solver", sorted(OPTIMIZERS))
def test_every_optimizer_trains(solver):
    x, y = digits(150)
    rate = {"gradient_descent": 0.5, "lion": 0.01}.get(solver, 0.02)
    model = small(solver=solver, max_iter=30, learning_rate_init=rate).fit(x, y)
    assert model.loss_curve_[-1] < 0.9 * model.loss_curve_[0]


def test_an_optimizer_object_has_its_own_rate_and_is_cloned():
    x, y = digits(100)
    model = small(solver=optimizers.RMSprop(0.003))
    same(clone(model).fit(x, y), small(solver="rmsprop", learning_rate_init=0.003).fit(x, y))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_trains(name):
    x, y = digits(150)
    model = small(learning_rate=name, max_iter=15, learning_rate_init=0.01).fit(x, y)
    assert model.loss_curve_[-1] < 0.9 * model.loss_curve_[0]


def test_a_schedule_multiplies_the_rate_of_every_step():
    """A cosine to 0 after a quarter: the remaining epochs change less and less, the last nothing."""
    x, y = digits(100)
    halved = small(learning_rate=schedules.StepDecay(1, 0.5), learning_rate_init=0.02).fit(x, y)
    first = small(learning_rate_init=0.02, max_iter=1).fit(x, y)
    assert halved.loss_curve_[0] == first.loss_curve_[0]
    assert halved.loss_curve_[-1] > small(learning_rate_init=0.02).fit(x, y).loss_curve_[-1]


def test_class_weight_is_a_factor_on_the_sample_weights():
    x, y = digits(150)
    by_hand = {c: 1.0 + c for c in range(10)}
    for weight in ("balanced", by_hand):
        expected = small().fit(x, y, compute_sample_weight(weight, y))
        same(small(class_weight=weight).fit(x, y), expected)
    extra = np.linspace(1, 2, 150)
    expected = small().fit(x, y, extra * compute_sample_weight(by_hand, y))
    same(small(class_weight=by_hand).fit(x, y, extra), expected)


def test_class_weight_in_partial_fit_may_name_a_class_that_the_batch_lacks():
    x, y = digits(150)
    names = np.array([f"class {c}" for c in y])
    for labels in (y, names, names.astype(object)):
        by_hand = {labels[2]: 5.0}  # the others count 1
        weighted, expected = small(class_weight=by_hand), small()
        for rows in (slice(0, 30), labels == labels[1], labels == labels[2], slice(30, 150)):
            weighted.partial_fit(x[rows], labels[rows], classes=np.unique(labels))
            extra = np.where(labels == labels[2], 5.0, 1.0)[rows]
            expected.partial_fit(x[rows], labels[rows], extra, classes=np.unique(labels))
            same(weighted, expected)
    with pytest.raises(ValueError, match="not in class_weight"):
        small(class_weight={2: 5.0, 77: 1.0}).partial_fit(x, y, classes=range(10))
    with pytest.raises(ValueError, match=r"not supported for partial_fit.*compute_class_weight"):
        small(class_weight="balanced").partial_fit(x, y, classes=range(10))


def test_batch_size_full_is_one_batch_of_all_rows():
    x, y = digits(250)
    same(small(batch_size="full").fit(x, y), small(batch_size=250).fit(x, y))


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_precision_decides_what_is_computed_in(kind):
    x, y = digits(100)
    for given in (x, x.astype(np.float32)):
        model = small(precision=kind).fit(given, y)
        assert {a.dtype.name for a in model.coefs_ + model.intercepts_} == {kind}
        assert model.predict_proba(given).dtype == kind
    same(model, small().fit(x.astype(np.float32).astype(kind), y))


@pytest.mark.parametrize(
    ("option", "value"),
    [("activation", "relo"), ("activation", "leaky_relu(-1)"), ("solver", "adamm"),
     ("learning_rate", "cosinus"), ("batch_size", "all"), ("precision", "float16"),
     ("device", 0), ("class_weight", "equal"), ("callbacks", print), ("checkpoint", 3)],
)  # fmt: skip
def test_a_parameter_that_cannot_be_is_refused_in_scikit_learns_words(option, value):
    with pytest.raises(ValueError, match=f"The '{option}' parameter of MLPClassifier must be"):
        MLPClassifier(**{option: value}).fit([[0.0], [1.0]], [0, 1])


# -- device ---------------------------------------------------------------------------------------


def test_device_says_where_it_ran_and_verbose_prints_it(capsys):
    x, y = digits(50)
    model = small(device="cpu", verbose=True, max_iter=2).fit(x, y)
    assert model.device_ == "cpu"
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "Computing on cpu, float64"
    assert out[1].startswith("Iteration 1, loss = 2.")


def test_a_device_that_is_not_there_is_an_error_and_no_fall_back(monkeypatch):
    x, y = digits(50)
    with pytest.raises(OptionError, match="tpu"):
        small(device="tpu").fit(x, y)
    if devices.choose("auto")[0] == "cpu":
        with pytest.raises(DeviceUnavailable, match="cuda"):
            small(device="cuda").fit(x, y)
    fitted = small(device="cpu").fit(x, y)
    fitted.device = "tpu"
    with pytest.raises(OptionError, match="tpu"):
        fitted.predict(x)


def test_a_column_called_device_is_a_column():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    x, _ = regression()
    names = ["device", "get", *(f"x{i}" for i in range(6))]
    frame = pandas.DataFrame(x, columns=names)
    model = small(MLPRegressor).fit(frame, frame[["get", "device"]])
    plain = small(MLPRegressor).fit(x, x[:, [1, 0]])
    same(model, plain)
    np.testing.assert_array_equal(model.predict(frame), plain.predict(x))


def test_an_attribute_of_the_caller_is_no_device():
    class Frame:
        device = np.arange(3)

        def __array__(self, dtype=None, copy=None):
            return np.array(x, dtype)

    x, y = digits(50)
    same(small().fit(Frame(), y), small().fit(x, y))


class OtherArray:
    """An array of another library, which has CUDA's protocol on every device, as JAX's has."""

    __cuda_array_interface__ = property(lambda self: 1 / 0)

    def __init__(self, values, kind):
        self.values, self.kind, self.device = values, kind, "device 0 of that library"

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)

    def __dlpack_device__(self):
        if self.kind is None:
            raise BufferError("on several devices")
        return self.kind, 1


def test_where_an_array_lies_is_what_dlpack_says():
    x, y = digits(50)
    assert arrays.device_of(OtherArray(x, 2)) == "cuda:1"
    for kind in (1, None):
        same(small().fit(OtherArray(x, kind), OtherArray(y, kind)), small().fit(x, y))


@pytest.mark.slow
def test_arrays_of_jax_on_the_cpu_are_computed_there():
    numpy = pytest.importorskip("jax.numpy", reason="JAX is not installed")
    x, y = digits(50)
    x = x.astype(np.float32)
    model = small().fit(numpy.asarray(x), numpy.asarray(y))
    same(model, small().fit(x, y))
    np.testing.assert_array_equal(model.predict(numpy.asarray(x)), model.predict(x))


def test_predict_asks_the_driver_once_in_a_process_and_again_after_an_error(monkeypatch):
    x, y = digits(50)
    model = small(device="cpu").fit(x, y).set_params(device="auto")
    del model.device_  # as of a model that came from scikit-learn; a fit on the CPU asks no more
    asked = []

    def absent(name):
        asked.append(name)
        raise OSError

    monkeypatch.setattr(cuda_driver, "load_library", absent)
    monkeypatch.setattr(devices, "_CHOSEN", {})
    for _ in range(3):
        model.predict(x[:1])
    assert len(asked) == 1
    model.set_params(device="cuda")
    for _ in range(2):
        with pytest.raises(DeviceUnavailable):
            model.predict(x[:1])
    assert len(asked) == 3
    devices.choose("auto")
    assert len(asked) == 4


def test_sparse_input_on_a_gpu_is_refused_with_what_to_do():
    x, y = digits(50)
    with pytest.raises(OptionError, match=r"toarray\(\)"):
        small(device="cuda").fit(sparse.csr_array(x), y)
    assert small().fit(sparse.csr_array(x), y).device_ == "cpu"


# -- validation, callbacks, progress, checkpoints ---------------------------------------------------


@pytest.mark.parametrize("cls", BOTH)
def test_validation_data_is_evaluated_after_every_epoch(cls):
    x, y = data(cls)
    model = small(cls).fit(x[:100], y[:100], validation_data=(x[100:], y[100:]))
    assert len(model.validation_loss_curve_) == model.n_iter_
    assert model.validation_scores_ is None
    same(model, small(cls).fit(x[:100], y[:100]))  # nothing is held out
    if cls is MLPRegressor:
        expected = 0.5 * np.mean((model.predict(x[100:]) - y[100:]) ** 2)
    else:
        wrong = model.predict_proba(x[100:])[np.arange(50), y[100:]]
        expected = -np.log(wrong).mean()
    assert model.validation_loss_curve_[-1] == pytest.approx(expected, rel=1e-12)


def test_validation_data_weights_count_and_early_stopping_uses_them():
    x, y = digits(150)
    held = (x[100:], y[100:], np.linspace(0, 1, 50))
    model = small(early_stopping=True, max_iter=40, n_iter_no_change=2, learning_rate_init=0.05)
    model.fit(x[:100], y[:100], validation_data=held)
    assert model.t_ == 100 * model.n_iter_
    best = model.score(*held)
    assert model.best_validation_score_ == pytest.approx(best, rel=1e-12)
    assert len(model.validation_scores_) == len(model.validation_loss_curve_) == model.n_iter_


def test_validation_data_may_lack_classes_but_not_have_others_also_after_a_warm_start():
    x, y = digits(150)
    model = small(warm_start=True).fit(x, y)
    model.fit(x, y, validation_data=(x[:3], y[:3]))
    with pytest.raises(ValueError, match="has classes not in"):
        model.fit(x, y, validation_data=(x[:3], [0, 1, 77]))
    with pytest.raises(OptionError, match=r"must be \(X, y\)"):
        model.fit(x, y, validation_data=(x[:3],))


def test_validation_data_with_other_outputs_is_refused():
    x, y = digits(60)
    several = np.stack([y > 3, y % 2 == 1], 1)
    for cls, learned, other in (
        (MLPRegressor, y, several), (MLPRegressor, several, y), (MLPClassifier, several, y % 2),
        (MLPClassifier, y % 2, several),
    ):  # fmt: skip
        with pytest.raises(ShapeError, match=r"y of validation_data has shape .* column"):
            small(cls).fit(x, learned, validation_data=(x, other))
    with pytest.raises(OptionError, match=r"must be \(X, y\)"):
        small().fit(x, y, validation_data=3)


@pytest.mark.parametrize("kind", ["U", "datetime64[s]", "S"])
def test_a_regressor_refuses_targets_that_are_no_numbers(kind):
    x, y = digits(60)
    with pytest.raises(DtypeError, match=r"y has dtype .* but must be real numbers"):
        small(MLPRegressor).fit(x, y.astype(kind))


def test_predict_takes_parameters_assigned_as_lists():
    x, y = digits(60)
    model = small().fit(x, y)
    expected = model.predict_proba(x)
    model.coefs_ = [coef.tolist() for coef in model.coefs_]
    model.intercepts_ = [intercept.tolist() for intercept in model.intercepts_]
    np.testing.assert_array_equal(model.predict_proba(x), expected)


def test_lbfgs_refuses_what_needs_epochs():
    x, y = digits(50)
    with pytest.raises(OptionError, match="leave out validation_data, callbacks, progress"):
        small(solver="lbfgs", callbacks=[print], progress=True).fit(x, y, validation_data=(x, y))


def test_partial_fit_lets_go_of_the_data():
    x, y = digits(50)
    x = x.copy()
    reference = weakref.ref(x)
    model = small().partial_fit(x, y, classes=range(10))
    del x
    gc.collect()
    assert reference() is None
    assert model.n_iter_ == 1


def test_callbacks_see_the_network_and_may_end_training():
    x, y = digits(100)
    rows = []

    def watch(estimator, row):
        rows.append(row | {"score": estimator.score(x, y)})
        if row["epoch"] == 4:
            raise StopTraining

    model = small(callbacks=[watch]).fit(x, y, validation_data=(x, y))
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert model.n_iter_ == 4
    assert [row["loss"] for row in rows] == model.loss_curve_
    assert [row["val_loss"] for row in rows] == model.validation_loss_curve_
    assert [row["val_score"] for row in rows] == [row["score"] for row in rows]


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("options", [{}, {"solver": "sgd"}, {"dropout": 0.3}], ids=str)
def test_a_copy_made_by_a_callback_predicts_and_learns_as_the_original_then_would(options, how):
    x, y = digits(60)
    made = []

    def keep(estimator, row):
        if row["epoch"] == 2:
            estimator.callbacks = ()  # a local function has no pickle
            made.append((how(estimator), estimator.predict_proba(x)))

    model = small(max_iter=4, callbacks=[keep], **options).fit(x, y)
    twin, probabilities = made[0]
    np.testing.assert_array_equal(twin.predict_proba(x), probabilities)
    assert (twin.n_iter_, len(twin.loss_curve_), model.n_iter_) == (2, 2, 4)
    whole = small(max_iter=2, **options).fit(x, y)
    for each in (twin, whole):
        each.partial_fit(x, y)
    same(twin, whole)


@pytest.mark.parametrize("answer", [True, 7, "written", np.ones(2)], ids=repr)
def test_what_a_callback_returns_is_ignored(answer):
    x, y = digits(60)
    model = small(max_iter=3, callbacks=[lambda estimator, row: answer]).fit(x, y)
    assert model.n_iter_ == 3


def test_stop_training_ends_a_fit_with_the_parameters_of_its_best_epoch():
    x, y = digits(120)
    seen = []

    def stop(estimator, row):
        seen.append([coef.copy() for coef in estimator.coefs_])
        if row["epoch"] == 6:
            raise StopTraining("enough")

    settings = {"early_stopping": True, "learning_rate_init": 0.1}
    model = small(callbacks=[stop], **settings).fit(x, y)
    assert model.n_iter_ == len(seen) == 6
    best = int(np.argmax(model.validation_scores_))
    assert best < 5, "the last epoch is not the best"
    for found, wanted in zip(model.coefs_, seen[best], strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("verb", ["fit", "partial_fit"])
def test_a_callback_that_cannot_be_called_is_refused_before_anything_is_learned(verb):
    x, y = digits(60)
    model = small(callbacks=[print, None])
    with pytest.raises(OptionError, match=r"callbacks\[1\] is None, which cannot be called"):
        getattr(model, verb)(x, y, *([None, np.unique(y)] * (verb == "partial_fit")))
    assert not hasattr(model, "coefs_")


def test_a_fit_goes_on_from_what_a_callback_writes_into_the_parameters():
    x, y = digits(60)

    def reset(estimator, row):
        if row["epoch"] == 1:
            for array in (*estimator.coefs_, *estimator.intercepts_):
                array[...] = 0

    model = small(max_iter=2, callbacks=[reset]).fit(x, y)
    assert model.loss_curve_[1] == pytest.approx(np.log(len(np.unique(y))), rel=0.2)
    assert np.abs(model.coefs_[0]).max() < 0.02  # a few steps of Adam from 0; drawn: up to 0.3


def test_the_progress_bar_shows_epochs_and_loss(capsys):
    x, y = digits(100)
    small(progress=True, max_iter=3).fit(x, y)
    assert "epoch 3/3" in capsys.readouterr().err
    small(max_iter=3).fit(x, y)
    assert capsys.readouterr().err == ""


class StopError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"early_stopping": True},
     {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.5, "n_iter_no_change": 2},
     {"learning_rate": schedules.ReduceOnPlateau(patience=0)}, {"solver": "rmsprop"}],
    ids=str,
)  # fmt: skip
def test_a_fit_goes_on_from_its_checkpoint_bit_for_bit(tmp_path, options):
    x, y = digits(120)
    whole = small(max_iter=9, **options).fit(x, y)
    path = tmp_path / "fit.safetensors"

    def interrupt(estimator, row):
        if row["epoch"] == 5:
            raise StopError

    settings = options | {"max_iter": 9, "checkpoint": path}
    with pytest.raises(StopError):
        small(callbacks=[interrupt], checkpoint_every=2, **settings).fit(x, y)
    resumed = small(**settings).fit(x, y)
    same(resumed, whole)
    assert resumed.validation_scores_ == whole.validation_scores_
    same(small(**settings).fit(x, y), whole)  # finished: nothing more to do
    longer = small(**(settings | {"max_iter": 11})).fit(x, y)
    same(longer, small(max_iter=11, **options).fit(x, y))


def test_a_warm_start_goes_on_from_its_checkpoint_with_its_own_best_parameters(tmp_path):
    x, y = digits(120)
    path = tmp_path / "fit.safetensors"

    def started(**options):
        model = small(warm_start=True, early_stopping=True, max_iter=3).fit(x, y)
        model.best_validation_score_ = -1.0
        return model.set_params(max_iter=6, **options)

    def interrupt(estimator, row):
        if row["epoch"] == 5:
            raise StopError

    whole = started().fit(x, y)
    scores = whole.validation_scores_[3:]
    assert max(scores[:4]) >= max(scores)  # nothing better is found after the interruption
    with pytest.raises(StopError):
        started(checkpoint=path, callbacks=[interrupt]).fit(x, y)
    same(started(checkpoint=path).fit(x, y), whole)
    with pytest.raises(ModelFileError, match="split"):  # a first fit draws other rows to hold out
        small(early_stopping=True, max_iter=6, checkpoint=path).fit(x, y)


def test_a_checkpoint_of_another_fit_is_refused_and_named(tmp_path):
    x, y = digits(120)
    path = tmp_path / "fit.safetensors"
    small(checkpoint=str(path)).fit(x, y)
    with pytest.raises(ModelFileError, match="batch_rows, alpha differ"):
        small(checkpoint=path, alpha=1.0, batch_size=10).fit(x, y)
    with pytest.raises(ModelFileError, match="weights, random_state differ"):
        small(checkpoint=path, random_state=1, class_weight="balanced").fit(x, y)
    other, held = x.copy(), (x[:20], y[:20])
    other[1] += 1  # one row
    with pytest.raises(ModelFileError, match=": X differ"):
        small(checkpoint=path).fit(other, y)
    with pytest.raises(ModelFileError, match=": y differ"):
        small(checkpoint=path).fit(x, y[::-1])
    with pytest.raises(ModelFileError, match=": classes differ"):
        small(checkpoint=path).fit(x, y + 1)
    with pytest.raises(ModelFileError, match=": held-out rows differ"):
        small(checkpoint=path).fit(x, y, validation_data=held)
    with pytest.raises(ModelFileError, match=": X differ"):  # sparse and dense may round otherwise
        small(checkpoint=path).fit(sparse.csr_array(x), y)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match=r"fit\.safetensors"):
        small(checkpoint=path).fit(x, y)


def test_a_checkpoint_of_sparse_rows_sees_a_change_of_one_value(tmp_path):
    x, y = digits(120)
    csr = sparse.csr_array(x)
    model = small(checkpoint=tmp_path / "fit.safetensors")
    same(clone(model).fit(csr, y), clone(model).fit(csr, y))
    csr.data[7] += 1
    with pytest.raises(ModelFileError, match=": X differ"):
        model.fit(csr, y)


def test_a_warm_start_from_scikit_learn_in_float32_has_checkpoints(tmp_path):
    x, y = digits(120)
    x = x.astype(np.float32)
    theirs = sklearn.neural_network.MLPClassifier(8, max_iter=3, random_state=0, warm_start=True)
    model = MLPClassifier.from_sklearn(theirs.fit(x, y))
    whole = copy.deepcopy(model).fit(x, y)
    assert whole.validation_loss_curve_ is None
    for _ in range(2):
        resumed = copy.deepcopy(model).set_params(checkpoint=tmp_path / "fit").fit(x, y)
        same(resumed, whole)


def test_ctrl_c_keeps_what_was_learned():
    x, y = digits(100)

    def interrupt(estimator, row):
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="Training interrupted by user"):
        model = small(callbacks=[interrupt]).fit(x, y)
    same(model, small(max_iter=3).fit(x, y))


def test_ctrl_c_in_lbfgs_keeps_the_point_that_scikit_learn_keeps(monkeypatch):
    x, y = digits(100)
    minimize = scipy.optimize.minimize

    def interrupted(function, *arguments, **options):
        calls = iter(range(5))

        def until_then(*packed):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return function(*packed)

        return minimize(until_then, *arguments, **options)

    monkeypatch.setattr(scipy.optimize, "minimize", interrupted)
    monkeypatch.setattr(lbfgs, "minimize", interrupted)
    pair = [cls(8, solver="lbfgs", random_state=0)
            for cls in (sklearn.neural_network.MLPClassifier, MLPClassifier)]  # fmt: skip
    for model in pair:
        with pytest.raises(KeyboardInterrupt):
            model.fit(x, y)
    theirs, ours = (model.coefs_ + model.intercepts_ for model in pair)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-10)


# -- in scikit-learn's programs -------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("cls", BOTH)
def test_copies_predict_and_go_on_alike(cls, copied):
    x, y = data(cls)
    model = small(cls).fit(x, y).partial_fit(x, y)
    twin = copied(model)
    np.testing.assert_array_equal(twin.predict(x), model.predict(x))
    same(twin.partial_fit(x, y), model.partial_fit(x, y))


def test_a_joblib_file_holds_the_network_and_no_training_data(tmp_path):
    x, y = digits(1000)
    model = small().fit(x, y).partial_fit(x, y)
    joblib.dump(model, tmp_path / "m")
    assert (tmp_path / "m").stat().st_size < x.nbytes / 10
    np.testing.assert_array_equal(joblib.load(tmp_path / "m").predict(x), model.predict(x))


@pytest.mark.slow  # starts processes
def test_a_grid_search_over_a_pipeline_with_processes_finds_what_scikit_learns_finds():
    x, y = digits(200)
    found = []
    for cls in (sklearn.neural_network.MLPClassifier, MLPClassifier):
        pipeline = make_pipeline(StandardScaler(), cls(8, random_state=0, max_iter=15))
        grid = {"mlpclassifier__alpha": [1e-4, 10.0], "mlpclassifier__activation": ["relu", "tanh"]}
        search = GridSearchCV(pipeline, grid, n_jobs=2, cv=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.append(search.fit(x, y))
    np.testing.assert_array_equal(
        found[0].cv_results_["mean_test_score"], found[1].cv_results_["mean_test_score"]
    )
    assert found[0].best_params_ == found[1].best_params_


def test_sample_weights_are_routed_through_a_pipeline():
    x, y = digits(100)
    weights = np.linspace(0.1, 1, 100)
    with sklearn.config_context(enable_metadata_routing=True):
        model = small().set_fit_request(sample_weight=True)
        make_pipeline(model).fit(x, y, sample_weight=weights)
    same(model, small().fit(x, y, weights))


@pytest.mark.slow
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frames_give_feature_names_that_are_compared(library):
    frames = pytest.importorskip(library, reason=f"{library} is not installed")
    x, y = digits(60)
    names = [f"pixel {i}" for i in range(64)]
    frame = frames.DataFrame(dict(zip(names, x.T, strict=True)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = small(early_stopping=True).fit(frame, y)
        np.testing.assert_array_equal(model.predict(frame), model.predict(frame))
    assert list(model.feature_names_in_) == names
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        model.predict(x)
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(
            frame.rename({"pixel 0": "other"}, **({"axis": 1} if library == "pandas" else {}))
        )
    out = make_pipeline(StandardScaler().set_output(transform=library), small()).fit(frame, y)
    assert list(out[-1].feature_names_in_) == names


@pytest.mark.parametrize("case", ["labels", "two", "multi-label", "numbers"])
def test_to_sklearn_and_back_predict_the_same_and_go_on(case):
    cls = MLPRegressor if case == "numbers" else MLPClassifier
    x, y = data(cls)
    y = {"two": y > 4, "multi-label": np.stack([y > 3, y % 2 == 1], 1)}.get(case, y)
    model = small(cls, early_stopping=case == "two").fit(x, y)
    theirs = model.to_sklearn()
    assert type(theirs) is getattr(sklearn.neural_network, cls.__name__)
    np.testing.assert_array_equal(theirs.predict(x), model.predict(x))
    back = cls.from_sklearn(theirs)
    np.testing.assert_array_equal(back.predict(x), model.predict(x))
    assert back.get_params() == model.get_params()
    if case != "two":
        theirs.partial_fit(x, y)
        np.testing.assert_allclose(back.partial_fit(x, y).loss_, theirs.loss_, rtol=1e-10)
    same_start = cls.from_sklearn(model.set_params(warm_start=True).to_sklearn()).fit(x, y)
    np.testing.assert_allclose(
        same_start.loss_curve_, model.to_sklearn().fit(x, y).loss_curve_, rtol=1e-10
    )


def test_to_sklearn_refuses_what_would_predict_otherwise_and_warns_of_the_rest():
    x, y = digits(60)
    with pytest.raises(OptionError, match="'gelu' has no counterpart"):
        small(activation="gelu").fit(x, y).to_sklearn()
    model = small(solver="adamw", activation=["relu"]).fit(x, y)
    with pytest.warns(UserWarning, match="'adamw'"):
        np.testing.assert_array_equal(model.to_sklearn().predict(x), model.predict(x))
    with pytest.raises(OptionError, match=r"\['relu', 'tanh'\] has no counterpart"):
        small(hidden_layer_sizes=(3, 3), activation=["relu", "tanh"]).fit(x, y).to_sklearn()
    model = small(hidden_layer_sizes=(), activation=[]).fit(x, y)
    np.testing.assert_array_equal(model.to_sklearn().predict(x), model.predict(x))
    for options in ({"class_weight": "balanced"}, {"batch_size": "full"}):
        (name,) = options
        for model in (small(**options), small(**options, solver="lbfgs")):
            with pytest.warns(UserWarning, match=f"scikit-learn has no {name}"):
                theirs = model.fit(x, y).to_sklearn()
            assert theirs.batch_size == "auto"
    assert not hasattr(small().to_sklearn(), "coefs_")
    with pytest.raises(
        OptionError, match="wants scikit-learn's MLPRegressor but got MLPClassifier"
    ):
        MLPRegressor.from_sklearn(small().to_sklearn())


class Doubled(sklearn.neural_network.MLPRegressor):
    def predict(self, X):
        return 2 * super().predict(X)


class OursDoubled(MLPRegressor):
    def predict(self, X):
        return 2 * super().predict(X)


class Named(sklearn.neural_network.MLPRegressor):
    """A subclass that computes what its base does."""

    def describe(self) -> str:
        return f"{len(self.coefs_)} layers"


def test_a_subclass_that_predicts_otherwise_is_not_converted():
    x, y = data(MLPRegressor)
    options = {"hidden_layer_sizes": 3, "max_iter": 3, "random_state": 0}
    message = "has predict of its own, which would be lost; derive it from the other package's"
    with pytest.raises(OptionError, match=f"^Doubled {message} MLPRegressor"):
        MLPRegressor.from_sklearn(Doubled(**options).fit(x, y))
    with pytest.raises(OptionError, match=f"^OursDoubled {message} MLPRegressor"):
        OursDoubled(**options).fit(x, y).to_sklearn()
    theirs = Named(**options).fit(x, y)
    np.testing.assert_array_equal(MLPRegressor.from_sklearn(theirs).predict(x), theirs.predict(x))
