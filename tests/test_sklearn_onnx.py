"""The estimators as ONNX graphs: `to_onnx`, and within what skl2onnx exports."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.ensemble import BaggingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier as Original
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from gpubackprop.errors import DataError
from gpubackprop.sklearn import MLPClassifier, MLPRegressor
from tests.cli_runs import ENVIRONMENT
from tests.test_onnx import assert_close, run, session

skl2onnx = pytest.importorskip("skl2onnx")
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def rows(dtype: type = np.float32, n: int = 60) -> np.ndarray:
    """Three columns; the first depends on the row's number modulo 3."""
    X = np.random.default_rng(0).normal(size=(n, 3))
    X[:, 0] += np.arange(n) % 3
    return X.astype(dtype)


KINDS = np.arange(60) % 3
TARGETS: dict[str, Any] = {
    "three texts": np.array(["a", "b", "ü"])[KINDS],
    "three numbers": KINDS - 1,
    "two texts": np.array(["no", "yes"])[(KINDS > 0).astype(int)],
    "two booleans": KINDS > 1,
    "two floats": (KINDS > 1) * 2.0,
    "one class": np.zeros(60, int),
    "multilabel": np.stack([KINDS > 0, KINDS < 2, KINDS == 1], 1).astype(int),
    "multilabel of one": (KINDS > 0).astype(int)[:, None] * [[1, 0]],
}


def classifier(**options: Any) -> MLPClassifier:
    return MLPClassifier(**{"hidden_layer_sizes": (8,), "max_iter": 6, "random_state": 0} | options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", TARGETS)
def test_a_classifier_exports_its_labels_and_its_probabilities(kind, dtype):
    X = rows(dtype)
    fitted = classifier().fit(X, TARGETS[kind])
    found = run(fitted.to_onnx(), X)
    assert list(found) == ["label", "probabilities"]
    assert_close(found["probabilities"], fitted.predict_proba(X))
    assert found["label"].tolist() == fitted.predict(X).tolist()


@pytest.mark.parametrize("loss", ["squared_error", "poisson"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_a_regressor_exports_its_predictions(loss, outputs):
    X = rows()
    y = np.squeeze(np.abs(X[:, :outputs]) * 100)
    fitted = MLPRegressor(loss, (8, 5), ["gelu", "elu(0.3)"], max_iter=6, random_state=0).fit(X, y)
    found = run(fitted.to_onnx(), X)
    assert_close(found["predictions"], fitted.predict(X).reshape(-1, outputs))


def test_the_inputs_have_the_dtype_of_the_parameters_unless_another_is_asked_for(tmp_path):
    fitted = classifier().fit(rows(np.float64), KINDS)
    assert session(fitted.to_onnx()).get_inputs()[0].type == "tensor(double)"
    fitted.to_onnx(tmp_path / "a.onnx", input_dtype="float32")
    found = run(str(tmp_path / "a.onnx"), rows(np.float64))["probabilities"]
    assert_close(found, fitted.predict_proba(rows(np.float64)).astype(np.float32))


def test_an_estimator_without_a_network_or_with_nan_in_it_is_refused():
    with pytest.raises(NotFittedError):
        classifier().to_onnx()
    fitted = classifier().fit(rows(), KINDS)
    fitted.coefs_[0][0, 0] = np.nan
    with pytest.raises(DataError, match="coefs_ or intercepts_ hold NaN"):
        fitted.to_onnx()


# -- skl2onnx -------------------------------------------------------------------------------------


def probabilities(found: Any, classes: Any) -> np.ndarray:
    """What ZipMap gave as a list of mappings, as an array."""
    if isinstance(found, np.ndarray):
        return found
    return np.array([[row[name] for name in classes] for row in found], np.float32)


def exported(model: Any, X: Any, **options: Any) -> list[Any]:
    running = session(skl2onnx.to_onnx(model, X[:1], **options))
    return running.run(None, {running.get_inputs()[0].name: X})


ENSEMBLES: dict[str, Any] = {
    "alone": classifier,
    "pipeline": lambda: make_pipeline(SimpleImputer(), StandardScaler(), classifier()),
    "grid search": lambda: GridSearchCV(classifier(), {"alpha": [1e-4]}, cv=2),
    "grid search of a pipeline": lambda: GridSearchCV(
        make_pipeline(StandardScaler(), classifier()), {"mlpclassifier__alpha": [1e-4]}, cv=2
    ),
    "bagging": lambda: BaggingClassifier(classifier(), n_estimators=2, random_state=0),
    "calibrated": lambda: CalibratedClassifierCV(classifier(), cv=2),
}


@pytest.mark.parametrize("name", ENSEMBLES)
def test_whole_pipelines_and_ensembles_export(name):
    X, y = rows(), TARGETS["three texts"]
    fitted = ENSEMBLES[name]().fit(X, y)
    label, proba = exported(fitted, X)
    assert label.tolist() == fitted.predict(X).tolist()
    wanted = fitted.predict_proba(X).astype(np.float32)
    assert_close(probabilities(proba, fitted.classes_), wanted)


@pytest.mark.parametrize("kind", [name for name in TARGETS if not name.startswith("one")])
def test_a_pipeline_exports_every_kind_of_labels(kind):
    X = rows()
    fitted = make_pipeline(StandardScaler(), classifier()).fit(X, TARGETS[kind])
    label, proba = exported(fitted, X, options={"zipmap": False})
    assert label.tolist() == fitted.predict(X).tolist()
    assert_close(proba, fitted.predict_proba(X).astype(np.float32))


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_pipeline_of_a_regressor_exports(outputs):
    X = rows()
    model = make_pipeline(StandardScaler(), MLPRegressor(hidden_layer_sizes=8, max_iter=6))
    fitted = model.fit(X, np.squeeze(X[:, :outputs]))
    (found,) = exported(fitted, X)
    assert_close(found, fitted.predict(X).reshape(-1, outputs).astype(np.float32))


def test_a_table_of_text_and_numbers_exports_through_a_column_transformer():
    pandas = pytest.importorskip("pandas")
    x = rows()
    frame = pandas.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": np.array(["u", "v", "w"])[KINDS]})
    columns = make_column_transformer(
        (StandardScaler(), ["a", "b"]), (OneHotEncoder(handle_unknown="ignore"), ["c"])
    )
    fitted = make_pipeline(columns, classifier()).fit(frame, TARGETS["two texts"])
    graph = skl2onnx.to_onnx(fitted, frame[:1], options={"zipmap": False})
    inputs = {name: frame[[name]].to_numpy() for name in frame}
    inputs["c"] = inputs["c"].astype(object)
    label, proba = session(graph).run(None, inputs)
    assert label.tolist() == fitted.predict(frame).tolist()
    assert_close(proba, fitted.predict_proba(frame).astype(np.float32))


@pytest.mark.parametrize("options", [{}, {"zipmap": False}, {"zipmap": "columns"}])
def test_the_outputs_are_those_of_scikit_learns_own_classifier(options):
    X, y = rows(), TARGETS["three texts"]
    signatures = []
    for kind in (MLPClassifier, Original):
        fitted = kind((8,), max_iter=3, random_state=0).fit(X, y)
        graph = skl2onnx.to_onnx(fitted, X[:1], options=options)
        running = session(graph)
        signatures.append([(out.name, out.type, out.shape) for out in running.get_outputs()])
        by_id = skl2onnx.to_onnx(fitted, X[:1], options={id(fitted): options})
        assert [out.name for out in by_id.graph.output] == [name for name, *_ in signatures[-1]]
    assert signatures[0] == signatures[1]


@pytest.mark.slow
@pytest.mark.parametrize("first", ["skl2onnx", "gpubackprop.sklearn"])
def test_the_order_of_the_two_imports_does_not_matter(first):
    program = f"""
import sys, {first}, importlib.util
assert importlib.util.find_spec("skl2onnx")  # a look whether it is there imports nothing
import skl2onnx
from gpubackprop.sklearn import MLPClassifier, MLPRegressor
from skl2onnx._supported_operators import sklearn_operator_name_map as known
assert known[MLPClassifier] and known[MLPRegressor]
assert "onnx_pipeline" not in str([*sys.meta_path, skl2onnx.__loader__, skl2onnx.__spec__.loader])
assert importlib.reload(skl2onnx).to_onnx
"""
    subprocess.run([sys.executable, "-c", program], check=True, env=ENVIRONMENT, timeout=200)


@pytest.mark.slow
def test_importing_the_estimators_imports_no_onnx_and_an_absent_skl2onnx_stays_absent():
    program = """
import sys, gpubackprop.sklearn
assert not {"skl2onnx", "onnx"} & set(sys.modules)
sys.path[:] = []
try:
    import skl2onnx
except ModuleNotFoundError as error:
    assert error.name == "skl2onnx"
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program], check=True, env=ENVIRONMENT, timeout=200)
