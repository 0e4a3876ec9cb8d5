"""The plan of resident training: what fits into a block, and where it lies. Pure arithmetic."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpubackprop.backends.cupy_launch import DeviceProperties
from gpubackprop.backends.resident_plan import (
    LAYER_WORDS,
    STATIC_SHARED,
    WORDS,
    ResidentPlan,
    plan_resident,
    row_stride,
    table_of,
)
from gpubackprop.formulas import ACTIVATIONS, UPDATES

H200 = DeviceProperties(132, 232_448, (9, 0))
RELU, GELU, ADAM = ACTIVATIONS["relu"], ACTIVATIONS["gelu"], UPDATES["adam"]


def regions(plan: ResidentPlan, *, weighted: bool) -> list[tuple[int, int]]:
    """Return (begin, end) of everything in the block's memory, in floats."""
    n, rows = plan.numbers, plan.tile_rows
    found = [(0, LAYER_WORDS * len(plan.layers))]
    for copy in range(2 + n["slots"]):
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
)
def test_nothing_overlaps_and_all_of_it_is_in_the_bytes_that_are_asked_for(
    widths, batch, update, gelu, has_labels, weighted
):
    plan = plan_resident(
        widths, [GELU if gelu else RELU] * (len(widths) - 2), UPDATES[update], batch, H200,
        has_labels=has_labels, weighted=weighted,
    )  # fmt: skip
    if not plan.fits:
        assert plan.shared_bytes > plan.available
        return
    places = regions(plan, weighted=weighted)
    for (_, end), (begin, _) in pairwise(places):
        assert end <= begin
    assert 4 * places[-1][1] <= plan.shared_bytes <= plan.available == 232_448 - STATIC_SHARED
    assert all(begin % 4 == 0 for begin, _ in places if begin)
    assert plan.tile_rows % 4 == 0
    assert plan.tile_rows - 4 < batch, "rows that no batch has"


@pytest.mark.parametrize("width", [1, 4, 5, 31, 32, 64, 128, 784])
def test_eight_neighbouring_rows_lie_in_all_banks(width):
    stride = row_stride(width)
    assert stride >= width
    assert {(row * stride + word) % 32 for row in range(8) for word in range(4)} == set(range(32))


def test_a_network_that_is_too_large_has_a_sentence_with_its_bytes():
    plan = plan_resident((784, 512, 10), (RELU,), ADAM, 128, H200)
    assert not plan.fits
    assert str(plan).startswith("no resident training: 6,546,240 bytes")
    wide = plan_resident((6000, 1), (), UPDATES["gradient_descent"], 128, H200)
    assert "with four rows of units" in wide.reason
    assert plan_resident((64, 128, 10), (RELU,), ADAM, 200, DeviceProperties(40)).reason


def test_a_batch_is_cut_into_tiles_of_about_one_size():
    plan = plan_resident((64, 128, 10), (RELU,), ADAM, 200, H200)
    assert plan.tile_rows == 52, "four tiles, of 52, 52, 52 and 44 rows"
    assert plan_resident((4, 8, 3), (RELU,), ADAM, 200, H200).tile_rows == 200
    assert plan_resident((4, 8, 3), (RELU,), ADAM, 5, H200).tile_rows == 8


def test_the_table_has_numbers_as_they_are_and_floats_by_their_bits():
    values = dict.fromkeys(WORDS, 0) | {"ignore_index": -100, "soft_cap": 1.5}
    (row,) = table_of([values])
    assert row.view(np.int64)[WORDS.index("ignore_index")] == -100
    assert np.uint32(row[WORDS.index("soft_cap")]).view(np.float32) == 1.5
    with pytest.raises(TypeError, match="steps"):
        table_of([{name: 0 for name in WORDS if name != "steps"}])
