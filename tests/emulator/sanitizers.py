"""Run launches under AddressSanitizer and UBSan, or under ThreadSanitizer, in a process of its own.

A sanitizer's runtime must be the first library of a process, so the launches are sent to a fresh
Python with LD_PRELOAD. There every array is copied into memory of exactly its size (and of its
misalignment), so that the very first byte beyond it is forbidden.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.emulator.module import HERE, ByValue, Module

RUNTIME = {"address": "libasan.so", "thread": "libtsan.so"}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:halt_on_error=1:exitcode=99",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=99",
    "TSAN_OPTIONS": "halt_on_error=0:exitcode=99:report_signal_unsafe=0:atexit_sleep_ms=0",
}


@dataclass
class Launch:
    """One launch of one entry, as `Module` takes it."""

    source: str
    entry: str
    grid: Sequence[int]
    block: Sequence[int]
    arguments: Sequence[Any]
    shared: int = 0
    defines: dict[str, str] = field(default_factory=dict)

    def arrays(self) -> list[np.ndarray]:
        """Return all arrays that it reads or writes, except those to which a `PointerTable` points."""
        found = []
        for argument in self.arguments:
            if isinstance(argument, ByValue):
                found += argument.arrays.values()
            elif isinstance(argument, np.ndarray):
                found.append(argument)
        return found


@dataclass(frozen=True)
class _Memory:
    """All bytes from an array's first to its last, gaps between rows included.

    An array that is pickled as it is would lose its strides.
    """

    address: int
    data: bytes


class PointerTable(np.ndarray):
    """An array of uint64, some of which are the addresses of `arrays`."""

    arrays: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class _Table:
    words: np.ndarray
    arrays: tuple[_Memory, ...]


@dataclass(frozen=True)
class _Struct:
    values: np.ndarray
    arrays: dict[str, Any]


def _memory(argument: Any) -> Any:
    if isinstance(argument, ByValue):
        arrays = {name: _memory(array) for name, array in argument.arrays.items()}
        return _Struct(argument.values, arrays)
    if isinstance(argument, PointerTable):
        return _Table(np.array(argument), tuple(map(_memory, argument.arrays)))
    if not isinstance(argument, np.ndarray):
        return argument
    low, high = np.lib.array_utils.byte_bounds(argument)
    return _Memory(low, ctypes.string_at(low, high - low))


def run_sanitized(launches: Sequence[Launch], mode: str) -> str:
    """Return what the sanitizer said, "" if nothing. `mode` is "address" or "thread".

    Each launch is announced on standard error first, so a report names the launch above it.
    """
    for launch in launches:  # compiled here: the fresh process finds the libraries made
        Module(launch.source, mode, launch.defines, load=False)
    return _run_in_a_process(launches, mode)


def _run_in_a_process(launches: Sequence[Launch], mode: str) -> str:
    preload = subprocess.run(
        ["g++", f"-print-file-name={RUNTIME[mode]}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    environment = os.environ | OPTIONS | {"LD_PRELOAD": preload, "OMP_NUM_THREADS": "1"}
    environment |= {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    program = "import sys; from tests.emulator import sanitizers; sanitizers.main(sys.argv[1])"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "launches.pickle"
        sent = [replace(launch, arguments=[*map(_memory, launch.arguments)]) for launch in launches]
        path.write_bytes(pickle.dumps((mode, sent)))
        command = [sys.executable, "-c", program, str(path)]
        if mode == "thread":  # its shadow memory wants addresses where newer kernels randomise
            command = ["setarch", "-R", *command]
        result = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=HERE.parents[1]
        )
    finished = "all launches done" in result.stderr and "ThreadSanitizer" not in result.stderr
    if result.returncode == 0 and finished:
        return ""
    return f"exit code {result.returncode}\n{result.stderr}"


class _ExactCopies:
    """Copies in malloc'ed memory that ends where the array ends, as misaligned as it was."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None)
        self._libc.malloc.restype = ctypes.c_void_p
        self._libc.malloc.argtypes = [ctypes.c_size_t]
        self._libc.free.argtypes = [ctypes.c_void_p]
        self._copies: dict[tuple[int, int], int] = {}
        self._owned: list[int] = []

    def address(self, array: _Memory) -> int:
        """Return the address of the copy; arrays of one address and length share it, as before."""
        key = array.address, len(array.data)
        if key not in self._copies:
            shift = array.address % 16
            memory = self._libc.malloc(shift + max(len(array.data), 1))
            ctypes.memmove(memory + shift, array.data, len(array.data))
            self._owned.append(memory)
            self._copies[key] = memory + shift
        return self._copies[key]

    def table(self, table: _Table) -> int:
        """Return the table's copy, with the addresses of the arrays' copies."""
        words = table.words.copy()
        for array in table.arrays:
            words[table.words == array.address] = self.address(array)
        return self.address(_memory(words))

    def struct(self, struct: _Struct) -> ByValue:
        """Return the struct with the addresses of the arrays' copies."""
        values = struct.values.copy()
        for name, array in struct.arrays.items():
            field = values[name]
            (field["at"] if field.dtype.names else field)[...] = self.argument(array)
        return ByValue(values, {})

    def argument(self, argument: Any) -> Any:
        if isinstance(argument, _Struct):
            return self.struct(argument)
        if isinstance(argument, _Table):
            return self.table(argument)
        return self.address(argument) if isinstance(argument, _Memory) else argument

    def free(self) -> None:
        for memory in self._owned:
            self._libc.free(memory)


def main(path: str) -> None:
    """Run the launches in the file `path`, in the sanitized process."""
    mode, launches = pickle.loads(Path(path).read_bytes())
    modules: dict[tuple[Any, ...], Module] = {}
    for launch in launches:
        print(f"launch {launch.entry} {launch.grid} {launch.block}", file=sys.stderr, flush=True)
        key = (launch.source, *sorted(launch.defines.items()))
        if key not in modules:
            modules[key] = Module(launch.source, mode, launch.defines)
        copies = _ExactCopies()
        arguments = [copies.argument(argument) for argument in launch.arguments]
        modules[key](launch.entry, launch.grid, launch.block, arguments, shared=launch.shared)
        copies.free()
    print("all launches done", file=sys.stderr)
