"""What a training step takes: time by operation (`Trainer.profile`), memory (`memory_estimate`)."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpubackprop import MLP, Trainer, optimizers, plots
from gpubackprop.backends import devices
from gpubackprop.backends.cupy import CupyBackend
from gpubackprop.errors import DataError, DeviceUnavailable, OptionError
from gpubackprop.training.memory_estimate import WORKING_CUDA
from tests import emulator
from tests.emulator import cupy_stub
from tests.emulator.cupy_stub import STATE

RNG = np.random.default_rng(0)
X, LABELS = RNG.normal(size=(40, 6)).astype(np.float32), np.arange(40) % 3
STEP = [
    "gather", "affine_forward", "affine_forward", "softmax_cross_entropy", "column_sum",
    "affine_backward", "activation_backward", "affine_backward", "update", "accumulate",
]  # fmt: skip


def make(**options: Any) -> Trainer:
    network = {
        name: options.pop(name) for name in ("device", "dropout", "precision") if name in options
    }
    return Trainer(
        MLP([6, 8, 3], seed=0, **network), **{"batch_size": 16, "progress": False, **options}
    )


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[cupy_stub.Counts]:
    if emulator.missing_compiler():
        pytest.skip(emulator.missing_compiler())
    monkeypatch.setattr(devices, "choose", lambda device: ("cuda:0", "emulated"))
    with cupy_stub.installed() as counts:
        yield counts


# -- profile ---------------------------------------------------------------------------------------


def test_a_profile_lists_the_operations_of_a_step_in_their_order():
    profile = make().profile(X, LABELS, repeats=2)
    assert [row.operation for row in profile.rows] == STEP
    assert (profile.batch_size, profile.device) == (16, "cpu")
    assert all(row.seconds > 0 for row in profile.rows)
    assert profile.step > 0
    assert profile.seconds == pytest.approx(sum(row.seconds for row in profile.rows))


def test_l2_and_clipping_are_part_of_a_profile():
    names = [
        row.operation for row in make(l2=0.1, clip_norm=1.0).profile(X, LABELS, repeats=1).rows
    ]
    assert names[0] == "sum_of_squares"
    assert names[1:] == STEP


def test_the_bytes_of_an_operation_are_those_of_its_arrays_each_once():
    """x (16, 6), W (8, 6), b (8,) and units (16, 8), which hold a and h."""
    rows = make().profile(X, LABELS, repeats=1).rows
    assert rows[1].bytes == 4 * (16 * 6 + 8 * 6 + 8 + 16 * 8)
    assert rows[1].shape == (16, 6)


def test_a_profile_changes_neither_the_trainer_nor_its_network():
    trainer, twin = make(dropout=0.2), make(dropout=0.2)
    for each in (trainer, twin):
        each.fit(X, LABELS, epochs=1)
    before = trainer.network.parameters.copy()
    trainer.profile(X, LABELS, repeats=2)
    np.testing.assert_array_equal(trainer.network.parameters, before)
    for each in (trainer, twin):
        each.fit(X, LABELS, epochs=2)
    np.testing.assert_array_equal(trainer.network.parameters, twin.network.parameters)
    assert len(trainer.history) == 3


def test_a_profile_without_rows_or_repeats_says_so():
    with pytest.raises(DataError, match="0 rows"):
        make().profile(X[:0], LABELS[:0])
    with pytest.raises(OptionError, match="repeats"):
        make().profile(X, LABELS, repeats=0)


def test_a_profile_prints_a_table_and_draws_a_picture(tmp_path):
    profile = make().profile(X, LABELS, repeats=1)
    text = str(profile).splitlines()
    assert text[0].split() == ["operation", "shape", "us", "share", "MB", "launches"]
    assert len(text) == len(STEP) + 2
    assert "as one step of 16 rows on cpu" in text[-1]
    assert "affine_backward" in profile._repr_html_()
    plots.profile(profile, tmp_path / "profile.png")
    assert (tmp_path / "profile.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.emulated
def test_the_launches_of_the_operations_are_those_of_the_graph_of_the_step_and_the_totals(cuda):
    """In the graph, the update's first kernel adds the batch to the totals."""
    trainer = make(device="cuda")
    profile = trainer.profile(X, LABELS, repeats=1)
    trainer.fit(X, LABELS, epochs=1)
    step = trainer.state.step
    rows = step.place(np.arange(16))
    step.update(rows, 0.1)
    cuda.clear()
    step.update(rows, 0.1)
    of_step = len([name for name in cuda.kernels if name != "fill"]) + cuda.products
    assert sum(row.launches for row in profile.rows) == of_step + 1
    assert profile.device == "cuda:0"


@pytest.mark.emulated
def test_a_profile_on_a_gpu_says_whether_an_epoch_is_one_launch_or_why_not(cuda, monkeypatch):
    def last_line(**options):
        return str(make(device="cuda", **options).profile(X, LABELS, repeats=1)).splitlines()[-1]

    assert re.fullmatch(
        r"resident training: one block, [\d,]+ of [\d,]+ bytes, tiles of 16 rows", last_line()
    )
    assert "its numbers are float16" in last_line(precision="float16")
    monkeypatch.setenv("GPUBACKPROP_RESIDENT", "0")
    assert last_line() == "no resident training: GPUBACKPROP_RESIDENT=0"


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("widths", "batch", "options"),
    [
        ([64, 256, 256, 10], 64, {}),
        ([16, 64, 64, 64, 10], 8000, {}),
        ([16, 64, 64, 10], 8000, {"dropout": 0.3}),
        ([300, 300, 10], 10, {"dtype": "float64", "precision": None}),
    ],
)
def test_an_estimate_is_what_a_training_allocates_up_to_working_memory(widths, batch, options):
    x, y = RNG.normal(size=(10_000, widths[0])), np.arange(10_000) % 10
    x = x.astype(options.get("dtype", "float32"))
    trainer = Trainer(MLP(widths, **options), batch_size=batch, progress=False)
    estimate = trainer.memory_estimate(len(x), x.dtype)
    tracemalloc.start()
    trainer.fit(x, y, epochs=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    without_working = estimate.total - estimate.working - estimate.parameters
    assert 0.97 * without_working < peak < 1.03 * without_working + estimate.working + 2e5


def test_an_estimate_counts_16_bits_where_they_are_used():
    wide, narrow = (
        Trainer(MLP([16, 64, 10], precision=precision), batch_size=100).memory_estimate(1000)
        for precision in (None, "bfloat16")
    )
    assert wide.units == 2 * narrow.units
    assert (wide.half_copy, narrow.half_copy * 2) == (0, narrow.parameters)


def test_an_estimate_is_bounded_by_the_rows_and_grows_with_the_optimizers_state():
    trainer = make(batch_size=1000)
    assert trainer.memory_estimate(5).units * 8 == trainer.memory_estimate(40).units
    size = 4 * trainer.network.layout.size
    plain, adam = (
        make(optimizer=optimizer).memory_estimate(40)
        for optimizer in (optimizers.GradientDescent(0.1), optimizers.Adam())
    )
    assert (plain.optimizer, adam.optimizer) == (0, 2 * size)
    assert "total" in str(adam)
    assert "optimizer" in adam._repr_html_()


@pytest.mark.emulated
def test_an_estimate_for_a_gpu_is_what_is_allocated_there(cuda, monkeypatch):
    trainer = make(device="cuda", batch_size=4000)
    x, y = RNG.normal(size=(20_000, 6)).astype(np.float32), np.arange(20_000) % 3
    estimate = trainer.memory_estimate(len(x), x.dtype)
    taken, allocate = [], STATE.allocate

    def counted(nbytes: int) -> Any:
        taken.append(nbytes)
        return allocate(nbytes)

    monkeypatch.setattr(STATE, "allocate", counted)
    step = trainer.state.new_step(trainer, trainer._batches(x, y, None, None))
    assert step.steps == 0
    known = estimate.total - estimate.working - estimate.parameters - estimate.best
    assert 0.97 * known < sum(taken) < 1.03 * known + WORKING_CUDA


@pytest.mark.emulated
@pytest.mark.parametrize("epilogues", ["always", "never"])
def test_an_estimate_for_a_gpu_counts_the_masks_that_the_plans_of_a_training_have(
    cuda, monkeypatch, epilogues
):
    """For the full batch of 16 and the last one of 8; a row of 300 bits takes 384, one of 6 takes
    128. tanh and dropout have no mask."""
    monkeypatch.setenv("GPUBACKPROP_EPILOGUES", epilogues)
    monkeypatch.setattr("gpubackprop.backends.cupy.epilogues.right_ways", lambda *_: [0, 1])
    network = MLP(
        [6, 300, 6, 8, 8, 3], ["relu", "relu", "tanh", "relu"], device="cuda",
        dropout=[0, 0, 0, 0.5],
    )  # fmt: skip
    trainer = Trainer(network, batch_size=16)
    masks, empty = [], CupyBackend.empty

    def noted(self: Any, shape: Any, dtype: Any) -> Any:
        made = empty(self, shape, dtype)
        masks.extend([made.nbytes] if dtype is np.uint8 else [])
        return made

    monkeypatch.setattr(CupyBackend, "empty", noted)
    step = trainer.state.new_step(trainer, trainer._batches(X, LABELS, None, None))
    for rows in (16, 8):
        step._plan(rows)
    estimate = trainer.memory_estimate(len(X), X.dtype)
    assert estimate.masks == sum(masks) == (24 * (384 + 128) // 8 if epilogues == "always" else 0)
    assert ("masks" in str(estimate)) == (epilogues == "always")


@pytest.mark.emulated
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_estimate_for_rows_that_stay_with_the_host_counts_batches_on_their_way(
    cuda, monkeypatch, precision
):
    trainer = make(device="cuda", batch_size=4000, precision=precision)
    x, y = RNG.normal(size=(20_000, 6)).astype(np.float32), np.arange(20_000) % 3
    there = trainer.memory_estimate(len(x), x.dtype)
    assert (there.staging, there.pinned) == (0, 0)
    assert trainer.memory_estimate(len(x), x.dtype, staged=True).staging > 0
    monkeypatch.setattr(CupyBackend, "has_room", lambda self, nbytes: False)
    estimate = trainer.memory_estimate(len(x), x.dtype)
    assert there.data - estimate.data == x.nbytes
    taken, allocate = [], STATE.allocate
    monkeypatch.setattr(STATE, "allocate", lambda n: (taken.append(n), allocate(n))[1])
    step = trainer.state.new_step(trainer, trainer._batches(x, y, None, None))
    assert step.source.from_host
    assert sum(memory.size for memory in STATE.pinned.values()) == estimate.pinned
    known = estimate.total - estimate.working - estimate.parameters - estimate.best
    assert 0.97 * known < sum(taken) < 1.03 * known


@pytest.mark.emulated
def test_an_estimate_for_a_gpu_counts_the_working_memory_of_each_plan(cuda):
    """40 rows in batches of 16 have a plan for 16 rows and one for 8."""
    two, one = (make(device="cuda", batch_size=size).memory_estimate(40) for size in (16, 20))
    assert two.working == 2 * one.working == 2 * WORKING_CUDA


@pytest.mark.emulated
def test_a_gpu_that_is_too_small_says_which_batch_would_fit(cuda):
    trainer = make(device="cuda", batch_size=100_000)
    x, y = np.zeros((200_000, 6), np.float32), np.zeros(200_000, np.int64)
    STATE.memory = 2_000_000
    with pytest.raises(DeviceUnavailable, match=r"out of memory.*no batch size would fit"):
        trainer.fit(x, y, epochs=1)
    estimate = make(batch_size=1000).memory_estimate(10**6)
    fits = estimate.largest_batch(1000, 10**8)
    assert make(batch_size=fits).memory_estimate(10**6).total == pytest.approx(10**8, rel=1e-3)
