"""The emulator's counts of what a card charges for, held to kernels whose cost is known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests import emulator
from tests.emulator import Module, SharedAccess, count_traffic, shared_accesses
from tests.emulator.module import HERE
from tests.emulator.traffic import conflicts

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
COSTS = str(HERE / "costs.cu")


def shared(entry: str, stride: int, threads: int = 32) -> tuple[SharedAccess, SharedAccess]:
    """Return the store and the load of shared memory."""
    module, x, y = Module(COSTS, "traffic"), np.zeros(256, np.float32), np.zeros(256, np.float32)
    count_traffic(module, entry, (1,), (threads,), (x, y, np.int64(stride)))
    load, store = sorted(shared_accesses(module), key=lambda access: access.store)
    assert (load.store, store.store) == (0, 1)
    return store, load


@pytest.mark.parametrize(
    ("entry", "stride", "wavefronts", "least"),
    [
        ("banks_4", 1, 1, 1),
        ("banks_4", 2, 2, 1),
        ("banks_4", 8, 8, 1),
        ("banks_4", 32, 32, 1),
        ("banks_4", 33, 1, 1),  # 33 is one bank further each time
        ("banks_4", 0, 1, 1),  # one word for all
        ("banks_2", 1, 1, 1),  # two lanes share a word
        ("banks_2", 2, 1, 1),
        ("banks_2", 4, 2, 1),
        ("banks_8", 1, 2, 2),  # 16 lanes of 8 bytes are all banks
        ("banks_8", 2, 4, 2),
        ("banks_16", 1, 4, 4),  # 8 lanes of 16 bytes are all banks
        ("banks_16", 2, 8, 4),
        ("banks_16", 3, 4, 4),
        ("banks_16", 8, 32, 4),  # 128 bytes apart: each quarter is an 8-way conflict
    ],
)
def test_a_request_costs_the_wavefronts_of_its_fullest_bank(entry, stride, wavefronts, least):
    for access in shared(entry, stride):
        counted = (access.requests, access.wavefronts, access.least, access.worst)
        assert counted == (1, wavefronts, least, wavefronts)
        assert access.bytes == int(entry.removeprefix("banks_"))
        assert access.conflicts == wavefronts / least
        assert "costs.cu:" in access.place()


def test_a_half_full_warp_pays_for_its_own_lanes_and_every_warp_for_itself():
    assert [access.wavefronts for access in shared("banks_16", 1, threads=8)] == [1, 1]
    store, load = shared("banks_4", 8, threads=64)
    assert (store.requests, store.wavefronts, store.least) == (2, 16, 2)
    assert conflicts([store, load]) == 8


def test_an_asynchronous_copy_is_a_store_when_it_is_started_and_none_when_it_arrives():
    store, load = shared("banks_copy", 2)
    assert (store.requests, store.wavefronts, store.least) == (1, 8, 4)
    assert (load.requests, load.wavefronts) == (1, 8)


def test_a_kernel_without_shared_memory_has_no_conflict():
    assert conflicts([]) == 1
