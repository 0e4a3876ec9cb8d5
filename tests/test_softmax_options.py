"""Soft cap, loss alone, details of the rows, labels of one byte, and log softmax; three ways."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own abbreviation)

from gpubackprop import losses
from gpubackprop.errors import OptionError
from tests import ways
from tests.tolerances import assert_by_the_rule, assert_equal_in_float64
from tests.ways import log_softmax, softmax_cross_entropy

pytestmark = pytest.mark.usefixtures("way")


def problem(rows=23, classes=10, seed=0, scale=8.0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, scale, (rows, classes)), rng.integers(0, classes, rows)


def torch_capped(z, y, cap, **options):
    """Loss and gradient of F.cross_entropy(cap * tanh(z / cap)) by autograd."""
    leaf = torch.tensor(z, requires_grad=True)
    loss = F.cross_entropy(cap * torch.tanh(leaf / cap), torch.as_tensor(y), **options)
    loss.sum().backward()
    return loss.detach().numpy(), leaf.grad.numpy()


@pytest.mark.parametrize("classes", [10, 40, 300])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_soft_cap_matches_pytorch_autograd(classes, reduction, smoothing):
    z, y = problem(classes=classes)
    options = {"reduction": reduction, "label_smoothing": smoothing}
    wanted = torch_capped(z, y, 5.0, **options)
    for ours, exact in zip(
        softmax_cross_entropy(z, y, soft_cap=5.0, **options), wanted, strict=True
    ):
        assert_equal_in_float64(ours, exact, 1e-13)
    z = z.astype(np.float32)
    exact = torch_capped(z.astype(np.float64), y, 5.0, **options)
    theirs = torch_capped(z, y, 5.0, **options)
    ours = softmax_cross_entropy(z, y, soft_cap=5.0, **options)
    for one, other, oracle in zip(ours, theirs, exact, strict=True):
        assert_by_the_rule(
            one, other, oracle, primitive=ways.by_way(3.7, 1.4)
        )  # exp, log, tanh; one draw


def test_probabilities_and_in_place_with_a_soft_cap():
    z, _ = problem()
    t = np.random.default_rng(1).dirichlet(np.ones(10), len(z))
    loss, gradient = torch_capped(z, t, 3.0)
    got, delta = softmax_cross_entropy(z, t, soft_cap=3.0, out=z)
    assert delta is z
    assert_equal_in_float64(got, loss, 1e-13)
    assert_equal_in_float64(z, gradient, 1e-13)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("classes", [10, 300, 9000])
def test_a_soft_cap_of_16_bit_logits_is_computed_in_float32(dtype, classes):
    z, y = problem(classes=classes)
    z = z.astype(dtype)
    exact, gradient = torch_capped(z.astype(np.float64), y, 30.0, reduction="none")
    loss, delta = softmax_cross_entropy(z, y, soft_cap=30.0, reduction="none")
    np.testing.assert_allclose(loss, exact, rtol=0, atol=3e-5)  # 1e-6 of the cap
    half_a_unit = float(ml_dtypes.finfo(dtype).eps) / 2
    off = np.abs(delta.astype(np.float64) - gradient)
    assert np.all(off <= half_a_unit * np.abs(gradient) + 3e-6)


@pytest.mark.parametrize("cap", [-1.0, np.inf, np.nan, "a"])
def test_a_soft_cap_that_is_no_positive_number_is_refused(cap):
    with pytest.raises(OptionError, match="soft_cap"):
        softmax_cross_entropy(*problem(), soft_cap=cap)


@pytest.mark.parametrize("targets", ["labels", "probabilities"])
@pytest.mark.parametrize("classes", [3, 30, 700])
def test_the_details_of_the_rows(classes, targets):
    z, y = problem(classes=classes)
    t = y if targets == "labels" else np.full(z.shape, 1 / classes)
    loss, delta, rows = softmax_cross_entropy(z, t, details=True)
    assert np.array_equal(rows.predicted, z.argmax(1))
    assert_equal_in_float64(rows.lse, torch.logsumexp(torch.tensor(z), 1).numpy())
    if targets == "labels":
        assert int(rows.correct) == (z.argmax(1) == y).sum()
    else:
        assert rows.correct is None
    again = softmax_cross_entropy(z, t)
    assert loss == again[0]
    assert np.array_equal(delta, again[1])


def test_a_row_of_nan_has_no_prediction_and_is_not_right():
    z, y = problem()
    z[4, 2] = np.nan
    _, _, rows = softmax_cross_entropy(z, np.where(np.arange(23) == 4, 2, y), details=True)
    assert rows.predicted[4] == -1
    assert (rows.predicted[np.arange(23) != 4] >= 0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_loss_alone_is_the_same_and_computes_no_gradient(reduction):
    z, y = problem()
    loss, delta = softmax_cross_entropy(z, y, reduction=reduction, gradient=False)
    assert delta is None
    assert np.array_equal(loss, softmax_cross_entropy(z, y, reduction=reduction)[0])
    with pytest.raises(OptionError, match="gradient=False"):
        softmax_cross_entropy(z, y, gradient=False, out=np.empty_like(z))


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16, np.int32, np.uint64])
def test_labels_of_any_integer_type(kind):
    z, y = problem(classes=100)
    wanted = softmax_cross_entropy(z, y)
    got = softmax_cross_entropy(z, y.astype(kind))
    assert got[0] == wanted[0]
    assert np.array_equal(got[1], wanted[1])


@pytest.mark.parametrize("classes", [1, 10, 300, 5000])
def test_log_softmax_matches_pytorch(classes):
    z, _ = problem(classes=classes, rows=3)
    z = z + 1e4
    exact = F.log_softmax(torch.tensor(z), 1).numpy()
    assert_equal_in_float64(log_softmax(z), exact, 1e-12)
    narrow = z.astype(np.float32)
    exact = F.log_softmax(torch.tensor(narrow, dtype=torch.float64), 1).numpy()
    theirs = F.log_softmax(torch.tensor(narrow), 1).numpy()
    assert_by_the_rule(log_softmax(narrow), theirs, exact, primitive=ways.by_way(1.4, 1.0))


def test_a_loss_with_a_soft_cap_goes_into_a_file_and_comes_back():
    loss = losses.SoftmaxCrossEntropy(soft_cap=30.0)
    assert (
        losses.loss(**{"spec" if k == "name" else k: v for k, v in loss.config().items()}).config()
        == loss.config()
    )
