"""Every benchmark once at a small size, with real processes and every peer that is installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from gpubackprop.bench import cases, operations, process, shapes
from gpubackprop.bench.harness import Harness, Plan
from gpubackprop.bench.providers import BY_NAME, PROVIDERS, peer_groups
from gpubackprop.bench.record import load
from gpubackprop.cli import main as command
from tests.cli_runs import ENVIRONMENT, ROOT

pytestmark = pytest.mark.slow
MODULES = {"torch": "torch", "jax": "jax", "scikit-learn": "sklearn", "thinc": "thinc"}
WIDEST = {name: max((one for one in PROVIDERS if one.group == name), key=lambda one: len(one.ops or ()))
          for name in MODULES}  # fmt: skip


def test_every_pytest_benchmark_runs_once():
    command = [sys.executable, "-m", "pytest", "benchmarks", "--size", "smoke", "-q",
               "--benchmark-disable", "-p", "no:xdist"]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ran = int(done.stdout.rpartition(" passed")[0].split()[-1])
    assert ran >= len(cases.cases("smoke", "cpu"))


def test_pytest_benchmark_records_bytes_flops_and_groups(tmp_path):
    out = tmp_path / "timed.json"
    command = [sys.executable, "-m", "pytest", "benchmarks/bench_operations.py", "-k", "gather_rows/f32",
               "--size", "smoke", "-q", f"--benchmark-json={out}", "-p", "no:xdist"]  # fmt: skip
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    (row,) = json.loads(out.read_text())["benchmarks"]
    assert row["group"] == "gather_rows/f32/9x40"
    assert row["extra_info"]["backend"] == "numpy"
    assert row["extra_info"]["bytes"] == 2 * 9 * 40 * 4 + 8 * 9


def test_pytest_benchmark_says_that_a_call_is_several_steps(tmp_path):
    out = tmp_path / "timed.json"
    command = [sys.executable, "-m", "pytest", "benchmarks/bench_operations.py", "-k", "training_step",
               "--size", "smoke", "-q", f"--benchmark-json={out}", "-p", "no:xdist"]  # fmt: skip
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    by_name = {case.name: case for case in cases.cases("smoke", "cpu")}
    for row in json.loads(out.read_text())["benchmarks"]:
        name, _, several = row["group"].partition(", ")
        problem, info = operations.get("training_step"), row["extra_info"]
        assert several == "16 of them"
        assert info["units"] == 16
        assert info["bytes"] == 16 * problem.bytes(by_name[name])
        assert info["flops"] == 16 * problem.flops(by_name[name])


@pytest.mark.parametrize("group", MODULES)
def test_a_peer_does_what_the_oracle_does(group, tmp_path):
    if importlib.util.find_spec(MODULES[group]) is None:
        pytest.skip(f"{MODULES[group]} is not installed")
    plan = Plan(rounds=1, seconds=1e-4, peers=peer_groups(group), small=True)
    alone = {"numpy", "limit", "NumPy by hand", "NumPy by hand, two exps"}
    compared, seen = 0, set()
    with Harness(plan) as measured:
        for case in cases.cases("smoke", "cpu"):
            first = (case.op, case.variant) not in seen and case.op != "cold_start"
            seen.add((case.op, case.variant))
            one = WIDEST[group]
            if not (first or case.op == "training_step") or not one.takes_part(
                case, "cpu", plan.peers
            ):
                continue
            for row in measured.run_case(case, "cpu", 1):
                assert not row.wrong, (row.case, row.provider, row.note)
                compared += bool(row.seconds) and row.provider not in alone
    assert compared >= 3


BUSY_THREADS = """
import sys
from dataclasses import asdict
from pathlib import Path
from gpubackprop.bench.shapes import Case
from gpubackprop.bench.worker import Session

def ticks():
    fields = {task.name: (task / "stat").read_text().rpartition(")")[2].split()
              for task in Path("/proc/self/task").iterdir()}
    return {name: int(own[11]) + int(own[12]) for name, own in fields.items()}  # utime, stime

session = Session(sys.argv[1], "cpu")
case = asdict(Case("softmax_cross_entropy", (4096, 1000)))
answer = session.do({"do": "prepare", "case": case})
assert "error" in answer, answer
before = ticks()
session.do({"do": "round", "repeats": 40})
took = [after - before.get(name, 0) for name, after in ticks().items()]
print(sum(one > 0.2 * sum(took) for one in took))
"""


@pytest.mark.parametrize(
    ("provider", "module"),
    [("numpy", "numpy"), ("torch eager", "torch"), ("JAX jit", "jax")],
)
def test_one_thread_is_one_thread(provider, module):
    """XLA has a pool of its own, and took all cores in the rows of one thread once."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    if not Path("/proc/self/task").is_dir():
        pytest.skip("the system does not tell the processor time of a thread")
    command = [sys.executable, "-c", BUSY_THREADS, provider]
    done = subprocess.run(
        command, env=ENVIRONMENT | process.environment(1), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert int(done.stdout) == 1


WHAT_IS_IMPORTED = """
import sys
IMPORTS
counted = set(sys.modules)
from gpubackprop.bench import ours, worker
late = {name for name in set(sys.modules) - counted if name.startswith("gpubackprop.")}
print(*(name for name in late if not name.startswith("gpubackprop.bench")))
"""
GPU_MODULES = ("cupy", "kernel_sources", "softmax_plan")  # which a CPU's program does not import


@pytest.mark.parametrize(("name", "others"), [("numpy", GPU_MODULES), ("cupy_raw", ())])
def test_the_import_of_a_cold_start_is_all_that_we_need(name, others):
    """Half of it had been imported by the harness before the clock started once."""
    imports = BY_NAME[name].imports.replace("import cupy, ", "import ")
    done = subprocess.run(
        [sys.executable, "-c", WHAT_IS_IMPORTED.replace("IMPORTS", imports)], env=ENVIRONMENT,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    late = done.stdout.split()
    assert [one for one in late if not any(part in one for part in others)] == []


def test_the_clock_of_a_cold_start_runs_before_anything_is_imported():
    """The provider's line sees no module that it did not import itself."""
    seen = "import sys; assert not {'numpy', 'gpubackprop'} & set(sys.modules); import numpy"
    script = process.COLD.format(imports=seen)
    case = cases.smaller(shapes.Case("cold_start", (4, 6, 5, 3), variant="adam"))
    for provider in ("numpy", "NumPy by hand"):
        done = subprocess.run(
            [sys.executable, "-c", script, provider, "cpu", json.dumps(asdict(case))],
            env=ENVIRONMENT | process.environment(1), capture_output=True, text=True, check=True,
        )  # fmt: skip
        answer = json.loads(done.stdout)
        assert answer["import"] > 0
        assert answer["first"] > 0
        assert answer["error"] < 1e-4


def test_a_cold_start_of_what_is_not_installed_says_so(monkeypatch):
    absent = replace(BY_NAME["thinc"], imports="import no_such_module")
    monkeypatch.setitem(process.BY_NAME, "thinc", absent)
    case = shapes.Case("cold_start", (4, 6, 5, 3), variant="adam")
    answer = process.cold_start(case, "thinc", "cpu", 1)
    assert answer == {"missing": "No module named 'no_such_module'"}


def test_the_whole_run_writes_one_file_and_merges_into_it(tmp_path, capsys):
    out = tmp_path / "result.json"
    arguments = ["--size", "smoke", "--peers", "none", "--threads", "1", "--json", str(out),
                 "--device", "cpu"]  # fmt: skip
    assert main([*arguments, "--op", "tanh"]) == 0
    first = load(out)
    assert main([*arguments, "--op", "cold_start"]) == 0
    both = load(out)
    assert {row["op"] for row in both["rows"]} == {
        "activation_forward", "activation_backward", "affine_layer", "cold_start"
    }  # fmt: skip
    assert len(both["rows"]) > len(first["rows"])
    cold = {row["case"].rpartition("/")[2] for row in both["rows"] if row["op"] == "cold_start"}
    assert cold == {"import", "first"}
    assert "written:" in capsys.readouterr().out
    assert main(["--size", "smoke", "--op", "nonsense", "--device", "cpu"]) == 2
    assert "no case contains 'nonsense'" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--peers", "--op"])
def test_the_command_and_the_whole_run_refuse_an_option_with_one_code_and_message(option, capsys):
    said = []
    for run, smoke in ((command, ["bench", "--smoke"]), (main, ["--size", "smoke"])):
        try:
            code = run([*smoke, "--device", "cpu", option, "nothing"])
        except SystemExit as stopped:  # argparse
            code = stopped.code
        last = capsys.readouterr().err.splitlines()[-1]
        said.append((code, last.partition("error: ")[2]))
    assert said[0] == said[1]
    assert said[0][0] == 2
    assert "'nothing'" in said[0][1]


def test_a_worker_that_dies_is_a_note_and_a_new_one_starts(monkeypatch):
    case = shapes.Case("gather_rows", (9, 40))
    with Harness(Plan(rounds=1, seconds=1e-4, small=True)) as measured:
        measured.run_case(case, "cpu", 1)
        measured.process("NumPy by hand", "cpu", 1).ask("drop")
        victim = measured.process("NumPy by hand", "cpu", 1)
        victim._process.kill()
        victim._process.wait()
        rows = {row.provider: row for row in measured.run_case(case, "cpu", 1)}
    assert rows["NumPy by hand"].seconds
    dying = process.Process("NumPy by hand", "cpu", 1)
    dying._process.kill()
    assert "its process ended with code -9" in dying.ask("drop")["missing"]
    dying.close()


def test_the_command_runs_away_from_the_repository(tmp_path):
    command = [sys.executable, "-m", "gpubackprop", "bench", "--smoke", "--op", "gather_rows/f32",
               "--threads", "1", "--device", "cpu"]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "gather_rows/f32/9x40" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("gpubackprop ")
    assert "[1/1] gather_rows" in done.stderr
    package = Path(ROOT, "gpubackprop", "bench")
    for path in package.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "import pytest" not in text
        assert "from tests" not in text
        assert "from benchmarks" not in text
