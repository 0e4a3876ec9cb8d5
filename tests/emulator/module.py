"""Compile a .cu file with g++ and call its entries on NumPy arrays.

The source is preprocessed alone first: it is header-free, so ``__global__`` is still there and the
entries can be found by name however macros put them together. The result, with the few CUDA names
of ``include/`` in front, is an ordinary C++ file, of which `builds.py` makes a library.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop.backends.cupy.arguments import checks
from tests.emulator import builds
from tests.emulator.builds import HERE, EmulatorError

KERNELS = HERE.parents[1] / "kernels"

_ENTRY = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?P<attributes>(?:__\w+__\s*\([^()]*\)\s*)*)'
    r"(?P<name>\w+)\s*\((?P<parameters>[^)]*)\)"
)
_COMMA = re.compile(r",(?![^<]*>)")  # a comma between parameters, not in A<B, C>
_CLUSTER = re.compile(r"__cluster_dims__\s*\(\s*(\w+)\s*(?:,\s*1\s*){0,2}\)")
_ALIGNMENT = r"(?:(?:__align__|alignas)\s*\(\s*(?P<alignment>\w+)\s*\)\s*)?"
_DYNAMIC_SHARED = re.compile(
    rf"extern\s+__shared__\s+{_ALIGNMENT}(?P<type>[\w:<>]+)\s+(?P<name>\w+)\s*\[\s*\]\s*;"
)
_DECLARATOR = r"(\w+)\s*((?:\[[^\];]+\]\s*)*)"
_STATIC_SHARED = re.compile(
    rf"__shared__\s+{_ALIGNMENT}(?P<type>[^;\[]+?)\s+"
    rf"(?P<names>{_DECLARATOR}(?:,\s*{_DECLARATOR})*);"
)
_SCALARS = {
    "int": np.int32, "i32": np.int32, "int64": np.int64, "i64": np.int64, "uint64": np.uint64,
    "float": np.float32, "f32": np.float32, "double": np.float64, "f64": np.float64,
}  # fmt: skip


MAX_CLUSTER, MAX_SHARED = 8, 232448  # blocks, and bytes of dynamic shared memory, as in include/


def missing_compiler() -> str:
    """Say why the emulator cannot run here, or ""."""
    if shutil.which("g++") is None:
        return "no g++ found, which the kernel emulator needs (Debian: apt install g++)"
    if os.uname().machine != "x86_64":
        return f"the kernel emulator is written for x86-64, this is {os.uname().machine}"
    return ""


@dataclass(frozen=True)
class ByValue:
    """A struct as an argument.

    Attributes
    ----------
    values : array
        Structured array of 0 dimensions.
    arrays : dict
        The arrays to which its addresses point, by field.
    """

    values: np.ndarray
    arrays: dict[str, np.ndarray]

    def words(self) -> Any:
        """Return a copy of its bytes, on a multiple of 8."""
        data = self.values.tobytes()
        return (ctypes.c_uint64 * -(-len(data) // 8)).from_buffer_copy(
            data.ljust(-(-len(data) // 8) * 8)
        )


class Module:
    """The entries of one .cu file.

    Parameters
    ----------
    source : str or Path
        File name below kernels/, or a path.
    mode : {"values", "address", "thread", "traffic"}
        "address" is AddressSanitizer and UBSan, "thread" is ThreadSanitizer. The sanitizers' modes
        must run in a process of their own: `sanitizers.run_sanitized`.
    defines : dict
        Macros to set, e.g. {"ONLY_FORMULA": "relu", "ONLY_DTYPE": "f32"}.
    load : bool
        If False the source is only compiled; nothing can be called then.
    """

    def __init__(
        self,
        source: str | Path,
        mode: str = "values",
        defines: dict[str, str] | None = None,
        *,
        load: bool = True,
    ) -> None:
        path = Path(source) if Path(source).is_absolute() else KERNELS / source
        text = _preprocess(path, tuple(sorted((defines or {}).items())))
        self.mode = mode
        self.signatures = _signatures(text)
        self.clusters = _clusters(text)
        self.library_path = _compile(text, tuple(self.clusters.items()), mode)
        self.library = _load(self.library_path) if load else None

    def __call__(
        self,
        entry: str,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[Any],
        *,
        shared: int = 0,
        rotation: int = 0,
    ) -> None:
        """Run `entry`.

        Arrays are passed as pointers, None as null, scalars as NumPy scalars of the parameter's
        very type, structs as `ByValue`. `rotation` changes the order in which the threads of a
        block run.
        """
        if entry not in self.signatures:
            raise EmulatorError(f"no entry {entry}; there are {', '.join(sorted(self.signatures))}")
        shape = _launch_shape(entry, grid, block, self.clusters[entry], shared)
        parameters = self.signatures[entry]
        if len(arguments) != len(parameters):
            raise EmulatorError(
                f"{entry} takes {len(parameters)} arguments ({', '.join(parameters)}) but got "
                f"{len(arguments)}"
            )
        values = [
            self._struct(entry, value) if isinstance(value, ByValue)
            else _argument(entry, parameter, value)
            for parameter, value in zip(parameters, arguments, strict=True)
        ]  # fmt: skip
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        function = getattr(self.library, f"emu_{entry}")
        function(shape, ctypes.c_size_t(shared), ctypes.c_uint(rotation), pointers)

    def _struct(self, entry: str, value: ByValue) -> Any:
        size = getattr(self.library, f"emu_bytes_{entry}")
        size.restype = ctypes.c_size_t
        if value.values.nbytes != size():  # CUDA would copy the bytes behind it
            raise EmulatorError(f"{entry} takes {size()} bytes but got {value.values.nbytes}")
        return value.words()


def signatures(path: Path, defines: dict[str, str] | None = None) -> dict[str, list[str]]:
    """Return the parameters of each entry of a source; nothing is compiled."""
    return _signatures(_preprocess(path, tuple(sorted((defines or {}).items()))))


def object_code(
    path: Path, defines: tuple[tuple[str, str], ...] = (), *, kept: bool = False
) -> bytes:
    """Return what g++ makes of a source at -O2, to compare two sources; `kept`: for later runs."""
    text = _preprocess.__wrapped__(path, tuple(sorted(defines)))
    unit = _translation_unit(text, tuple(_clusters(text).items()))

    def compiled() -> bytes:
        with tempfile.TemporaryDirectory() as scratch:
            builds.compile_to(f"{scratch}/made.o", unit, "code")
            return Path(scratch, "made.o").read_bytes()

    return builds.kept(("code", unit), compiled) if kept else compiled()


def _signatures(text: str) -> dict[str, list[str]]:
    return {
        match["name"]: [part.strip() for part in _COMMA.split(match["parameters"])]
        for match in _ENTRY.finditer(text)
    }


def _clusters(text: str) -> dict[str, int]:
    """Return the blocks of a cluster, by entry; 1 without ``__cluster_dims__``."""
    result = {}
    for entry in _ENTRY.finditer(text):
        result[entry["name"]] = 1
        if "__cluster_dims__" in entry["attributes"]:
            size = _CLUSTER.search(entry["attributes"])
            if size is None or not size[1].isdigit() or not 1 <= int(size[1]) <= MAX_CLUSTER:
                raise EmulatorError(
                    f"{entry['name']}: __cluster_dims__ must be (n, 1, 1) with n a number from 1 to "
                    f"{MAX_CLUSTER}, which every card with clusters can run"
                )
            result[entry["name"]] = int(size[1])
    return result


def _launch_shape(
    entry: str, grid: Sequence[int], block: Sequence[int], cluster: int, shared: int
) -> Any:
    """Return the six numbers of a launch, checked against the limits of a card."""
    full_grid, full_block = (tuple(int(n) for n in (*part, 1, 1)[:3]) for part in (grid, block))
    limits = (2**31 - 1, 65535, 65535, 1024, 1024, 64)
    shape = full_grid + full_block
    if any(not 1 <= n <= limit for n, limit in zip(shape, limits, strict=True)):
        raise EmulatorError(f"{entry}: grid {full_grid}, block {full_block} is no valid launch")
    if int(np.prod(full_block)) > 1024:
        raise EmulatorError(f"{entry}: block {full_block} has more than 1024 threads")
    if full_grid[0] % cluster:
        raise EmulatorError(
            f"{entry}: grid {full_grid} is no multiple of its clusters of {cluster} blocks"
        )
    if not 0 <= shared <= MAX_SHARED:
        raise EmulatorError(f"{entry}: {shared} bytes of shared memory, at most {MAX_SHARED}")
    return (ctypes.c_uint * 6)(*shape)


def _argument(entry: str, parameter: str, value: Any) -> Any:
    """Return `value` as the ctypes object that the parameter, e.g. "const f32* x", takes."""
    if "*" in parameter:
        if value is None:
            return ctypes.c_void_p(None)
        if isinstance(value, (int, np.ndarray)):
            return ctypes.c_void_p(value if isinstance(value, int) else value.ctypes.data)
        raise EmulatorError(f"{entry}: {parameter} wants an array or None, got {type(value)}")
    kind = parameter.rpartition(" ")[0].removeprefix("const ").strip()
    compute = re.fullmatch(r"compute_of<(\w+)>|storage::(\w+)::C", kind)
    if compute:
        kind = "double" if "f64" in compute.groups() else "float"
    wanted = _SCALARS[kind]
    if type(value) is not wanted:  # CuPy would pass its bytes as they are
        raise EmulatorError(
            f"{entry}: {parameter} wants numpy.{wanted.__name__}, got {type(value).__name__}"
        )
    return np.ctypeslib.as_ctypes_type(wanted)(value.item())


@cache
def _preprocess(path: Path, defines: tuple[tuple[str, str], ...]) -> str:
    # The path is relative: a library is kept under a hash of the result, in every checkout.
    name = str(path.relative_to(KERNELS) if path.is_relative_to(KERNELS) else path)
    command = ["g++", "-E", "-std=c++17", "-I.", "-x", "c++", name]
    command += [f"-D{name}={value}" for name, value in defines]
    result = subprocess.run(command, capture_output=True, text=True, cwd=KERNELS)
    if result.returncode:
        raise EmulatorError(f"{path.name}: {result.stderr}")
    return result.stdout + _checks(path, result.stdout)


def _checks(path: Path, text: str) -> str:
    """Return the check that the structs of a shipped source's entries are Python's records."""
    shipped = path.parent == KERNELS or path.parent.name == "_kernels"
    return checks(tuple(match["name"] for match in _ENTRY.finditer(text))) if shipped else ""


def _shared_memory(text: str) -> str:
    """Turn ``__shared__`` variables into references to the window of the block (include/shared.h)."""

    def static(match: re.Match[str]) -> str:
        kind = match["type"]
        alignment = match["alignment"] or f"alignof({kind})"
        return " ".join(
            f"using {name}_shared = {kind} {extent}; static emu::Place {name}_place; "
            f"{name}_shared& {name} = emu::shared<{name}_shared, {alignment}>({name}_place);"
            for name, extent in re.findall(_DECLARATOR, match["names"])
        )

    dynamic = r"\g<type>* \g<name> = reinterpret_cast<\g<type>*>(emu::shared_memory());"
    return _STATIC_SHARED.sub(static, _DYNAMIC_SHARED.sub(dynamic, text))


_fibers = ctypes.c_void_p()  # the fibers of the first library that was loaded; all use them


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.emu_fibers.restype = ctypes.c_void_p
    _fibers.value = library.emu_fibers(_fibers)
    return library


def _translation_unit(text: str, clusters: tuple[tuple[str, int], ...]) -> str:
    exports = "\n".join(f"EMU_EXPORT({name}, {cluster})" for name, cluster in clusters)
    return f'#include "cuda_names.h"\n{_shared_memory(text)}\n#line 1 "exports"\n{exports}\n'


@cache
def _compile(text: str, clusters: tuple[tuple[str, int], ...], mode: str) -> Path:
    """Return the shared library of a preprocessed source, from the cache or made now."""
    return builds.library(_translation_unit(text, clusters), mode)
