"""Softmax cross entropy on every shape and memory layout: widths, strides, threads, memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from gpubackprop.backends.numpy import get_num_threads, set_num_threads
from gpubackprop.errors import OptionError, ShapeError
from tests import references, ways
from tests.test_softmax_cross_entropy import assert_matches
from tests.tolerances import assert_equal_in_float64
from tests.ways import softmax_cross_entropy

pytestmark = pytest.mark.usefixtures("way")

CLASSES = (
    1,
    2,
    10,
    23,
    24,
    25,
    31,
    32,
    33,
    1000,
    1023,
    1024,
    1025,
    *range(992, 1008),
    *range(3, 49, 3),
)


@pytest.fixture
def restored_threads():
    before = get_num_threads()
    yield
    set_num_threads(before)


def problem(rows, classes, dtype=np.float64, seed=0):
    rng = np.random.default_rng((seed, rows, classes))
    return rng.normal(0, 3, (rows, classes)).astype(dtype), rng.integers(0, classes, rows)


@pytest.mark.parametrize("classes", sorted(set(CLASSES)))
def test_loss_and_delta_match_pytorch_for_every_number_of_classes(classes):
    for rows in (1, 7, 70):
        if rows == 70 and classes > 400 and ways.is_emulated():
            continue
        z, t = problem(rows, classes)
        assert_matches(z, t)
        assert_matches(z, t, label_smoothing=0.1, reduction="none")
        assert_matches(z, np.random.default_rng(rows).dirichlet(np.ones(classes), rows))


@pytest.mark.parametrize(("rows", "classes"), [(1000, 10), (1000, 33), (70_000, 2), (3, 50_257)])
def test_loss_and_delta_match_pytorch_over_many_blocks_of_rows(rows, classes):
    ways.skip_if_large(rows, classes)
    z, t = problem(rows, classes)
    for reduction in ("mean", "none"):
        oracle = references.cross_entropy(z, t, reduction=reduction)
        loss, delta = softmax_cross_entropy(z, t, reduction=reduction)
        assert_equal_in_float64(loss, oracle[0], 1e-13)
        assert_equal_in_float64(delta, oracle[1], 1e-13)


@pytest.mark.parametrize("classes", [1, 5, 33])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16], ids=lambda d: d.__name__)
def test_no_rows_give_nan_for_the_mean_and_zero_for_the_sum_as_in_pytorch(classes, dtype):
    z, t = problem(0, classes, dtype)
    wide = np.float64 if dtype == np.float64 else np.float32
    for targets in (t, np.empty((0, classes), dtype)):
        for reduction, wanted in (("mean", np.nan), ("sum", 0.0)):
            loss, delta = softmax_cross_entropy(z, targets, reduction=reduction)
            torch_loss = references.cross_entropy(z, targets, reduction=reduction)[0]
            np.testing.assert_array_equal(torch_loss, wanted)
            np.testing.assert_array_equal(loss, wanted)
            assert (np.asarray(loss).dtype, delta.shape, delta.dtype) == (wide, (0, classes), dtype)
        assert softmax_cross_entropy(z, targets, reduction="none")[0].shape == (0,)
        assert softmax_cross_entropy(z, targets, empty="zero")[0] == 0.0


def layouts(z):
    """The same values in every kind of memory, none of it what a fresh array has."""
    rows, columns = z.shape
    wide = np.full((rows, columns + 5), np.nan, z.dtype)
    wide[:, 3:-2] = z
    yield "row stride larger than K", wide[:, 3:-2]
    every_second = np.full((2 * rows, 2 * columns), np.nan, z.dtype)
    every_second[::2, ::2] = z
    yield "every second row and column", every_second[::2, ::2]
    yield "Fortran order", np.asfortranarray(z)
    yield "rows backwards", z[::-1].copy()[::-1]
    yield "columns backwards", z[:, ::-1].copy()[:, ::-1]
    flat = np.full(z.size + 1, np.nan, z.dtype)
    flat[1:] = z.ravel()
    yield "one element in", flat[1:].reshape(z.shape)
    raw = np.zeros(z.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(z.tobytes(), np.uint8)
    if ways.on_host():  # a GPU cannot read it: a clear error, in test_cupy_backend_memory
        yield "one byte in", raw[1:].view(z.dtype).reshape(z.shape)
    frozen = z.copy()
    frozen.flags.writeable = False
    yield "read-only", frozen
    if z.dtype == np.float64:
        yield "a list", z.tolist()


@pytest.mark.parametrize("classes", [5, 33, 300])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16], ids=lambda d: d.__name__)
def test_any_memory_layout_of_the_logits_gives_the_same_result(classes, dtype):
    """Bit for bit on the host; on a GPU another layout may take another form of the kernel."""
    z, t = problem(150, classes, dtype)
    loss, delta = softmax_cross_entropy(z, t)
    unit = np.finfo(dtype).eps * abs(delta).max() * ways.by_way(1, 4)
    for name, view in layouts(z):
        before = np.array(view)
        got_loss, got_delta = softmax_cross_entropy(view, t)
        np.testing.assert_allclose(
            got_loss, loss, rtol=2e-7 if dtype != np.float64 else 1e-14, err_msg=name
        )
        np.testing.assert_allclose(got_delta, delta, rtol=0, atol=unit, err_msg=name)
        np.testing.assert_array_equal(view, before, err_msg=f"{name}: the logits were changed")
        if not isinstance(view, list) and view.flags.writeable and view.dtype == dtype:
            softmax_cross_entropy(view, t, out=view)
            np.testing.assert_allclose(
                view, got_delta, rtol=0, atol=ways.by_way(0, unit), err_msg=f"{name}, in place"
            )
        for other, out in layouts(np.zeros_like(z)):
            if isinstance(out, np.ndarray) and out.flags.writeable and out.dtype == dtype:
                softmax_cross_entropy(z, t, out=out)
                np.testing.assert_allclose(
                    out, delta, rtol=0, atol=ways.by_way(0, unit), err_msg=f"out: {other}"
                )


def test_writing_into_a_wide_view_leaves_its_surroundings_alone():
    z, t = problem(40, 50, np.float32)
    memory = np.full((42, 60), 7.0, np.float32)
    softmax_cross_entropy(z, t, out=memory[1:-1, 4:-6])
    memory[1:-1, 4:-6] = 7.0
    assert (memory == 7.0).all()


@pytest.mark.parametrize("classes", [5, 33])
def test_strided_labels_weights_and_probabilities_give_the_same_result(classes):
    z, t = problem(60, classes)
    weight = np.random.default_rng(1).uniform(0.5, 2, 60)
    p = np.random.default_rng(2).dirichlet(np.ones(classes), 60)
    wanted = softmax_cross_entropy(z, t, sample_weight=weight)
    got = softmax_cross_entropy(z, np.repeat(t, 3)[::3], sample_weight=weight[::-1].copy()[::-1])
    np.testing.assert_array_equal(got[1], wanted[1])
    wanted = softmax_cross_entropy(z, p)
    for name, view in layouts(p):
        got = softmax_cross_entropy(z, np.asarray(view))
        np.testing.assert_allclose(got[1], wanted[1], rtol=1e-13, atol=1e-17, err_msg=name)


def test_an_out_that_overlaps_something_is_refused_and_never_silently_wrong():
    memory = np.random.default_rng(3).normal(size=(11, 6))
    z, t = memory[:-1], np.arange(10) % 6
    with pytest.raises(OptionError, match=r"out overlaps logits .* pass logits itself"):
        softmax_cross_entropy(z, t, out=memory[1:])
    with pytest.raises(OptionError, match="out overlaps logits"):
        softmax_cross_entropy(z, t, out=z[::-1])
    with pytest.raises(OptionError, match="out overlaps targets"):
        softmax_cross_entropy(z.copy(), z, out=z)
    weight = np.ones(60)
    with pytest.raises(OptionError, match="out overlaps sample_weight"):
        softmax_cross_entropy(z, t, sample_weight=weight[:10], out=weight.reshape(10, 6))
    with pytest.raises(OptionError, match="out overlaps upstream"):
        softmax_cross_entropy(
            z, t, reduction="none", upstream=weight[:10], out=weight.reshape(10, 6)
        )
    with pytest.raises(OptionError, match="out overlaps class_weight"):
        softmax_cross_entropy(z, t, class_weight=weight[:6], out=weight.reshape(10, 6))
    frozen = z.copy()
    frozen.flags.writeable = False
    if ways.on_host():  # CuPy has no read-only arrays
        with pytest.raises(OptionError, match="out is read-only"):
            softmax_cross_entropy(z, t, out=frozen)
        for strides in ((0, 8), (48, 0), (8, 8)):
            folded = np.lib.stride_tricks.as_strided(np.empty(60), (10, 6), strides)
            with pytest.raises(OptionError, match="more elements than places in memory"):
                softmax_cross_entropy(z, t, out=folded)
        for order in (np.empty((6, 10)).T, np.empty((20, 7))[::-2, 1:]):
            _, delta = softmax_cross_entropy(z, t, out=order)
            assert delta is order
            np.testing.assert_array_equal(delta, softmax_cross_entropy(z, t)[1])
    shapes_and_dtypes = [np.empty((10, 5)), np.empty((10, 6), np.float32)]
    for bad in [*shapes_and_dtypes, *([[[0.0] * 6] * 10] if ways.on_host() else [])]:
        with pytest.raises(
            ShapeError, match=r"writes float64 \(10, 6\); pass np.empty_like\(logits\)"
        ):
            softmax_cross_entropy(z, t, out=bad)


def test_another_view_of_the_very_same_logits_counts_as_in_place():
    z, t = problem(30, 40)
    wanted = softmax_cross_entropy(z, t)[1]
    softmax_cross_entropy(z, t, out=z[:])
    np.testing.assert_array_equal(z, wanted)


@pytest.mark.ways("numpy", "native", reason="threads of the host")
@pytest.mark.parametrize("classes", [10, 100, 1000])
def test_results_do_not_depend_on_the_number_of_threads_bit_for_bit(classes, restored_threads):
    z, t = problem(400_000 // classes, classes, np.float32)
    p = np.random.default_rng(4).uniform(0, 1, z.shape).astype(np.float32)
    weight = np.random.default_rng(5).uniform(0, 1, len(z))
    seen = []
    for threads in (1, 2, 3):
        set_num_threads(threads)
        for targets in (t, p):
            loss, delta = softmax_cross_entropy(
                z, targets, sample_weight=weight, label_smoothing=0.1
            )
            seen.append((loss.tobytes(), delta.tobytes()))
    assert seen[0::2] == [seen[0]] * 3
    assert seen[1::2] == [seen[1]] * 3


@pytest.mark.ways("numpy", reason="tracemalloc sees the host")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("targets", ["indices", "probabilities"])
@pytest.mark.parametrize("where", ["in place", "out"])
def test_memory_beyond_the_output_is_a_mebibyte_and_a_few_numbers_a_row(
    threads, targets, where, restored_threads
):
    set_num_threads(threads)
    rows, classes = 4096, 1000
    z, t = problem(rows, classes, np.float32)
    if targets == "probabilities":
        t = np.full(z.shape, 1 / classes, np.float32)
    out = z if where == "in place" else np.empty_like(z)
    options = {"label_smoothing": 0.1, "z_loss": 1e-4, "out": out}
    tracemalloc.start()
    softmax_cross_entropy(z, t, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20 + 64 * rows, f"{peak / 2**20:.2f} MiB"


@pytest.mark.ways("numpy", "native", "cuda", reason="too large for the emulator")
@pytest.mark.slow
def test_a_million_rows_of_16_bit_logits_match_pytorch_in_float64():
    z, t = problem(1_000_000, 3, np.float16)
    loss, delta = softmax_cross_entropy(z, t, reduction="sum")
    oracle = references.cross_entropy(z.astype(np.float64), t, reduction="sum")
    assert loss.dtype == np.float32
    np.testing.assert_allclose(loss, oracle[0], rtol=2**-23)
    np.testing.assert_allclose(delta, oracle[1], rtol=0, atol=2.0**-11)
