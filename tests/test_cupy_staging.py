"""Batches that come from the host: pinned buffers, a stream of their own, and what may go wrong there.

The stand-in runs nothing before somebody waits, then its streams take turns in a random order with a
seed. It reads pinned memory when the copy's turn comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubackprop import MLP, Trainer
from gpubackprop.backends import devices
from gpubackprop.backends.cupy import CupyBackend
from gpubackprop.backends.numpy import NumpyBackend
from gpubackprop.data import Standardizer
from gpubackprop.training.batches import Batches
from tests import emulator
from tests.emulator import cupy_stub
from tests.emulator.cupy_stub import STATE

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
RNG = np.random.default_rng(0)
ROWS, COLUMNS = 40, 5
LABELS = np.arange(ROWS) % 3


@pytest.fixture(autouse=True, params=range(6))
def counts(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[cupy_stub.Counts]:
    monkeypatch.setattr(devices, "choose", lambda device: ("cuda:0", "emulated"))
    monkeypatch.setenv("GPUBACKPROP_RESIDENT", "0")  # whole epochs want x on the device
    with cupy_stub.installed(request.param) as counted:
        yield counted


def busy(stream: Any) -> None:
    """Something for a stream to do first, so that what follows is late."""
    for _ in range(3):
        STATE.append(stream, lambda: None)


# -- the buffers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", ["copies", "work", "neither"])
def test_each_array_is_there_in_its_turn_whichever_stream_is_late(late):
    cuda = CupyBackend(0)
    staging = cuda.staging((4, 3), np.float32)
    out = cuda.empty((4, 3), np.float32)
    sent, found = [], []
    for number in range(7):
        rows = 4 if number % 3 else 2
        sent.append(np.full((rows, 3), float(number), np.float32))
        if late == "copies":
            busy(staging._stream)  # type: ignore[attr-defined]
        elif late == "work":
            busy(STATE.stream)
        staging.put(lambda host: np.copyto(host, sent[-1]), out[:rows])
        found.append(out[:rows].copy())  # queued behind the array, before the next one
    for mine, theirs in zip(found, sent, strict=True):
        np.testing.assert_array_equal(mine.get(), theirs)


def test_the_current_stream_may_be_another_each_time():
    cuda = CupyBackend(0)
    staging, out = cuda.staging((8,), np.float64), cuda.zeros(8, np.float64)
    streams = [cupy_stub.Stream(non_blocking=True) for _ in range(2)]
    for stream in streams:
        stream.wait_event(STATE.stream.record())
    found = []
    for number in range(6):
        with streams[number % 2]:
            busy(STATE.stream)
            mine = cuda.empty(8, np.float64)
            staging.put(lambda host: host.fill(number), mine)  # noqa: B023
            found.append(mine)
    for number, mine in enumerate(found):
        with streams[number % 2]:
            np.testing.assert_array_equal(mine.get(), np.full(8, float(number)))
    assert not out.get().any()


def test_the_host_waits_for_no_array_but_the_one_before_the_last(counts):
    cuda = CupyBackend(0)
    staging, out = cuda.staging((8,), np.float64), cuda.empty(8, np.float64)
    counts.clear()
    for _ in range(2):
        staging.put(lambda host: host.fill(1), out)
    assert counts.waits == 0
    for _ in range(5):
        staging.put(lambda host: host.fill(1), out)
    assert counts.waits <= 5
    assert (counts.allocations, counts.uploads) == (0, 7)


def test_buffers_that_are_dropped_while_a_copy_is_under_way_do_no_harm():
    cuda = CupyBackend(0)
    staging, out = cuda.staging((64,), np.float64), cuda.empty(64, np.float64)
    busy(staging._stream)  # type: ignore[attr-defined]
    staging.put(lambda host: host.fill(3), out)
    busy(STATE.stream)
    staging.put(lambda host: host.fill(4), out)
    del staging
    taken = [cuda.empty(64, np.float64) for _ in range(3)]
    for array in taken:
        cuda.fill(array, 1e6)
    np.testing.assert_array_equal(out.get(), np.full(64, 4.0))
    assert all((array.get() == 1e6).all() for array in taken)


def test_on_the_host_the_array_itself_is_filled():
    out = np.zeros(3)
    NumpyBackend().staging((3,), np.float64).put(lambda host: host.fill(2), out)
    assert (out == 2).all()


# -- training ----------------------------------------------------------------------------------------


def mapped(path: Path, x: np.ndarray) -> np.ndarray:
    np.save(path / "x.npy", x)
    return np.load(path / "x.npy", mmap_mode="r")  # type: ignore[no-any-return]


def trained(x: Any, standardized: bool, **options: Any) -> tuple[Trainer, np.ndarray]:
    network = MLP([COLUMNS, 6, 3], seed=1, device="cuda", **options)
    trainer = Trainer(network, optimizer="adam", batch_size=16, seed=1)
    fitted = Standardizer.fit(np.asarray(x)) if standardized else None
    trainer.fit(x, LABELS, epochs=2, validation=0.2, standardizer=fitted)
    return trainer, network.backend.to_host(network.parameters)


def data(dtype: str) -> np.ndarray:
    return (RNG.integers(0, 200, (ROWS, COLUMNS)) / (1 if dtype == "uint8" else 7)).astype(dtype)


@pytest.mark.parametrize("standardized", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_a_memory_map_trains_to_the_bits_of_an_array_of_the_device(tmp_path, dtype, standardized):
    x = data(dtype)
    here, wanted = trained(x, standardized)
    there, found = trained(mapped(tmp_path, x), standardized)
    np.testing.assert_array_equal(found, wanted)
    timed = {"seconds", "samples_per_second"}
    for mine, theirs in zip(there.history.rows, here.history.rows, strict=True):
        assert {k: v for k, v in mine.items() if k not in timed} == {
            k: v for k, v in theirs.items() if k not in timed
        }


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_x_that_is_too_large_stays_on_the_host_and_trains_to_the_same_bits(monkeypatch, precision):
    x = data("float32")
    options = {"dtype": "float64"} if precision == "float64" else {"precision": precision}
    _, wanted = trained(x, False, **options)
    pool = cupy_stub.module().get_default_memory_pool()
    room = x.nbytes - pool.free_bytes()  # of both three quarters are for data
    runtime = cupy_stub.module().cuda.runtime
    monkeypatch.setattr(runtime, "memGetInfo", lambda: (room, 10 * room))
    trainer, found = trained(x, False, **options)
    step = trainer.state.step
    assert step is not None
    assert isinstance(step.data.x, np.ndarray)
    np.testing.assert_array_equal(found, wanted)
    measured = trainer.evaluate(x, LABELS)
    monkeypatch.undo()
    monkeypatch.setattr(devices, "choose", lambda device: ("cuda:0", "emulated"))
    assert trainer.evaluate(x, LABELS) == measured


def test_x_that_fits_is_moved_to_the_device_and_x_on_the_device_stays_there(monkeypatch):
    network = MLP([COLUMNS, 3], device="cuda")
    loss, x = Trainer(network).loss, data("float32")
    assert not isinstance(Batches.check(network, loss, x, LABELS).x, np.ndarray)
    there = network.backend.asarray(x)
    monkeypatch.setattr(cupy_stub.module().cuda.runtime, "memGetInfo", lambda: (0, 1))
    monkeypatch.setattr(STATE, "pools", {})
    assert Batches.check(network, loss, there, LABELS).x is there
    assert isinstance(Batches.check(network, loss, x, LABELS).x, np.ndarray)
    STATE.pools[0, 0] = [np.empty(2 * x.nbytes, np.uint8)]  # memory that CuPy keeps
    assert not isinstance(Batches.check(network, loss, x, LABELS).x, np.ndarray)


def test_a_step_from_the_host_is_one_graph_and_allocates_nothing(tmp_path, counts):
    trainer, _ = trained(mapped(tmp_path, data("float32")), True)
    step = trainer.state.step
    assert step is not None
    rows = step.place(np.arange(32))
    counts.clear()
    for start in (0, 16):
        batch = step.update(rows[start : start + 16], 0.01)
    assert batch.replay.uncaptured == ""  # type: ignore[attr-defined]
    assert (counts.graphs, counts.allocations, counts.compiled) == (2, 0, [])
    assert counts.uploads == 4  # the rows and their numbers
    assert counts.waits <= 2


# -- the stand-in itself -----------------------------------------------------------------------------


def test_pinned_memory_is_read_when_the_copys_turn_comes_and_other_memory_at_once():
    cuda = CupyBackend(0)
    out = cuda.zeros(4, np.float32)
    pointer = cupy_stub.module().cuda.alloc_pinned_memory(16)
    pinned = np.frombuffer(pointer, np.float32, 4)
    for host, wanted in ((pinned, 2.0), (np.zeros(4, np.float32), 1.0)):
        host.fill(1)
        out.set(host, stream=STATE.stream)
        host.fill(2)
        assert (out.get() == wanted).all()


def test_pinned_memory_that_was_given_back_is_poisoned_under_a_copy():
    cuda = CupyBackend(0)
    out = cuda.zeros(4, np.float32)
    pointer = cupy_stub.module().cuda.alloc_pinned_memory(16)
    pinned = np.frombuffer(pointer, np.float32, 4)
    pinned.fill(1)
    out.set(pinned, stream=STATE.stream)
    del pinned, pointer
    assert np.isnan(out.get()).all()
