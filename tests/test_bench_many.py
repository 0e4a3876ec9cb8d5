"""The benchmark of many networks: held to a loop by hand, measured by the one harness, drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import bench_many, front_ends
from gpubackprop.bench import harness, many, many_picture, many_runs, operations, record
from gpubackprop.bench.providers import IN_TURN, MANY, PROCESSES
from gpubackprop.bench.shapes import Case
from gpubackprop.bench.timers import Timer
from tests.benchmark_records import InProcess

CASE = Case("fit_many", (3, 4, 8, 32, 5, 6, 3))


def test_the_oracle_has_pytorchs_losses_of_the_first_and_the_last_network() -> None:
    data, found = many.ManyData(CASE), []
    x, labels = (torch.tensor(array) for array in data.data())
    for network in (0, 2):
        W, b = data.weights(network)
        layers = [torch.nn.Linear(5, 6), torch.nn.Linear(6, 3)]
        for layer, weight, bias in zip(layers, W, b, strict=True):
            layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
        model = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1]).double()
        adam = torch.optim.Adam(model.parameters(), 1e-3, eps=1e-12)
        for _ in range(3):
            losses = []
            for start in range(0, 32, 8):
                batch = slice(start, start + 8)
                loss = torch.nn.functional.cross_entropy(model(x[batch].double()), labels[batch])
                adam.zero_grad()
                loss.backward()
                adam.step()
                losses.append(loss.item())
            found.append(np.mean(losses))
    np.testing.assert_allclose(operations.get("fit_many").losses(CASE), found, rtol=1e-9)


@pytest.mark.parametrize("provider", [MANY, PROCESSES, IN_TURN])
def test_every_provider_trains_what_the_oracle_trains(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_runs, "available_cores", lambda: 2)
    work = many_runs.setup(CASE, many_runs.timer("cpu", provider), provider)
    found = work.outputs()
    problem = operations.get("fit_many")
    assert problem.check(CASE, found)[0] <= 1
    assert problem.check(CASE, {"losses": found["losses"] * 1.001})[0] > 1
    assert len(work.run()) == 3
    assert work.remark() == ("2 processes" if provider == PROCESSES else "")


def test_cases_are_measured_and_drawn_against_their_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "Process", InProcess)
    monkeypatch.setattr(front_ends, "ROUND_SECONDS", 1e-4)
    monkeypatch.setattr(many_runs, "available_cores", lambda: 1)
    cases = [Case("fit_many", (n, 2, 8, 16, 5, 6, 3)) for n in (1, 2, 4, 100)]
    monkeypatch.setattr(many, "many_cases", lambda: iter(cases))
    out, picture = tmp_path / "many.json", tmp_path / "many.png"
    arguments = ["--rounds", "2", "--out", str(out), "--picture", str(picture)]
    assert bench_many.main(arguments) == 0
    rows = record.rows_of(record.load(out))
    assert [row.case for row in rows[::3]] == [
        f"fit_many/f32/16x5-6-3/batch8/epochs2/networks{n}" for n in (1, 2, 4)
    ]
    assert {row.provider for row in rows} == {MANY, PROCESSES, IN_TURN}
    assert all(row.seconds and not row.wrong for row in rows)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("ours / theirs") == 6
    again = tmp_path / "again.png"
    assert bench_many.main(["--draw", str(out), "--picture", str(again)]) == 0
    assert again.stat().st_size == pytest.approx(picture.stat().st_size, rel=0.05)
    few = record.load(out)
    few["rows"] = [row for row in few["rows"] if row["case"].endswith(("networks1", "networks2"))]
    assert many_picture.picture(few) is None


def test_the_crossing_is_that_of_processes_on_the_cpu() -> None:
    in_turn = {1: 1.0, 2: 2.0, 4: 4.0}
    assert many_picture._crossing({1: 2.0, 2: 2.0, 4: 2.0}, in_turn) == pytest.approx(2.0)
    assert many_picture._crossing({1: 2.0, 2: 3.0, 4: 5.0}, in_turn) is None
    assert many_picture._crossing({}, in_turn) is None


def test_the_documented_cases_are_there() -> None:
    names = [case.name for case in many.many_cases()]
    assert names[0] == "fit_many/f32/1792x64-128-10/batch128/epochs20/networks1"
    assert [case.shape[0] for case in many.many_cases()] == [1, 2, 4, 8, 16, 32, 64, 640]
    problem: Any = operations.get("fit_many")
    assert problem.bytes(CASE) == 3 * 4 * 32 * 5 * 4
    assert problem.flops(CASE) == 6 * 3 * 4 * 32 * (5 * 6 + 6 + 6 * 3 + 3)
    assert isinstance(many_runs.timer("cuda:0", MANY), Timer)
