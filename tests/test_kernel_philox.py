"""The random words of the kernels against Random123's known answers."""

from __future__ import annotations

import numpy as np
import pytest

from tests import emulator
from tests.emulator.module import HERE, Module

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
FULL = 2**64 - 1
RANDOM123 = [  # kat_vectors of Random123: counter {block, offset}, key, words
    (0, 0, 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    (FULL, FULL, FULL, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (0x85A308D3243F6A88, 0x0370734413198A2E, 0x299F31D0A4093822,
     [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
]  # fmt: skip


@pytest.mark.parametrize(("block", "offset", "seed", "words"), RANDOM123)
def test_philox_takes_all_64_bits_of_block_offset_and_seed(block, offset, seed, words):
    """No array of the other tests has the 2^34 elements that reach the upper half of `block`."""
    out = np.zeros(4, np.uint32)
    given = np.array([block, offset, seed], np.uint64)
    Module(HERE / "probes.cu")("probe_philox", (1,), (1,), (given, out))
    assert out.tolist() == words
