"""Everything that a machine with an NVIDIA GPU can show, by one command.

    python3 -m tools.gpu OUT [--stages environment,pytest,...] [--seconds 570]

The stages run in the order of their worth, each in a process of its own with its own time limit; a
stage that fails or hangs does not stop the next. What they find is written to OUT as they go:
stages.json and summary.md after each stage, a log for each. Exit code 1 where a stage failed; a
stage without a GPU, or without its tool, is "skipped" and never "ok". Not measured on a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

from gpubackprop.backends import devices
from gpubackprop.errors import DeviceUnavailable

ROOT = Path(__file__).resolve().parents[2]
BENCHMARK_SECONDS = 180.0  # after which no further case is started
SKIPPED = 77  # exit code of a stage that had nothing to run on; the reason is its last line
SANITIZERS = ("/usr/local/cuda/bin/compute-sanitizer", "/opt/cuda/bin/compute-sanitizer")


@dataclass(frozen=True)
class Stage:
    """`command(out)` gives the process; None and a reason where the tool is missing."""

    name: str
    seconds: float
    command: Callable[[Path], list[str] | str]


@dataclass
class Outcome:
    """`status`: ok, failed, skipped or timeout."""

    name: str
    status: str
    seconds: float
    note: str = ""


def _module(name: str, *args: str) -> Callable[[Path], list[str] | str]:
    return lambda out: [sys.executable, "-m", f"tools.gpu.{name}", str(out), *args]


def _pytest(out: Path) -> list[str] | str:
    return [
        sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider",
        "--continue-on-collection-errors", f"--junitxml={out / 'pytest.xml'}",
    ]  # fmt: skip


def _sanitizer(tool: str) -> Callable[[Path], list[str] | str]:
    def command(out: Path) -> list[str] | str:
        found = shutil.which("compute-sanitizer")
        found = found or next((path for path in SANITIZERS if Path(path).exists()), None)
        if found is None:
            return "compute-sanitizer is not installed"
        return [
            found, "--tool", tool, "--error-exitcode", "86", sys.executable, "-m",
            "tools.gpu.every_kernel", str(out / f"{tool}.json"),
        ]  # fmt: skip

    return command


def _benchmarks(out: Path) -> list[str] | str:
    """The benchmarks, most important cases first; what no time is left for is named in the file."""
    return [
        sys.executable, "-m", "benchmarks", "--device", "cuda", "--json",
        str(out / "benchmarks.json"), "--budget", str(BENCHMARK_SECONDS), "--no-scripts",
    ]  # fmt: skip


def _check(out: Path) -> list[str] | str:
    return [sys.executable, "-m", "gpubackprop", "check", "--device", "cuda"]


def _front_end(script: str, package: str, *arguments: str) -> Callable[[Path], list[str] | str]:
    """A drop-in front end's own benchmark; "OUT" among the arguments is its file."""

    def command(out: Path) -> list[str] | str:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
        try:
            devices.choose("cuda")
        except DeviceUnavailable as error:
            return str(error)
        target = str(out / f"{script}.json")
        given = [target if argument == "OUT" else argument for argument in arguments]
        return [sys.executable, "-m", f"benchmarks.{script}", "--device", "cuda", *given]

    return command


STAGES = (
    Stage("environment", 40, _module("environment")),
    Stage("pytest", 200, _pytest),
    Stage("parity", 120, _module("parity")),
    Stage("memcheck", 110, _sanitizer("memcheck")),
    Stage("racecheck", 110, _sanitizer("racecheck")),
    Stage("benchmarks", BENCHMARK_SECONDS + 60, _benchmarks),
    Stage("check", 90, _check),
    Stage("bench_torch", 150, _front_end("bench_torch", "torch", "OUT")),
    Stage(
        "bench_sklearn",
        150,
        _front_end("bench_sklearn", "sklearn", "--sizes", "--rounds", "3", "--out", "OUT"),
    ),
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--stages", default="", help="names, separated by commas; all by default")
    parser.add_argument("--seconds", type=float, default=570, help="for all of it (default 570)")
    args = parser.parse_args(arguments)
    names = [name for name in args.stages.split(",") if name]
    known = [stage.name for stage in STAGES]
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"no stage {unknown[0]!r}; there are {', '.join(known)}")
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    chosen = [stage for stage in STAGES if not names or stage.name in names]
    outcomes = run_all(chosen, out, args.seconds)
    return 1 if any(one.status in ("failed", "timeout") for one in outcomes) else 0


def run_all(stages: list[Stage], out: Path, seconds: float) -> list[Outcome]:
    """Run them one after another within `seconds`, writing what came out after each."""
    end = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    for stage in stages:
        print(f"== {stage.name} ...", flush=True)
        outcomes.append(run_stage(stage, out, min(stage.seconds, end - time.monotonic())))
        last = outcomes[-1]
        print(f"== {last.name}: {last.status}, {last.seconds:.0f} s. {last.note}", flush=True)
        write_summary(out, outcomes)
    return outcomes


def run_stage(stage: Stage, out: Path, limit: float) -> Outcome:
    """One stage in a process group of its own, so that nothing of it outlives its limit."""
    if limit < 1:
        return Outcome(stage.name, "skipped", 0.0, "no time was left")
    command = stage.command(out)
    if isinstance(command, str):
        return Outcome(stage.name, "skipped", 0.0, command)
    start, log = time.monotonic(), out / f"{stage.name}.log"
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    try:
        with log.open("w") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                code: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
    except OSError as error:
        return Outcome(stage.name, "failed", time.monotonic() - start, str(error))
    took = time.monotonic() - start
    if code is None:
        return Outcome(stage.name, "timeout", took, f"stopped after {limit:.0f} s; see {log.name}")
    status, note = judge(stage.name, code, log, out)
    return Outcome(stage.name, status, took, note)


def judge(name: str, code: int, log: Path, out: Path) -> tuple[str, str]:
    """Status and note from the exit code, and for pytest from its XML: all skipped is not ok."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if name == "pytest" and code in (0, 1, 5):
        return judge_pytest(code, out / "pytest.xml")
    if code == SKIPPED or (code and "was asked for but" in last):
        return "skipped", last
    if code == 0 and name in ("memcheck", "racecheck") and not (out / f"{name}.json").exists():
        return "failed", f"the tool ran nothing: {last}"
    return ("ok" if code == 0 else "failed"), last if code == 0 else f"exit code {code}: {last}"


def judge_pytest(code: int, xml: Path) -> tuple[str, str]:
    try:
        suites = list(ElementTree.parse(xml).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError) as error:
        return "failed", f"no report: {error}"
    counts = {
        key: sum(int(suite.get(key, 0)) for suite in suites)
        for key in ("tests", "failures", "errors", "skipped")
    }
    note = ", ".join(f"{number} {key}" for key, number in counts.items())
    if code == 1 or counts["failures"] or counts["errors"]:
        return "failed", note
    if counts["tests"] == counts["skipped"]:
        skips = [skip.get("message", "") for suite in suites for skip in suite.iter("skipped")]
        return "skipped", f"{note}: {skips[0] if skips else 'there are no tests marked gpu'}"
    return "ok", note


def write_summary(out: Path, outcomes: list[Outcome]) -> None:
    rows = [asdict(outcome) for outcome in outcomes]
    (out / "stages.json").write_text(json.dumps(rows, indent=2) + "\n")
    text = [
        "# What this machine showed",
        "",
        "| stage | status | seconds | note |",
        "|---|---|---|---|",
    ]
    text += [
        f"| {one.name} | {one.status} | {one.seconds:.0f} | {one.note.replace('|', '/')} |"
        for one in outcomes
    ]  # fmt: skip
    if not any(one.status == "ok" for one in outcomes if one.name != "environment"):
        text += ["", "Nothing ran on a GPU: not measured on a GPU."]
    (out / "summary.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    sys.exit(main())
