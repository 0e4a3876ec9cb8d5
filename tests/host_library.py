"""The host functions of kernels/host, compiled by g++ and called by ctypes without the package.

The structs are read from kernels/host/arguments.hpp, so these tests need no table of the package.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

KERNELS = Path(__file__).resolve().parents[1] / "kernels"
HOST = KERNELS / "host"
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno",
    "-fno-trapping-math", "-fPIC",
)  # fmt: skip
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-parameter")
SANITIZED = (
    "-std=c++17", "-O1", "-g", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC",
    "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer",
)  # fmt: skip
STORAGE = {
    np.dtype(np.float64): 0, np.dtype(np.float32): 1, np.dtype(np.float16): 2,
    np.dtype(ml_dtypes.bfloat16): 3, np.dtype(np.uint8): 4, np.dtype(np.bool_): 4,
    np.dtype(np.int32): 5, np.dtype(np.int64): 6,
}  # fmt: skip


def compiler() -> str | None:
    """Return g++ or another C++ compiler, or None."""
    return shutil.which(os.environ.get("CXX") or "g++")


def sources() -> list[Path]:
    return sorted(HOST.glob("*.cpp"))


@cache
def built(flags: Sequence[str] = FLAGS, command: tuple[str, ...] = ()) -> Path:
    """Return the library of the host functions."""
    return compiled(tuple(sources()), flags, command)


@cache
def compiled(
    sources: tuple[Path, ...], flags: Sequence[str], command: tuple[str, ...] = ()
) -> Path:
    """Return a shared library, compiled once for each state of the sources and each flags."""
    command = command or (str(compiler()),)
    digest = hashlib.sha256(repr((flags, command)).encode())
    for path in (*sources, *sorted(KERNELS.rglob("*"))):
        if path.suffix in (".cpp", ".hpp", ".cuh"):
            digest.update(path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"gpubackprop-host-tests-{os.getuid()}"
    library = folder / f"{sources[0].stem}-{digest.hexdigest()[:20]}.so"
    if library.exists():
        return library
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        jobs = [
            subprocess.Popen(
                [*command, *flags, *WARNINGS, "-c", str(path), "-o", f"{work}/{path.stem}.o"],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for path in sources
        ]  # fmt: skip
        said = [job.communicate()[0] for job in jobs]
        assert not any(job.returncode for job in jobs), "\n".join(said)
        objects = [f"{work}/{path.stem}.o" for path in sources]
        linked = f"{work}/all.so"
        subprocess.run([*command, *flags, "-shared", *objects, "-o", linked], check=True)
        os.replace(linked, library)
    return library


_TYPES = {"int64": ctypes.c_longlong, "double": ctypes.c_double, "int": ctypes.c_int}


@cache
def structs() -> dict[str, type[ctypes.Structure]]:
    """Return a ctypes structure for each struct of arguments.hpp, by the function's name."""
    text = re.sub(r"//.*", "", (HOST / "arguments.hpp").read_text())
    result = {}
    for name, body in re.findall(r"struct (\w+)Arguments \{(.*?)\};", text, re.DOTALL):
        fields: list[tuple[str, Any]] = []
        for line in filter(None, (part.strip() for part in body.split(";"))):
            if "(*" in line:  # of RunArguments
                fields.append(("functions", ctypes.c_void_p))
                continue
            words = line.removeprefix("const ")
            kind, _, names = words.partition(" ")
            for field in names.replace("const*", "*").split(","):
                pointer = "*" in field or kind.endswith("*")
                fields.append(
                    (field.replace("*", "").strip(), ctypes.c_void_p if pointer else _TYPES[kind])
                )
                if kind.endswith("*"):
                    kind = kind.rstrip("*")
        function = "gb_" + re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()
        result[function] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return result


def address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.__array_interface__["data"][0]


class Host:
    """The functions of a library, called by name: ``host("gb_softmax", a=x, out=y, first=0, ...)``.

    Arrays become addresses; a field that is not named is 0.
    """

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))

    def __call__(self, name: str, **values: Any) -> None:
        struct = structs()[name]()
        for field, value in values.items():
            assert hasattr(struct, field), f"{name} has no field {field}"
            is_array = isinstance(value, np.ndarray)
            setattr(struct, field, address(value) if is_array else value)
        function = getattr(self._library, name)
        function.argtypes, function.restype = [ctypes.c_void_p], None
        function(ctypes.addressof(struct))

    def names(self, table: str) -> list[str]:
        """Return a null-terminated table of strings."""
        pointers = (ctypes.c_char_p * 64).in_dll(self._library, table)
        result = []
        for pointer in pointers:
            if pointer is None:
                return result
            result.append(pointer.decode())
        raise AssertionError(f"{table} has no end")
