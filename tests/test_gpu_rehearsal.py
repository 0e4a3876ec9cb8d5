"""A rehearsal of `make gpu` on an emulated card, end to end, with faults planted in each stage.

The stages run as on a machine with a GPU, in processes of their own; tests/emulator/card.py stands
in front of each. Sizes are cut: nothing here is about time. Not measured on a GPU.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests import emulator
from tools.gpu import __main__ as proof
from tools.gpu import stages
from tools.gpu.common import INTERPRETER
from tools.gpu.stages import Stage

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
    ),
]

CARD = f"{sys.executable} -m tests.emulator.card"
# Two tests as a card would run them, in a file of its own.
PLAIN = """
import pytest
@pytest.mark.gpu
def test_that_passes():
    import cupy
    assert cupy.empty(3).size == 3
"""
FAILING = (
    PLAIN
    + """
@pytest.mark.gpu
def test_that_fails():
    assert 1 + 1 == 3, "arithmetic"
"""
)
HANGING = (
    FAILING
    + """
@pytest.mark.gpu
def test_that_hangs():
    import time
    time.sleep(600)
"""
)
CRASHING = (
    "import os, signal\n"
    + PLAIN
    + """
@pytest.mark.gpu
def test_that_crashes():
    os.kill(os.getpid(), signal.SIGSEGV)
"""
)
SANITIZER = """#!{python}
import os, subprocess, sys
said = os.environ.get("SANITIZER_SAYS", "")
if said == "unsupported":
    sys.exit(print("========= Device not supported"))
arguments = sys.argv[sys.argv.index("86") + 1:]
open(arguments[-1], "w").write("{{}}")  # what the real one would run is another test's
print("========= ERROR SUMMARY: " + (said or "0 errors"))
sys.exit(86 if said else 0)
"""


@pytest.fixture
def card(monkeypatch, tmp_path):
    """The interpreter with an emulated card, and a sanitizer on the path."""
    monkeypatch.setenv(INTERPRETER, CARD)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "compute-sanitizer").write_text(SANITIZER.format(python=sys.executable))
    (tools / "compute-sanitizer").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def cut(files: list[Path]) -> dict[str, Stage]:
    """The stages, with less to do in each; limits that a busy machine keeps, too."""
    short = {
        "parity": stages.module("tools.gpu.parity", "short"),
        "pytest": stages.module("tools.gpu.pytest_files", *map(str, files)),
        "benchmarks": stages.benchmarks("--size", "smoke", "--peers", "none", "--op", "column_sum"),
        "training": stages.module("tools.gpu.training", "short"),
    }
    return {
        one.name: Stage(one.name, one.shows, 240, short.get(one.name, one.command))
        for one in stages.STAGES
    }


def write_tests(folder: Path, **texts: str) -> list[Path]:
    files = []
    for name, text in texts.items():
        files.append(folder / f"test_{name}.py")
        files[-1].write_text(text)
    return files


def test_on_a_card_where_all_is_well_every_stage_is_ok(card, tmp_path):
    planned = list(cut(write_tests(tmp_path, plain=PLAIN)).values())
    outcomes = proof.run_all(planned, tmp_path / "out")
    assert {one.name: (one.status, one.note) for one in outcomes if one.status != "ok"} == {}
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "All that ran is well." in text
    for said in ("entries compiled", "comparisons, 0 failed", "0 errors", "1 passed, 0 failed"):
        assert said in text
    assert "of the limit: " in text, "the worst comparisons stand there though they passed"
    assert (tmp_path / "out" / "benchmarks.json").exists()
    assert (tmp_path / "out" / "training.json").exists()


MODULES = {
    "environment": "tools.gpu.environment",
    "compile": "tools.gpu.compile_all",
    "parity": "tools.gpu.parity",
    "pytest": "tools.gpu.pytest_files",
    "benchmarks": "benchmarks",
    "training": "tools.gpu.training",
}


@pytest.mark.parametrize(
    ("fault", "status"),
    [("fail", "failed"), ("hang", "timeout"), ("stuck", "timeout"), ("crash", "crashed")],
)
@pytest.mark.parametrize("name", MODULES)
def test_a_fault_in_a_stage_is_that_stages_and_the_summary_says_so(
    card, tmp_path, monkeypatch, name, fault, status
):
    monkeypatch.setenv("GPUBACKPROP_PLANT", f"{MODULES[name]}:{fault}")
    planned = cut(write_tests(tmp_path, plain=PLAIN))[name]
    seconds = 4.0 if status == "timeout" else 60.0
    outcome = proof.run_stage(planned, tmp_path, seconds)
    after = proof.run_stage(
        Stage("after", "", 9, lambda out, limit: [sys.executable, "-c", "print('runs')"]),
        tmp_path, 20,
    )  # fmt: skip
    proof.write(tmp_path, [outcome, after], [planned])
    assert (outcome.status, after.status) == (status, "ok")
    said = {"fail": "a planted failure", "hang": "stopped after", "stuck": "killed after"}
    assert said.get(fault, "SIGSEGV") in outcome.note
    assert f"Not well: {name} ({status})." in (tmp_path / "summary.md").read_text()


def test_a_test_file_that_hangs_or_crashes_is_ended_alone_and_failures_keep_their_texts(
    card, tmp_path
):
    files = write_tests(tmp_path, a=FAILING, b=CRASHING, c=HANGING, d=PLAIN)
    outcome = proof.run_stage(cut(files)["pytest"], tmp_path, 80)
    assert outcome.status == "failed"
    lines = [line for _, line in outcome.worst]
    assert any(
        line.startswith("test_a::test_that_fails: ") and "arithmetic" in line for line in lines
    )
    assert any(line.startswith("test_b: ended by -11") for line in lines)
    assert any(line.startswith("test_c: stopped after") for line in lines)
    assert any(line.startswith("test_c::test_that_fails") for line in lines), "its text survived"
    assert (tmp_path / "pytest" / "test_d.xml").exists(), "the next file ran"


@pytest.mark.parametrize(
    ("said", "status"), [("unsupported", "skipped"), ("2 errors", "failed"), ("", "ok")]
)
def test_a_sanitizer_that_does_not_work_here_is_skipped_and_one_that_finds_errors_fails(
    card, tmp_path, monkeypatch, said, status
):
    monkeypatch.setenv("SANITIZER_SAYS", said)
    outcome = proof.run_stage(cut([])["memcheck"], tmp_path, 60)
    assert outcome.status == status
    assert (said in outcome.note) or status == "skipped"


def test_an_entry_that_does_not_compile_is_named_and_the_others_are_compiled(card, tmp_path):
    program = (
        "import sys; from tests.emulator import cupy_stub as stub\n"
        "from tools.gpu import compile_all\n"
        "real = stub.compile_using_nvrtc\n"
        "def refuse(source, *rest, **options):\n"
        "    if 'column_sum.cu' in source: raise stub.CompileException('x.cu(7): error: no')\n"
        "    return real(source, *rest, **options)\n"
        "from gpubackprop.backends import devices\n"
        "devices.choose = lambda device: ('cuda:0', 'emulated')\n"
        "with stub.installed() as counts:\n"
        "    stub.module().cuda.compiler.compile_using_nvrtc = refuse\n"
        f"    sys.argv = ['compile_all', {str(tmp_path)!r}, '60']\n"
        "    sys.exit(compile_all.main())\n"
    )
    planned = Stage("compile", "", 60, lambda out, limit: [sys.executable, "-c", program])
    outcome = proof.run_stage(planned, tmp_path, 120)
    assert outcome.status == "failed"
    assert any("column_sum_f32 does not compile" in line for _, line in outcome.worst)
    assert not any("softmax" in line for _, line in outcome.worst)
    assert "failed" in outcome.note
