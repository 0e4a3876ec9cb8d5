"""Faults that tools/mutants.py made in the kernels and that no other test saw."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends import Total
from tests import emulator
from tests.emulator.verbs import DTYPES, Verbs

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)


def totals_after(losses: list[float], rows: int, compute: str) -> np.ndarray:
    totals = np.zeros(Total.SIZE)
    totals[Total.BAD_STEP] = -1
    for loss in losses:
        Verbs().accumulate(np.array([loss], DTYPES[compute]), rows, None, None, totals)
    return totals


@pytest.mark.parametrize("compute", ["f32", "f64"])
def test_the_loss_of_an_epoch_of_finite_steps_is_weighted_by_rows(compute):
    totals = totals_after([0.5, 0.25], 3, compute)  # a NaN among the losses would hide the sum
    assert totals[Total.LOSS] == 2.25
    assert totals[Total.BAD_STEP] == -1


def test_the_first_bad_step_stays_the_first_even_if_it_is_step_0():
    assert totals_after([np.nan, 1.0, np.inf], 3, "f32")[Total.BAD_STEP] == 0
