"""benchmarks/bench_torch.py runs, checks before it times, and names what is wrong or missing."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import bench_torch

SMALL = bench_torch.Case(
    "small",
    lambda g: [torch.randn(8, 5, generator=g), torch.randint(5, (8,), generator=g)],
    next(iter(bench_torch.cases("cpu"))).functions,
    1e-4,
)


def test_a_wrong_and_an_absent_contestant_are_named_and_not_timed(monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    wrong = replace(SMALL, functions=SMALL.functions | {"gpubackprop": lambda z, y: 2 * z.sum()})
    rows = bench_torch.measure(wrong, "cpu", 1, ("gpubackprop", "eager", "liger"))
    ours, _, liger = rows
    assert ours["note"].startswith("WRONG: differs from float64 by")
    assert liger["note"].startswith("not measured: ModuleNotFoundError")
    assert [("seconds" in row, "ratio" in row) for row in rows] == [
        (False, False), (True, False), (False, False),
    ]  # fmt: skip


@pytest.mark.slow
def test_the_record_has_times_ratios_and_versions(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_torch, "cases", lambda device: iter([SMALL]))
    out = tmp_path / "record.json"
    arguments = [
        str(out),
        "--rounds",
        "2",
        "--contestants",
        "gpubackprop,eager",
        "--cases",
        "small",
    ]
    assert bench_torch.main(arguments) == 0
    assert bench_torch.main(arguments[1:]) == 0  # as `make bench` calls it: no file
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["environment"]["versions"]["torch"] == torch.__version__
    assert [row["contestant"] for row in record["rows"]] == ["gpubackprop", "eager"]
    for row in record["rows"]:
        assert len(row["rounds"]) == 2
        assert row["seconds"] > 0
        assert row["ratio"] > 0
    assert "ours / theirs" in capsys.readouterr().out
