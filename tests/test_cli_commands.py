"""The front door: help, versions, exit codes, and the commands check, bench and info."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
from functools import partial

import pytest

import gpubackprop
from gpubackprop.backends import devices
from gpubackprop.backends.cuda_driver import DriverReport, Gpu
from gpubackprop.backends.devices import CudaLibrary, CupyReport, DeviceReport, Missing
from gpubackprop.backends.host import CpuReport
from gpubackprop.cli import COMMANDS, bench, check, common, info, main, one_line
from gpubackprop.formulas import ACTIVATIONS
from gpubackprop.gradient_check import all_labels
from gpubackprop.optimizers import OPTIMIZERS
from tests.cli_runs import COMMAND, ENVIRONMENT, ok, run_cli


def run_python(*arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=60,
        check=False, **options,
    )  # fmt: skip


# -- help and usage -------------------------------------------------------------------------------


def test_help_lists_every_command_with_its_purpose_and_examples():
    text = ok("--help").out
    for command, purpose in COMMANDS.items():
        assert f"    {command} " in text
        assert purpose.split(",")[0] in " ".join(text.split())
    assert "examples:" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_has_examples_that_its_parser_takes(command):
    text = ok(command, "--help").out
    examples = [
        line.split(maxsplit=1)[1]
        for line in text.replace("\\\n", " ").splitlines()
        if line.startswith("  gpubackprop ")
    ]
    assert examples
    for example in examples:
        arguments = example.partition(" > ")[0].split()
        assert arguments[0] == command
        gpubackprop.cli.build_parser(arguments).parse_args(arguments)


def test_the_help_of_train_names_all_that_the_library_has():
    text = ok("train", "--help").out
    for name in [*ACTIVATIONS, *OPTIMIZERS]:
        assert name in text


def test_help_does_not_wait_for_numpy():
    code = (
        "import sys; from gpubackprop.cli import main; code = main(['--help'])\n"
        "assert 'numpy' not in sys.modules; sys.exit(code)"
    )
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr


def test_python_m_is_the_command():
    result = run_python("-m", "gpubackprop", "--version")
    assert (result.returncode, result.stdout) == (0, f"gpubackprop {gpubackprop.__version__}\n")


def test_main_returns_the_exit_code_of_usage_errors():
    assert run_cli("train", "--no-such-option").code == 2
    assert main(["--version"]) == 0


def test_a_reader_that_closes_the_pipe_is_no_error(tmp_path):
    shell = f"{' '.join(COMMAND)} check; echo code $? >&2"
    result = subprocess.run(
        ["bash", "-c", f"( {shell} ) | head -1"], env=ENVIRONMENT, capture_output=True, text=True,
        timeout=120, check=True,
    )  # fmt: skip
    assert result.stderr == "code 141\n"
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\n  two"), "one two"),
        (FileNotFoundError(2, "No such file", "a.csv"), "a.csv: No such file"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_an_error_is_put_on_one_line(error, line):
    assert one_line(error) == line


def test_out_of_memory_says_what_to_do():
    assert "smaller network or batch size" in one_line(MemoryError())


# -- threads --------------------------------------------------------------------------------------


def test_threads_are_handed_to_the_blas_before_numpy_is_imported():
    code = (
        "import sys; from gpubackprop.cli import main; code = main(['bench', '--help', '--threads=1'])\n"
        "import os; print(os.environ['OPENBLAS_NUM_THREADS'])"
    )
    assert run_python("-c", code).stdout.splitlines()[-1] == "1"


def test_without_threadpoolctl_a_started_blas_is_not_silently_left_alone(monkeypatch):
    monkeypatch.setattr(common.importlib.util, "find_spec", lambda name: None)
    cpu = CpuReport("a CPU", 8, 8, "scipy-openblas", "0.3.31", 8)
    monkeypatch.setattr(common, "probe_cpu", lambda: cpu)
    result = run_cli("check", "--threads", "3")
    assert result.code == 1
    assert "OPENBLAS_NUM_THREADS=3" in result.err


# -- check ----------------------------------------------------------------------------------------


def fake_checks(*rows):
    return lambda seed=0: iter(rows)


def test_check_ends_with_the_worst_error(monkeypatch):
    monkeypatch.setattr(check, "check_all", fake_checks(("a", 1e-9, True), ("b", 3.1e-10, True)))
    result = ok("check")
    first, second, summary, worst = result.out.splitlines()
    assert first.split() == ["a", "1.0e-09", "ok"]
    assert second.split() == ["b", "3.1e-10", "ok"]
    assert "2 checks" in summary
    assert worst == "worst relative error: 1.0e-09"
    assert ok("check", "--quiet").out == "worst relative error: 1.0e-09\n"


def test_a_failed_check_is_named_and_exits_with_1(monkeypatch):
    rows = (("a", 1e-9, True), ("wrong slope", 0.3, False))
    monkeypatch.setattr(check, "check_all", fake_checks(*rows))
    result = run_cli("check", "--quiet")
    assert result.code == 1
    assert "wrong slope" in result.err
    assert "FAILED" in result.out
    result = run_cli("check", "--json")
    assert (result.code, result.json["passed"], result.json["worst_relative_error"]) == (
        1,
        False,
        0.3,
    )
    assert result.json["checks"][1] == {
        "check": "wrong slope", "worst_relative_error": 0.3, "passed": False
    }  # fmt: skip


def test_a_check_that_is_nan_is_the_worst(monkeypatch):
    rows = (("a", float("nan"), False), ("b", 1e-9, True))
    monkeypatch.setattr(check, "check_all", fake_checks(*rows))
    result = run_cli("check")
    assert result.code == 1
    assert result.out.splitlines()[-1] == "worst relative error: nan"


def test_no_checks_at_all_are_a_failure(monkeypatch):
    monkeypatch.setattr(check, "check_all", fake_checks())
    assert run_cli("check").code == 1
    result = run_cli("check", "--json")
    assert (result.code, result.json["passed"]) == (1, False)


def test_the_seed_reaches_the_checks(monkeypatch):
    monkeypatch.setattr(check, "check_all", lambda seed: iter([("a", float(seed), True)]))
    assert ok("check", "--seed", "7").out.endswith("7.0e+00\n")


@pytest.mark.slow
def test_the_library_passes_its_check(monkeypatch, sweep):
    assert len(all_labels()) >= 2 * len(ACTIVATIONS)
    labels = sweep.cases(all_labels(), keep=15)
    if not sweep.is_whole:
        monkeypatch.setattr(check, "check_all", partial(check.check_all, labels=labels))
    result = ok("check", "--json")
    assert result.json["worst_relative_error"] <= 1e-7
    assert [row["check"] for row in result.json["checks"]] == labels


# -- bench ----------------------------------------------------------------------------------------


STEP = "training_step/adam/f32/784-512-512-10/batch256"


def measured(rows):
    """Stands in for `measure`: a record of these rows; nothing is timed."""
    from gpubackprop.bench import record

    def measure(settings, progress):
        progress(f"[1/1] {STEP}")
        return record.new(settings.device, settings.json()) | {"rows": rows}

    return measure


def bench_row(provider, **values):
    shared = {"case": STEP, "op": "training_step", "device": "cpu", "threads": 1}
    return shared | {"provider": provider} | values


def test_bench_prints_a_table_what_is_left_out_and_a_line_to_paste(monkeypatch, tmp_path):
    ours = bench_row("numpy", seconds=2e-3, share=0.7, limit="products")
    theirs = bench_row("torch eager", seconds=4e-3, ratio=0.5)
    absent = bench_row("thinc", note="not measured: No module named 'thinc'")
    monkeypatch.setattr(bench, "measure", measured([ours, theirs, absent]))
    result = ok("bench", "--device", "cpu", "--threads", "1", "--json", tmp_path / "bench.json")
    assert "device: cpu" in result.out
    assert re.search(rf"{STEP} +2 ms +0.70 products +torch eager 0.50", result.out)
    assert "thinc: not measured: No module named 'thinc'" in result.out
    assert "the GPU: the CPU was asked for" in result.out
    assert "step 784-512-512-10, batch 256: 2 ms (0.70 of products)" in result.out.splitlines()[-1]
    assert f"[1/1] {STEP}" in result.err
    assert json.loads((tmp_path / "bench.json").read_text())["rows"][1]["ratio"] == 0.5


def test_bench_json_to_stdout_is_only_json(monkeypatch):
    monkeypatch.setattr(bench, "measure", measured([bench_row("numpy", seconds=1.0)]))
    values = ok("bench", "--device", "cpu", "--threads", "1", "--json", "-").json
    assert [row["provider"] for row in values["rows"]] == ["numpy"]


def test_bench_fails_where_a_result_is_wrong(monkeypatch):
    wrong = bench_row("numpy", note="WRONG: differs from the oracle by 1.0e-01")
    monkeypatch.setattr(bench, "measure", measured([wrong]))
    result = run_cli("bench", "--device", "cpu", "--threads", "1")
    assert result.code == 1
    assert "1 result differed from the oracle, the first: numpy on" in result.err


def test_bench_passes_its_options_on(monkeypatch):
    given = []
    monkeypatch.setattr(bench, "measure", lambda settings, progress: given.append(settings) or
                        measured([])(settings, progress))  # fmt: skip
    ok("bench", "--full", "--op", "softmax", "--peers", "torch,jax", "--device", "cpu",
       "--threads", "1", "--budget", "30")  # fmt: skip
    (settings,) = given
    assert (settings.size, settings.op, settings.budget) == ("full", "softmax", 30.0)
    assert settings.peers == {"torch", "jax"}
    assert settings.all_threads == (1,)
    ok("bench", "--device", "cpu", "--threads", "1")
    assert (given[1].size, given[1].peers) == ("quick", frozenset())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--peers", "tensorflow"], "argument --peers: no peer 'tensorflow'; valid are all, none,"),
        (["--op", "nonsense"], "no case contains 'nonsense'; operations are"),
        (["--list", "--op", "nonsense"], "no case contains 'nonsense'; operations are"),
    ],
)
def test_bench_says_what_it_does_not_know_as_wrong_usage(arguments, said):
    result = run_cli("bench", "--device", "cpu", "--threads", "1", *arguments)
    assert result.code == 2
    assert said in result.err


# -- info -----------------------------------------------------------------------------------------

CPU = CpuReport("Some Processor", 4, 8, "scipy-openblas", "0.3.31.188.0", 4)
NOTHING = DeviceReport(
    CPU, DriverReport("absent", "no NVIDIA driver found", "install it", None), CupyReport(), None,
    None, True, (Missing("no NVIDIA driver found", "install it"), Missing("CuPy is not", "run: pip")),
)  # fmt: skip
ALL = DeviceReport(
    CPU,
    DriverReport("ready", "", "", (12, 4), (Gpu(0, "NVIDIA H200", 141 * 2**30, (9, 0)),)),
    CupyReport("14.0.1", 12),
    CudaLibrary("/lib/libnvrtc.so.12", (12, 9)),
    CudaLibrary("/lib/libcublasLt.so.12"),
    True,
    (),
)


def test_info_says_what_is_missing_and_how_to_get_it(monkeypatch):
    monkeypatch.setattr(devices, "probe", lambda: NOTHING)
    monkeypatch.setattr(devices, "choose", lambda device: ("cpu", "no NVIDIA driver found"))
    text = ok("info").out
    assert "device        cpu (no NVIDIA driver found)" in text
    assert "Some Processor, 4 cores of 8" in text
    assert "OpenBLAS 0.3.31, 4 threads" in text
    assert "  1. no NVIDIA driver found\n     install it\n  2. CuPy is not\n     run: pip\n" in text
    assert gpubackprop.__version__ in text


def test_info_on_a_machine_with_everything(monkeypatch):
    monkeypatch.setattr(devices, "probe", lambda: ALL)
    monkeypatch.setattr(devices, "choose", lambda device: ("cuda:0", "NVIDIA H200"))
    monkeypatch.setattr(info, "cuda_graphs", lambda name: {})  # the card is none
    text = ok("info").out
    assert "ready, serves CUDA 12.4" in text
    assert "NVIDIA H200, 141 GiB, compute capability 9.0" in text
    assert "14.0.1 for CUDA 12" in text
    assert "12.9, /lib/libnvrtc.so.12" in text
    assert "missing" not in text


@pytest.mark.parametrize(
    ("device", "capability", "asked", "wanted"),
    [
        ("cuda:0", (9, 0), "0", "auto is tf32; float64, float32, tf32, float16, bfloat16"),
        ("cuda:0", (9, 0), "1", "float16; float32 is multiplied in tf32 too, as CUPY_TF32=1 asks"),
        ("cuda:0", (7, 5), "1", "auto is float32; float64, float32, float16, bfloat16"),
        ("cpu", (9, 0), "1", "float16 (16 bits are computed in 32, tf32 is emulated)"),
    ],
)
def test_info_says_which_precisions_the_device_has(device, capability, asked, wanted, monkeypatch):
    (gpu,) = ALL.driver.gpus
    driver = dataclasses.replace(
        ALL.driver, gpus=(dataclasses.replace(gpu, compute_capability=capability),)
    )
    monkeypatch.setenv("CUPY_TF32", asked)
    lines = info.lines(dataclasses.replace(ALL, driver=driver), device, "a reason")
    (line,) = [line for line in lines if line.startswith("precision")]
    assert line.endswith(wanted)


@pytest.mark.parametrize("report", [NOTHING, ALL], ids=["nothing", "everything"])
def test_info_as_json_has_the_whole_report(report, monkeypatch):
    monkeypatch.setattr(devices, "probe", lambda: report)
    monkeypatch.setattr(devices, "choose", lambda device: ("cpu", "a reason"))
    values = ok("info", "--json").json
    assert (values["device"], values["reason"]) == ("cpu", "a reason")
    assert values["cpu"]["blas_threads"] == 4
    assert [lack["what"] for lack in values["missing"]] == [lack.what for lack in report.missing]
    assert "python" in values["versions"]


def test_info_runs_on_this_machine():
    result = run_python("-m", "gpubackprop", "info")
    assert (result.returncode, result.stderr) == (0, "")
    assert "device" in result.stdout


# -- devices --------------------------------------------------------------------------------------


def test_commands_without_use_for_a_gpu_run_on_the_cpu_and_say_so(monkeypatch):
    monkeypatch.setattr(check, "check_all", fake_checks(("a", 0.0, True)))
    monkeypatch.setattr(devices, "choose", lambda device: ("cuda:0", "NVIDIA H200"))
    assert "on cpu" in ok("check").out


def test_a_gpu_that_is_not_there_names_the_remedy():
    if devices.choose("auto")[0] != "cpu":
        pytest.skip("this machine has a GPU that works")
    result = run_cli("train", "--device", "cuda")
    assert (result.code, result.out) == (1, "")
    assert 'device="cuda" was asked for but' in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_an_option_names_its_default(command):
    """A default of 2 says more than "auto" does. Switches and empty ones need none."""
    parser = gpubackprop.cli.build_parser([command])
    (commands,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    unsaid = [None, False, True, "auto", "", argparse.SUPPRESS, []]
    silent = [
        action.option_strings[0]
        for action in commands.choices[command]._actions
        if action.option_strings
        and action.nargs != 0  # switches
        and action.default not in unsaid
        and "default" not in (action.help or "")
    ]
    assert silent == []
