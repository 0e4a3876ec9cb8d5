"""The steady loop of training allocates nothing: tracemalloc over 100 steps."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubackprop.backends.numpy import blocks
from gpubackprop.backends.numpy.blocks import aligned_empty
from gpubackprop.backends.numpy.recorded_calls import get_num_threads, set_num_threads
from gpubackprop.data import Standardizer
from gpubackprop.losses import Loss, SoftmaxCrossEntropy, loss
from gpubackprop.network import MLP
from gpubackprop.optimizers import optimizer
from gpubackprop.training.batches import Batches
from gpubackprop.training.step import Regularization, TrainStep

BATCH, COLUMNS, CLASSES = 8192, 4, 10
ROW_VECTOR = BATCH * 4  # bytes of one number for each row; the logits are ten times that
# What stays is not an array of ours: views, scalars, and the buffers of NumPy's own iterators, of
# ITERATOR_BUFFER = 1024 elements each (two at a time for 8-byte numbers are 16 KiB).
LIMIT = 12 << 10


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = get_num_threads()
    yield
    set_num_threads(before)


def make_step(
    *, x: Any = None, chosen: Loss | None = None, weight: Any = None,
    standardizer: Standardizer | None = None, activation: str = "relu", update: str = "adam",
    output: str = "softmax", targets: Any = None, dropout: float = 0.0, precision: Any = None,
    **regularization: Any,
) -> TrainStep:  # fmt: skip
    rng = np.random.default_rng(0)
    if x is None:
        x = rng.normal(size=(BATCH + 100, COLUMNS)).astype(np.float32)
    if targets is None:
        targets = rng.integers(0, CLASSES, len(x))
    network = MLP(
        [COLUMNS, 8, CLASSES], activation, output=output, dropout=dropout, precision=precision
    )
    chosen = network.check_loss(chosen)
    data = Batches.check(network, chosen, x, targets, weight, standardizer)
    options = Regularization(**regularization)
    return TrainStep(network, chosen, data, BATCH, optimizer(update), options)


def growth_and_peak(step: TrainStep, steps: int = 100) -> tuple[int, int]:
    """Bytes that are held after `steps` steps, and at most in between, more than before them."""
    full, short = np.arange(BATCH), np.arange(BATCH, BATCH + 100)
    for rows in (full, short, full, short):
        step.update(rows, 1e-3)
    tracemalloc.start()
    try:
        step.update(full, 1e-3)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for number in range(steps):
            step.update(short if number % 10 == 9 else full, 1e-3)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return now - before, peak - before


def cross_entropy(**options: Any) -> Loss:
    return SoftmaxCrossEntropy(**options)


weights = np.arange(1.0, CLASSES + 1)
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "gelu": {"activation": "gelu"},
    "dropout": {"dropout": 0.5},
    "float16": {"precision": "float16"},
    "bfloat16_pointwise": {
        "precision": "bfloat16",
        "output": "linear",
        "targets": np.ones((BATCH + 100, CLASSES)),
    },
    "silu_sgd": {"activation": "silu", "update": "sgd"},
    "lion": {"update": "lion"},
    "label_smoothing": {"chosen": cross_entropy(label_smoothing=0.1)},
    "z_loss": {"chosen": cross_entropy(z_loss=1e-4)},
    "l2_and_clipping": {"l2": 0.1, "clip_norm": 1.0},
    "float64_x": {"x": np.ones((BATCH + 100, COLUMNS))},
    "uint8_x": {"x": np.ones((BATCH + 100, COLUMNS), np.uint8)},
    "big_endian_x": {"x": np.ones((BATCH + 100, COLUMNS), ">f4")},
    "fortran_x": {"x": np.ones((BATCH + 100, COLUMNS), np.float32, order="F")},
    "strided_targets": {"targets": np.zeros(2 * (BATCH + 100), int)[::2]},
    "standardizer": {"standardizer": Standardizer(np.ones(COLUMNS), np.ones(COLUMNS))},
    "squared_error": {"output": "linear", "targets": np.ones((BATCH + 100, CLASSES))},
    "binary": {"output": "logistic", "targets": np.ones((BATCH + 100, CLASSES))},
    "sum": {"chosen": loss("softmax_cross_entropy", reduction="sum")},
}
# The scale of each row depends on the batch here; computing it takes a few (rows,) vectors.
ROW_SCALES: dict[str, dict[str, Any]] = {
    "class_weight": {"chosen": cross_entropy(class_weight=weights, label_smoothing=0.1)},
    "ignore_index": {"chosen": cross_entropy(ignore_index=3)},
    "sample_weight": {"weight": np.ones(BATCH + 100)},
}


@pytest.mark.parametrize(
    ("case", "threads"),
    [(case, 1) for case in CASES]
    + [(case, 2) for case in ("plain", "gelu", "label_smoothing", "binary")],
)
def test_a_hundred_steps_allocate_no_array(
    case: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "PLANNED_THREAD_BYTES", blocks.THREAD_BYTES)  # split small steps
    set_num_threads(threads)
    growth, peak = growth_and_peak(make_step(**CASES[case]))
    assert growth < 1024 * threads  # a job or two may still lie before a worker that is late
    assert peak < LIMIT + 4096 * (threads - 1)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", ROW_SCALES)
def test_a_hundred_weighted_steps_allocate_at_most_row_vectors(case: str, threads: int) -> None:
    set_num_threads(threads)
    growth, peak = growth_and_peak(make_step(**ROW_SCALES[case]))
    assert growth < 1024
    assert peak < LIMIT + 4096 * (threads - 1) + 8 * ROW_VECTOR


def test_the_measurement_sees_one_array_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    step = make_step()
    run = step.run
    monkeypatch.setattr(step, "run", lambda *rows: (run(*rows), np.zeros(BATCH, np.float32)))
    assert growth_and_peak(step, 3)[1] > ROW_VECTOR - 256 > LIMIT


def test_a_memory_mapped_x_is_read_into_the_batch_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((BATCH + 100, COLUMNS), np.float32))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    growth, peak = growth_and_peak(make_step(x=x), 10)
    assert growth < 1024
    assert peak < LIMIT + 8192


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "bool"])
@pytest.mark.parametrize("size", [1, 33])
def test_arrays_start_on_128_bytes(size: int, dtype: str) -> None:
    for array in [aligned_empty(size, dtype) for _ in range(20)]:
        assert array.shape == (size,)
        assert array.dtype == dtype
        assert array.ctypes.data % 128 == 0
