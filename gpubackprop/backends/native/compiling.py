"""Compile the host kernels into one shared library, and keep it on disk.

The file's name has a hash of all that the library depends on, and one of its own content. Processes
that compile at the same time each write a whole file; a file that was cut or changed is not loaded.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gpubackprop.backends.host import available_cores
from gpubackprop.backends.kept_files import forget, own_directory, write
from gpubackprop.backends.kernel_sources import kernels_directory
from gpubackprop.backends.native import arguments
from gpubackprop.backends.native.compiler import FLAGS, Compiler, machine, machine_flags
from gpubackprop.errors import GpubackpropError

# A compiler that takes longer hangs. At its first use the package ziglang makes libraries of its
# own, which can take two minutes.
SECONDS = 300.0
FAILURE_SECONDS = 86_400.0  # a failure is believed for a day
SUFFIX = ".dll" if sys.platform == "win32" else ".so"


class CompileError(GpubackpropError):
    """A compiler that fails or hangs; the text is one line."""


def sources() -> list[Path]:
    """Return the translation units of the library."""
    return sorted((kernels_directory() / "host").glob("*.cpp"))


def text() -> bytes:
    """Return a hash of all files from which the library is made."""
    directory, digest = kernels_directory(), hashlib.sha256(arguments.checks().encode())
    headers = (*directory.glob("*.cuh"), *directory.glob("include/*.cuh"))
    for path in sorted((*directory.glob("host/*"), *headers)):
        if path.is_file():
            content = path.read_bytes()
            digest.update(f"{path.relative_to(directory).as_posix()} {len(content)}\n".encode())
            digest.update(content)
    return digest.digest()


def key_of(compiler: Compiler, text: bytes) -> str:
    """Return a hash of all that the library depends on: `text()`, flags, compiler, machine."""
    flags = (*FLAGS, *machine_flags(), *compiler.command[1:])
    words = "\0".join((compiler.identity, *flags, machine())).encode()
    return hashlib.sha256(text + words).hexdigest()[:32]


def cache_directory() -> Path:
    """Return the folder of compiled libraries.

    It is $GPUBACKPROP_CACHE_DIR, or ``gpubackprop`` in the user's folder for caches
    ($XDG_CACHE_HOME, ~/.cache; on Windows %LOCALAPPDATA%).
    """
    own = os.environ.get("GPUBACKPROP_CACHE_DIR")
    if own:
        return Path(own)
    given = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    try:
        return Path(given or Path.home() / ".cache") / "gpubackprop"
    except RuntimeError:  # there is no home
        return own_directory()


def kept(directory: Path, key: str) -> Path | None:
    """Return the library of that key, if it lies in the folder as it was written."""
    with suppress(OSError):
        for path in sorted(directory.glob(f"{key}-*{SUFFIX}")):
            if path.stem.partition("-")[2] == _digest(path.read_bytes()):
                return path
            forget(path)
    return None


def failure(directory: Path, key: str) -> str:
    """Return why this compiler failed within the last day; "" if it did not."""
    path = directory / f"{key}.failed"
    with suppress(OSError):
        if abs(time.time() - path.stat().st_mtime) < FAILURE_SECONDS:
            return path.read_text(encoding="utf-8", errors="replace").strip() or "it failed"
    return ""


def remember_failure(directory: Path, key: str, reason: str) -> None:
    """Write down why a compiler failed, so that the next process does not try again."""
    with suppress(OSError):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write(directory / f"{key}.failed", reason.encode())


def build(compiler: Compiler, directory: Path, key: str) -> Path:
    """Compile the library and return its file, in `directory` or, if that cannot be, elsewhere.

    Raises
    ------
    CompileError
        The compiler fails, hangs, or cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="gpubackprop-build-") as work:
        content = _compile(compiler, Path(work))
    name = f"{key}-{_digest(content)}{SUFFIX}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return write(directory / name, content)
    except OSError:
        return write(own_directory() / name, content)


def copied(path: Path) -> Path:
    """Return a copy in this process's own folder: the cache may be where no code may run."""
    return write(own_directory() / path.name, path.read_bytes())


def _compile(compiler: Compiler, work: Path) -> bytes:
    check = work / "arguments_check.cpp"
    check.write_text(arguments.checks(), encoding="utf-8")
    units = [*sources(), check]
    flags = (*FLAGS, *machine_flags(), f"-I{kernels_directory()}")
    objects = [work / f"{unit.stem}.o" for unit in units]
    pairs = zip(units, objects, strict=True)
    commands = [
        (*compiler.command, *flags, "-c", str(unit), "-o", str(made)) for unit, made in pairs
    ]
    deadline = time.monotonic() + SECONDS
    _run(commands, work, deadline)
    result = work / f"library{SUFFIX}"
    _run([(*compiler.link, *FLAGS[1:], "-shared", *map(str, objects), "-o", str(result))], work,
         deadline)  # fmt: skip
    try:
        return result.read_bytes()
    except OSError:
        raise CompileError("it left no library") from None


def _run(commands: Sequence[tuple[str, ...]], work: Path, deadline: float) -> None:
    """Run the commands side by side, one for each core.

    Raises
    ------
    CompileError
        One fails, or the time is over.
    """
    waiting, running = list(enumerate(commands)), list[tuple[int, subprocess.Popen[bytes]]]()
    try:
        while waiting or running:
            while waiting and len(running) < available_cores():
                number, command = waiting.pop(0)
                running.append((number, _start(command, work / f"{number}.txt")))
            number, process = running[0]
            try:
                code = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise CompileError(f"it took more than {SECONDS:g} s") from None
            running.pop(0)
            if code != 0:
                raise CompileError(_first_error(work / f"{number}.txt", code))
    finally:
        for _, process in running:
            _end(process)


def _start(command: tuple[str, ...], output: Path) -> subprocess.Popen[bytes]:
    try:
        with open(output, "wb") as said:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=output.parent,
                start_new_session=sys.platform != "win32",
            )  # fmt: skip
    except OSError as error:
        raise CompileError(f"it cannot be started ({error})") from None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a compiler and the processes that it started."""
    with suppress(OSError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _first_error(output: Path, code: int) -> str:
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
    wrong = [line.strip() for line in lines if "error" in line.lower()] or lines
    return wrong[0][:300] if wrong else f"it ended with code {code}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
