"""Shared parts of the commands: option types, device and threads, printing, versions."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import math
import platform
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from gpubackprop.backends import devices
from gpubackprop.backends.host import CpuReport, probe_cpu
from gpubackprop.backends.numpy import set_num_threads
from gpubackprop.cli.streams import stdout_is_utf8
from gpubackprop.data.dataset import _format
from gpubackprop.errors import DeviceUnavailable, OptionError

PACKAGES = (
    "numpy", "safetensors", "tqdm", "pyarrow", "matplotlib", "scikit-learn", "scipy", "torch",
    "cupy", "cupy-cuda12x", "cupy-cuda13x",
)  # fmt: skip


# -- types of options -----------------------------------------------------------------------------


def whole(at_least: int) -> Callable[[str], int]:
    """Return the type of an option that is a whole number of at least `at_least`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = at_least - 1
        if value < at_least:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number of at least {at_least}"
            )
        return value

    return parse


def real(at_least: float = 0.0, below: float = math.inf) -> Callable[[str], float]:
    """Return the type of an option that is a number in [at_least, below)."""
    upper = "" if below == math.inf else f" and below {below:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not at_least <= value < below:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a number of at least {at_least:g}{upper}"
            )
        return value

    return parse


def key_value(text: str) -> tuple[str, Any]:
    """Read an option KEY=VALUE; VALUE is a number, true, false, or text."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=VALUE")
    try:
        return key.replace("-", "_"), json.loads(value)
    except ValueError:
        return key.replace("-", "_"), value


def has_column_names(path: str) -> bool:
    """Return whether a data file's columns are found by their names: it is a table and no array."""
    return _format(Path(path)) in ("csv", "parquet")


def check_data_options(args: argparse.Namespace) -> None:
    """Report wrong usage (exit 2) if an option does not belong to the format of DATA."""
    kind = _format(Path(args.data))
    if args.no_header and kind != "csv":
        args.parser.error(f"--no-header is for CSV files, which {args.data} is not; leave it out")
    if args.features is not None and kind in ("npy", "idx"):
        args.parser.error(
            f"--features: the columns of {args.data} have no names; leave it out, or write a table"
        )


# -- device ---------------------------------------------------------------------------------------


def add_device_options(parser: Any) -> None:
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help='"auto" (a GPU that works and is worth it, else the CPU), "cpu", "cpu:numpy" (the CPU '
        'without compiled kernels), "cuda" or "cuda:1"',
    )
    parser.add_argument(
        "--threads",
        type=whole(1),
        metavar="N",
        help="CPU threads (default: all cores; 1 for small networks)",
    )


@dataclass(frozen=True)
class Device:
    """The device that computes: its `name` ("cpu"), the reason, and the host's threads and BLAS."""

    name: str
    reason: str
    threads: int
    blas: str

    def __str__(self) -> str:
        reason = re.sub(r" \([^()]*\)", "", self.reason)  # `info` and --json give the details
        if not devices.is_host(self.name):
            return f"{self.name} ({reason})"
        return f"{self.name} ({reason}; {count(self.threads, 'thread')}, {self.blas})"


def use_device(args: argparse.Namespace, *, cpu_only: bool = False) -> Device:
    """Return the device of --device, after setting --threads.

    Parameters
    ----------
    args : Namespace
        The parsed command line.
    cpu_only : bool
        Whether the command has no use for a GPU; "auto" is then the CPU.

    Raises
    ------
    OptionError
        There is no such device.
    DeviceUnavailable
        CUDA was asked for by name and something is missing.
    """
    name, reason = devices.choose(args.device)
    if cpu_only and not devices.is_host(name):
        if args.device != "auto":
            raise DeviceUnavailable(
                f"this command runs on the CPU, not on {name}; leave --device out"
            )
        name, reason = "cpu", "this command runs on the CPU"
    if args.threads is not None and not set_threads(args.threads):
        raise OptionError(
            f"--threads {args.threads} cannot be set: NumPy's BLAS has started already; set "
            f"OPENBLAS_NUM_THREADS={args.threads} in the environment, or pip install threadpoolctl"
        )
    cpu = probe_cpu()
    return Device(name, reason, cpu.blas_threads or cpu.cores, blas_name(cpu))


def set_threads(threads: int) -> bool:
    """Set the threads of the elementwise work and of the BLAS, for the rest of the process.

    Return False if the BLAS already has another number and there is no way to change it.
    """
    if importlib.util.find_spec("threadpoolctl") is not None:
        importlib.import_module("threadpoolctl").threadpool_limits(threads)
    elif probe_cpu().blas_threads not in (threads, None):
        return False
    set_num_threads(threads)
    return True


def blas_name(cpu: CpuReport) -> str:
    name = {"scipy-openblas": "OpenBLAS", "openblas": "OpenBLAS"}.get(cpu.blas.lower(), cpu.blas)
    version = ".".join(cpu.blas_version.split(".")[:3])
    return name if version in ("unknown", "") else f"{name} {version}"


def versions() -> dict[str, str]:
    """Return the versions of Python, gpubackprop and the installed packages that it can use."""
    from gpubackprop import __version__

    found = {"python": platform.python_version(), "gpubackprop": __version__}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


# -- printing -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Say:
    """Print text for people on stdout, or one JSON object there and nothing else."""

    json: bool = False
    quiet: bool = False

    def line(self, text: str = "") -> None:
        """Print a line that a person likes to read; not with --quiet."""
        if not (self.json or self.quiet):
            print(text, flush=True)

    def result(self, text: str) -> None:
        """Print the result for which the command was called."""
        if not self.json:
            print(text, flush=True)

    def note(self, text: str) -> None:
        """Print a line that must not be missed, on stderr."""
        print(text, file=sys.stderr, flush=True)

    def object(self, values: Any) -> None:
        """Print the JSON object, with --json."""
        if self.json:
            print(to_json(values, ascii_only=not stdout_is_utf8()), flush=True)


def to_json(values: Any, *, ascii_only: bool = False) -> str:
    """Return JSON text that UTF-8 can hold; NaN and infinities, which JSON lacks, become null."""
    text = json.dumps(_jsonable(values), indent=2, allow_nan=False, ensure_ascii=ascii_only)
    # Bytes of a file name that are no text become lone surrogates, which JSON writes as \udcXX.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy
        return _jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def metric_text(name: str, value: float) -> str:
    """Return a figure with four digits behind the point, one in the targets' unit with five."""
    return f"{value:.5g}" if name.startswith(("rmse", "mae")) else f"{value:.4f}"


def count(number: int, noun: str) -> str:
    """Return "1 row", "2,000 rows"."""
    plural = {"class": "classes"}.get(noun, noun + "s")
    return f"{number:,} {noun if number == 1 else plural}"


# -- Ctrl-C ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Hold a Ctrl-C back until the block is done, which writes a file that must not be lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if caught:
        raise KeyboardInterrupt
