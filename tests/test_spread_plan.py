"""The plan of rows that are spread over a card: when it pays, and where things lie. Pure arithmetic."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpubackprop.backends.resident_plan import STATIC_SHARED, plan_resident
from gpubackprop.backends.spread_plan import (
    LEAST_SHARES,
    MOST_SHARES,
    SHARE_ROWS,
    layout_of,
    plan_spread,
    shares_of,
)
from gpubackprop.formulas import UPDATES
from tests.test_resident_plan import ADAM, GELU, H200, RELU, regions

NARROW = (64, 64, 64, 64, 10)


@given(rows=st.integers(1, 1 << 24))
def test_a_share_has_rows_enough_and_none_is_empty(rows):
    shares = shares_of(rows)
    assert 1 <= shares <= MOST_SHARES
    assert shares & (shares - 1) == 0, "a power of two"
    assert shares == 1 or rows // shares >= SHARE_ROWS
    assert shares == MOST_SHARES or rows < 2 * shares * SHARE_ROWS, "more would fit"


@settings(deadline=None, max_examples=100)
@given(
    widths=st.lists(st.integers(1, 150), min_size=2, max_size=6),
    batch=st.integers(1, 1 << 21),
    gelu=st.booleans(),
    has_labels=st.booleans(),
    weighted=st.booleans(),
)
def test_nothing_overlaps_and_a_share_is_whole_tiles(widths, batch, gelu, has_labels, weighted):
    plan = plan_spread(
        widths, [GELU if gelu else RELU] * (len(widths) - 2), batch, H200,
        has_labels=has_labels, weighted=weighted,
    )  # fmt: skip
    layout = plan.layout
    assert layout == layout_of(plan.sizes)
    if not layout.fits:
        assert plan.reason
        return
    places = regions(layout, weighted=weighted)
    for (_, end), (begin, _) in pairwise(places):
        assert end <= begin
    assert 4 * places[-1][1] <= layout.shared_bytes <= layout.available == 232_448 - STATIC_SHARED
    assert layout.numbers["shares"] == plan.shares
    assert layout.tile_rows - 4 < -(-batch // plan.shares)


def test_the_layout_and_the_shares_do_not_depend_on_the_cards_multiprocessors():
    plans = [
        plan_spread(NARROW, (RELU,) * 3, 1 << 20, replace(H200, multiprocessors=number))
        for number in (1, 108, 132, 264)
    ]
    assert len({(plan.shares, str(plan.layout)) for plan in plans}) == 1
    assert all(plan.layout == plans[0].layout for plan in plans)


@pytest.mark.parametrize(
    ("widths", "rows", "chosen"),
    [
        (NARROW, 1 << 20, "spread"),
        (NARROW, LEAST_SHARES * SHARE_ROWS, "spread"),
        (NARROW, LEAST_SHARES * SHARE_ROWS - 1, ""),
        ((32, 32, 32, 32, 10), 1 << 17, "spread"),
        ((64, 128, 10), 1 << 14, "spread"),
        ((64, 128, 10), 200, ""),
        ((8, 8, 1), 8192, ""),  # a cluster takes as long
        ((256, 64, 10), 1 << 17, "graph"),  # 36 rows of a tile beside wide inputs
        ((784, 320, 160, 10), 1 << 14, "graph"),  # its parameters fit into no block
        ((784, 320, 160, 10), 64, ""),
    ],
)
def test_rows_are_spread_where_that_is_predicted_to_be_the_quickest_way(widths, rows, chosen):
    hidden = (RELU,) * (len(widths) - 2)
    resident = plan_resident(widths, hidden, ADAM, rows, H200)
    plan = plan_spread(widths, hidden, rows, H200, resident=resident)
    assert plan.way == chosen
    assert (plan.reason == "") == (chosen == "spread")


def test_the_narrow_network_of_a_million_rows_is_predicted_at_three_milliseconds_or_so():
    """Predicted, not measured: kernels/README.md and the record of the decision have the figures."""
    plan = plan_spread(NARROW, (RELU,) * 3, 1 << 20, H200)
    cluster = plan_resident(NARROW, (RELU,) * 3, ADAM, 1 << 20, H200)
    milliseconds = [cycles / 1.98e6 for cycles in (plan.cycles, plan.graph_cycles, cluster.cycles)]
    assert milliseconds == pytest.approx([3.04, 2.82, 47.3], rel=0.01)


def test_the_narrow_network_is_predicted_below_one_millisecond_in_tf32():
    """Predicted, not measured, as above."""
    plan = plan_spread(NARROW, (RELU,) * 3, 1 << 20, H200, tf32=True)
    cluster = plan_resident(NARROW, (RELU,) * 3, ADAM, 1 << 20, H200, tf32=True)
    milliseconds = [cycles / 1.98e6 for cycles in (plan.cycles, plan.graph_cycles, cluster.cycles)]
    assert milliseconds == pytest.approx([0.78, 2.20, 12.1], rel=0.01)
    assert plan.way == "spread"
    assert plan.layout.tf32
    assert str(plan).endswith("adds up their gradients, products by tensor cores in TF32")
    plain = plan_spread(NARROW, (RELU,) * 3, 1 << 20, H200)
    assert (plain.shares, plain.layout.numbers) == (plan.shares, plan.layout.numbers)


def test_what_the_plan_says_has_its_numbers():
    plan = plan_spread(NARROW, (RELU,) * 3, 1 << 20, H200)
    assert str(plan) == (
        "rows are spread over the card: 512 blocks, 225,696 of 230,400 bytes, tiles of 80 rows, "
        "and a launch that adds up their gradients"
    )
    wide = plan_spread((784, 320, 160, 10), (RELU,) * 2, 1 << 14, H200)
    assert "2,449,056 bytes of parameters, gradients and slots" in str(wide)


@pytest.mark.parametrize("update", UPDATES)
def test_the_optimizers_slots_take_no_room_of_a_block(update):
    """They are the ordinary update's, in the card's memory."""
    cluster = plan_resident(NARROW, (RELU,) * 3, UPDATES[update], 1 << 16, H200)
    plan = plan_spread(NARROW, (RELU,) * 3, 1 << 16, H200, resident=cluster)
    assert plan.layout.numbers["slots"] == 0
    assert plan.way == "spread"
