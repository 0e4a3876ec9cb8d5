"""bench_torch and bench_sklearn: providers and problems of the one harness, held to oracles first."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import bench_products, bench_sklearn, bench_torch
from benchmarks import front_ends as command
from gpubackprop.bench import front_ends, harness, operations, record, torch_peer, worker
from gpubackprop.bench.shapes import Case, products
from gpubackprop.bench.timers import Timer
from tests.benchmark_records import InProcess

torch = pytest.importorskip("torch", reason="what is measured is gpubackprop.torch")
ENTROPY = Case("softmax_cross_entropy", (9, 5))
LINEAR = Case("linear_cross_entropy", (9, 4, 7))
GELU = Case("linear_gelu", (9, 4, 7))
DIGITS = Case("fit", (2, 200, 1797, 64, 16, 10), "float64", "digits")


@pytest.fixture
def here(monkeypatch):
    """Workers in this process, short rounds."""
    monkeypatch.setattr(harness, "Process", InProcess)
    monkeypatch.setattr(command, "ROUND_SECONDS", 1e-4)


@pytest.mark.parametrize("case", [LINEAR, GELU], ids=lambda case: case.op)
def test_the_oracle_of_a_linear_problem_is_pytorchs_also_where_rows_repeat(case):
    case = replace(case, dtype="float64")
    problem = operations.get(case.op)
    inputs = {name: torch.tensor(array) for name, array in problem.inputs(case).items()}
    x, W = (inputs[name].requires_grad_() for name in ("x", "W"))
    a = x @ W.T
    if case.op == "linear_gelu":
        loss = torch.nn.functional.gelu(a).square().mean()
    else:
        loss = torch.nn.functional.cross_entropy(a, inputs["labels"])
    loss.backward()
    found = {"loss": loss.item(), "grad_x": x.grad.numpy(), "grad_W": W.grad.numpy()}
    assert problem.check(case, found)[1] < 1e-13
    found["grad_W"][0, 0] += 1e-3
    assert problem.check(case, found)[0] > 1


@pytest.mark.parametrize("provider", ["gpubackprop.torch", "torch eager"])
@pytest.mark.parametrize("case", [ENTROPY, LINEAR, GELU, Case("update_many", (2 * 4096,), variant="adam")],
                         ids=lambda case: case.op)  # fmt: skip
def test_a_front_end_and_pytorch_do_what_the_oracle_does(case, provider):
    work = torch_peer.setup(case, Timer(), provider)
    assert operations.get(case.op).check(case, work.outputs())[0] <= 1
    work.run()


def test_large_linear_rows_repeat_so_that_the_oracle_is_quick():
    large = Case("linear_cross_entropy", (4096, 4096, 128_256), "bfloat16")
    assert operations.get(large.op).tiling(large).block == 16
    assert operations.get(LINEAR.op).tiling(LINEAR).block == 9


def test_a_wrong_and_an_absent_provider_are_named_and_not_timed(
    here, monkeypatch, capsys, tmp_path
):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.neural_network", None)
    import gpubackprop.torch as gt

    monkeypatch.setattr(gt, "cross_entropy", lambda z, y: 2 * z.sum())
    monkeypatch.setattr(bench_torch, "torch_cases", lambda kind: iter([ENTROPY]))
    out = tmp_path / "record.json"
    assert bench_torch.main([str(out), "--rounds", "2", "--providers", "gpubackprop,eager"]) == 1
    rows = {row.provider: row for row in record.rows_of(record.load(out))}
    assert rows["gpubackprop.torch"].note.startswith("WRONG: differs from the oracle by")
    assert not rows["gpubackprop.torch"].seconds
    assert rows["torch eager"].seconds
    assert rows["torch eager"].ratio is None
    session = worker.Session("gpubackprop.sklearn", "cpu")
    answer = session.do({"do": "prepare", "case": vars(DIGITS)})
    assert "sklearn" in answer["missing"]
    with pytest.raises(SystemExit):
        bench_torch.main(["--providers", "nobody"])
    assert "no provider 'nobody'; valid are gpubackprop, eager" in capsys.readouterr().err


def test_a_record_has_ratios_to_the_front_end_and_is_read_as_any_other(
    here, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(bench_torch, "torch_cases", lambda kind: iter([ENTROPY, LINEAR]))
    out = tmp_path / "record.json"
    arguments = ["--rounds", "2", "--providers", "gpubackprop,eager", "--cases", "linear"]
    assert bench_torch.main([str(out), *arguments]) == 0
    assert bench_torch.main(arguments) == 0  # as `make bench` calls it: no file
    loaded = record.load(out)
    assert loaded["versions"]["torch"] == torch.__version__
    ours, eager = record.rows_of(loaded)
    assert (ours.case, ours.provider) == ("linear_cross_entropy/f32/9x4x7", "gpubackprop.torch")
    assert len(eager.rounds) == 2
    assert eager.ratio == pytest.approx(np.median(np.divide(ours.rounds, eager.rounds)), rel=1e-3)
    assert "ours / theirs" in capsys.readouterr().out


@pytest.mark.slow
def test_fits_are_held_to_scikit_learns_loss_curve_and_timed(here, monkeypatch, tmp_path):
    monkeypatch.setattr(bench_sklearn, "fit_cases", lambda sizes: iter([DIGITS]))
    path = tmp_path / "results.json"
    assert bench_sklearn.main(["--only", "0", "--rounds", "2", "--out", str(path)]) == 0
    rows = {row.provider: row for row in record.rows_of(record.load(path))}
    assert set(rows) == set(bench_sklearn.NAMES)
    for row in rows.values():
        assert row.error < 1e-10
        assert len(row.rounds) == 2
        assert row.ratio_p20 <= row.ratio <= row.ratio_p80
        assert row.device == "cpu"


def test_a_fit_with_another_loss_curve_is_wrong():
    fit = operations.get("fit")
    curve = fit.losses(replace(DIGITS, dtype="float32"))
    assert len(curve) == 2
    assert fit.check(replace(DIGITS, dtype="float32"), {"losses": curve * 1.0005})[0] <= 1
    assert fit.check(replace(DIGITS, dtype="float32"), {"losses": curve * 1.002})[0] > 1
    exact = fit.losses(DIGITS) * (1 + 1e-9)
    assert fit.check(DIGITS, {"losses": exact})[0] > 1
    assert fit.check(DIGITS, {"losses": exact, "exact": False})[0] <= 1


def test_the_commands_measure_the_cases_that_their_documents_name():
    names = [case.name for case in front_ends.torch_cases("cpu")]
    assert names == [
        "softmax_cross_entropy/f32/4096x1000", "softmax_cross_entropy/f32/256x50257",
        "softmax_cross_entropy/f32/65536x10", "linear_cross_entropy/f32/256x64x4008",
        "linear_gelu/f32/512x512x512", "update_many/adam/f32/4096000",
    ]  # fmt: skip
    assert len(list(front_ends.torch_cases("cuda"))) == 8
    fits = [case.name for case in front_ends.fit_cases(False)]
    assert fits[0] == "fit/digits/f64/1797x64-128-10/batch32/epochs50"
    assert fits[-1] == "fit/random/f32/20000x784-512-512-10/batch256/epochs2"
    assert (len(fits), len(list(front_ends.fit_cases(True)))) == (7, 6)


def test_both_libraries_compute_the_products_of_a_step():
    batch, widths = 5, (7, 6, 4, 3)
    pairs = bench_products.operands(batch, widths)
    shapes = [(*x.shape, y.shape[1]) for x, y in pairs]
    assert sorted(shapes) == sorted(products(Case("training_step", (batch, *widths))))
    for x, y in pairs:
        exact = x.astype(np.float64) @ y.astype(np.float64)
        for product in bench_products.LIBRARIES.values():
            np.testing.assert_allclose(product(x, y)(), exact, rtol=1e-5, atol=1e-5)


def test_the_table_of_products_has_times_rates_and_ratios():
    row = {"threads": 1, "batch": 64, "numpy": 2e-3, "torch": 1e-3, "ratio": 2.0}
    work = 2 * 64 * (2 * (784 * 512 + 512 * 512 + 512 * 10) + 512 * 512 + 512 * 10)
    assert f"| 1 | 64 | 2.00 ms, {work / 2e6:.0f} GFLOP/s | 1.00 ms" in bench_products.table([row])
