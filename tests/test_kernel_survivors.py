"""Faults that tools/mutants.py made in the kernels and that no other test saw."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends import Total
from tests import emulator
from tests.emulator.module import KERNELS, Module
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


FULL = 2**64 - 1
RANDOM123 = [  # kat_vectors of Random123: counter {block, offset}, key, words
    (0, 0, 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    (FULL, FULL, FULL, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (0x85A308D3243F6A88, 0x0370734413198A2E, 0x299F31D0A4093822,
     [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
]  # fmt: skip


@pytest.mark.parametrize(("block", "offset", "seed", "words"), RANDOM123)
def test_philox_takes_all_64_bits_of_block_offset_and_seed(tmp_path, block, offset, seed, words):
    """No array of the other tests has the 2^34 elements that reach the upper half of `block`."""
    source = tmp_path / "known_answers.cu"
    source.write_text(f"""#include "{KERNELS}/include/philox.cuh"
extern "C" __global__ void known_answers(const uint64* in, uint32* out) {{
    Philox words = philox(in[0], in[1], in[2]);
    for (int i = 0; i < 4; ++i) out[i] = words.word[i];
}}
""")
    out = np.zeros(4, np.uint32)
    given = np.array([block, offset, seed], np.uint64)
    Module(source)("known_answers", (1,), (1,), (given, out))
    assert out.tolist() == words
