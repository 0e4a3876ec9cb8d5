"""Later calls of `partial_fit` and warm starts: other dtypes, other shapes, parameters replaced."""

from __future__ import annotations

import copy
import itertools
import pickle
import re

import numpy as np
import pytest
from scipy import sparse
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import train_test_split

from gpubackprop.errors import ModelFileError, ShapeError
from gpubackprop.layout import ParameterLayout
from gpubackprop.sklearn import MLPClassifier, MLPRegressor
from gpubackprop.sklearn.stored import read_parameters
from tests.sklearn_pairs import digits, estimators, multilabel, regression, weights

pytestmark = pytest.mark.filterwarnings("ignore")
FLOAT32 = 2e-6  # a few units in the last place of parameters below 1, after a few steps


def pair(name="MLPRegressor", **options):
    return estimators(name, **{"hidden_layer_sizes": (20, 7), "batch_size": 32} | options)


def assert_close(theirs, ours, x, tolerance):
    for mine, other in zip(
        ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True
    ):
        assert (mine.dtype, mine.shape) == (other.dtype, other.shape)
        np.testing.assert_allclose(mine.astype(float), other.astype(float), atol=tolerance, rtol=0)
    curve = np.float64(getattr(theirs, "loss_curve_", theirs.loss_))
    mine = np.float64(getattr(ours, "loss_curve_", ours.loss_))
    np.testing.assert_allclose(mine, curve, rtol=tolerance)
    mine, other = ours.predict(x), theirs.predict(x)
    assert mine.dtype == other.dtype
    np.testing.assert_allclose(mine, other, atol=tolerance, rtol=0)


def state(model):
    """All attributes, as text that is equal where they are."""
    return {
        name: repr(pickle.dumps(value)) if name == "_optimizer" else repr(value)
        for name, value in vars(model).items()
        if name != "_kept_session"
    }


def same_error_and_nothing_changed(model, call, message, error=ShapeError):
    before = state(model)
    parameters = copy.deepcopy([model.coefs_, model.intercepts_])
    with pytest.raises(error, match=message):
        call()
    assert state(model) == before
    for old, new in zip(parameters, [model.coefs_, model.intercepts_], strict=True):
        for mine, other in zip(old, new, strict=True):
            np.testing.assert_array_equal(mine, other)


# -- the layout -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtypes", list(itertools.product(("float16", "float32", "float64"), repeat=2))
)
def test_a_buffer_is_copied_to_the_layout_of_another_dtype_layer_by_layer(dtypes):
    layouts = [ParameterLayout((3, 20, 7, 1), np.dtype(dtype)) for dtype in dtypes]
    source, target = (
        np.zeros(layout.size, dtype) for layout, dtype in zip(layouts, dtypes, strict=True)
    )
    for number, view in enumerate(itertools.chain(*layouts[0].views(source)), 1):
        view[...] = number
    layouts[0].copy(source, layouts[1], target)
    for number, view in enumerate(itertools.chain(*layouts[1].views(target)), 1):
        assert (view == number).all()
    assert np.count_nonzero(target) == layouts[1].count


def test_a_buffer_of_other_layers_is_refused_and_the_layer_named():
    layout = ParameterLayout((3, 20, 7, 1), np.dtype("float32"))
    for widths, message in (((3, 20, 8, 1), r"layer 2 .*\(8, 20\)"), ((3, 20, 1), "3 layers")):
        other = ParameterLayout(widths, np.dtype("float64"))
        with pytest.raises(ShapeError, match=message):
            layout.copy(np.zeros(layout.size), other, np.zeros(other.size))


# -- other dtypes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MLPRegressor", "MLPClassifier"])
@pytest.mark.parametrize("solver", ["sgd", "adam"])
@pytest.mark.parametrize(
    "order", ["f4 f8", "f8 f4", "f4 f8 f4", "f4 f8 f8 f4 f2 i4"], ids=lambda order: order
)
def test_partial_fit_goes_on_as_scikit_learns_with_x_of_another_dtype(name, solver, order):
    x, y = regression() if name == "MLPRegressor" else digits(100)
    theirs, ours = pair(name, solver=solver)
    for dtype in order.split():
        for model in (theirs, ours):
            model.partial_fit(x.astype(dtype), y, *([None, np.unique(y)] * (name[3] == "C")))
    tolerance = 1e-10 if order.startswith("f8") else FLOAT32
    assert_close(theirs, ours, x, tolerance)


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("order", ["f4 f8", "f8 f4"])
def test_a_warm_start_goes_on_as_scikit_learns_with_x_of_another_dtype(order, early_stopping):
    x, y = regression()
    theirs, ours = pair(warm_start=True, early_stopping=early_stopping, max_iter=5)
    for dtype in order.split():
        for model in (theirs, ours):
            model.fit(x.astype(dtype), y)
    assert_close(theirs, ours, x, 1e-10 if order == "f8 f4" else FLOAT32)


@pytest.mark.parametrize(
    "solver", ["sgd", "adam", "momentum", "adamw", "rmsprop", "adagrad", "lion"]
)
def test_the_state_of_every_optimizer_goes_on_in_another_dtype(solver):
    x, y = regression()
    models = [
        MLPRegressor(hidden_layer_sizes=(20, 7), solver=solver, random_state=0, batch_size=32)
        for _ in "ab"
    ]
    for dtypes in (("f8", "f4"), ("f8", "f8"), ("f8", "f4"), ("f8", "f8")):
        for model, dtype in zip(models, dtypes, strict=True):
            model.partial_fit(x.astype(dtype), y)
    tolerance = 2e-3 if solver == "lion" else 2e-5  # Lion steps by the sign of a moment
    for mine, other in zip(models[1].coefs_, models[0].coefs_, strict=True):
        assert mine.dtype == np.float32
        np.testing.assert_allclose(mine, other, atol=tolerance)


@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_the_state_goes_on_after_pickling_and_with_another_precision(solver):
    x, y = regression()
    plain, changed = (
        MLPRegressor(hidden_layer_sizes=(20, 7), solver=solver, random_state=0, batch_size=32)
        for _ in "ab"
    )
    for precision in ("float32", "float64", "float32"):
        plain.partial_fit(x, y)
        changed = pickle.loads(pickle.dumps(changed)).set_params(precision=precision)
        changed.partial_fit(x, y)
    assert changed.coefs_[0].dtype == np.float32
    for mine, other in zip(changed.coefs_, plain.coefs_, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


def test_a_pickle_without_the_widths_goes_on():
    x, y = regression()
    model = MLPRegressor(hidden_layer_sizes=(20, 7), solver="sgd", random_state=0)
    twin = copy.deepcopy(model.partial_fit(x.astype(np.float32), y))
    del twin._optimizer.widths  # written before they were kept
    for other in (model, pickle.loads(pickle.dumps(twin))):
        other.partial_fit(x, y)
    twin.partial_fit(x, y)
    for mine, other in zip(twin.coefs_, model.coefs_, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_a_checkpoint_of_another_dtype_is_refused(tmp_path):
    x, y = regression()
    model = MLPRegressor(
        hidden_layer_sizes=5, max_iter=2, random_state=0, checkpoint=tmp_path / "fit"
    )
    model.fit(x, y)
    with pytest.raises(ModelFileError, match="network"):
        model.set_params(precision="float32").fit(x, y)


# -- parameters of the solver set between calls ---------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        [{"solver": "sgd"}, {"solver": "adam"}],
        [{"learning_rate_init": 0.5}, {"momentum": 0.1, "nesterovs_momentum": False}],
        [{"alpha": 0.1}, {"alpha": 0.0, "batch_size": 20}],
        [{"activation": "tanh"}, {"activation": "logistic"}],
        [{"hidden_layer_sizes": (4, 3)}, {"hidden_layer_sizes": [2, 2]}],
        [{"shuffle": False}, {"random_state": 3}],
    ],
    ids=str,
)
@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_parameters_set_between_calls_count_as_in_scikit_learn(solver, changes):
    x, y = regression()
    theirs, ours = pair(solver=solver)
    for change in [{}, *changes, {}]:
        for model in (theirs, ours):
            model.set_params(**change).partial_fit(x, y)
    assert_close(theirs, ours, x, 1e-10)


@pytest.mark.parametrize("losses", [("squared_error", "poisson"), ("poisson", "squared_error")])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_loss_set_between_calls_is_reported_and_the_gradient_stays_as_in_scikit_learn(
    losses, weighted
):
    x, y = regression(2)
    own = (weights(len(y)),) if weighted else ()
    theirs, ours = pair(loss=losses[0])
    for loss in (*losses, losses[0]):
        for model in (theirs, ours):
            model.set_params(loss=loss).partial_fit(x, np.abs(y), *own)
            model.intercepts_[-1][...] = 3.0  # outputs above 0, whose logarithm is a number
            model.partial_fit(x, np.abs(y), *own)
    assert np.isfinite(ours.loss_curve_).sum() >= 4
    assert_close(theirs, ours, x, 1e-10)


@pytest.mark.parametrize("sizes", [(20,), (20, 7, 5), ()])
@pytest.mark.parametrize("verb", ["partial_fit", "fit"])
def test_another_number_of_hidden_layers_is_refused_as_scikit_learn_refuses_it(verb, sizes):
    x, y = regression()
    theirs, ours = pair(warm_start=True, max_iter=1)
    for model in (theirs, ours):
        model.fit(x, y)
        model.set_params(hidden_layer_sizes=sizes)
    with pytest.raises((TypeError, IndexError)):
        getattr(theirs, verb)(x, y)
    same_error_and_nothing_changed(
        ours, lambda: getattr(ours, verb)(x, y), r"hidden_layer_sizes=.*\(20, 7\) units"
    )


def test_lbfgs_refuses_other_hidden_sizes_in_a_warm_start_as_scikit_learn_does():
    x, y = regression()
    for model in pair(solver="lbfgs", warm_start=True, max_iter=3):
        model.fit(x, y)
        model.set_params(hidden_layer_sizes=(20, 8))
        with pytest.raises(ValueError, match=r"reshape|broadcast|hidden_layer_sizes"):
            model.fit(x, y)


# -- parameters replaced --------------------------------------------------------------------------

REPLACED = {
    "float64": lambda a: a.astype("f8"),
    "float32": lambda a: a.astype("f4"),
    "float16": lambda a: a.astype("f2"),
    "Fortran order": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "scaled": lambda a: 0.5 * a,
}


@pytest.mark.parametrize("replaced", REPLACED)
@pytest.mark.parametrize("layer", [0, 1, None])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_training_goes_on_from_replaced_arrays_as_scikit_learns(dtype, layer, replaced):
    x, y = regression()
    x = x.astype(dtype)
    theirs, ours = pair()
    for model in (theirs, ours):
        model.partial_fit(x, y)
        for arrays in (model.coefs_, model.intercepts_):
            for number in range(3) if layer is None else [layer]:
                arrays[number] = REPLACED[replaced](arrays[number])
        model.partial_fit(x, y).partial_fit(x, y)
        for array in model.coefs_ + model.intercepts_:
            assert array.flags.writeable
    exact = dtype == "f8" and replaced not in ("float32", "float16")
    # A number on the border of two float16 may be rounded either way: one unit there.
    tolerance = 1e-10 if exact else 1e-3 if replaced == "float16" else FLOAT32
    assert_close(theirs, ours, x, tolerance)


@pytest.mark.parametrize("options", [{}, {"solver": "lbfgs"}, {"early_stopping": True}], ids=str)
def test_a_shallow_copy_shares_the_lists_of_parameters_as_scikit_learns(options):
    x, y = regression()
    pairs = []
    for model in pair(hidden_layer_sizes=4, max_iter=3, warm_start=True, random_state=0, **options):
        twin = copy.copy(model.fit(x, y))
        model.fit(x, y)
        model.coefs_[0] = 0.5 * model.coefs_[0]
        twin.intercepts_[0] = 0.5 * twin.intercepts_[0]
        pairs.append((model, twin.fit(x, y)))
    for theirs, ours in zip(*pairs, strict=True):
        assert_close(theirs, ours, x, 1e-10)


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_a_shallow_copy_and_its_original_go_on_with_one_state_of_the_solver(solver):
    x, y = regression()
    theirs, ours = pair(hidden_layer_sizes=4, solver=solver, random_state=0)
    for model in (theirs, ours):
        model.partial_fit(x, y)
        twin = copy.copy(model)
        for one in (twin, model, model, twin, model):
            one.partial_fit(x, y)
    assert_close(theirs, ours, x, 1e-10)


@pytest.mark.parametrize("rows", [1, 50])
def test_each_step_is_rounded_to_the_dtype_that_is_stored(rows):
    x, y = regression()
    theirs, ours = pair(hidden_layer_sizes=4, batch_size=rows, learning_rate_init=1e-5)
    for model in (theirs, ours):
        model.partial_fit(x, y)
        model.coefs_ = [coef.astype("f2") for coef in model.coefs_]
        model.intercepts_ = [intercept.astype("f2") for intercept in model.intercepts_]
        model.partial_fit(x, y)
    for mine, other in zip(ours.coefs_, theirs.coefs_, strict=True):  # steps below half a unit
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_loss_beside_float64_intercepts_is_bounded_as_scikit_learns_float32_probabilities(
    classes,
):
    """A probability is at least 1.2e-7 then, and a row's loss at most 15.9, not 36."""
    rng = np.random.RandomState(3)
    x = rng.standard_normal((30, 4))
    y = rng.randint(0, classes, 30)
    models = pair("MLPClassifier", learning_rate_init=10.0, batch_size=2, hidden_layer_sizes=3)
    for model in models:
        model.partial_fit(x, y, classes=range(classes))
        model.coefs_ = [coef.astype(np.float32) for coef in model.coefs_]
        model.partial_fit(x.astype(np.float32), y)
    theirs, ours = models
    assert theirs.loss_ > 1
    np.testing.assert_allclose(ours.loss_, theirs.loss_, rtol=1e-4)  # float32 logits of hundreds


@pytest.mark.parametrize("name", ["MLPRegressor", "MLPClassifier"])
def test_nan_in_a_replaced_array_shows_in_predictions_and_ends_training_as_in_scikit_learn(name):
    x, y = regression() if name == "MLPRegressor" else digits(60)
    theirs, ours = pair(name, max_iter=2)
    outputs = []
    for model in (theirs, ours):
        model.fit(x, y)
        model.coefs_[1][3, 2] = np.nan
        outputs.append(getattr(model, "predict_proba", model.predict)(x))
        with pytest.raises(ValueError, match="non-finite parameter weights"):
            model.partial_fit(x, y)
        assert all(np.isnan(coef).any() for coef in model.coefs_)
    np.testing.assert_allclose(outputs[1], outputs[0])
    assert np.isnan(outputs[1]).any()


WRONG = {
    "list": (lambda a: a.tolist(), AttributeError, "is a list"),
    "integers": (lambda a: a.astype(int), TypeError, "dtype int64"),
    "truth values": (lambda a: a > 0, TypeError, "dtype bool"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", ["coefs_", "intercepts_"])
def test_what_no_update_can_be_added_to_is_refused_with_scikit_learns_error(kind, wrong):
    x, y = regression()
    replace, error, message = WRONG[wrong]
    theirs, ours = pair()
    for model in (theirs, ours):
        model.partial_fit(x, y)
        getattr(model, kind)[1] = replace(getattr(model, kind)[1])
    if (kind, wrong) != ("intercepts_", "list"):  # scikit-learn leaves such a layer as it is
        with pytest.raises(error):
            theirs.partial_fit(x, y)
    same_error_and_nothing_changed(
        ours,
        lambda: ours.partial_fit(x, y),
        rf"{re.escape(kind)}\[1\] of layer 2 .*{message}",
        error,
    )


@pytest.mark.parametrize("shape", [(20, 6), (19, 7), (1, 7), (20, 1), (20,), (20, 7, 1)])
def test_coefs_of_another_shape_are_refused_and_the_layer_named(shape):
    x, y = regression()
    theirs, ours = pair()
    for model in (theirs, ours):
        model.partial_fit(x, y)
        model.coefs_[1] = np.zeros(shape)
    with pytest.raises(ValueError, match=r"."):
        theirs.partial_fit(x, y)
    message = r"_\[[12]\] of layer [23] has shape"
    same_error_and_nothing_changed(ours, lambda: ours.partial_fit(x, y), message)
    same_error_and_nothing_changed(ours, lambda: ours.predict(x), message)


@pytest.mark.parametrize("shape", [(6,), (1,), (8,), (7, 1), ()])
def test_intercepts_of_another_shape_are_refused_in_training_and_the_layer_named(shape):
    x, y = regression()
    _, ours = pair()
    ours.partial_fit(x, y)
    ours.intercepts_[1] = np.zeros(shape)
    message = r"intercepts_\[1\] of layer 2 has shape"
    same_error_and_nothing_changed(ours, lambda: ours.partial_fit(x, y), message)


@pytest.mark.parametrize("kind", ["coefs_", "intercepts_"])
def test_parameters_replaced_beside_the_plans_that_are_kept_are_never_broadcast(kind):
    x, y = regression()
    _, ours = pair()
    ours.partial_fit(x, y)
    network = ours._kept_session.network
    getattr(ours, kind)[1] = getattr(ours, kind)[1][..., :1]
    with pytest.raises(ShapeError, match=r"layer 2 has shape"):
        read_parameters(ours, network)


def test_intercepts_of_one_number_count_for_each_unit_in_predict_as_in_scikit_learn():
    x, y = regression()
    theirs, ours = pair()
    for model in (theirs, ours):
        model.partial_fit(x, y)
        model.intercepts_ = [np.float64(0.3), np.array([-0.1]), np.ones((1, 1))]
    np.testing.assert_allclose(ours.predict(x), theirs.predict(x), rtol=1e-12)


def test_coefs_of_several_outputs_are_refused_where_two_classes_are_predicted():
    x = np.random.default_rng(0).standard_normal((6, 3))
    y = np.array([0, 1] * 3)
    theirs, ours = estimators("MLPClassifier", hidden_layer_sizes=4, max_iter=2)
    for model in (theirs, ours):
        model.fit(x, y)
        model.coefs_[1] = np.tile(model.coefs_[1], 3)
    assert len(theirs.predict(x)) == len(theirs.predict_proba(x)) == 3 * len(x)
    for call in (ours.predict, ours.predict_proba, ours.predict_log_proba):
        with pytest.raises(ShapeError, match=r"coefs_\[1\] of layer 2 has shape \(4, 3\)"):
            call(x)


def test_a_network_replaced_as_a_whole_predicts_and_warm_starts_but_has_no_optimizer_state():
    x, y = regression()
    theirs, ours = pair(max_iter=3)
    rng = np.random.default_rng(0)
    widths = [8, 9, 4, 1]
    for model in (theirs, ours):
        model.partial_fit(x, y)
        rng = np.random.default_rng(0)
        model.coefs_ = [rng.normal(size=shape) / 3 for shape in itertools.pairwise(widths)]
        model.intercepts_ = [rng.normal(size=width) / 3 for width in widths[1:]]
    np.testing.assert_allclose(ours.predict(x), theirs.predict(x), rtol=1e-12)
    with pytest.raises(ValueError, match="broadcast"):
        copy.deepcopy(theirs).partial_fit(x, y)
    same_error_and_nothing_changed(
        ours, lambda: ours.partial_fit(x, y), r"shape \(20, 8\) in layer 1 .* \(9, 8\)"
    )
    for model in (theirs, ours):
        model.set_params(warm_start=True).fit(x, y)
    assert_close(theirs, ours, x, 1e-10)


def test_a_layer_too_many_or_too_few_is_refused():
    x, y = regression()
    for change in (lambda arrays: arrays[:-1], lambda arrays: [*arrays, arrays[-1]]):
        _, ours = pair()
        ours.partial_fit(x, y)
        ours.coefs_ = change(ours.coefs_)
        for call in (ours.predict, lambda x, ours=ours: ours.partial_fit(x, y)):
            with pytest.raises(ShapeError, match=r"coefs_ has \d entries but the network has 3"):
                call(x)


def test_arrays_that_share_memory_are_refused():
    x, y = regression()
    ours = MLPRegressor(hidden_layer_sizes=(8, 8), random_state=0).partial_fit(x, y)
    ours.coefs_[1] = ours.coefs_[0].T
    same_error_and_nothing_changed(
        ours, lambda: ours.partial_fit(x, y), "layer 1 and .* layer 2 share memory", ValueError
    )


def test_predict_takes_sparse_coefs_as_scikit_learn():
    x, y = regression()
    theirs, ours = pair()
    for model in (theirs, ours):
        model.partial_fit(x, y)
        model.coefs_ = [sparse.csr_matrix(np.where(np.abs(c) > 0.1, c, 0)) for c in model.coefs_]
    np.testing.assert_allclose(ours.predict(x), theirs.predict(x), rtol=1e-12)


@pytest.mark.parametrize("verb", ["partial_fit", "fit"])
def test_read_only_arrays_predict_and_are_refused_in_training_as_in_scikit_learn(verb):
    x, y = regression()
    theirs, ours = pair(warm_start=verb == "fit")
    for model in (theirs, ours):
        model.partial_fit(x, y)
        model.coefs_[1].flags.writeable = False
    np.testing.assert_allclose(ours.predict(x), theirs.predict(x), rtol=1e-12)
    with pytest.raises(ValueError, match="read-only"):
        getattr(theirs, verb)(x, y)
    same_error_and_nothing_changed(
        ours,
        lambda: getattr(ours, verb)(x, y),
        r"coefs_\[1\] of layer 2 is read-only",
        ValueError,
    )
    if verb == "fit":  # makes new arrays
        ours.set_params(solver="lbfgs", max_iter=2).fit(x, y)
        assert ours.coefs_[1].flags.writeable


# -- other shapes of the data ---------------------------------------------------------------------


def later(cls, x, y, verb):
    model = cls(hidden_layer_sizes=5, random_state=0, max_iter=2, warm_start=verb == "fit")
    model.fit(x, y)
    return model, getattr(model, verb)


@pytest.mark.parametrize("verb", ["partial_fit", "fit"])
@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1), (2, 3), (3, 2)])
def test_numbers_of_another_width_are_refused_with_both_widths(verb, first, second):
    x, y = regression(3)
    model, call = later(MLPRegressor, x, y[:, :first].squeeze(), verb)
    wrong = y[:, :second].squeeze()
    message = rf"y has {second} columns? but the network that goes on has {first} output unit"
    same_error_and_nothing_changed(model, lambda: call(x, wrong), message)
    call(x, y[:, :first])


@pytest.mark.parametrize("verb", ["partial_fit", "fit"])
def test_labels_of_another_width_or_kind_are_refused(verb):
    x, y = multilabel()
    for wrong in (y[:, :3], np.c_[y, y[:, 0]], y[:, 0], y[:, :1], sparse.csr_matrix(y[:, :2])):
        model, call = later(MLPClassifier, x, y, verb)
        width = 1 if wrong.ndim == 1 else wrong.shape[1]
        same_error_and_nothing_changed(
            model,
            lambda: call(x, wrong),  # noqa: B023
            rf"y has {width} columns? but the network that goes on has 4 output units",
        )
    model, call = later(MLPClassifier, x, y.argmax(1), verb)
    same_error_and_nothing_changed(model, lambda: call(x, y), "", ValueError)
    same_error_and_nothing_changed(model, lambda: call(x, y.argmax(1) + 1), "classes", ValueError)


@pytest.mark.parametrize("verb", ["partial_fit", "fit"])
def test_other_data_of_the_wrong_shape_leave_a_later_call_without_a_trace(verb):
    x, y = regression(2)
    model, call = later(MLPRegressor, x, y, verb)
    for wrong, message in (
        ((x[:, :7], y), "7 features, but MLPRegressor is expecting 8"),
        ((x[:9], y), "inconsistent numbers of samples"),
        ((x, y, np.ones(3)), r"sample_weight.shape == \(3,\)"),
        ((x, y, np.ones((len(x), 2))), "Sample weights must be 1D"),
    ):
        same_error_and_nothing_changed(model, lambda: call(*wrong), message, ValueError)  # noqa: B023
    if verb == "fit":
        for wrong, message in (
            ((x, y[:, :1]), "1 column|2 columns"),
            ((x[:, :7], y), "7 features"),
            ((x, y, np.ones(3)), "sample_weight"),
            ((x, y[:5]), "inconsistent"),
        ):
            same_error_and_nothing_changed(
                model,
                lambda: call(x, y, validation_data=wrong),  # noqa: B023
                message,
                ValueError,
            )


def test_a_first_fit_that_validation_data_stops_leaves_no_network():
    x, y = regression(2)
    model = MLPRegressor(hidden_layer_sizes=5)
    with pytest.raises(ValueError, match="columns"):
        model.fit(x, y, validation_data=(x, y[:, 0]))
    assert not hasattr(model, "coefs_")


# -- after an error -------------------------------------------------------------------------------


def test_an_error_within_an_early_stopping_fit_leaves_the_last_parameters_as_in_scikit_learn():
    x, y = regression()
    theirs, ours = pair(early_stopping=True)
    held_out = train_test_split(np.arange(len(x)), test_size=0.1, random_state=order(theirs, x))[1]
    weight = np.ones(len(x))
    weight[held_out] = 0  # R^2 of no rows is an error, after an epoch
    for model in (theirs, ours):
        with pytest.raises(ValueError, match="at least one non-zero"):
            model.fit(x, y, weight)
    assert ours.n_iter_ == theirs.n_iter_ == 1
    for mine, other in zip(
        ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True
    ):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("outputs", [1, 3])
def test_held_out_weights_of_zero_are_scikit_learns_error_for_classes_too(outputs):
    x, y = np.random.default_rng(0).standard_normal((30, 3)), np.arange(30) % max(2, outputs)
    theirs, ours = pair("MLPClassifier", early_stopping=True)
    rows, seed = np.arange(30), order(theirs, x, outputs)
    same_share = y if outputs == 1 else None  # of the classes
    weight = np.ones(30)
    weight[train_test_split(rows, test_size=0.1, random_state=seed, stratify=same_share)[1]] = 0
    for model in (theirs, ours):
        with pytest.raises(ValueError, match="at least one non-zero"):
            model.fit(x, y, weight)


def order(model, x, outputs=1):
    """The state of the generator that splits off the held-out rows: after the first draws."""
    rng = np.random.RandomState(model.random_state)
    for fan_in, fan_out in itertools.pairwise((x.shape[1], *model.hidden_layer_sizes, outputs)):
        rng.uniform(size=(fan_in, fan_out))
        rng.uniform(size=fan_out)
    return rng


def test_held_out_rows_of_several_outputs_are_scored_by_all_where_one_class_was_named():
    """A first call with indicators, and as many rows of X as scikit-learn refuses, left both."""
    x, _ = digits(60)
    theirs, ours = pair("MLPClassifier", early_stopping=True, warm_start=True, max_iter=3)
    for model in (theirs, ours):
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            model.partial_fit(x, np.eye(3), classes=[0])
        model.fit(x, np.zeros(len(x), int))
    assert ours.n_outputs_ == theirs.n_outputs_ == 3
    assert ours.validation_scores_ == theirs.validation_scores_


def test_a_first_partial_fit_of_no_targets_leaves_what_scikit_learn_leaves():
    x, y = digits(30)
    for model in pair("MLPClassifier"):
        with pytest.raises(ValueError, match="array"):
            model.partial_fit(x, np.nan, classes=np.arange(10))
        with pytest.raises(NotFittedError):
            model.partial_fit(x, y)
        model.fit(x, y)


def test_a_partial_fit_refused_for_early_stopping_leaves_its_optimizer_as_in_scikit_learn():
    x, y = digits(30)
    coefs = []
    for model in pair("MLPClassifier", early_stopping=True):
        with pytest.raises(ValueError, match="early_stopping"):
            model.partial_fit(x, y, classes=np.arange(10))
        model.set_params(solver="sgd", early_stopping=False, learning_rate_init=0.1)
        with pytest.raises(TypeError):  # there is no loss to compare with; the step was made
            model.partial_fit(x, y)
        coefs.append(model.coefs_[0])
    np.testing.assert_allclose(*coefs, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ["MLPClassifier", "MLPRegressor"])
def test_a_fit_that_can_hold_out_no_rows_leaves_its_optimizer_as_in_scikit_learn(name):
    """What was set for that fit counts in the updates that follow, and not what is set afterwards."""
    x, y = digits(20)
    y, coefs = y % 2, []
    options = {"hidden_layer_sizes": 3, "early_stopping": True, "beta_1": 0.5, "max_iter": 2}
    for model in pair(name, **options):
        # one row held out is none of each class, and for numbers too few to score
        with pytest.raises(ValueError, match=r"test_size|validation set is too small"):
            model.fit(x[:5], y[:5])
        model.set_params(early_stopping=False, learning_rate_init=0.1, beta_1=0.9)
        with pytest.raises(TypeError):  # there is no loss to compare with; the steps were made
            model.partial_fit(x, y)
        coefs.append(model.coefs_[0])
    np.testing.assert_allclose(*coefs, rtol=1e-10, atol=1e-13)


def test_labels_of_another_kind_are_named_before_weights_of_the_wrong_shape_as_in_scikit_learn():
    x, y = digits(30)
    for model in pair("MLPClassifier"):
        model.partial_fit(x, y, classes=np.arange(10))
        with pytest.raises(ValueError, match="not fitted with multilabel"):
            model.partial_fit(x, np.eye(10, dtype=int)[y], sample_weight=np.array(1))


def test_moments_of_another_width_are_refused_where_coefs_were_deleted():
    x, y = regression(3)
    model = MLPRegressor(hidden_layer_sizes=3, max_iter=3, random_state=0).fit(x, y[:, 0])
    del model.coefs_
    before = state(model)
    with pytest.raises(ShapeError, match=r"optimizer's state does not fit them: .*layer 2"):
        model.partial_fit(x, y)
    assert state(model) == before
    model.partial_fit(x, y[:, 0])
    model.fit(x, y)
