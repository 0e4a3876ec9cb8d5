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

# tools/mutants/host.py names a copy of kernels/ with one line changed.
KERNELS = Path(
    os.environ.get("GPUBACKPROP_HOST_KERNELS") or Path(__file__).resolve().parents[1] / "kernels"
)
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
    """Return a shared library. An object is compiled once for each text, flags and compiler."""
    command = command or (str(compiler()),)
    options = (*flags, f"-I{KERNELS}")
    folder = Path(tempfile.gettempdir()) / f"gpubackprop-host-tests-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    keys = [_key(path, flags, options, command) for path in sources]
    key = hashlib.sha256(repr(keys).encode()).hexdigest()[:20]
    library = folder / f"{sources[0].stem}-{key}.so"
    if library.exists():
        return library
    objects = [folder / f"{path.stem}-{key}.o" for path, key in zip(sources, keys, strict=True)]
    with tempfile.TemporaryDirectory(dir=folder) as work:
        missing = [pair for pair in zip(sources, objects, strict=True) if not pair[1].exists()]
        jobs = [
            subprocess.Popen(
                [*command, *options, *WARNINGS, "-c", str(source), "-o", f"{work}/{result.name}"],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for source, result in missing
        ]  # fmt: skip
        said = [job.communicate()[0] for job in jobs]
        assert not any(job.returncode for job in jobs), "\n".join(said)
        for _, result in missing:
            os.replace(f"{work}/{result.name}", result)
        # as C: nothing here needs the C++ library, which zig would first build
        link = [*command[:-1], "cc"] if command[-1] == "c++" else command
        names = [str(path) for path in objects]
        subprocess.run([*link, *flags[1:], "-shared", *names, "-o", f"{work}/all.so"], check=True)
        os.replace(f"{work}/all.so", library)
    return library


def _key(
    source: Path, flags: Sequence[str], options: Sequence[str], command: tuple[str, ...]
) -> str:
    """Return the hash of what the compiler makes an object from; -P leaves out places of files."""
    text = subprocess.run(
        [*command, *options, "-E", "-P", str(source)], capture_output=True, check=False
    ).stdout
    return hashlib.sha256(repr((flags, command)).encode() + text).hexdigest()[:20]


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
