"""The library of host kernels in this process: found, compiled or done without, once.

Nothing is looked for before the first operation asks. What is heavy to import waits until then.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpubackprop.backends.kept_files import forget
from gpubackprop.backends.native import arguments
from gpubackprop.errors import GpubackpropError, one_line

VARIABLE = "GPUBACKPROP_NATIVE"
NO_COMPILER = (
    "no C++ compiler was found (looked for $CXX, g++, clang++, c++ and the package ziglang); run: "
    'pip install "gpubackprop[native]"'
)
MOST_NAMES = 256


class Library:
    """The functions of a compiled library, by the names in `arguments.ARGUMENTS`.

    Each takes ``ctypes.byref`` of its record, and lets other Python threads run meanwhile.

    Attributes
    ----------
    has : set of str
        The names of the functions that are there; NumPy computes what the others would.
    activations : dict of int
        Number of each activation, by its name in the registry.
    losses : dict of int
        Number of each pointwise loss.
    updates : dict of int
        Number of each optimizer's formula.
    """

    activations: dict[str, int]
    losses: dict[str, int]
    updates: dict[str, int]

    def __init__(self, path: Path) -> None:
        self._loaded = ctypes.CDLL(str(path))
        self.has: set[str] = set()
        self.activations, self.losses, self.updates = (
            self._numbers(f"gb_{kind}_names") for kind in ("activation", "loss", "update")
        )
        for name in arguments.ARGUMENTS:
            function = getattr(self._loaded, f"gb_{name}", None)
            if function is None:
                continue
            self.has.add(name)
            function.restype = None
            function.address = ctypes.cast(function, ctypes.c_void_p).value  # for gb_run
            setattr(self, name, function)

    def _numbers(self, symbol: str) -> dict[str, int]:
        """Return the position of each name in a list of C strings that ends with a null pointer."""
        names: dict[str, int] = {}
        try:
            listed = (ctypes.c_char_p * MOST_NAMES).in_dll(self._loaded, symbol)
        except ValueError:
            return names
        for name in listed:
            if name is None:
                break
            names[name.decode()] = len(names)
        return names

    def __getattr__(self, name: str) -> Callable[[Any], None]:
        raise AttributeError(f"the library of host kernels has no {name}")


@dataclass(frozen=True)
class HostPath:
    """How the host computes.

    Attributes
    ----------
    library : Library or None
        The library; None if NumPy computes.
    reason : str
        A line that says which library it is, or why there is none.
    file : str
        The library's file; "" if NumPy computes.
    """

    library: Library | None
    reason: str
    file: str = ""

    @property
    def name(self) -> str:
        return "numpy" if self.library is None else "native"


_path: HostPath | None = None
_looking = threading.Lock()


def _after_fork() -> None:
    global _looking
    _looking = threading.Lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def library() -> Library | None:
    """Return the library, or None if NumPy computes; the first call looks for it."""
    return (_path or host_path()).library


def host_path() -> HostPath:
    """Return how the host computes, and why; the first call looks for a library or compiles it."""
    global _path
    with _looking:
        if _path is None:
            _path = _look()
        return _path


def _look() -> HostPath:
    if os.environ.get(VARIABLE, "").strip() == "0":
        return HostPath(None, f"{VARIABLE}=0 turns the compiled kernels off")
    try:
        return _found()
    except (GpubackpropError, OSError, RuntimeError, ValueError) as error:
        return HostPath(None, f"the compiled kernels cannot be used: {one_line(error)}")


def _found() -> HostPath:
    from gpubackprop.backends.native import compiling
    from gpubackprop.backends.native.compiler import candidates

    directory, reasons = compiling.cache_directory(), list[str]()
    if not compiling.sources():
        return HostPath(None, "this installation has no sources of host kernels")
    text = compiling.text()
    for compiler in candidates():
        key = compiling.key_of(compiler, text)
        path = compiling.kept(directory, key)
        if path is not None:
            try:
                return HostPath(Library(path), f"compiled by {compiler.name}", str(path))
            except (OSError, AttributeError):
                forget(path)
        reason = compiling.failure(directory, key)
        if not reason:
            try:
                return _build(compiler, directory, key)
            except (compiling.CompileError, OSError, AttributeError) as error:
                reason = one_line(error)
                compiling.remember_failure(directory, key, reason)
        reasons.append(f"{compiler.name} does not compile the kernels: {reason}")
    return HostPath(None, "; ".join(reasons) or NO_COMPILER)


def _build(compiler: Any, directory: Path, key: str) -> HostPath:
    from gpubackprop.backends.native import compiling

    begin = time.perf_counter()
    _say(
        f"gpubackprop: compiling the host kernels with {compiler.name} (once for this machine; "
        f"{VARIABLE}=0 turns this off) ...",
        end=" ",
    )
    said = "it failed"
    try:
        path = compiling.build(compiler, directory, key)
        try:
            loaded = Library(path)
        except OSError:
            path = compiling.copied(path)
            loaded = Library(path)
        said = f"{time.perf_counter() - begin:.1f} s"
    finally:
        _say(said)
    return HostPath(loaded, f"compiled by {compiler.name}", str(path))


def _say(text: str, end: str = "\n") -> None:
    """Write to stderr, if there is one."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):  # it may be closed
            print(text, end=end, file=sys.stderr, flush=True)
