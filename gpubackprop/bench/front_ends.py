"""The problems of the drop-in front ends: a linear layer with its loss or activation, and `fit`.

They are measured on demand only, by ``python -m benchmarks.bench_torch`` and
``python -m benchmarks.bench_sklearn``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from gpubackprop.bench.layers import formula
from gpubackprop.bench.problems import (
    Array,
    Arrays,
    Problem,
    Tiling,
    product_bytes,
    product_flops,
    storage,
)
from gpubackprop.bench.shapes import Case
from gpubackprop.bench.steps import HeldToLosses
from gpubackprop.formulas import ACTIVATIONS

ORACLE_ELEMENTS = 1 << 33  # the oracle computes at most so many rows times weights


class Linear(Problem):
    """A scalar loss of x W', and its gradients with respect to x and W. Shape: (rows, in, out)."""

    limit: ClassVar = ""
    shared: ClassVar = ("W",)
    sums: ClassVar = ("loss", "grad_W")
    awkward: ClassVar = ()

    def block(self, case: Case, rng: np.random.Generator, rows: int) -> Arrays:
        _, inner, outer = case.shape
        W = rng.standard_normal((outer, inner), np.float32) / np.float32(inner**0.5)
        return {"x": rng.normal(size=(rows, inner)), "W": W}

    def tiling(self, case: Case) -> Tiling:
        rows, inner, outer = case.shape
        block = min(super().tiling(case).block, max(1, ORACLE_ELEMENTS // (inner * outer)))
        return Tiling(rows, block)

    def of_product(self, case: Case, inputs: Arrays, a: Array, tiling: Tiling) -> tuple[Any, Array]:
        """Return the loss, and its gradient with respect to a = x W'."""
        raise NotImplementedError

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        x, W = inputs["x"], inputs["W"]
        loss, delta = self.of_product(case, inputs, x @ W.T, tiling)
        return {"loss": loss, "grad_x": delta @ W, "grad_W": tiling.product(delta, x)}

    def bytes(self, case: Case) -> int:
        return product_bytes(case)

    def flops(self, case: Case) -> int:
        return product_flops(case)


class LinearCrossEntropy(Linear):
    """The mean cross entropy of softmax(x W')."""

    def block(self, case: Case, rng: np.random.Generator, rows: int) -> Arrays:
        return super().block(case, rng, rows) | {"labels": rng.integers(0, case.shape[2], rows)}

    def of_product(self, case: Case, inputs: Arrays, a: Array, tiling: Tiling) -> tuple[Any, Array]:
        labels, rows = inputs["labels"], np.arange(len(a))
        e = np.exp(a - a.max(1, keepdims=True))
        total = e.sum(1, keepdims=True)
        loss = np.log(total[:, 0]) + a.max(1) - a[rows, labels]
        delta = e / total
        delta[rows, labels] -= 1
        return tiling.total(loss) / tiling.rows, delta / tiling.rows


class LinearGelu(Linear):
    """The mean of gelu(x W')^2."""

    def of_product(self, case: Case, inputs: Arrays, a: Array, tiling: Tiling) -> tuple[Any, Array]:
        gelu, size = ACTIVATIONS["gelu"], tiling.rows * case.shape[2]
        h = formula(gelu, "value", a)
        loss = tiling.total((h * h).sum(1)) / size
        return loss, 2 * h * formula(gelu, "slope", a) / size


class Fit(HeldToLosses):
    """A whole `MLPClassifier.fit`; the variant names the data ("digits", "random").

    The oracle is scikit-learn in the dtype of the case.
    """

    limit: ClassVar = ""

    def find_losses(self, case: Case) -> Array:
        from sklearn.neural_network import MLPClassifier

        return np.array(fitted(MLPClassifier(**parameters(case)), *data(case)).loss_curve_)

    def tolerance(self, case: Case, found: Arrays) -> float:
        """Return the tolerance: sums in another order move a float32 curve, and a GPU's float64."""
        return 1e-10 if case.dtype == "float64" and found.get("exact", True) else 1e-3

    def bytes(self, case: Case) -> int:
        return case.shape[0] * case.shape[2] * case.shape[3] * storage(case).itemsize

    def flops(self, case: Case) -> int:
        epochs, _, rows, *widths = case.shape
        step = Case("training_step", (rows, *widths), case.dtype)
        return epochs * product_flops(step)


def parameters(case: Case) -> dict[str, Any]:
    """Return parameters with which an `MLPClassifier` runs all epochs of the case."""
    epochs, batch, _, _, *hidden, _ = case.shape
    return {
        "hidden_layer_sizes": hidden, "batch_size": batch, "max_iter": epochs, "tol": 0.0,
        "n_iter_no_change": 10**6, "random_state": 0,
    }  # fmt: skip


def data(case: Case) -> tuple[Array, Array]:
    """Return the case's x (rows, features) in [0, 1] and y."""
    _, _, rows, features, *_, classes = case.shape
    if case.variant == "digits":
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        x = x / 16
    else:
        rng = np.random.default_rng(0)
        x, y = rng.random((rows, features)), rng.integers(0, classes, rows)
    return x.astype(case.dtype), y


def fitted(model: Any, x: Array, y: Array) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning that it has not converged
        return model.fit(x, y)


PROBLEMS: dict[str, Problem] = {
    "linear_cross_entropy": LinearCrossEntropy(),
    "linear_gelu": LinearGelu(),
    "fit": Fit(),
}


def torch_cases(kind: str) -> Iterator[Case]:
    """Return the cases on which `gpubackprop.torch` is measured, for "cpu" or "cuda"."""
    large, entropy = kind != "cpu", "softmax_cross_entropy"
    dtype = "bfloat16" if large else "float32"
    more = ((4096, 32_000), (4096, 128_256)) if large else ()
    for shape in ((4096, 1000), (256, 50_257), (65_536, 10), *more):
        yield Case(entropy, shape, dtype)
    yield Case("linear_cross_entropy", (4096, 4096, 128_256) if large else (256, 64, 4008), dtype)
    yield Case("linear_gelu", (8192, 4096, 4096) if large else (512, 512, 512), dtype)
    yield Case("update_many", (1000 * 4096,), variant="adam")


def fit_cases(sizes: bool) -> Iterator[Case]:
    """Return the cases on which `gpubackprop.sklearn` is measured.

    With `sizes` they show from which size on a GPU wins.
    """
    large = (784, 512, 512, 10)
    if sizes:
        for rows in (1000, 10_000, 60_000):
            for batch in (200, 2000):
                yield Case("fit", (2, batch, rows, *large), variant="random")
        return
    for dtype in ("float64", "float32"):
        for batch in (32, 200, 1000):
            yield Case("fit", (50, batch, 1797, 64, 128, 10), dtype, "digits")
    yield Case("fit", (2, 256, 20_000, *large), variant="random")
