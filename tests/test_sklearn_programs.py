"""The example of the estimators, run at small size."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_the_grid_search_example_finds_the_same_scores_before_and_after(monkeypatch, capsys):
    arguments = ["sklearn_grid_search.py", "--rows", "150", "--epochs", "4", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(EXAMPLES / "sklearn_grid_search.py"), run_name="__main__")
    before, after, last = capsys.readouterr().out.splitlines()
    best = [line.split("best accuracy ")[1] for line in (before, after)]
    assert best[0] == best[1]
    assert re.fullmatch(r"time ratio [\d.]+, largest difference of a score 0.0e\+00", last)
