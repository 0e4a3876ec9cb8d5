"""What predictions are: NumPy arrays, as scikit-learn's are, unless its settings ask otherwise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from gpubackprop.sklearn.arrays import is_tensor
from tests.sklearn_pairs import digits, estimators, multilabel, regression

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.filterwarnings("ignore")


class LikeJax:
    """An array with the protocols of JAX's on the CPU, and no other."""

    def __init__(self, array):
        self._array = array
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._array, dtype)

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()

    def __len__(self):
        return len(self._array)

    def __getitem__(self, item):
        return self._array[item]


def frame(library, array):
    module = pytest.importorskip(library, reason=f"{library} is not installed")
    if array.ndim == 1:
        return module.Series("target", array) if library == "polars" else module.Series(array)
    names = [f"column {number}" for number in range(array.shape[1])]
    return module.DataFrame(dict(zip(names, array.T, strict=True)))


def tensor(array):
    return pytest.importorskip("torch", reason="PyTorch is not installed").from_numpy(array)


KINDS = {
    "list": np.ndarray.tolist,
    "pandas": lambda array: frame("pandas", array),
    "polars": lambda array: frame("polars", array),
    "PyTorch": tensor,
    "JAX": LikeJax,
    "CSR": lambda array: sparse.csr_matrix(array) if array.ndim == 2 else array,
}
DATA = {
    "labels": ("MLPClassifier", digits(60)),
    "two labels": ("MLPClassifier", (digits(60)[0], digits(60)[1] > 4)),
    "multi-label": ("MLPClassifier", multilabel()),
    "numbers": ("MLPRegressor", regression()),
    "two numbers": ("MLPRegressor", regression(2)),
}


@pytest.mark.parametrize("case", DATA)
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_have_scikit_learns_types_for_data_of_every_kind(kind, case):
    name, (x, y) = DATA[case]
    given_x, given_y = KINDS[kind](x), KINDS[kind](y) if kind != "CSR" else y
    results = []
    for model in estimators(name, hidden_layer_sizes=4, max_iter=2):
        model.fit(given_x, given_y)
        if name == "MLPRegressor" or case != "multi-label":  # its first call wants classes
            classes = [np.unique(y)] if name == "MLPClassifier" else []
            model.partial_fit(given_x, given_y, None, *classes)
        verbs = ["predict"] + ["predict_proba", "predict_log_proba"] * (name == "MLPClassifier")
        found = {verb: getattr(model, verb)(given_x) for verb in verbs}
        results.append(found | {"score": model.score(given_x, given_y)})
    for verb, theirs in results[0].items():
        ours = results[1][verb]
        assert type(ours) is type(theirs), verb
        if verb != "score":
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtypes", ["f4 f2", "f4 g", "f8 g", "f8 f4", "f4 i1", "f4 i8", "f4 ?"])
def test_predictions_have_scikit_learns_dtype_for_x_of_every_dtype(dtypes):
    x, y = regression()
    fitted, given = dtypes.split()
    for name in ("MLPRegressor", "MLPClassifier"):
        pair = estimators(name, hidden_layer_sizes=4, max_iter=2)
        own = (8 * x).astype(given)
        verb = "predict" if name == "MLPRegressor" else "predict_proba"
        theirs, ours = (
            getattr(m.fit(x.astype(fitted), y if verb == "predict" else y > 0), verb)(own)
            for m in pair
        )
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_tensor_with_a_gradient_is_taken_and_gives_numpy():
    x, y = regression()
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    _, ours = estimators("MLPRegressor", hidden_layer_sizes=4, max_iter=2)
    ours.fit(torch.tensor(x, requires_grad=True), torch.from_numpy(y), torch.ones(len(y)))
    assert type(ours.predict(torch.tensor(x, requires_grad=True))) is np.ndarray


def test_a_tensor_may_be_resized_after_an_estimator_has_seen_it():
    torch = pytest.importorskip("torch")
    x, y, weight = torch.ones(9, 4), torch.arange(9) % 3, torch.ones(9)
    classes, targets = torch.arange(3), torch.ones(9, 2)
    classifier = estimators("MLPClassifier", max_iter=2)[1]
    regressor = estimators("MLPRegressor", max_iter=2)[1]
    classifier.partial_fit(x, y, weight, classes=classes).predict_proba(x)
    classifier.fit(x, y, weight, validation_data=(x, y)).score(x, y, weight)
    regressor.fit(x, targets, weight).score(x, targets)
    for tensor in (x, y, weight, classes, targets):
        tensor.resize_(100)


def test_what_a_tensor_is_is_said_by_its_class_and_not_by_where_a_class_comes_from():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    class Own(torch.Tensor):
        pass

    parameter = torch.nn.Parameter(torch.zeros(2))
    for value in (torch.zeros(2), parameter, torch.zeros(2).as_subclass(Own)):
        assert is_tensor(value)
    for value in (torch.Size([2]), torch.float32, np.zeros(2), None):
        assert not is_tensor(value)


@pytest.mark.slow
def test_array_api_dispatch_gives_tensors_for_tensors():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    program = """
import numpy as np, torch, sklearn
from gpubackprop.sklearn import MLPClassifier, MLPRegressor
x, y = torch.rand(40, 3, dtype=torch.float64), torch.arange(40) % 3
for model, verbs in (
    (MLPClassifier(4, max_iter=2), ("predict", "predict_proba", "predict_log_proba")),
    (MLPRegressor(hidden_layer_sizes=4, max_iter=2), ("predict",)),
):
    model.fit(x, y)
    for verb in verbs:
        plain = getattr(model, verb)(x)
        assert type(plain) is np.ndarray
        with sklearn.config_context(array_api_dispatch=True):
            asked = getattr(model, verb)(x)
            assert type(asked) is torch.Tensor, verb
            assert type(getattr(model, verb)(x.numpy())) is np.ndarray
        np.testing.assert_array_equal(asked.numpy(), plain)
    with sklearn.config_context(array_api_dispatch=True):
        assert model.fit(x, y).score(x, y) is not None
"""
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={"PYTHONPATH": str(ROOT), "SCIPY_ARRAY_API": "1", "PATH": "/usr/bin:/bin"},
        check=True,
        timeout=120,
    )
