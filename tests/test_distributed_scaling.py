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


def test_widths_that_are_none_are_wrong_usage() -> None:
    result = run_cli("info", "--scaling", "784")
    assert result.code == 2
    assert "784-512-10" in result.err
