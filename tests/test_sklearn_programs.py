"""The example and the benchmark of the estimators, run at small size."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from benchmarks import bench_sklearn

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_the_grid_search_example_finds_the_same_scores_before_and_after(monkeypatch, capsys):
    arguments = ["sklearn_grid_search.py", "--rows", "150", "--epochs", "4", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(EXAMPLES / "sklearn_grid_search.py"), run_name="__main__")
    before, after, last = capsys.readouterr().out.splitlines()
    best = [line.split("best accuracy ")[1] for line in (before, after)]
    assert best[0] == best[1]
    assert re.fullmatch(r"time ratio [\d.]+, largest difference of a score 0.0e\+00", last)


@pytest.mark.slow  # starts two interpreters
def test_the_benchmark_compares_loss_curves_and_writes_what_it_measured(tmp_path, monkeypatch):
    monkeypatch.setitem(bench_sklearn.DIGITS, "max_iter", 2)
    path = tmp_path / "results.json"
    bench_sklearn.main(["--only", "1", "--rounds", "2", "--out", str(path)])
    (row,) = json.loads(path.read_text())["cases"]
    assert row["loss_difference"]["scikit-learn"] < 1e-10
    assert row["loss_difference"]["torch"] < 1e-10
    assert {len(seconds) for seconds in row["seconds"].values()} == {2}
    assert row["ratio"].keys() == {"scikit-learn", "torch", "torch fused"}
    for ratio in row["ratio"].values():
        assert ratio["least"] <= ratio["median"] <= ratio["largest"]
    assert row["device"] == "cpu"
