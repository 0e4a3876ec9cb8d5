"""Compile the kernels with NVRTC, and keep the machine code on disk.

CuPy's own `RawModule(code=...)` adds ``-ftz=true``, which makes subnormal float32 0, and hashes no
included header. Therefore the source goes to NVRTC through CuPy's `compile_using_nvrtc`, which adds
no such option, and CuPy loads the result from a file of ours.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from gpubackprop.backends.cupy.arguments import checks
from gpubackprop.backends.host import available_cores
from gpubackprop.backends.kept_files import own_directory, write
from gpubackprop.backends.kernel_sources import kernels_directory, source_hash

T = TypeVar("T")
R = TypeVar("R")
Defines = tuple[tuple[str, str], ...]
Entry = tuple[str, str, Defines]
# Subnormal numbers are kept; division and square root are rounded correctly.
OPTIONS = ("--std=c++17", "--ftz=false", "--prec-div=true", "--prec-sqrt=true", "--fmad=true")

_loaded: dict[tuple[Any, int, Entry], Any] = {}  # the functions, by CuPy, device and entry


def compiled(cupy: Any, index: int, entry: Entry) -> Any:
    """Return one entry for the current device, number `index`: compiled, or read from the disk.

    Parameters
    ----------
    cupy : module
        CuPy.
    index : int
        Number of the current device.
    entry : tuple
        (source, name, defines): a file of `kernels_directory()`, the name of its `__global__`
        function, and macros that leave this entry alone, which stand before the text.
    """
    if (cupy, index, entry) not in _loaded:
        file, code = _place(cupy, index, entry)
        if not file.exists():
            write(file, _compile(cupy, code))
        _loaded[cupy, index, entry] = cupy.RawModule(path=str(file)).get_function(entry[1])
    return _loaded[cupy, index, entry]


def compile_together(cupy: Any, index: int, entries: Iterable[Entry]) -> None:
    """Put the machine code of several entries on disk, for `compiled`, if it is not there yet.

    It uses as many threads as there are cores, since NVRTC runs without Python's lock.
    """
    new = [entry for entry in entries if (cupy, index, entry) not in _loaded]
    missing = [entry for entry in new if not _place(cupy, index, entry)[0].exists()]
    if len(missing) > 1:  # `compiled` compiles a single one
        in_threads(partial(put_on_disk, cupy, index), missing)


def put_on_disk(cupy: Any, index: int, entry: Entry) -> bool:
    """Compile one entry for device `index` unless its machine code is there.

    Return whether it was missing.
    """
    file, code = _place(cupy, index, entry)
    if file.exists():
        return False
    with cupy.cuda.Device(index):  # each thread has a current device of its own
        write(file, _compile(cupy, code))
    return True


def in_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Return ``[function(item) for item in items]``, in as many threads as there are cores.

    If the process may start no other thread, this one does it alone.
    """
    with ThreadPoolExecutor(min(len(items), available_cores())) as threads:
        futures: list[Future[R]] = []
        try:
            futures += (threads.submit(function, item) for item in items)
        except RuntimeError:  # can't start new thread: a limit on the processes of a container
            for future in futures:
                future.cancel()
            return [function(item) for item in items]
        return [future.result() for future in futures]


def _place(cupy: Any, index: int, entry: Entry) -> tuple[Path, str]:
    """Return the file for the machine code of an entry, and the text from which it is made."""
    source, name, defines = entry
    macros = "".join(f"#define {macro} {value}\n" for macro, value in defines)
    text = (kernels_directory() / source).read_text(encoding="utf-8")
    code = f'{macros}#line 1 "{source}"\n{text}{checks((name,))}'
    return cache_directory() / f"{_key(cupy, index, code)}.cubin", code


def _compile(cupy: Any, code: str) -> bytes:
    """Return machine code for the current device, or PTX if NVRTC is older than the card."""
    options = (*OPTIONS, f"-I{kernels_directory()}")
    made, _ = cupy.cuda.compiler.compile_using_nvrtc(code, options, cache_in_memory=True)
    return made if isinstance(made, bytes) else str(made).encode()


@cache
def _sources() -> str:
    return source_hash()  # reads every file


def _key(cupy: Any, index: int, code: str) -> str:
    """Return a hash of all that the machine code depends on, included files as well."""
    version = "{}.{}".format(*cupy.cuda.nvrtc.getVersion())
    card = str(cupy.cuda.Device(index).compute_capability)
    parts = (version, card, *OPTIONS, _sources(), code)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]


def cache_directory() -> Path:
    """Return `gpubackprop/` in CuPy's cache (CUPY_CACHE_DIR, else ~/.cupy/kernel_cache).

    If that cannot be written to, or if CUPY_CACHE_IN_MEMORY=1, return a folder that lasts as long
    as this process.
    """
    if os.environ.get("CUPY_CACHE_IN_MEMORY", "0") != "1":
        given = os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache"
        directory = Path(given) / "gpubackprop"
        if _can_be_written_to(directory):
            return directory
    return own_directory()


@cache
def _can_be_written_to(directory: Path) -> bool:
    """Return whether the folder can be written to.

    It is asked once per process: in some sandboxes each file that is made is a round trip.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False
