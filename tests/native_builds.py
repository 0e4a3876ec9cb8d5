"""Small host kernels in place of the real ones, to compile, break and find again in tests.

As a program, it looks for the library as a first operation does, and prints what it found:

    python -m tests.native_builds SOURCES CACHE
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop.backends.native import arguments, compiling, library

FIELDS = {"double_it": {"x": "*", "first": "i64", "last": "i64"}}
HEADER = """\
#pragma once
struct DoubleItArguments { double* x; long long first, last; };
"""
SOURCE = """\
#include "host.hpp"
extern "C" {
void gb_double_it(const DoubleItArguments* a) {
    for (long long i = a->first; i < a->last; ++i) a->x[i] *= 2;
}
extern const char* const gb_activation_names[] = {"relu", nullptr};
extern const char* const gb_loss_names[] = {nullptr};
extern const char* const gb_update_names[] = {"sgd", "adam", nullptr};
}
"""


def write_sources(folder: Path, header: str = HEADER, source: str = SOURCE) -> Path:
    """Write a directory of kernels with one host function, and return it."""
    (folder / "host").mkdir(parents=True, exist_ok=True)
    (folder / "host" / "host.hpp").write_text(header)
    (folder / "host" / "double_it.cpp").write_text(source)
    return folder


def put_in_place(sources: Path, patch: Any = setattr) -> None:
    """Make this process look for these kernels, and forget what it has found."""
    patch(compiling, "kernels_directory", lambda: sources)
    patch(arguments, "ARGUMENTS", FIELDS)
    patch(library, "_path", None)


def doubled(found: Any) -> list[float]:
    """Run the library's only function on elements 1 and 2 of [1, 2, 3, 4]."""
    x = np.array([1.0, 2.0, 3.0, 4.0])
    made = arguments.record("double_it", {"x": x, "first": 1, "last": 3})
    found.double_it(ctypes.byref(made))
    return x.tolist()


if __name__ == "__main__":
    put_in_place(Path(sys.argv[1]))
    here = library.host_path()
    print(here.name, here.file, here.reason, sep="\n")
    if here.library is not None:
        print(doubled(here.library))
