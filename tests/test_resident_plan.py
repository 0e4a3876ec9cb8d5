"""The plan of resident training: what fits into a block, and where it lies. Pure arithmetic."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpubackprop.backends.cupy_launch import DeviceProperties
from gpubackprop.backends.resident_cost import ResidentPlan, in_company
from gpubackprop.backends.resident_plan import (
    LAYER_WORDS,
    STATIC_SHARED,
    WORDS,
    plan_resident,
    row_stride,
    table_of,
)
from gpubackprop.errors import OptionError
from gpubackprop.formulas import ACTIVATIONS, UPDATES

H200 = DeviceProperties(132, 232_448, (9, 0))
RELU, GELU, ADAM = ACTIVATIONS["relu"], ACTIVATIONS["gelu"], UPDATES["adam"]


def regions(plan: ResidentPlan, *, weighted: bool) -> list[tuple[int, int]]:
    """Return (begin, end) of everything in the block's memory, in floats."""
    n, rows = plan.numbers, plan.tile_rows
    found = [(0, LAYER_WORDS * len(plan.layers))]
    slots, each = n["weights_at"] + 2 * n["count"], n["count"] if plan.blocks == 1 else n["slice"]
    found += [(slots + slot * each, slots + (slot + 1) * each) for slot in range(n["slots"])]
    for copy in range(2):
        by = copy * n["count"]
        for layer in plan.layers:
            W, b = layer["weights"] + by, layer["biases"] + by
            found += [(W, W + layer["outputs"] * layer["stride"]), (b, b + layer["outputs"])]
    for name, each in (("x_at", n["x_stride"]), ("targets_at", n["targets_stride"])):
        found.append((n[name], n[name] + 2 * rows * each))
    if weighted:
        found.append((n["row_weights_at"], n["row_weights_at"] + 2 * rows))
    for layer in plan.layers:
        for place in filter(None, (layer["units"], layer["slopes"])):
            found.append((place, place + rows * layer["units_stride"]))
    return sorted(found)


@settings(deadline=None, max_examples=200)
@given(
    widths=st.lists(st.integers(1, 150), min_size=2, max_size=6),
    batch=st.integers(1, 3000),
    update=st.sampled_from(list(UPDATES)),
    gelu=st.booleans(),
    has_labels=st.booleans(),
    weighted=st.booleans(),
    blocks=st.sampled_from([None, 1, 2, 4, 8]),
    alone=st.booleans(),
)
def test_nothing_overlaps_and_all_of_it_is_in_the_bytes_that_are_asked_for(
    widths, batch, update, gelu, has_labels, weighted, blocks, alone
):
    plan = plan_resident(
        widths, [GELU if gelu else RELU] * (len(widths) - 2), UPDATES[update], batch, H200,
        has_labels=has_labels, weighted=weighted, blocks=blocks,
    )  # fmt: skip
    share = -(-batch // plan.blocks)
    if alone and plan.in_one_block:
        plan = plan.in_one_block
        assert plan.tile_rows >= share, "a share is one tile"
    if not plan.fits:
        assert plan.shared_bytes > plan.available
        return
    places = regions(plan, weighted=weighted)
    for (_, end), (begin, _) in pairwise(places):
        assert end <= begin
    assert 4 * places[-1][1] <= plan.shared_bytes <= plan.available == 232_448 - STATIC_SHARED
    assert all(begin % 4 == 0 for begin, _ in places if begin)
    assert plan.tile_rows % 4 == 0
    assert plan.tile_rows - 4 < share, "rows that no share has"
    assert plan.numbers["slice"] * plan.numbers["shares"] >= plan.numbers["count"]
    assert plan.numbers["slice"] % 4 == plan.numbers["count"] % 4 == 0


@pytest.mark.parametrize("width", [1, 4, 5, 31, 32, 64, 128, 784])
def test_eight_neighbouring_rows_lie_in_all_banks(width):
    stride = row_stride(width)
    assert stride >= width
    assert {(row * stride + word) % 32 for row in range(8) for word in range(4)} == set(range(32))


def test_a_network_that_is_too_large_has_a_sentence_with_its_bytes():
    plan = plan_resident((784, 512, 10), (RELU,), ADAM, 128, H200)
    assert not plan.fits
    assert str(plan).startswith("no resident training: 3,682,272 bytes")
    assert "in each of 8 blocks" in plan.reason
    plan = plan_resident((784, 512, 10), (RELU,), ADAM, 128, H200, blocks=1)
    assert plan.reason == "6,546,240 bytes of parameters, gradients and slots, 230,400 there"
    wide = plan_resident((6000, 1), (), UPDATES["gradient_descent"], 128, H200)
    assert "with four rows of units" in wide.reason
    assert plan_resident((64, 128, 10), (RELU,), ADAM, 200, DeviceProperties(40)).reason


def test_a_share_of_a_batch_is_cut_into_tiles_of_about_one_size():
    plan = plan_resident((64, 128, 10), (RELU,), ADAM, 200, H200, blocks=1)
    assert plan.tile_rows == 52, "four tiles, of 52, 52, 52 and 44 rows"
    plan = plan_resident((64, 128, 10), (RELU,), ADAM, 800, H200, blocks=2)
    assert plan.tile_rows == 80, "five tiles of each of two shares of 400 rows"
    assert plan_resident((4, 8, 3), (RELU,), ADAM, 200, H200, blocks=1).tile_rows == 200
    assert plan_resident((4, 8, 3), (RELU,), ADAM, 5, H200, blocks=1).tile_rows == 8


# -- clusters -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("widths", "batch", "blocks"),
    [
        ((64, 128, 10), 200, 8),
        ((64, 128, 10), 4096, 8),
        ((4, 8, 3), 16, 1),  # the barriers of a cluster take longer than the step
        ((5, 6, 3), 1, 1),
    ],
)
def test_a_network_has_a_cluster_where_that_makes_a_step_shorter(widths, batch, blocks):
    assert plan_resident(widths, (RELU,), ADAM, batch, H200).blocks == blocks


def test_a_network_whose_slots_are_too_many_for_one_block_has_a_cluster():
    sizes = (100, 200, 10), (RELU,), ADAM, 32
    assert not plan_resident(*sizes, H200, blocks=1).fits
    plan = plan_resident(*sizes, H200)
    assert (plan.blocks, plan.in_one_block) == (8, None)
    assert plan.shared_bytes <= plan.available


@pytest.mark.parametrize("blocks", [2, 4, 8])
def test_a_card_without_clusters_has_none(blocks):
    older = DeviceProperties(108, 166_912, (8, 0))
    plan = plan_resident((64, 64, 10), (RELU,), ADAM, 200, older)
    assert plan.blocks == 1
    with pytest.raises(OptionError, match=f"blocks is {blocks} but must be 1 or None"):
        plan_resident((64, 64, 10), (RELU,), ADAM, 200, older, blocks=blocks)


@pytest.mark.parametrize("blocks", [0, 3, 16])
def test_a_number_of_blocks_that_no_entry_has_is_refused(blocks):
    with pytest.raises(OptionError, match=f"blocks is {blocks} but must be 1, 2, 4, 8 or None"):
        plan_resident((64, 64, 10), (RELU,), ADAM, 200, H200, blocks=blocks)


def test_one_block_takes_the_shares_of_a_cluster_one_after_another():
    plan = plan_resident((64, 128, 10), (RELU,), ADAM, 200, H200, blocks=8)
    alone = plan.in_one_block
    assert alone is not None
    assert (alone.blocks, alone.tile_rows, alone.numbers["shares"]) == (1, 28, 8)
    same = ("shares", "slice", "count", "tile_rows", "weights_end", "layers")
    assert all(plan.numbers[name] == alone.numbers[name] for name in same)
    assert plan_resident((64, 128, 10), (RELU,), ADAM, 4096, H200).in_one_block is None


def test_few_networks_have_clusters_and_many_a_block_each():
    plan = plan_resident((64, 128, 10), (RELU,), ADAM, 200, H200)
    for networks, blocks in ((1, 8), (16, 8), (64, 8), (132, 1), (1000, 1)):
        chosen = in_company([plan] * networks, [8] * networks, H200.multiprocessors)
        assert {one.blocks for one in chosen} == {blocks}, networks
    long = in_company([plan] * 133, [1] * 132 + [1000], H200.multiprocessors)
    assert {one.blocks for one in long} == {8}, "the longest decides"
    large = plan_resident((100, 200, 10), (RELU,), ADAM, 32, H200)
    chosen = in_company([plan] * 500 + [large], [8] * 501, H200.multiprocessors)
    assert [one.blocks for one in chosen] == [1] * 500 + [8], "it fits into no block alone"


def test_products_in_tf32_change_the_cycles_of_a_plan_and_not_its_layout():
    sizes = (64, 128, 10), (RELU,), ADAM, 200, H200
    for blocks, times in ((1, 4.04), (2, 3.31), (4, 2.86), (8, 2.01)):
        plain, tensor = (plan_resident(*sizes, blocks=blocks, tf32=tf32) for tf32 in (False, True))
        assert plain.numbers == tensor.numbers
        assert plain.layers == tensor.layers
        assert str(tensor) == f"{plain}, products by tensor cores in TF32"
        assert plain.cycles / tensor.cycles == pytest.approx(times, rel=0.01)
    chosen = plan_resident(*sizes, tf32=True)
    assert chosen.blocks == 4, "one of 8 is not worth its blocks"
    assert chosen.in_one_block is not None
    assert chosen.in_one_block.tf32


def test_a_card_without_tf32_has_no_such_plan():
    older = DeviceProperties(40, 65_536, (7, 5))
    with pytest.raises(OptionError, match=r"compute capability 7\.5 has no TF32"):
        plan_resident((4, 8, 3), (RELU,), ADAM, 16, older, tf32=True)
    assert plan_resident((4, 8, 3), (RELU,), ADAM, 16, older).fits
    assert plan_resident(
        (4, 8, 3), (RELU,), ADAM, 16, DeviceProperties(40, 65_536, (8, 0)), tf32=True
    ).fits


def test_the_table_has_numbers_as_they_are_and_floats_by_their_bits():
    values = dict.fromkeys(WORDS, 0) | {"ignore_index": -100, "soft_cap": 1.5}
    (row,) = table_of([values])
    assert row.view(np.int64)[WORDS.index("ignore_index")] == -100
    assert np.uint32(row[WORDS.index("soft_cap")]).view(np.float32) == 1.5
    with pytest.raises(TypeError, match="steps"):
        table_of([{name: 0 for name in WORDS if name != "steps"}])
