"""A batch on a GPU: one launch gathers all its arrays, and finds the next batch by itself.

On the stand-in for CuPy, with the emulated kernels, beside NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpubackprop import MLP, backends, losses, optimizers
from gpubackprop.backends import Total, UpdateRule
from gpubackprop.backends.cupy import CupyBackend
from gpubackprop.errors import DtypeError, ShapeError
from gpubackprop.formulas import UPDATES
from gpubackprop.training.batches import Batches
from gpubackprop.training.step import Regularization, TrainStep
from tests import emulator
from tests.emulator import cupy_stub
from tests.emulator.operations import DTYPES

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(
        bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
    ),
]
ROWS, MOST = 50, 80


@pytest.fixture
def counts() -> Iterator[cupy_stub.Counts]:
    with cupy_stub.installed() as counted:
        yield counted


def arrays(*kinds: tuple[str, tuple[int, ...]]) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [(100 * rng.random((ROWS, *shape))).astype(DTYPES[kind]) for kind, shape in kinds]


def gathered(
    backend: Any, sources: list[np.ndarray], kinds: list[Any], rows: np.ndarray
) -> list[np.ndarray]:
    pairs = [
        (backend.asarray(source), backend.zeros((len(rows), *source.shape[1:]), kind))
        for source, kind in zip(sources, kinds, strict=True)
    ]
    backend.gather_batch(pairs, backend.asarray(rows))
    return [np.array(backend.to_host(out)) for _, out in pairs]


BATCHES = {
    "labels": ([("u8", (70,)), ("i64", ())], ["f32"], 1),
    "labels and weights": ([("f32", (9,)), ("i64", ()), ("f32", ())], [], 1),
    "one-hot, targets, weights": (
        [("f64", (5,)), ("i32", (7,)), ("f64", (3,)), ("f64", ())], [], 1,
    ),
    "no matrix": ([("i64", ()), ("f32", ())], [], 1),
    "an empty matrix": ([("f32", (0,)), ("i32", (4,)), ("i64", ())], [], 1),
    "rows of 128 bytes": ([("f32", (90,)), ("f32", (32,))], [], 1),
    "rows of more": ([("f32", (90,)), ("f32", (33,))], [], 2),
    "targets of 16 bits": ([("f32", (9,)), ("f16", (2,))], [], 2),
    "converted targets": ([("f32", (9,)), ("i32", ())], ["f32", "i64"], 2),
    "more than three": ([("f32", (9,)), *[("i64", ())] * 4], [], 2),
}  # fmt: skip


@pytest.mark.parametrize("name", BATCHES)
def test_the_arrays_of_a_batch_are_numpys_from_one_launch_if_all_but_one_are_narrow(name, counts):
    made, converted, launches = BATCHES[name]
    sources = arrays(*made)
    kinds = [*(DTYPES[kind] for kind in converted), *(s.dtype for s in sources[len(converted) :])]
    rows = np.random.default_rng(2).integers(0, ROWS, MOST)
    cuda = CupyBackend(0)
    counts.clear()
    found = gathered(cuda, sources, kinds, rows)
    assert len([kernel for kernel in counts.kernels if kernel.startswith("gather")]) == launches
    wanted = gathered(backends.get("cpu:numpy"), sources, kinds, rows)
    for mine, theirs, source in zip(found, wanted, sources, strict=True):
        assert mine.dtype == theirs.dtype
        assert np.array_equal(mine, theirs)
        assert np.array_equal(theirs, source[rows].astype(theirs.dtype))


def test_narrow_rows_of_numbers_outside_are_the_nearest_as_the_matrix(counts):
    x, labels = arrays(("f32", (9,)), ("i64", ()))
    rows = np.array([-1, ROWS, 2**40, -(2**62), 3])
    found = gathered(CupyBackend(0), [x, labels], [x.dtype, labels.dtype], rows)
    for mine, source in zip(found, (x, labels), strict=True):
        assert np.array_equal(mine, source.take(rows, 0, mode="clip"))


# -- the place of the next numbers ------------------------------------------------------------------


def planned(backend: Any, batch: int, columns: int = 300) -> tuple[Any, Any, list[Any], Any]:
    """A cursor, a plan that gathers `batch` rows by it, what it writes, and its sources."""
    sources = arrays(("f32", (columns,)), ("i64", ()))
    there = [backend.asarray(source) for source in sources]
    outs = [backend.zeros((batch, *source.shape[1:]), source.dtype) for source in sources]
    cursor = backend.row_cursor()
    pairs = list(zip(there, outs, strict=True))
    return (
        cursor,
        backend.plan(lambda recorder: recorder.gather_batch(pairs, cursor)),
        outs,
        sources,
    )


@pytest.mark.parametrize("columns", [1, 300], ids=["a block", "many blocks"])
def test_replays_of_one_plan_gather_one_batch_after_another(columns, counts):
    cuda = CupyBackend(0)
    cursor, plan, outs, sources = planned(cuda, 20, columns)
    numbers = np.random.default_rng(3).integers(0, ROWS, 60)
    order = cuda.asarray(numbers)
    counts.clear()
    for start in (0, 20, 40):
        cursor.put(order[start : start + 20])
        plan()
        cursor.done()
        for out, source in zip(outs, sources, strict=True):
            assert np.array_equal(cuda.to_host(out), source[numbers[start : start + 20]])
    assert counts.kernels.count("fill") == 1, "of the first address alone"
    assert plan.uncaptured == ""


@pytest.mark.parametrize("device", ["cpu:numpy", "cuda"])
def test_numbers_that_lie_elsewhere_are_found_too(device, counts):
    backend = CupyBackend(0) if device == "cuda" else backends.get(device)
    cursor, plan, outs, sources = planned(backend, 20)
    numbers = np.random.default_rng(4).integers(0, ROWS, 80)
    order = backend.asarray(numbers)
    for start in (40, 0, 0, 20, 60):
        cursor.put(order[start : start + 20])
        plan()
        cursor.done()
        wanted = sources[0][numbers[start : start + 20]]
        assert np.array_equal(backend.to_host(outs[0]), wanted)


def test_after_a_step_that_did_not_run_the_next_one_says_where_its_numbers_are(counts):
    """An error may come between a batch's numbers and its launch."""
    cuda = CupyBackend(0)
    cursor, plan, outs, sources = planned(cuda, 20)
    numbers = np.random.default_rng(5).integers(0, ROWS, 60)
    order = cuda.asarray(numbers)
    cursor.put(order[:20])  # and no plan()
    for start in (20, 40):
        cursor.put(order[start : start + 20])
        plan()
        cursor.done()
        assert np.array_equal(cuda.to_host(outs[1]), sources[1][numbers[start : start + 20]])


def test_row_numbers_of_another_kind_are_refused(counts):
    cuda = CupyBackend(0)
    cursor = cuda.row_cursor()
    for wrong in (cuda.zeros(4, np.int32), cuda.zeros(8, np.int64)[::2]):
        with pytest.raises(DtypeError, match="a GPU reads int64 without gaps"):
            cursor.put(wrong)
    with pytest.raises(ShapeError, match="no gather from"):
        cuda.gather_batch([(cuda.zeros((3, 2), float), cuda.zeros((3, 1), float))], cursor)


def test_batches_of_any_order_and_of_the_host_train_as_on_the_cpu(
    counts, monkeypatch: pytest.MonkeyPatch
):
    """A batch that comes twice, one backwards, a short one, and row numbers of the host."""
    monkeypatch.setattr(backends.devices, "choose", lambda d: (d if d == "cpu" else "cuda:0", ""))
    rng, found = np.random.default_rng(6), []
    x, targets = rng.random((40, 5)), rng.integers(0, 3, 40)
    for device in ("cpu", "cuda"):
        network, loss = (
            MLP([5, 4, 3], seed=0, dtype="float64", device=device),
            losses.SoftmaxCrossEntropy(),
        )
        data = Batches.check(network, loss, x, targets)
        step = TrainStep(network, loss, data, 16, optimizers.Adam(0.1), Regularization())
        order = step.place(np.arange(40)[::-1].copy())
        for part in (order[:16], order[:16], order[32:], order[16:32], np.arange(16), order[16:25]):
            step.update(part, 0.1)
        found.append((network.backend.to_host(network.parameters), step.read_totals()))
    for mine, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-9)


# -- the totals, in the update's first kernel ---------------------------------------------------------


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("options", [{}, {"l2": 0.25}, {"clip_norm": 1.0}, {"part": slice(32, 64)}])
def test_an_update_adds_its_batch_to_the_totals_unless_something_is_recorded_between(
    options, between, counts
):
    found = []
    part = options.get("part", slice(None))
    for backend in (CupyBackend(0), backends.get("cpu:numpy")):
        rng = np.random.default_rng(7)
        parameters, gradient = (backend.asarray(rng.random(96)) for _ in range(2))
        size = parameters[part].size
        slots = tuple(backend.zeros(size, np.float64) for _ in range(2))
        rule = UpdateRule(
            UPDATES["adam"], {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}, 0.1, 0.0,
            options.get("l2", 0.0), options.get("clip_norm"), 64, None, False, options.get("part"),
        )  # fmt: skip
        updater = backend.updater(rule, parameters, gradient, slots)
        loss, hits = backend.asarray(np.array(0.5)), backend.asarray(np.array(7))
        totals = backend.asarray(np.array([0.0, 0, 0, 0, 0, -1]))

        def emit(recorder: Any) -> None:
            penalty = updater.penalty(recorder, 1.0)  # noqa: B023
            updater.emit(recorder)  # noqa: B023
            if between:
                recorder.fill(loss, np.inf)  # noqa: B023
            recorder.accumulate(loss, 12, hits, penalty, totals)  # noqa: B023

        plan = backend.plan(emit)
        counts.clear()
        for step in (1, 2):
            updater.set(0.1, step)
            plan()
        found.append([np.array(backend.to_host(array)) for array in (totals, parameters, *slots)])
        if len(found) == 1:
            assert counts.kernels.count("accumulate_f64") == (2 if between else 0)
    for mine, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-15)
    assert found[0][0][Total.STEPS] == 2
    assert found[0][0][Total.BAD_STEP] == (0 if between else -1)
