"""Every benchmark runs, checks before it times, and reports a wrong contestant as wrong.

No time is asserted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.cases import CASES, five_lines_once
from benchmarks.harness import Row, summarise, verdict


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_contestant_of_a_case_agrees_with_the_oracle_and_runs(case):
    oracle = np.array(CASES[case].contestants["oracle"]()[0]())
    for name, setup in CASES[case].contestants.items():
        check, run = setup()
        assert verdict({"check": check()}, oracle, CASES[case].tolerance) == "", name
        if name != "oracle":
            run()


def test_a_wrong_result_is_named_and_not_timed():
    case = CASES["softmax_cross_entropy/f32/4096x10"]
    check, _ = case.contestants["gpubackprop"]()
    right = np.array(check())
    assert verdict({"check": right}, right, case.tolerance) == ""
    wrong = right.copy()
    wrong[0] *= 1.001
    assert verdict({"check": wrong}, right, case.tolerance).startswith("WRONG")
    assert verdict({"check": right * np.nan}, right, case.tolerance).startswith("WRONG")
    assert verdict({"missing": "No module named 'torch'"}, right, 1.0).startswith("not measured")


def test_the_digest_changes_with_any_of_loss_and_gradient():
    z, y = np.zeros((4, 3)), np.array([0, 1, 2, 0])
    loss, delta = five_lines_once(z, y)
    assert loss == pytest.approx(np.log(3))
    assert delta[0] == pytest.approx([-1 / 6, 1 / 12, 1 / 12])


def test_the_ratio_is_the_median_of_the_ratios_within_a_round():
    ours = Row("case", "gpubackprop", 1, rounds=[1.0, 2.0, 9.0])
    theirs = Row("case", "peer", 1, rounds=[2.0, 4.0, 3.0], goal=0.5)
    absent = Row("case", "absent", 1, note="not measured: no module")
    summarise({"gpubackprop": ours, "peer": theirs, "absent": absent})
    assert theirs.ratio == 0.5  # of 0.5, 0.5, 3.0
    assert theirs.met is True
    assert absent.seconds is None
    late = replace(theirs, goal=0.4, ratio=None)
    summarise({"gpubackprop": ours, "peer": late})
    assert late.met is False


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_json(tmp_path):
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--case", "4096x10", "--threads", "1"]
    done = subprocess.run([*command, "--json", out], capture_output=True, text=True, check=True)
    assert "numpy, five lines" in done.stdout
    record = json.loads(out.read_text())
    assert {row["contestant"] for row in record["rows"]} >= {"gpubackprop", "torch autograd"}
    ours = next(row for row in record["rows"] if row["contestant"] == "gpubackprop")
    assert ours["ratio"] == 1.0
    assert len(ours["rounds"]) == record["rounds"]
    assert record["versions"]["numpy"] == np.__version__


def test_an_unknown_case_is_a_usage_error():
    command = [sys.executable, "-m", "benchmarks", "--case", "no such case"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "softmax_cross_entropy" in done.stderr
