"""A loss in one launch: mean, divisor and correct rows, added up by the last block of a grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gpubackprop import ops
from gpubackprop.backends import LossOptions, NumpyBackend
from gpubackprop.backends.cupy import losses
from gpubackprop.backends.cupy.losses import FIRST, KNOWN, WEIGHED_IN_EACH_BLOCK, WITH_ROWS
from gpubackprop.backends.cupy_launch import DeviceProperties
from gpubackprop.dtypes import compute_dtype
from tests import emulator, references, softmax_forms
from tests.emulator import cupy_stub
from tests.emulator.arrays import Guarded, ulps, wide
from tests.emulator.operations import DTYPES, Operations, run_now

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
OPTIONS = {
    "plain": {},
    "ignored": {"ignore_index": 1},
    "class weights": {"class_weight": True},
    "sample weights": {"sample_weight": True},
    "all": {"ignore_index": 1, "class_weight": True, "sample_weight": True},
}


def problem(form, dtype, options, rows):
    card, cluster, classes = softmax_forms.FORMS[form]
    memory, kind = Guarded(11), DTYPES[dtype]
    compute, options = compute_dtype(kind), dict(options)
    z = memory.normal((rows, classes), kind, scale=3)
    y = np.where(memory.rng.random(rows) < 0.4, wide(z).argmax(1), memory.rng.integers(0, 3, rows))
    y[0] = wide(z)[0].argmax()
    if options.pop("class_weight", False):
        options["class_weight"] = memory.rng.random(classes).astype(compute) + compute.type(0.5)
    weight = None
    if options.pop("sample_weight", False):
        weight = memory.rng.random(rows).astype(compute)
    return Operations(device=card), cluster, z, y, options, weight, compute


def empty_results(z, compute, names=("loss", "weight_sum", "correct_rows", "delta")):
    kinds = {"loss": compute, "weight_sum": compute, "correct_rows": np.int64}
    return {
        name: np.empty_like(z) if name == "delta" else np.empty((), kinds[name]) for name in names
    }


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("form", softmax_forms.FORMS)
def test_every_form_sums_its_rows_as_the_numpy_backend_does(form, options):
    rows = {"lane": 300, "lanes": 90, "warp": 41, "parts": 2}.get(form, 5)
    verbs, cluster, z, y, options, weight, compute = problem(form, "f32", options, rows)
    theirs = empty_results(z, compute) | {
        name: np.empty(rows, compute) for name in ("row_loss", "scale")
    }
    NumpyBackend().plan(
        lambda recorder: recorder.softmax_cross_entropy(
            z, y, LossOptions(**options), theirs, weight
        )
    )()
    for weigh in (FIRST, WITH_ROWS):
        ours = empty_results(z, compute)
        if weigh == WITH_ROWS:
            del ours["delta"]
        verbs.softmax_cross_entropy(
            z, y, ours, sample_weight=weight, weigh=weigh, cluster=cluster, **options
        )
        for name, array in ours.items():
            assert ulps(array, wide(theirs[name]), compute) <= 4, (weigh, name)
        assert ours["correct_rows"] == theirs["correct_rows"] > 0


@pytest.mark.parametrize("form", ["lane", "lanes", "warp"])
def test_the_sums_are_the_same_bit_for_bit_each_time_and_right_for_any_grid(form):
    verbs, _, z, y, _, _, compute = problem(form, "f32", {}, 700)
    found = []
    for blocks in (None, None, 1, 2):

        def run(launched, blocks=blocks):
            run_now(replace(launched, grid=(blocks or launched.grid[0], 1, 1)))

        ours = empty_results(z, compute)
        Operations(run, verbs.device).softmax_cross_entropy(z, y, ours, reduction="sum")
        found.append(ours)
    assert found[0]["loss"].tobytes() == found[1]["loss"].tobytes()
    for other in found[2:]:
        assert ulps(other["loss"], wide(found[0]["loss"]), np.float32) <= 1
        assert other["correct_rows"] == found[0]["correct_rows"]


@pytest.mark.parametrize("rows", [31, 223, 256, 257, 300, 1100])
def test_the_last_block_adds_what_any_number_of_blocks_left(rows):
    """A row a block of 32 threads; the last block's threads take 8 blocks each at a time."""
    memory = Guarded(rows)
    z, y = memory.normal((rows, 5), np.dtype(np.float32), gap=1), memory.rng.integers(0, 5, rows)
    weight = memory.rng.random(rows).astype(np.float32)
    ours = empty_results(z, np.dtype(np.float32), ("loss", "weight_sum", "correct_rows"))
    (launch,) = Operations(device=DeviceProperties(100)).softmax_cross_entropy(
        z, y, ours, sample_weight=weight, weigh=WITH_ROWS, cluster=1
    )
    assert (launch.grid[0], launch.block[0]) == (rows, 32)
    loss, _ = references.cross_entropy(wide(z), y, sample_weight=wide(weight))
    assert ulps(ours["loss"], loss, np.float32) <= 2
    assert ulps(ours["weight_sum"], wide(weight).sum(), np.float32) <= 1
    assert ours["correct_rows"] == (wide(z).argmax(1) == y).sum()


@pytest.mark.parametrize("weigh", [WITH_ROWS, FIRST])
@pytest.mark.parametrize("form", ["lane", "lanes", "warp"])
def test_a_weight_of_1_beside_one_of_2_to_the_24_counts_in_the_sum_of_the_weights(form, weigh):
    """In float32, 2^24 + 1 is 2^24. One block has all rows, so each thread adds several."""
    verbs, _, z, y, _, _, compute = problem(form, "f32", {}, 2001)
    weight = np.ones(2001, compute)
    weight[:256] = 2.0**24  # of each thread of a block, the first row that it adds

    def run(launched):
        run_now(replace(launched, grid=(1, 1, 1)))

    ours = empty_results(z, compute)
    if weigh == WITH_ROWS:
        del ours["delta"]
    Operations(run, verbs.device).softmax_cross_entropy(
        z, y, ours, sample_weight=weight, weigh=weigh
    )
    assert ulps(ours["weight_sum"], 256 * 2.0**24 + 1745, np.float32) <= 0.5


def test_what_a_block_loses_as_it_adds_the_sums_of_its_warps_is_added():
    """In float32, 2^24 + 1 is 2^24: seven warps add 1 each to the first warp's weight."""
    verbs, _, z, y, _, _, compute = problem("warp", "f32", {}, 8)
    z[...], y[...] = z[0], y[0]
    weight = np.ones(8, compute)
    weight[0] = 2.0**24
    blocks = []

    def run(launched):
        blocks.append(launched.block)
        run_now(replace(launched, grid=(1, 1, 1)))

    ours = empty_results(z, compute, ("loss", "weight_sum"))
    Operations(run, verbs.device).softmax_cross_entropy(
        z, y, ours, sample_weight=weight, weigh=WITH_ROWS
    )
    assert [block[:2] for block in blocks] == [(32, 8)]
    assert ulps(ours["weight_sum"], 2.0**24 + 7, np.float32) <= 0.5
    loss, _ = references.cross_entropy(wide(z[:1]), y[:1])
    assert ulps(ours["loss"], loss, np.float32) <= 4


def test_the_counter_is_0_after_each_launch_and_a_bad_label_makes_the_mean_nan():
    verbs, counters = Operations(), []

    def run(launched):
        run_now(launched)
        counters.append(launched.arguments[0].arrays["counter"].copy())

    ours = empty_results(np.zeros((300, 5), np.float32), np.dtype(np.float32))
    ours["bad_label"] = np.array([-1, -1])
    z, y = np.zeros((300, 5), np.float32), np.zeros(300, int)
    y[200] = 5
    for weigh in (KNOWN, WITH_ROWS, FIRST):
        Operations(run, verbs.device).softmax_cross_entropy(z, y, ours, weigh=weigh)
        assert np.isnan(ours["loss"])
        assert np.isnan(ours["weight_sum"]) == (weigh != KNOWN)
        assert ours["correct_rows"] == 299
    assert [int(counter[0]) for counter in counters] == [0, 0, 0]


@pytest.fixture
def counts():
    with cupy_stub.installed() as counted:
        yield counted


@pytest.mark.parametrize(
    ("rows", "options", "gradient", "launches"),
    [
        (40, {}, True, ["softmax_cross_entropy_lanes_w8_f64"]),
        (40, {"reduction": "sum"}, True, ["softmax_cross_entropy_lanes_w8_f64"]),
        (40, {"ignore_index": -100}, True, ["softmax_cross_entropy_lanes_w8_f64"]),
        (40, {"ignore_index": 1, "empty": "zero"}, True, ["softmax_cross_entropy_lanes_w8_f64"]),
        (WEIGHED_IN_EACH_BLOCK + 1, {"ignore_index": -100}, False,
         ["softmax_cross_entropy_lanes_w8_f64"]),
        (WEIGHED_IN_EACH_BLOCK + 1, {"ignore_index": -100}, True,
         ["row_weights_i64_f64", "softmax_cross_entropy_lanes_w8_f64"]),
    ],
)  # fmt: skip
def test_a_loss_is_one_launch_or_two_where_many_rows_are_weighed_for_gradients(
    rows, options, gradient, launches, counts
):
    rng = np.random.default_rng(rows)
    z, y = rng.normal(size=(rows, 3)), rng.integers(0, 3, rows)
    there = cupy_stub.ndarray(z, 0), cupy_stub.ndarray(y, 0)
    ops.softmax_cross_entropy(*there, soft_cap=9.0)[0].get()  # makes the stream's counter
    counts.clear()
    loss, delta = ops.softmax_cross_entropy(*there, gradient=gradient, check=False, **options)
    found = [kernel for kernel in counts.kernels if kernel.startswith(("softmax", "row", "column"))]
    assert found == launches
    wanted = ops.softmax_cross_entropy(z, y, gradient=gradient, **options)
    np.testing.assert_allclose(loss.get(), wanted[0], rtol=1e-14)
    if gradient:
        np.testing.assert_allclose(delta.get(), wanted[1], rtol=1e-12, atol=1e-16)


def test_a_known_divisor_is_taken_in_place_of_the_sum_of_the_weights():
    z, y = np.random.default_rng(1).normal(size=(20, 4)), np.arange(20) % 4
    options, divisor = LossOptions(ignore_index=3), np.array(7.0)
    names = ("row_loss", "scale")
    theirs = empty_results(z, z.dtype, ("loss", "delta")) | {n: np.empty(20) for n in names}
    for emit in (lambda run: NumpyBackend().plan(run)(), lambda run: run(NumpyBackend())):
        emit(lambda b: b.softmax_cross_entropy(z, y, options, theirs, None, 1.0, divisor))
        ours = empty_results(z, z.dtype, ("loss", "delta"))
        Operations().softmax_cross_entropy(z, y, ours, ignore_index=3, divisor=divisor[None])
        for name, array in ours.items():
            np.testing.assert_allclose(array, theirs[name], rtol=1e-13, atol=1e-16)
    assert losses.KNOWN == 0
