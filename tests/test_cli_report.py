"""``report.html`` and ``--log`` of ``gpubackprop train``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli_runs import QUICK, flowers, houses, ok, run_cli, write_table
from tests.test_report import Reader


def report(folder: Path, table: dict[str, Any], target: str, *options: str) -> tuple[Reader, Any]:
    """Train on the table; return the report as it is read, and the summary."""
    data = write_table(folder / "data.csv", table)
    ok("train", data, "--target", target, *QUICK, *options, "--output", folder / "run", "--quiet")
    text = (folder / "run" / "report.html").read_text(encoding="utf-8")
    return Reader(text), json.loads((folder / "run" / "summary.json").read_text())


def cells(read: Reader, name: str) -> list[str]:
    return next(row for row in read.rows if row and row[0] == name)


def test_the_report_of_a_classification_has_the_figures_of_the_summary(tmp_path):
    rng = np.random.default_rng(0)
    table = flowers(120) | {"noise": rng.normal(size=120), "colour": rng.choice(["r", "g"], 120)}
    read, summary = report(
        tmp_path, table, "kind", "--epochs", "30", "--lr", "0.05", "--drop", "colour"
    )
    parts = ("train", "validation", "test")
    base = summary["baseline"]["accuracy"]
    wanted = [*(summary[f"{part}_accuracy"] for part in parts), base]
    assert cells(read, "accuracy")[1:] == [f"{value:.4f}" for value in wanted]
    headings = "".join(read.words)
    for heading in ("Learning curves", "Confusions", "Classes", "Importance", "How it was made"):
        assert heading in headings
    importance = {row[0]: float(row[1]) for row in read.rows if len(row) == 4 and row[2][:1] == "±"}
    assert set(importance) == {"length", "width", "noise"}
    assert min(importance["length"], importance["width"]) > 0.2
    assert abs(importance["noise"]) < 0.1
    assert cells(read, "colour") == ["colour", "left out: dropped"]
    assert str(tmp_path / "run" / "report.html") in summary["files"]
    assert read.links == []


def test_the_report_of_a_regression_draws_predictions_and_errors(tmp_path):
    read, summary = report(tmp_path, houses(), "price")
    words = "".join(read.words)
    assert "price, predicted against true" in words
    assert "price, errors" in words
    assert "R²" in words
    shown = float(cells(read, "rmse")[3].replace(",", ""))
    assert shown == pytest.approx(summary["test_rmse"], rel=1e-3)


def test_the_report_of_several_labels_has_a_line_for_each(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 2))
    table = {"a": x[:, 0], "b": x[:, 1], "up": (x[:, 0] > 0) * 1, "right": (x[:, 1] > 0) * 1}
    read, summary = report(tmp_path, table, "up", "--target", "right")
    assert summary["task"] == "multilabel"
    assert len(cells(read, "up")) == len(cells(read, "right")) == 5


def test_pixels_are_not_shuffled_one_by_one(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "pixels.npz",
        x=rng.integers(0, 255, (40, 300)).astype(np.uint8),
        y=np.arange(40) % 2,
    )
    ok(
        "train",
        tmp_path / "pixels.npz",
        "--features",
        "x",
        "--target",
        "y",
        *QUICK,
        "--output",
        tmp_path / "run",
    )
    words = "".join(Reader((tmp_path / "run" / "report.html").read_text()).words)
    assert "Not measured: 300 columns are more than 200" in words


def test_the_epochs_are_logged_for_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tests.test_loggers import events

    _, summary = report(tmp_path, flowers(), "kind", "--log", "tensorboard")
    found = events(tmp_path / "run" / "tensorboard")
    assert [step for step, _ in found["val_loss"]] == list(range(1, summary["epochs"] + 1))


def test_a_logger_without_its_package_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    for module in ("tensorboard", "tensorboard.summary"):
        monkeypatch.setitem(sys.modules, module, None)
    data = write_table(tmp_path / "data.csv", flowers())
    options = ("--target", "kind", *QUICK, "--log", "tensorboard", "--output", tmp_path / "run")
    refused = run_cli("train", data, *options)
    assert refused.code == 1
    assert "gpubackprop[tensorboard]" in refused.err
    assert not (tmp_path / "run").exists()
