"""`make gpu`: its stages as far as they go without a GPU, and the table of tests/README.md.

The stages themselves run here on the CuPy stand-in and the emulated kernels, in processes of their
own. Not measured on a GPU.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gpubackprop.backends import devices
from gpubackprop.bench import cases, parity, record
from tests import emulator
from tools.gpu import __main__ as proof
from tools.gpu import parity as parity_stage
from tools.gpu.common import SKIPPED
from tools.gpu.judging import Outcome, judge, summary
from tools.gpu.running import Ended
from tools.gpu.stages import STAGES, Stage

TESTS = Path(__file__).parent
emulated = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
STAND_IN = """
import sys
from pathlib import Path
from gpubackprop.backends import devices
from gpubackprop.backends.cupy import CupyBackend
from tests.emulator import cupy_stub

devices.choose = lambda device: ("cpu", "") if device == "cpu" else ("cuda:0", "emulated")

out = Path(sys.argv[1])
with cupy_stub.installed():
"""


def on_the_stand_in(program: str, out: Path) -> subprocess.CompletedProcess[str]:
    text = STAND_IN + "".join(f"    {line}\n" for line in program.strip().splitlines())
    return subprocess.run(
        [sys.executable, "-c", text, str(out)], capture_output=True, text=True, timeout=280
    )


def stage(name: str, program: str, seconds: float = 60) -> Stage:
    return Stage(name, "", seconds, lambda out, limit: [sys.executable, "-c", program])


# -- the stages one after another -----------------------------------------------------------------


def test_a_stage_that_fails_hangs_crashes_or_is_missing_stops_none_of_the_next(tmp_path):
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    stages = [
        stage("one", "print('all well')"),
        stage("two", "raise SystemExit('no good')"),
        stage("three", "import time; time.sleep(60)", seconds=3),
        Stage("four", "", 9, lambda out, limit: "the tool is not installed"),
        Stage("five", "", 9, lambda out, limit: [str(tmp_path / "nowhere")]),
        stage("six", f"print('no card'); raise SystemExit({SKIPPED})"),
        stage("seven", crash),
        stage("eight", "print('the last')"),
    ]
    outcomes = [proof.run_stage(one, tmp_path, one.seconds) for one in stages]
    proof.write(tmp_path, outcomes, stages)
    assert [one.status for one in outcomes] == [
        "ok", "failed", "timeout", "skipped", "failed", "skipped", "crashed", "ok"
    ]  # fmt: skip
    assert outcomes[1].note == "exit code 1: no good"
    assert outcomes[2].seconds < 10
    assert outcomes[5].note == "no card"
    assert "SIGSEGV" in outcomes[6].note
    written = json.loads((tmp_path / "stages.json").read_text())
    assert [row["name"] for row in written] == [one.name for one in stages]
    text = (tmp_path / "summary.md").read_text()
    assert "| eight | ok |" in text
    assert "Not well: two (failed), three (timeout), five (failed), seven (crashed)." in text


def test_a_stage_over_its_limit_is_interrupted_first_so_that_its_report_survives(tmp_path):
    """pytest writes its report at SIGINT; what heeds no signal is killed."""
    report = tmp_path / "three.json"
    told = (
        "import json, time\n"
        "try:\n    time.sleep(60)\n"
        f"except KeyboardInterrupt:\n    json.dump({{'note': '7 done'}}, open({str(report)!r}, 'w'))"
    )
    outcome = proof.run_stage(stage("three", told), tmp_path, 4)
    assert (outcome.status, "7 done" in outcome.note) == ("timeout", True)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    outcome = proof.run_stage(stage("four", deaf), tmp_path, 3)
    assert (outcome.status, "killed" in outcome.note) == ("timeout", True)
    assert outcome.seconds < 10


def test_a_stage_leaves_no_process_behind(tmp_path):
    child = "import time; time.sleep(3); open('left', 'w')"
    program = (
        f"import os, subprocess, sys, time; os.chdir({str(tmp_path)!r});"
        f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    )
    proof.run_stage(stage("parent", program), tmp_path, 2.0)
    subprocess.run([sys.executable, "-c", "import time; time.sleep(3)"], check=True)
    assert not (tmp_path / "left").exists()


def test_what_a_stage_leaves_of_its_time_goes_to_the_next_and_no_time_is_a_skip(tmp_path):
    limits = []

    def noted(out, limit):
        limits.append(limit)
        return [sys.executable, "-c", "1"]

    stages = [
        Stage("one", "", 60, noted),
        Stage("two", "", 60, noted),
        Stage("three", "", 60, noted),
    ]
    proof.run_all(stages, tmp_path, proof.MINUTES)
    assert limits[0] < limits[1] < limits[2]
    outcomes = proof.run_all(stages, tmp_path, 1e-3)
    assert {one.note for one in outcomes} == {"no time was left"}


def test_the_stages_come_in_the_order_of_their_worth_and_end_within_eight_minutes(tmp_path, capsys):
    names = [one.name for one in STAGES]
    assert names == [
        "environment", "compile", "parity", "memcheck", "racecheck", "pytest", "benchmarks",
        "training",
    ]  # fmt: skip
    assert sum(one.seconds for one in STAGES) <= 60 * proof.MINUTES
    with pytest.raises(SystemExit):
        proof.main([str(tmp_path), "--stages", "environment,nonsense"])
    assert "no stage 'nonsense'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", ["========= Device not supported", "not supported on this device"]
)
def test_a_sanitizer_that_this_machine_cannot_run_is_skipped_and_one_that_ran_nothing_failed(
    tmp_path, words
):
    log = tmp_path / "memcheck.log"
    log.write_text(f"{words}\n")
    for code in (0, 1, 86):
        assert judge("memcheck", Ended(code, 1.0), log, tmp_path).status == "skipped"
    log.write_text("nothing\n")
    assert judge("memcheck", Ended(0, 1.0), log, tmp_path).status == "failed"
    (tmp_path / "memcheck.json").write_text("{}")
    assert judge("memcheck", Ended(0, 1.0), log, tmp_path).status == "ok"
    log.write_text("========= ERROR SUMMARY: 3 errors\n")
    outcome = judge("memcheck", Ended(86, 1.0), log, tmp_path)
    assert (outcome.status, "3 errors" in outcome.note) == ("failed", True)


@pytest.mark.parametrize("stage", ["benchmarks", "bench_torch"])
def test_a_wrong_result_and_a_faster_peer_in_a_stages_record_are_among_the_worst(tmp_path, stage):
    log = tmp_path / "stage.log"
    log.write_text("done\n")
    shared = {"case": "c", "op": "update", "device": "cuda:0", "threads": 1}
    rows = [
        shared | {"provider": "cupy_raw", "note": "WRONG: differs"},
        shared | {"provider": "torch eager", "seconds": 1.0, "ratio": 2.0},
    ]
    made = record.new("cpu", {}) | {"device": "cuda:0", "rows": rows}
    record.write(tmp_path / f"{stage}.json", made)
    outcome = judge(stage, Ended(0, 1.0), log, tmp_path)
    assert [text for _, text in outcome.worst] == [
        "c, cupy_raw: WRONG: differs", "c, torch eager is 2.00 times as fast as ours"
    ]  # fmt: skip


def test_an_error_of_cuda_on_a_gpu_is_no_skip(tmp_path):
    log = tmp_path / "training.log"
    log.write_text("error: a step on the GPU: cudaErrorIllegalAddress\n")
    assert judge("training", Ended(1, 1.0), log, tmp_path).status == "failed"
    log.write_text('error: device="cuda" was asked for but no NVIDIA driver found\n')
    assert judge("training", Ended(1, 1.0), log, tmp_path).status == "skipped"


def test_the_summary_names_the_ten_worst_results_of_all_stages_first(tmp_path):
    mild = Outcome("parity", "ok", 1.0, worst=[(0.5 + n / 100, f"case {n}") for n in range(12)])
    grave = Outcome("compile", "failed", 1.0, worst=[(1e6, "softmax does not compile")])
    lines = summary([mild, grave], {}).splitlines()
    assert "The 10 worst results of 13:" in lines
    assert lines[6] == "1. compile: softmax does not compile"
    assert lines[7] == "2. parity: case 11"
    assert "10. parity: case 3" in lines
    assert not any("case 2" in line for line in lines)


def test_without_a_gpu_every_stage_says_why_and_the_environment_is_written(tmp_path):
    if devices.choose("auto")[0] != "cpu":
        pytest.skip("this machine has a GPU that works")
    names = "environment,compile,parity,pytest,benchmarks,training"
    assert proof.main([str(tmp_path), "--stages", names]) == 0
    found = json.loads((tmp_path / "stages.json").read_text())
    assert [row["status"] for row in found] == ["ok", *["skipped"] * 5]
    assert all("was asked for but" in row["note"] for row in found[1:])
    assert "not measured on a GPU" in (tmp_path / "summary.md").read_text()
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["device"] == "cpu"
    assert {"nvidia_smi", "versions", "commit", "probe", "cupy"} <= environment.keys()


# -- the stages on the stand-in -------------------------------------------------------------------


@emulated
@pytest.mark.slow
def test_every_kernel_but_those_without_a_verb_is_launched(tmp_path):
    program = """
from tools.gpu.every_kernel import main
sys.argv = ["every_kernel", str(out / "memcheck.json")]
sys.exit(main())
"""
    done = on_the_stand_in(program, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "memcheck.json").read_text())
    assert found["not_launched"] == []
    assert len(found["entries"]) > 80


@emulated
@pytest.mark.slow
def test_check_on_a_device_compares_every_verb_and_then_the_gradients(tmp_path):
    program = """
from gpubackprop.cli import check, main
check.check_all = lambda seed, device: iter([("a gradient on " + device, 1e-9, True)])
sys.exit(main(["check", "--device", "cuda"]))
"""
    done = on_the_stand_in(program, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a gradient on cuda:0" in done.stdout
    for name in ("softmax_cross_entropy", "activation_backward", "update", "training"):
        assert re.search(rf"^{name} +float32 +[0-9.]+ units .* ok$", done.stdout, re.MULTILINE)
    assert "comparisons of cuda:0 with the CPU, 0 failed" in done.stdout


@emulated
def test_check_on_a_device_fails_where_a_verb_is_wrong(tmp_path):
    program = """
from gpubackprop.bench import parity
from gpubackprop.cli import check, main
check.check_all = lambda seed, device: iter([("a", 1e-9, True)])
check.parity.training_results = lambda *args, **options: iter(())
every = parity.compared
parity.compared = lambda **short: (case for case in every(**short) if case.op == "column_sum")
def wrong(self, x, out):
    out.fill(3)
CupyBackend.column_sum = wrong
sys.exit(main(["check", "--device", "cuda", "--quiet"]))
"""
    done = on_the_stand_in(program, tmp_path)
    assert done.returncode == 1
    assert "column_sum 7x33 float64" in done.stdout
    assert re.search(
        r"comparisons of cuda:0 with the CPU failed, the first: column_sum", done.stderr
    )


def test_a_verb_that_raises_is_a_row_of_the_table_and_not_its_end(tmp_path):
    class Broken:
        device = "cuda:0"

        def asarray(self, array):
            raise RuntimeError("out of order\nand more")

    rows = [parity.compare(Broken(), case) for case in list(cases.compared(short=True))[:3]]
    assert [row.error for row in rows] == ["RuntimeError: out of order"] * 3
    assert not any(row.passed for row in rows)
    parity_stage.write(tmp_path, rows)
    table = (tmp_path / "parity.md").read_text()
    assert "| activation_forward | float32 |" in table
    assert "## Failed" in table
    assert len(json.loads((tmp_path / "parity.json").read_text())["rows"]) == 3


def test_every_operation_has_cases_and_every_result_a_limit():
    operations = {case.op for case in cases.compared(short=True)}
    assert operations == {
        "activation_forward", "activation_backward", "affine_forward", "affine_backward", "affine_layer",
        "column_sum", "softmax_cross_entropy", "pointwise_loss", "update", "sum_of_squares",
        "gather_rows", "output",
    }  # fmt: skip


# -- tests/README.md ------------------------------------------------------------------------------


def test_every_test_that_the_readme_names_exists():
    text = (TESTS / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)\.py::(test_\w+)`", text))
    assert len(named) > 60
    missing = []
    for file, test in sorted(named):
        path = TESTS / f"{file}.py"
        if not path.exists() or f"def {test}(" not in path.read_text(encoding="utf-8"):
            missing.append(f"{file}.py::{test}")
    assert missing == []


def test_every_row_of_the_case_tables_names_a_test_or_says_that_there_is_none():
    text = (TESTS / "README.md").read_text(encoding="utf-8").partition("## Nasty cases")[2]
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith(("| case", "| ---"))]
    assert len(rows) > 30
    assert [row for row in rows if "::test_" not in row and "not covered yet" not in row] == []
