"""The libraries that g++ makes of the emulator's C++, each made once for all processes and runs;
likewise what other compilers make (`kept`).

They are in `directory()` under a hash of the code, the emulator, the flags and the compiler, in
which there is no path. A second run compiles nothing, nor does a run in another checkout, and an
edited header never meets a stale library. A library that no run has used for a month is deleted.

The emulator's own headers take half of the time of a build of one entry, so they are compiled once
for each mode (``header-*.gch``). If g++ cannot use the result, it reads the text.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent

# The flags that each mode adds to the command line.
MODES: dict[str, tuple[str, ...]] = {
    "values": (),
    "address": (
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
        "-fno-omit-frame-pointer",
    ),
    "thread": ("-fsanitize=thread", "-fno-omit-frame-pointer"),
    "traffic": ("-fsanitize=thread", "-DEMU_TRAFFIC"),
    "code": ("-O2", "-g0"),  # only compared: `module.object_code`
}
FLAGS = (
    "-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique",
    "-fno-strict-aliasing", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-w",
)  # fmt: skip
TRAFFIC = HERE / "traffic.cpp"  # stands in for ThreadSanitizer's runtime
INCLUDE = f"-I{HERE / 'include'}"
MONTH = 30 * 24 * 3600


class EmulatorError(Exception):
    """The source does not compile, or a launch does not fit the entry."""


def library(code: str, mode: str) -> Path:
    """Return the shared library of a C++ file that begins with ``cuda_names.h``: kept, or made now."""
    with_it = TRAFFIC.read_text() if mode == "traffic" else ""
    result = directory() / f"{_key(code, with_it, *MODES[mode])}.so"
    if result.exists():
        os.utime(result)
        return result
    rest = [str(_traffic_object())] if mode == "traffic" else list(MODES[mode])
    with tempfile.TemporaryDirectory(dir=result.parent) as scratch:
        kernel, made = f"{scratch}/kernel.o", f"{scratch}/made.so"
        compile_to(kernel, code, mode)
        run(["g++", "-shared", "-o", made, kernel, *rest])
        os.replace(made, result)  # it appears whole: another process may be compiling it too
    return result


def compile_to(path: str, code: str, mode: str) -> None:
    """Write the object file of a C++ file that begins with ``cuda_names.h``."""
    command = ["g++", *FLAGS, *MODES[mode], INCLUDE, "-include", str(_header(mode))]
    run([*command, "-x", "c++", "-c", "-o", path, "-"], code)


def plain_library(code: str) -> Path:
    """Return the shared library of a C++ file that is no kernel: kept, or made now."""
    result = directory() / f"{_key(code, 'plain')}.so"
    if not result.exists():
        with tempfile.TemporaryDirectory(dir=result.parent) as scratch:
            made = f"{scratch}/made.so"
            run(
                ["g++", "-std=c++17", "-O2", "-fPIC", "-shared", "-x", "c++", "-o", made, "-"], code
            )
            os.replace(made, result)
    os.utime(result)
    return result


def kept(key: Sequence[str], make: Callable[[], bytes]) -> bytes:
    """Return what another compiler makes of what `key` says: kept, or made now."""
    name = hashlib.sha256("\0".join(key).encode()).hexdigest()[:24]
    result = directory() / f"{name}.kept"
    if not result.exists():
        with tempfile.TemporaryDirectory(dir=result.parent) as scratch:
            made = Path(scratch, "made")
            made.write_bytes(zlib.compress(make(), 1))
            os.replace(made, result)
    os.utime(result)
    return zlib.decompress(result.read_bytes())


@cache
def directory() -> Path:
    default = Path(tempfile.gettempdir()) / f"gpubackprop-emulator-{os.getuid()}"
    result = Path(os.environ.get("GPUBACKPROP_EMULATOR_CACHE", default))
    result.mkdir(mode=0o700, parents=True, exist_ok=True)
    oldest = time.time() - MONTH
    for path in result.glob("*.*"):
        try:
            if path.is_file() and path.stat().st_mtime < oldest:
                path.unlink()
        except FileNotFoundError:  # another process has deleted it
            continue
    return result


@cache
def _header(mode: str) -> Path:
    """Return a header that includes ``cuda_names.h``, with its compiled form beside it."""
    result = directory() / f"header-{_key(INCLUDE, *MODES[mode])}.h"
    made = result.with_suffix(".h.gch")
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=result.parent) as scratch:
            text = Path(scratch, "header.h")
            text.write_text('#include "cuda_names.h"\n', encoding="utf-8")
            command = ["g++", *FLAGS, *MODES[mode], INCLUDE, "-x", "c++-header"]
            run([*command, "-o", f"{scratch}/made.gch", str(text)])
            os.replace(text, result)
            os.replace(f"{scratch}/made.gch", made)
    for path in (result, made):
        os.utime(path)
    return result


@cache
def _traffic_object() -> Path:
    result = directory() / f"{_key(TRAFFIC.read_text())}.o"
    if not result.exists():
        with tempfile.TemporaryDirectory(dir=result.parent) as scratch:
            made = f"{scratch}/made.o"
            run(["g++", *FLAGS, INCLUDE, "-c", "-o", made, str(TRAFFIC)])
            os.replace(made, result)
    os.utime(result)
    return result


def _key(*parts: str) -> str:
    text = "\0".join((*parts, *FLAGS, _headers(), _compiler()))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@cache
def _headers() -> str:
    return "\0".join(path.read_text() for path in sorted((HERE / "include").iterdir()))


@cache
def _compiler() -> str:
    return subprocess.run(["g++", "--version"], capture_output=True, text=True).stdout


def run(command: Sequence[str], code: str = "") -> None:
    """Run a command, with `code` as its input."""
    result = subprocess.run(command, input=code, capture_output=True, text=True)
    if result.returncode:
        raise EmulatorError(f"{' '.join(command)}\n{result.stderr[-4000:]}")
