"""Sums in a fixed order: after how many terms a thread starts afresh, and that no bit depends on the
order in which the threads of a block run."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from gpubackprop.backends.cupy_launch import STRIP_ROWS
from tests import emulator
from tests.emulator.operations import Operations, module, record, run_now

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
SEQUENCE = 16  # terms that a thread adds before it starts afresh
TERMS = 17 * SEQUENCE  # of each thread: as many as tell 16 from 17
# In float32 its neighbours are 8 apart: ones that are added to it singly are lost, 16 together not.
LARGE = 2.0**26


def run_alone(source: str, entry: str, block: tuple[int, ...], **arguments: Any) -> None:
    """One block, whatever the plan would be."""
    module(source)(entry, (1,), block, [record(entry, **arguments)])


def test_a_thread_of_a_column_sum_starts_afresh_after_16_rows():
    cols = 128
    x = np.ones((TERMS * STRIP_ROWS, cols), np.float32)
    x[0], sums = LARGE, np.empty((1, cols), np.float32)
    run_alone(
        "column_sum.cu", "column_sum_f32", (32, STRIP_ROWS),
        x=x, partial=sums, rows=len(x), cols=cols, join=1, stride=cols,
    )  # fmt: skip
    first = LARGE + TERMS - SEQUENCE
    assert sums.tolist() == [[first + (STRIP_ROWS - 1) * TERMS] * cols]


def test_a_thread_of_a_bias_gradient_starts_afresh_after_16_rows():
    cols = 128
    grad = np.ones((TERMS * STRIP_ROWS, cols), np.float32)
    grad[0], sums, delta = LARGE, np.empty((1, cols), np.float32), np.empty_like(grad)
    run_alone(
        "activation_backward.cu", "activation_backward_identity_f32", (32, STRIP_ROWS),
        grad_h=grad, delta=delta, partial=sums, rows=len(grad), cols=cols, join=1,
        stride_grad=cols, stride_saved=cols, stride_delta=cols,
    )  # fmt: skip
    first = LARGE + TERMS - SEQUENCE
    assert sums.tolist() == [[first + (STRIP_ROWS - 1) * TERMS] * cols]
    np.testing.assert_array_equal(delta, grad)


@pytest.mark.parametrize("cols", [1, 5])
def test_the_second_stage_loses_nothing_of_what_is_small_beside_the_first_row(cols):
    threads = 64
    sums, out = np.ones((TERMS * threads, cols), np.float32), np.empty(cols, np.float32)
    sums[0] = LARGE
    run_alone(
        "column_sum.cu", "column_sum_finish_f32", (8, threads),
        partial=sums, out=out, rows=len(sums), cols=cols, divisor=1.0,
    )  # fmt: skip
    exact = LARGE + TERMS * threads - 1  # ones added to LARGE one by one would all be lost
    assert np.abs(out - exact).max() <= np.spacing(np.float32(LARGE))


def test_a_thread_of_a_sum_of_squares_starts_afresh_after_16_packs():
    threads, pack = 256, 4
    x, sums = aligned_ones(threads * pack * TERMS), np.empty((2, 1), np.float32)
    x[0] = LARGE**0.5
    run_alone(
        "sum_of_squares.cu", "sum_of_squares_f32", (threads,),
        x=x, partial=sums, unscale=1.0, count=len(x),
    )  # fmt: skip
    first = LARGE + (TERMS - SEQUENCE) * pack
    assert sums.tolist() == [[first + (threads - 1) * TERMS * pack], [0]]


def aligned_ones(count: int) -> np.ndarray:
    """On a multiple of 16 bytes, so that packs are whole."""
    raw = np.ones(count + 4, np.float32)
    return raw[-raw.ctypes.data % 16 // 4 :][:count]


# -- the order of the threads ---------------------------------------------------------------------


def results(rotation: int) -> list[np.ndarray]:
    """Of every kernel with shared memory, its threads begun with the one of number `rotation`, and
    run backwards if that is odd."""

    verbs = Operations(partial(run_now, rotation=rotation))
    rng = np.random.default_rng(2)
    made: list[np.ndarray] = []

    def empty(*shape: int) -> np.ndarray:
        made.append(np.full(shape, -7, np.float32))
        return made[-1]

    for shape in ((300, 40), (70, 2), (3, 1500)):
        x, t = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
        verbs.column_sum(x, empty(shape[1]))
        verbs.activation_backward(x, t, empty(*shape), "tanh", 0.0, empty(shape[1]))
        verbs.sum_of_squares(x.reshape(-1), empty(2))
        losses = {"row_loss": empty(shape[0]), "delta": empty(*shape)}
        losses["correct"] = np.zeros(shape[0], np.uint8)
        verbs.pointwise_loss(x, t, "squared_error", losses)
        totals = np.zeros(6)
        verbs.accumulate(losses["row_loss"][:1], shape[0], losses["correct"] | 1, None, totals)
        made += [losses["correct"], totals]
    return made


@pytest.mark.parametrize("rotation", [1, 31, 32, 77, 200])
def test_no_bit_depends_on_the_order_in_which_threads_run(rotation):
    for usual, other in zip(results(0), results(rotation), strict=True):
        assert np.array_equal(usual, other)
