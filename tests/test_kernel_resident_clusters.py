"""Resident training by a cluster of blocks, emulated: the same training, the same bits everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from gpubackprop import losses, optimizers
from gpubackprop.backends import Total
from gpubackprop.backends.cupy import resident as launching
from gpubackprop.backends.resident_cost import ResidentPlan
from gpubackprop.training.resident import ResidentJob, plan_of, train_together
from gpubackprop.training.step import TrainStep
from tests import emulator
from tests.emulator import Module, count_traffic
from tests.emulator.module import KERNELS
from tests.emulator.traffic import conflicts, shared_accesses
from tests.resident_jobs import (
    LOSS_CASES,
    MANY,
    OPTIMIZERS,
    SHAPES,
    assert_same_in_orders,
    both,
    emulated,
    job,
    launch_of,
    numbers,
    orders,
    planned,
    rates,
    step_of,
)

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
CLUSTERS = (2, 4, 8)


@pytest.fixture(autouse=True)
def card() -> Iterator[None]:
    with emulated():
        yield


@pytest.mark.parametrize("blocks", CLUSTERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_cluster_trains_any_shape_as_the_cpu_does(shape, blocks):
    both(blocks=blocks, optimizer=optimizers.SGD(0.05, momentum=0.9), **SHAPES[shape])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", LOSS_CASES)
def test_a_cluster_trains_with_every_loss_as_the_cpu_does(case, weighted):
    weights = np.random.default_rng(0).random(40) + 0.1 if weighted else None
    optimizer = optimizers.SGD(0.01, momentum=0.9)
    both(blocks=4, loss=LOSS_CASES[case], weights=weights, optimizer=optimizer)


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_a_cluster_trains_with_every_optimizer_and_penalty_as_the_cpu_does(case):
    optimizer, options = OPTIMIZERS[case]
    both(blocks=8, optimizer=optimizer, epochs=3, **options)


@pytest.mark.parametrize("activation", ["relu", "gelu", "identity"])
def test_each_row_of_a_batch_is_dropped_by_its_own_words_in_whatever_block(activation):
    both(blocks=4, activation=activation, dropout=0.4)


def test_a_cluster_trains_a_network_that_fits_into_no_block():
    options: dict[str, Any] = {"widths": (100, 200, 10), "activation": "relu", "rows": 60}
    optimizer = optimizers.SGD(0.05, momentum=0.9)
    _, card = both(epochs=1, batch=32, l2=0.01, optimizer=optimizer, **options)
    assert plan_of(card).blocks > 1
    assert plan_of(card).in_one_block is None


# -- the same bits --------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "adam, l2 and clipped": {"l2": 0.1, "clip_norm": 0.1},
    "dropout": {"dropout": 0.3, "activation": "gelu", "l2": 0.01},
    "amsgrad, many parameters": {
        "widths": (40, 90, 5), "rows": 50, "batch": 33, "optimizer": optimizers.Adam(amsgrad=True)
    },
    "weights": {"weights": np.random.default_rng(0).random(40) + 0.1},
    "a last batch of 3 rows": {"rows": 35},
    "squares": {"loss": losses.SquaredError(), "clip_norm": 1.0},
}  # fmt: skip


def in_one_block(plans: Sequence[ResidentPlan], *_: Any) -> list[ResidentPlan]:
    assert all(plan.in_one_block for plan in plans if plan.blocks > 1)
    return [plan.in_one_block or plan for plan in plans]


def as_planned(plans: Sequence[ResidentPlan], *_: Any) -> list[ResidentPlan]:
    return list(plans)


def equal(a: TrainStep, b: TrainStep) -> bool:
    got, wanted = numbers(a), numbers(b)
    return all(np.array_equal(got[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("blocks", CLUSTERS)
@pytest.mark.parametrize("case", OPTIONS)
def test_one_block_trains_as_the_cluster_bit_for_bit(case, blocks):
    cluster, one = (step_of("cuda", **OPTIONS[case]) for _ in range(2))
    with planned(blocks):
        train_together([job(cluster)])
        with patch.object(launching, "in_company", in_one_block):
            train_together([job(one)])
    assert equal(one, cluster)


def test_a_network_is_trained_as_alone_whatever_the_card_has_room_for_bit_for_bit():
    """Few networks have clusters; many, here of all kinds, a block each."""
    wide = {"widths": (16, 48, 5), "rows": 90, "batch": 90, "activation": "relu"}
    networks = [wide, *MANY, wide | {"widths": (16, 48, 9)}]
    alone = [step_of("cuda", **options) for options in networks]
    for number, step in enumerate(alone):
        train_together([job(step, 1, number)])
    assert plan_of(alone[0]).blocks > 1
    for crowded in (False, True):
        together = [step_of("cuda", **options) for options in networks]
        jobs = [job(step, 1, number) for number, step in enumerate(together)]
        chosen = in_one_block if crowded else launching.in_company
        with patch.object(launching, "in_company", chosen):
            train_together(jobs)
        assert all(equal(a, b) for a, b in zip(together, alone, strict=True))


def test_two_launches_of_a_cluster_end_where_one_ends_bit_for_bit():
    whole, parts = (step_of("cuda", activation="gelu", dropout=0.2, l2=0.1) for _ in range(2))
    with planned(4):
        train_together([job(whole, epochs=2)])
        order, lr = orders(parts, 2), rates(parts, 2)
        train_together([ResidentJob(parts, order[:40], lr[:2])])
        train_together([ResidentJob(parts, order, lr[2:], start=2)])
    assert equal(parts, whole)
    assert parts.steps == whole.steps == 6


@pytest.mark.parametrize("blocks", CLUSTERS)
def test_the_order_in_which_a_clusters_threads_run_changes_nothing(blocks):
    options = {"l2": 0.1, "clip_norm": 0.1, "widths": (9, 20, 3)}
    with planned(blocks):
        launch, reached = launch_of([job(step_of("cuda", **options)), job(step_of("cuda"))])
    module = Module(launch.source, "values", launch.defines)
    assert launch.grid[0] == 2 * blocks
    assert_same_in_orders(module, launch, reached, (0, 1, 256 * blocks - 255))


# -- what goes wrong ------------------------------------------------------------------------------


def test_all_blocks_skip_an_update_whose_gradient_is_not_finite_in_one_of_them():
    x = np.ones((40, 5))
    x[1] = np.inf  # of the first of four blocks
    step = step_of("cuda", inputs=x, activation="relu", clip_norm=1.0)
    before = numbers(step)["parameters"]
    with planned(4):
        train_together([ResidentJob(step, np.arange(40), np.array([0.1]))])
        assert np.array_equal(numbers(step)["parameters"], before)
        assert step.updater.skipped() == 1
        order = np.roll(np.arange(40), -16)  # the next batches are finite
        train_together([ResidentJob(step, order, np.array([0.1]))])
    assert step.updater.skipped() == 1
    assert not np.array_equal(numbers(step)["parameters"], before)


def test_a_loss_that_is_not_finite_in_one_block_is_counted_at_its_step():
    step = step_of("cuda", inputs=np.where(np.arange(200).reshape(40, 5) == 100, np.nan, 1.0))
    with planned(2):
        train_together([ResidentJob(step, np.arange(40), np.full(3, 0.1))])
    assert step.read_totals()[Total.BAD_STEP] == 1


# -- traffic --------------------------------------------------------------------------------------


def counted(launch: Any, reached: list[tuple[str, np.ndarray]]) -> tuple[Module, dict[str, Any]]:
    module = Module(launch.source, "traffic", launch.defines)
    reached = reached + list(launch.arguments[0].arrays.items())
    counts = count_traffic(
        module, launch.entry, launch.grid, launch.block, launch.arguments,
        [array for _, array in reached], shared=launch.shared,
    )[1:]  # fmt: skip
    named = {name: one for (name, _), one in zip(reached, counts, strict=True) if one is not None}
    return module, named


def test_a_step_of_a_cluster_moves_no_byte_of_parameters_and_each_row_once():
    """In a launch each of the 4 blocks reads all parameters and its own slots, and writes its part."""
    moved = []
    for epochs in (2, 5):
        with planned(4):
            step = step_of("cuda", widths=(8, 16, 3), l2=0.1)
            moved.append(counted(*launch_of([job(step, epochs)]))[1])
    short, long = moved
    size = 4 * (8 * 16 + 16 + 16 * 3 + 3)
    for name in ("parameters", "slot_0", "slot_1", "state", "totals"):
        assert (short[name].read, short[name].written) == (long[name].read, long[name].written)
        assert long[name].writes <= 1.0
    assert long["parameters"].read == 4 * size
    assert long["slot_0"].read == long["slot_0"].written == long["parameters"].written == size
    assert long["x"].read == 5 * 40 * 8 * 4
    assert long["x"].sectors_per_minimum == 1.0
    assert long["targets"].read == 5 * 40 * 8
    assert long["coefficient_table"].read == 4 * 5 * 3 * 10 * 4
    assert not any(long[name].written for name in ("x", "targets", "order", "coefficient_table"))


def test_a_clusters_accesses_to_shared_memory_are_almost_without_bank_conflicts():
    options = {"widths": (64, 128, 10), "activation": "relu", "rows": 56, "batch": 56}
    with planned(2):
        module, _ = counted(*launch_of([job(step_of("cuda", **options), 1)]))
    assert conflicts(shared_accesses(module)) < 1.04


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "blocks", "alone"),
    [
        ("one block", 1, False),
        ("cluster of 8", 8, False),
        ("one block that takes the eight shares, of more than 100 networks at once", 8, True),
        ("one block, TF32", 1, False),
        ("cluster of 4, TF32", 4, False),
        ("cluster of 8, TF32", 8, False),
        ("one block that takes the four shares, of more than 80 networks at once, TF32", 4, True),
    ],
)
def test_a_step_takes_the_wavefronts_that_the_kernels_readme_says(row, blocks, alone):
    precision = "tf32" if row.endswith("TF32") else "float32"
    options = {
        "widths": (64, 128, 10),
        "activation": "relu",
        "rows": 200,
        "batch": 200,
        "precision": precision,
    }
    found = []
    for epochs in (1, 2):
        with planned(blocks):
            jobs = [job(step_of("cuda", l2=1e-4, **options), epochs)]
            with patch.object(launching, "in_company", in_one_block if alone else as_planned):
                module, _ = counted(*launch_of(jobs))
        found.append(sum(access.wavefronts for access in shared_accesses(module)))
    of_a_block = (found[1] - found[0]) / (1 if alone else blocks)
    text = (KERNELS / "README.md").read_text(encoding="utf-8")
    (said,) = re.findall(rf"\| {row} \| ([\d,]+) \|", text)
    assert of_a_block == pytest.approx(float(said.replace(",", "")), abs=1)
