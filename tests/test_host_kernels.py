"""The C++ of the host path, called directly: values, parts of the work, memory.

References are PyTorch in float64, exact sums, and NumPy's own formulas. The front ends meet these
functions in the way "native" of the other tests.
"""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from functools import cache

import ml_dtypes
import numpy as np
import pytest
import torch

from gpubackprop.formulas import ACTIVATIONS, POINTWISE_LOSSES, UPDATES, Dropout
from gpubackprop.formulas.dropout import ROUNDING_STREAM, Philox, keep_mask, random_state
from gpubackprop.formulas.rounding import round_stochastic
from tests import host_library, host_shapes
from tests.host_library import STORAGE, Host

pytestmark = pytest.mark.skipif(host_library.compiler() is None, reason="there is no C++ compiler")
DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]
NAMES = ["float64", "float32", "float16", "bfloat16"]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)


@cache
def host() -> Host:
    return Host(host_library.built())


def compute(dtype: type) -> type:
    return np.float64 if dtype == np.float64 else np.float32


def clang() -> tuple[str, ...]:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("the package ziglang is not installed")
    return sys.executable, "-m", "ziglang", "c++"


# -- memory ---------------------------------------------------------------------------------------


def test_no_function_touches_the_gaps_between_rows():
    assert host_shapes.exercise(host()) > 1000


@pytest.mark.slow
def test_no_function_leaves_its_memory_or_does_what_is_undefined():
    """Under AddressSanitizer and UndefinedBehaviorSanitizer, on the same shapes."""
    runtimes = []
    for name in ("libasan.so", "libubsan.so"):
        command = [str(host_library.compiler()), f"-print-file-name={name}"]
        runtimes.append(subprocess.run(command, capture_output=True, text=True).stdout.strip())
    if not all(os.path.isabs(path) for path in runtimes):
        pytest.skip("the compiler has no sanitizers")
    library = host_library.built(host_library.SANITIZED)
    result = subprocess.run(
        [sys.executable, "-m", "tests.host_shapes", str(library)],
        cwd=host_library.KERNELS.parent, capture_output=True, text=True,
        env=os.environ | {"LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.slow
def test_clang_compiles_the_sources_without_a_warning_and_runs_them():
    library = host_library.built((*host_library.FLAGS, "-s"), clang())
    assert host_shapes.exercise(Host(library)) > 1000


def test_formulas_are_numbered_as_in_the_registries():
    assert host().names("gb_activation_names") == list(ACTIVATIONS)
    assert host().names("gb_loss_names") == list(POINTWISE_LOSSES)
    assert host().names("gb_update_names") == list(UPDATES)


# -- softmax cross entropy ------------------------------------------------------------------------

OPTIONS = {
    "plain": {}, "smoothed": {"label_smoothing": 0.1}, "z": {"z_loss": 0.02},
    "capped": {"soft_cap": 4.0}, "all": {"label_smoothing": 0.2, "z_loss": 0.01, "soft_cap": 5.0},
}  # fmt: skip


def torch_loss(z, target, weight, label_smoothing=0.0, z_loss=0.0, soft_cap=0.0, ignore=-100):
    """The mean loss in float64, and its gradient, by PyTorch's operators."""
    logits = torch.tensor(z.astype(np.float64), requires_grad=True)
    x = soft_cap * torch.tanh(logits / soft_cap) if soft_cap else logits
    rows = torch.nn.functional.cross_entropy(
        x, torch.tensor(target), None if weight is None else torch.tensor(weight.astype(np.float64)),
        reduction="none", label_smoothing=label_smoothing, ignore_index=ignore,
    )  # fmt: skip
    kept = torch.ones(len(z), dtype=torch.float64)
    if target.ndim == 1:
        kept = torch.tensor(target != ignore).double()
    rows = rows + z_loss * torch.logsumexp(x, 1) ** 2 * kept
    counts = kept
    if weight is not None and target.ndim == 1:
        counts = (
            torch.tensor(weight.astype(np.float64)[np.where(target == ignore, 0, target)]) * kept
        )
    loss = rows.sum() / counts.sum()
    loss.backward()
    return rows.detach().numpy(), loss.item(), logits.grad.numpy()


def cross_entropy(z, target, weight=None, first=0, last=None, into=None, **options):
    rows, cols = z.shape
    C = compute(z.dtype.type)
    result = into or {
        "delta": np.empty_like(z), "row_loss": np.empty(rows, C), "lse": np.empty(rows, C),
        "predicted": np.empty(rows, np.int64), "correct": np.empty(rows, np.bool_),
        "loss": np.empty((), C), "divisor_at": np.empty(()),
    }  # fmt: skip
    targets = (
        {"labels": target, "label_storage": STORAGE[target.dtype]} if target.ndim == 1 else
        {"probabilities": target, "stride_probabilities": cols,
         "probability_storage": STORAGE[target.dtype]}
    )  # fmt: skip
    host()(
        "gb_softmax_cross_entropy", logits=z, class_weight=weight, first=first,
        last=rows if last is None else last, rows=rows, cols=cols, stride_logits=cols,
        stride_delta=cols, upstream_value=1.0, storage=STORAGE[z.dtype], weighs=into is None,
        **targets, **result, **options,
    )  # fmt: skip
    return result


@each_dtype
@pytest.mark.parametrize("kind", ["labels", "weighted labels", "ignored labels", "probabilities"])
@pytest.mark.parametrize("options", OPTIONS)
def test_softmax_cross_entropy_is_pytorchs_for_short_and_long_rows(dtype, kind, options):
    random = np.random.default_rng(0)
    for rows, cols in ((37, 10), (64, 3), (5, 40), (35, 41), (33, 200), (6, 600), (2, 3000)):
        z = (3 * random.standard_normal((rows, cols))).astype(dtype)
        target = random.integers(0, cols, rows)
        weight = random.uniform(0.5, 2, cols).astype(compute(dtype))
        extra = {}
        if kind == "ignored labels":
            target[1] = 1000000
            extra = {"ignore_index": 1000000, "has_ignore_index": 1}
        if kind == "probabilities":
            target = random.dirichlet(np.ones(cols), rows).astype(compute(dtype))
        weight = weight if kind != "labels" else None
        mine = cross_entropy(z, target, weight, **OPTIONS[options], **extra)
        rows_loss, loss, grad = torch_loss(
            z, target, weight, **OPTIONS[options], ignore=extra.get("ignore_index", -100)
        )
        eps = np.finfo(compute(dtype)).eps
        scale = np.abs(rows_loss).max() + 1
        np.testing.assert_allclose(mine["row_loss"], rows_loss, rtol=4 * eps, atol=4 * eps * scale)
        np.testing.assert_allclose(mine["loss"], loss, rtol=4 * eps, atol=4 * eps * scale)
        rounding = {np.float16: 2.0**-11, ml_dtypes.bfloat16: 2.0**-8}.get(dtype, 2 * eps)
        own = (
            20 if dtype == np.float64 else 4
        )  # PyTorch's smoothed gradient of 3000 columns is off by 13
        np.testing.assert_allclose(
            mine["delta"].astype(np.float64), grad, rtol=rounding + 6 * eps,
            atol=own * eps * np.abs(grad).max() + (2.0**-25 if dtype == np.float16 else 0),
        )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=NAMES[:2])
def test_each_row_of_softmax_cross_entropy_has_its_own_weight_and_upstream_gradient(dtype):
    random = np.random.default_rng(3)
    for rows, cols in ((37, 10), (64, 3), (35, 41), (6, 600), (2, 3000)):
        z = random.standard_normal((rows, cols)).astype(dtype)
        labels = random.integers(0, cols, rows)
        factors = random.uniform(0.1, 8, rows).astype(dtype)
        plain = cross_entropy(z, labels)["delta"].astype(np.float64) * rows
        for given, divisor in (
            ({"sample_weight": factors}, factors.sum(dtype=np.float64)),
            ({"upstream": factors, "upstream_stride": 1}, rows),
        ):
            mine = cross_entropy(z, labels, **given)["delta"]
            wanted = plain * factors[:, None].astype(np.float64) / divisor
            np.testing.assert_allclose(mine, wanted, rtol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=NAMES[:2])
def test_exponentials_far_below_the_largest_are_right_down_to_subnormal_numbers(dtype):
    far = (-87, -88, -95, -103, -104, -120)
    if dtype == np.float64:
        far = (-708, -709, -740, -745, -800)
    for cols in (7, 100, 700):
        z = np.random.default_rng(0).uniform(-1, 0, (35, cols)).astype(dtype)
        z[3, -len(far) :] = far
        wanted = torch.softmax(torch.tensor(z.astype(np.float64)), 1).numpy()
        mine = cross_entropy(z, np.zeros(35, np.int64), last=35)["delta"].astype(np.float64)
        mine[:, 0] += 1 / 35
        tiny = np.finfo(dtype).smallest_subnormal
        rtol = 8 * np.finfo(dtype).eps
        np.testing.assert_allclose(mine[:, 1:], wanted[:, 1:] / 35, rtol=rtol, atol=2 * float(tiny))
        assert 0 < mine[3, -len(far) + 1] < 40 * np.finfo(dtype).tiny


@each_dtype
def test_softmax_cross_entropy_predicts_the_first_largest_logit(dtype):
    for cols in (5, 90, 1200):
        z = np.zeros((4, cols), dtype)
        z[0, 2] = z[0, cols - 1] = 1
        z[1, 0] = z[1, 1] = 2
        z[2, 3] = np.nan
        z[3, :] = -np.inf
        with np.errstate(all="ignore"):
            mine = cross_entropy(z, np.array([2, 1, 3, 0]))
        assert list(mine["predicted"]) == [2, 0, -1, -1]
        assert list(mine["correct"]) == [True, False, False, False]
        assert np.isnan(mine["row_loss"][2:]).all()
        assert np.isnan(mine["delta"][2:].astype(np.float64)).all()
        assert np.isfinite(mine["delta"][:2].astype(np.float64)).all()


@each_dtype
def test_a_label_that_is_no_class_makes_its_row_nan_and_reads_nothing_outside(dtype):
    for cols in (5, 90, 1200):
        for bad in (cols, -1, 2**62):
            labels = np.array([1, bad, 2])
            mine = cross_entropy(np.ones((3, cols), dtype), labels)
            assert list(np.isnan(mine["row_loss"])) == [False, True, False]
            assert np.isnan(mine["delta"][1].astype(np.float64)).all()


@pytest.mark.parametrize("soft_cap", [0.0, 3.0])
@each_dtype
def test_softmax_cross_entropy_in_place_and_in_parts_gives_the_same_bits(dtype, soft_cap):
    random = np.random.default_rng(1)
    for rows, cols in ((100, 10), (70, 60), (9, 1300), (2, 9000)):
        z = random.standard_normal((rows, cols)).astype(dtype)
        labels = random.integers(0, cols, rows)
        whole = cross_entropy(z, labels, label_smoothing=0.1, soft_cap=soft_cap)
        for step in (32, 7):  # 7: no part begins where rows that are computed together would
            parts = {name: np.zeros_like(array) for name, array in whole.items()}
            parts["delta"] = z.copy()
            parts["divisor_at"][...] = rows
            loss = parts.pop("loss")
            for first in range(0, rows, step):
                cross_entropy(
                    parts["delta"], labels, None, first, min(first + step, rows), parts,
                    label_smoothing=0.1, soft_cap=soft_cap,
                )  # fmt: skip
            host()(
                "gb_reduce_loss", row_loss=parts["row_loss"], divisor_at=parts["divisor_at"],
                loss=loss, rows=rows, storage=STORAGE[np.dtype(compute(dtype))],
            )  # fmt: skip
            parts["loss"] = loss
            for name in whole:
                np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)


@each_dtype
def test_outputs_are_their_functions_in_float64(dtype):
    random = np.random.default_rng(6)
    for rows, cols in ((5, 3), (2, 700)):
        a = (2 * random.standard_normal((rows, cols))).astype(dtype)
        wide = a.astype(np.float64)
        exact = torch.tensor(wide)
        wanted = {
            ("gb_output", "kind", 0): wide,
            ("gb_output", "kind", 1): torch.sigmoid(exact).numpy(),
            ("gb_output", "kind", 2): np.exp(wide),
            ("gb_softmax", "log_output", 0): torch.softmax(exact, 1).numpy(),
            ("gb_softmax", "log_output", 1): torch.log_softmax(exact, 1).numpy(),
        }
        C = compute(dtype)
        unit = {np.float16: 2.0**-11, ml_dtypes.bfloat16: 2.0**-8}.get(dtype, np.finfo(C).eps)
        for (name, field, number), values in wanted.items():
            out = a.copy()
            for first, last in ((0, 1), (1, rows)):
                host()(
                    name, a=out, out=out, first=first, last=last, cols=cols, stride_a=cols,
                    stride_out=cols, storage=STORAGE[a.dtype], **{field: number},
                )  # fmt: skip
            tiny = 2.0**-24 if dtype == np.float16 else 0  # its smallest number
            # logits of 10 apart: their difference alone is off by 4 units of exp
            np.testing.assert_allclose(out.astype(np.float64), values, rtol=8 * unit, atol=tiny)


# -- layers ---------------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_layer_and_its_gradient_are_the_formulas_in_float64(dtype, name):
    act, number = ACTIVATIONS[name], list(ACTIVATIONS).index(name)
    random, C = np.random.default_rng(number), compute(dtype)
    for rows, cols in ((3, 7), (20, 130), (4, 700)):
        product = (2 * random.standard_normal((rows, cols))).astype(dtype)
        b, grad = random.standard_normal(cols).astype(dtype), np.ones((rows, cols), dtype)
        a, h, delta = np.empty_like(product), np.empty_like(product), np.empty_like(product)
        code = {"storage": STORAGE[a.dtype], "activation": number, "parameter": act.parameter}
        host()(
            "gb_affine_epilogue", product=product, bias=b, a=a, h=h, last=rows, cols=cols,
            stride_product=cols, stride_a=cols, stride_h=cols, product_storage=STORAGE[a.dtype],
            **code,
        )  # fmt: skip
        exact = product.astype(C).astype(np.float64) + b.astype(np.float64)
        wide, work = np.empty_like(exact), tuple(np.empty((4, *exact.shape)))
        act.value(exact.astype(C).astype(np.float64), wide, work[:3], act.parameter)
        unit = {np.float16: 2.0**-11, ml_dtypes.bfloat16: 2.0**-8}.get(dtype, np.finfo(C).eps)
        near = {"rtol": 5 * unit, "atol": 5 * unit}
        np.testing.assert_allclose(a.astype(np.float64), exact, **near)
        np.testing.assert_allclose(h.astype(np.float64), wide, **near)
        saved = a if act.saved == "a" else h
        partial, grad_b = np.empty((1, cols), C), np.empty(cols, C)
        host()(
            "gb_activation_backward", grad_h=grad, saved=saved, delta=delta, partial=partial,
            grad_b=grad_b, last=rows, rows=rows, cols=cols, stride_grad=cols, stride_saved=cols,
            stride_delta=cols, chunk_rows=rows, sum_storage=STORAGE[grad_b.dtype], **code,
        )  # fmt: skip
        slope = np.empty_like(exact)
        act.slope(saved.astype(np.float64), slope, work[:3], act.parameter)
        np.testing.assert_allclose(delta.astype(np.float64), slope, **near)
        eps = np.finfo(C).eps
        np.testing.assert_allclose(grad_b, slope.sum(0), rtol=8 * eps, atol=8 * eps * rows)


@each_dtype
def test_dropout_drops_what_the_numpy_twin_drops_also_from_a_later_row_on(dtype):
    state = random_state(5, 2**41)
    for rows, cols, row in ((5, 3, 0), (5, 3, 7), (9, 300, 0), (2, 1001, 3)):
        dropout = Dropout(0.4, 3, state, row)
        a, h = np.ones((rows, cols), dtype), np.empty((rows, cols), dtype)
        drop = {
            "dropout_state": dropout.state, "dropout_layer": 3, "dropout_scale": dropout.scale,
            "dropout_threshold": dropout.threshold, "dropout_row": row,
        }  # fmt: skip
        code = {"storage": STORAGE[a.dtype], "product_storage": STORAGE[a.dtype]}
        for first, last in ((0, 1), (1, rows)):
            host()(
                "gb_affine_epilogue", product=a, h=h, first=first, last=last, cols=cols,
                stride_product=cols, stride_h=cols, **drop, **code,
            )  # fmt: skip
        kept = keep_mask((row + rows, cols), Dropout(0.4, 3, state))[row:]
        np.testing.assert_array_equal(keep_mask((rows, cols), dropout), kept)
        np.testing.assert_array_equal(h, (kept * dropout.scale).astype(dtype))


@each_dtype
def test_sums_of_columns_are_exact_to_a_rounding_and_the_same_in_parts(dtype):
    random, C = np.random.default_rng(2), compute(dtype)
    for rows, cols in ((5000, 3), (3000, 300), (200, 600)):
        x = (1 + random.standard_normal((rows, cols))).astype(dtype)
        results = []
        for parts in (1, 3):
            chunks = -(-rows // 64)
            partial, out = np.empty((chunks, cols), C), np.empty(cols, C)
            step = -(-chunks // parts) * 64
            shape = {"rows": rows, "cols": cols, "stride": cols, "chunk_rows": 64, "divisor": 4.0}
            code = {"storage": STORAGE[x.dtype], "sum_storage": STORAGE[out.dtype]}
            for first in range(0, rows, step):
                host()(
                    "gb_column_sum", x=x, partial=partial, out=out if parts == 1 else None,
                    first=first, last=min(rows, first + step), **shape, **code,
                )  # fmt: skip
            if parts > 1:
                host()(
                    "gb_column_sum_finish", partial=partial, out=out, rows=chunks, cols=cols,
                    divisor=4.0, storage=STORAGE[np.dtype(C)], sum_storage=STORAGE[out.dtype],
                )  # fmt: skip
            results.append(out)
        np.testing.assert_array_equal(*results)
        wide = x.astype(np.float64)
        exact = np.array([math.fsum(column) for column in wide.T])
        near = 3 * np.finfo(C).eps * np.abs(wide).sum(0)
        assert np.all(np.abs(4 * results[0] - exact) <= near)


# -- updates --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", UPDATES)
def test_an_update_has_the_bits_of_the_numpy_formula_and_prepare_its_coefficients(dtype, name):
    formula, number = UPDATES[name], list(UPDATES).index(name)
    random = np.random.default_rng(number)
    p, g = random.standard_normal((2, 1777)).astype(dtype)
    slots = [random.random(1777).astype(dtype) for _ in formula.slots]
    wanted = formula.coefficients(formula.hyperparameters, 0.01, 3)
    c = np.empty(len(wanted), dtype)
    host()(
        "gb_prepare_update", hyperparameters=np.array([*formula.hyperparameters.values(), 0.0]), c=c,
        lr=0.01, step=3.0, storage=STORAGE[p.dtype], formula=number,
    )  # fmt: skip
    np.testing.assert_allclose(c, np.array(wanted, dtype), rtol=2 * np.finfo(dtype).eps)
    mine, states = p.copy(), [slot.copy() for slot in slots]
    clip, l2, decay = (np.array(value, dtype) for value in (0.7, 0.3, 0.9))
    for first, last in ((0, 1000), (1000, 1777)):
        host()(
            "gb_update", p=mine, g=g, c=c, clip=clip, l2=l2, decay=decay, penalized=900,
            first=first, last=last, storage=STORAGE[p.dtype], gradient_storage=STORAGE[p.dtype],
            formula=number, **{f"s{i}": state for i, state in enumerate(states)},
        )  # fmt: skip
    total = g.copy()
    total[:900] += p[:900] * l2
    total *= clip
    if formula.decay == "coupled":
        total += p * decay
    else:
        p *= decay
    work = tuple(np.empty((2, len(p)), dtype))
    formula.apply(p, total, tuple(slots), tuple(c[i] for i in range(len(c))), work)
    for ours, theirs in zip([mine, *states], [p, *slots], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("narrow", DTYPES[2:], ids=NAMES[2:])
def test_rounding_to_16_bits_has_the_bits_of_the_numpy_twin(narrow):
    random = np.random.default_rng(3)
    x = random.standard_normal(3000) * 10.0 ** random.integers(-9, 7, 3000)
    x = np.concatenate([x, [np.inf, -np.inf, np.nan, 0.0, -0.0, 65504.0, 6.1e-5]]).astype(
        np.float32
    )
    state = random_state(3, 11)
    for random_words in (None, state):
        mine, twin = np.empty((2, len(x)), narrow)
        with np.errstate(all="ignore"):
            twin[:] = x
            if random_words is not None:
                words = Philox(
                    state,
                    ROUNDING_STREAM,
                    0,
                    len(x),
                    lambda number, shape, dtype: np.empty(shape, dtype),
                )
                round_stochastic(x, twin, words)
        for first, last in ((0, 700), (700, len(x))):
            host()(
                "gb_round_to_storage", x=x, out=mine, random=random_words, first=first, last=last,
                storage=STORAGE[x.dtype], out_storage=STORAGE[mine.dtype],
            )  # fmt: skip
        same = (mine.view(np.uint16) == twin.view(np.uint16)) | np.isnan(x)
        assert same.all()
        assert np.isnan(mine.astype(np.float32)[np.isnan(x)]).all()


@each_dtype
def test_a_sum_of_squares_is_exact_to_float64_and_not_finite_where_an_element_is_not(dtype):
    random = np.random.default_rng(4)
    x = random.standard_normal(5000).astype(dtype)
    for bad in (None, np.inf, np.nan):
        if bad is not None:
            x[4321] = bad
        partial, out = np.empty(5), np.empty(())
        host()(
            "gb_sum_of_squares", x=x, partial=partial, out=out, last=5000, count=5000, chunk=1024,
            storage=STORAGE[x.dtype],
        )  # fmt: skip
        assert np.isfinite(out) == (bad is None)
        if bad is None:
            exact = math.fsum(x.astype(np.float64) ** 2)
            assert float(out) == pytest.approx(exact, rel=1e-15)


# -- rows of a batch ------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("source", ["uint8", "int32", "int64", *NAMES])
def test_gathered_standardized_and_divided_rows_are_numpys(dtype, source):
    given = next((d for d in DTYPES if np.dtype(d).name == source), source)
    random = np.random.default_rng(5)
    x = random.integers(0, 200, (50, 13)).astype(given)
    rows = np.array([3, 49, 0, 7, 7])
    out, code = np.empty((5, 13), dtype), {"source_storage": STORAGE[x.dtype]}
    code["out_storage"] = STORAGE[out.dtype]
    host()(
        "gb_gather_rows", source=x, rows=rows, out=out, last=5, cols=13, source_rows=50,
        stride_source=13, stride_out=13, **code,
    )  # fmt: skip
    np.testing.assert_array_equal(out, x[rows].astype(dtype))
    mean, scale = random.standard_normal(13), random.uniform(1, 2, 13)
    out = np.empty((50, 13), dtype)
    host()(
        "gb_standardize", raw=x, mean=mean, scale=scale, out=out, last=50, cols=13, stride_raw=13,
        stride_out=13, raw_storage=STORAGE[x.dtype], out_storage=STORAGE[out.dtype],
    )  # fmt: skip
    np.testing.assert_array_equal(out, ((x.astype(np.float64) - mean) / scale).astype(dtype))
    if x.dtype == dtype:
        host()(
            "gb_divide", x=x, out=x, last=x.size, divisor=3.0, storage=STORAGE[x.dtype],
            out_storage=STORAGE[x.dtype],
        )  # fmt: skip
        wide = x.astype(np.float64)
        assert np.isfinite(wide).all()


def test_row_numbers_out_of_range_give_the_nearest_row():
    x = np.arange(12.0).reshape(4, 3)
    out, rows = np.empty((3, 3)), np.array([-5, 4, 2**62])
    host()(
        "gb_gather_rows", source=x, rows=rows, out=out, last=3, cols=3, source_rows=4,
        stride_source=3, stride_out=3,
    )  # fmt: skip
    np.testing.assert_array_equal(out, x[[0, 3, 3]])


def test_accumulate_adds_one_step_to_the_totals():
    totals = np.array([1.0, 2.0, 3.0, 4.0, 5.0, -1.0])
    correct = np.array([True, False, True])
    host()(
        "gb_accumulate", loss=np.array(2.0), correct=correct, weights2=np.array(8.0), totals=totals,
        rows=3, l2_value=0.5,
    )  # fmt: skip
    np.testing.assert_array_equal(totals, [7.0, 8.0, 5.0, 7.0, 6.0, -1.0])
    host()("gb_accumulate", loss=np.array(np.inf), totals=totals, rows=1)
    assert totals[5] == 6.0
