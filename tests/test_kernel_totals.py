"""The totals of an epoch, added up step by step: the emulated kernel against the NumPy backend."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends import NumpyBackend, Total
from tests import emulator
from tests.emulator.operations import DTYPES, Operations

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)


def no_totals() -> np.ndarray:
    totals = np.zeros(Total.SIZE)
    totals[Total.BAD_STEP] = -1
    return totals


def totals_after(losses: list[float], rows: int, compute: str) -> np.ndarray:
    totals = no_totals()
    for loss in losses:
        Operations().accumulate(np.array([loss], DTYPES[compute]), rows, None, None, totals)
    return totals


@pytest.mark.parametrize("compute", ["f32", "f64"])
def test_accumulate_follows_the_numpy_backend(compute):
    kind, rng = DTYPES[compute], np.random.default_rng(8)
    ours, theirs = no_totals(), no_totals()
    for step, value in enumerate([0.5, 0.25, np.nan, 1.0, np.inf]):
        loss, correct = np.array([value], kind), (rng.random(700) < 0.3).astype(np.uint8)
        hits = None if step == 1 else correct
        weights2, l2 = np.array([3.5], kind), np.array([0.125], kind)
        penalty = None if step == 3 else (weights2, l2)
        Operations().accumulate(loss, 700, hits, penalty, ours)
        host = None if penalty is None else (weights2[0], l2[0])
        NumpyBackend().accumulate(
            loss[0], 700, None if hits is None else hits.astype(bool), host, theirs
        )
    assert np.array_equal(ours, theirs, equal_nan=True)
    assert ours[Total.BAD_STEP] == 2


@pytest.mark.parametrize("rows", [1, 2, 256, 257, 700])
def test_every_correct_row_counts_the_first_and_the_last_too(rows):
    totals = no_totals()
    Operations().accumulate(np.zeros(1), rows, np.ones(rows, np.uint8), None, totals)
    assert totals[Total.CORRECT] == rows


@pytest.mark.parametrize("compute", ["f32", "f64"])
def test_the_loss_of_an_epoch_of_finite_steps_is_weighted_by_rows(compute):
    totals = totals_after([0.5, 0.25], 3, compute)  # a NaN among the losses would hide the sum
    assert totals[Total.LOSS] == 2.25
    assert totals[Total.BAD_STEP] == -1


def test_the_first_bad_step_stays_the_first_even_if_it_is_step_0():
    assert totals_after([np.nan, 1.0, np.inf], 3, "f32")[Total.BAD_STEP] == 0
