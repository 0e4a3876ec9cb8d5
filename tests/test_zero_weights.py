"""Means over nothing and other weights of 0: NaN, infinity and 0 stand where PyTorch has them, over
the whole grid of reductions, smoothing, class weights, targets and ignored labels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)

from gpubackprop.torch import cross_entropy, linear_cross_entropy
from tests import ways
from tests.tolerances import assert_same_pattern
from tests.torch_paths import Path, path  # noqa: F401 (a fixture)

K = 4
LOGITS = np.random.default_rng(0).normal(size=(3, K)).astype(np.float32)
WEIGHTS = (None, [1, 0, 2, 1], [0, 0, 0, 0], [0, 1, 0, 0])
LABELS = (([0, 1, 3], -100), ([1, 1, 1], -100), ([0, 1, 3], 1), ([2, 2, 2], 2))
PROBABILITIES = ([[0.1, 0.2, 0.3, 0.4]] * 3, [[0, 1, 0, 0]] * 3, [[0, 0, 0, 0]] * 3)
Outcome = tuple[np.ndarray, np.ndarray]


def grid(probabilities: bool = True) -> Iterator[dict[str, Any]]:
    """Options of F.cross_entropy, with `target` and `weight` as NumPy arrays."""
    targets = [(np.array(labels), ignored) for labels, ignored in LABELS]
    if probabilities:
        targets += [(np.array(t, np.float32), -100) for t in PROBABILITIES]
    for weight, (target, ignored), reduction, smoothing in itertools.product(
        WEIGHTS, targets, ("mean", "sum", "none"), (0.0, 0.1)
    ):
        yield {
            "target": target, "weight": None if weight is None else np.array(weight, np.float32),
            "ignore_index": ignored, "reduction": reduction, "label_smoothing": smoothing,
        }  # fmt: skip


def by_torch(function: Callable[..., torch.Tensor], case: dict[str, Any]) -> Outcome:
    z = torch.tensor(LOGITS, requires_grad=True)
    options = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in case.items()}
    loss = function(z, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    return loss.detach().numpy(), gradient.numpy()


def compare(function: Callable[[dict[str, Any]], Outcome], probabilities: bool = True) -> None:
    for case in grid(probabilities):
        for got, wanted in zip(function(case), by_torch(F.cross_entropy, case), strict=True):
            try:
                assert_same_pattern(got, wanted)
                np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
            except AssertionError as error:
                raise AssertionError(f"{case}: {error}") from None


@pytest.mark.usefixtures("way")
def test_weights_of_zero_have_pytorchs_pattern_in_the_operation():
    def ours(case: dict[str, Any]) -> Outcome:
        case = dict(case)
        target, case["class_weight"] = case.pop("target"), case.pop("weight")
        if target.ndim == 2:
            del case["ignore_index"]
        return ways.softmax_cross_entropy(LOGITS, target, **case)

    compare(ours)


def test_weights_of_zero_have_pytorchs_pattern_for_tensors(path: Path):  # noqa: F811
    if path.device == "cuda":
        pytest.skip("the operation of the same kernels is tested there")
    compare(lambda case: by_torch(cross_entropy, case))


def test_weights_of_zero_have_pytorchs_pattern_under_a_transform():
    """There the loss is composed of PyTorch's operators."""

    def ours(case: dict[str, Any]) -> Outcome:
        options = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in case.items()}

        def total(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            loss = cross_entropy(z, **options)
            return loss.sum(), loss

        gradient, loss = torch.func.grad(total, has_aux=True)(torch.tensor(LOGITS))
        return loss.numpy(), gradient.numpy()

    compare(ours)


def test_weights_of_zero_have_pytorchs_pattern_without_logits():
    def ours(case: dict[str, Any]) -> Outcome:
        def loss(z: torch.Tensor, target: torch.Tensor, **options: Any) -> torch.Tensor:
            return linear_cross_entropy(z, torch.eye(K), target, **options)

        return by_torch(loss, case)

    compare(ours, probabilities=False)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_a_mean_over_weights_of_zero_is_what_empty_says_whatever_its_rows_add(empty):
    """Smoothing and the z-loss add to rows whose label, or sample, has weight 0."""
    for options in (
        {"class_weight": np.array([0.0, 1, 1, 1]), "label_smoothing": 0.2},
        {"class_weight": np.array([0.0, 1, 1, 1]), "z_loss": 0.1},
        {"sample_weight": np.zeros(3), "z_loss": 0.1, "label_smoothing": 0.2},
    ):
        loss, delta = ways.softmax_cross_entropy(LOGITS, np.zeros(3, int), empty=empty, **options)
        if empty == "zero":
            assert loss == 0
            assert np.isfinite(delta).all()
        else:
            assert np.isnan(loss)
            assert not np.isfinite(delta).any()
