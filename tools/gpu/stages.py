"""The stages of `make gpu`, the most important first; each is useful alone."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.gpu.common import interpreter

SANITIZERS = ("/usr/local/cuda/bin/compute-sanitizer", "/opt/cuda/bin/compute-sanitizer")

Command = list[str] | str


@dataclass(frozen=True)
class Stage:
    """One stage of `make gpu`.

    Attributes
    ----------
    name : its name in ``STAGES=``.
    shows : what its success means, for the summary.
    seconds : its limit, which it also gets as an argument; 15 s later it is killed.
    command : function: ``command(out, seconds)`` returns the command line, or why there is none.
    """

    name: str
    shows: str
    seconds: float
    command: Callable[[Path, float], Command]


def module(name: str, *arguments: str) -> Callable[[Path, float], Command]:
    """Return a function for the command ``python -m name OUT SECONDS arguments``."""
    return lambda out, seconds: [*interpreter(), "-m", name, str(out), f"{seconds:.0f}", *arguments]


def sanitizer(tool: str) -> Callable[[Path, float], Command]:
    def command(out: Path, seconds: float) -> Command:
        found = shutil.which("compute-sanitizer")
        found = found or next((path for path in SANITIZERS if Path(path).exists()), None)
        if found is None:
            return "compute-sanitizer is not installed"
        return [
            found, "--tool", tool, "--error-exitcode", "86", *interpreter(), "-m",
            "tools.gpu.every_kernel", str(out / f"{tool}.json"),
        ]  # fmt: skip

    return command


def benchmarks(*more: str) -> Callable[[Path, float], Command]:
    """Run the most important cases first; the file names the cases that the time did not allow."""

    def command(out: Path, seconds: float) -> Command:
        return [
            *interpreter(), "-m", "benchmarks", "--device", "cuda", "--no-cpu", "--no-scripts",
            "--json", str(out / "benchmarks.json"), "--budget", f"{0.85 * seconds:.0f}", *more,
        ]  # fmt: skip

    return command


def front_end(script: str, package: str, *arguments: str) -> Callable[[Path, float], Command]:
    """Run a drop-in front end's own benchmark; "OUT" among the arguments is its file."""

    def command(out: Path, seconds: float) -> Command:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
        target = str(out / f"{script}.json")
        given = [target if argument == "OUT" else argument for argument in arguments]
        return [*interpreter(), "-m", f"benchmarks.{script}", "--device", "cuda", *given]

    return command


STAGES = (
    Stage("environment", "card, driver, clocks, versions", 10, module("tools.gpu.environment")),
    Stage("compile", "NVRTC takes every entry", 60, module("tools.gpu.compile_all")),
    Stage("parity", "every operation equals NumPy's", 60, module("tools.gpu.parity")),
    Stage("memcheck", "no kernel leaves its arrays", 40, sanitizer("memcheck")),
    Stage("racecheck", "no kernel races in shared memory", 40, sanitizer("racecheck")),
    Stage("pytest", "the tests marked gpu", 110, module("tools.gpu.pytest_files")),
    Stage("benchmarks", "times beside PyTorch's", 130, benchmarks()),
    Stage("training", "the demo and an estimator learn", 30, module("tools.gpu.training")),
)
# These run only by name; their limits are not part of the eight minutes.
MORE = (
    Stage("bench_torch", "gpubackprop.torch", 150, front_end("bench_torch", "torch", "OUT")),
    Stage(
        "bench_sklearn",
        "gpubackprop.sklearn",
        150,
        front_end("bench_sklearn", "sklearn", "--sizes", "--rounds", "3", "--out", "OUT"),
    ),
)
