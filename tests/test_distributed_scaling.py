"""The estimate of several ranks, against numbers worked by hand."""

from __future__ import annotations

import pytest

from gpubackprop import MLP
from gpubackprop.distributed.scaling import Scaling
from tests.cli_runs import ok, run_cli


def test_a_ring_of_four_moves_three_halves_of_the_gradient_and_takes_that_long() -> None:
    scaling = Scaling([3, 2, 1], 10, 8, bandwidth=1000.0, latency=0.5, flops=100.0)
    assert scaling.gradient_bytes == 8 * (4 * 2 + 3 * 1)
    assert scaling.moved(4) == 1.5 * 88
    assert scaling.adding(4) == pytest.approx(0.132 + 2 * 2 * 0.5)
    # Layer 1: 2 products of 2*3*2 operations a row; layer 2: 3 of 2*2*1. 10 rows, 100 a second.
    assert scaling.computing(10) == pytest.approx(10 * (24 + 12) / 100)
    assert scaling.strong(4) == pytest.approx(0.9 / (0.9 + 2.132))
    assert scaling.weak(4) == pytest.approx(3.6 / (3.6 + 2.132))


def test_optimizers_in_parts_move_the_same_bytes_with_two_rounds_of_latencies_more() -> None:
    scaling = Scaling([3, 2, 1], 10, 8, bandwidth=1000.0, latency=0.5, flops=100.0)
    # Reduce-scatter and all-gather of 3/4 of 88 bytes, two rounds of latencies each; the figures' sum
    # goes there and back: four rounds.
    assert scaling.adding_in_parts(4) == pytest.approx(2 * (0.066 + 2 * 0.5) + 4 * 0.5)
    assert scaling.adding_in_parts(1) == 0
    assert [scaling.slot_bytes(ranks) for ranks in (1, 2, 3, 4)] == [88, 48, 32, 24]  # 11 elements


def test_one_rank_adds_nothing_and_loses_nothing() -> None:
    scaling = Scaling([3, 2, 1], 10, 8, 1000.0, 0.5, 100.0)
    assert (scaling.adding(1), scaling.strong(1), scaling.weak(1)) == (0, 1, 1)


def test_the_gradient_is_as_long_as_the_networks_parameters() -> None:
    scaling = Scaling([784, 512, 10], 1, 4, 1, 1, 1)
    assert scaling.gradient_bytes == 4 * MLP([784, 512, 10]).layout.count


def test_the_command_prints_a_row_for_each_number_of_ranks_and_its_assumptions() -> None:
    arguments = ("info", "--scaling", "784-512-10", "--ranks", "2,4", "--batch", 1000)
    text = ok(*arguments).out
    assert "not measured" in text
    assert "a ring" in text
    values = ok(*arguments, "--json").json
    assert [row["ranks"] for row in values["ranks"]] == [2, 4]
    assert values["ranks"][1]["moved_bytes"] == 1.5 * values["gradient_bytes"]
    assert values["ranks"][0]["slot_bytes"] == values["gradient_bytes"] / 2
    assert "sharded, ms" in text


def test_widths_that_are_none_are_wrong_usage() -> None:
    result = run_cli("info", "--scaling", "784")
    assert result.code == 2
    assert "784-512-10" in result.err


def test_the_part_of_a_sum_that_is_left_is_worked_by_hand() -> None:
    # Layers of 16, 16 and 8 MiB: on each of 2 ranks 4 rows; a product takes 2, 2 and 1 seconds.
    # A part moves in 1 second for 8 MiB and has a latency of a half.
    widths, latency, flops = [2048, 2048, 2048, 1024], 0.25, 2.0**24
    scaling = Scaling(widths, 8, 4, 2.0**23, latency, flops)
    assert scaling.buckets() == [(2, 8 << 20), (1, 16 << 20), (0, 16 << 20)]
    # Backward, products of W (h): layer 2 to 1 (2), 1 to 4 (6), 0 to 8. Sums: 1 to 2.5, 4 to 6.5,
    # the biases to 7, 8 to 10.5.
    assert scaling.left(2) == pytest.approx(2.5)
    # Twice as slow: 1 to 3.5, 4 to 8.5, to 9, 9 to 13.5.
    assert Scaling(widths, 8, 4, 2.0**22, latency, flops).left(2) == pytest.approx(5.5)
    assert scaling.left(1) == 0


def test_the_command_says_in_which_parts_gpus_add_up_a_gradient() -> None:
    large = ("info", "--scaling", "2048-2048-2048-1024", "--batch", 4096, "--ranks", "2")
    assert "\n8.4, 16.8, 16.8, and the biases." in ok(*large).out
    values = ok(*large, "--json").json
    assert [bucket["layer"] for bucket in values["buckets"]] == [2, 1, 0]
    assert 0 < values["ranks"][0]["left_seconds"] < values["ranks"][0]["sum_seconds"]
    small = ("info", "--scaling", "784-512-10")
    assert "the sum is one call" in ok(*small).out
    values = ok(*small, "--json").json
    assert values["buckets"] == []
    assert values["ranks"][0]["left_seconds"] == values["ranks"][0]["sum_seconds"]
