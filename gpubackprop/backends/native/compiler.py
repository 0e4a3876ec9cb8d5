"""The search for a C++ compiler, and what a compiled library depends on beside the text."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

# No fast-math: NaN, infinities and signed zeros mean what IEEE says. Products are not fused with
# sums unless the text says fma, so that every machine rounds alike.
FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-fno-math-errno",
    "-fno-trapping-math",
)  # fmt: skip
NAMES = ("g++", "clang++", "c++")


@dataclass(frozen=True)
class Compiler:
    """A compiler of this machine.

    Attributes
    ----------
    name : str
        Its name for people.
    command : tuple of str
        How it is started.
    link : tuple of str
        How the program that makes a shared library is started.
    identity : str
        Changes when another version takes its place.
    """

    name: str
    command: tuple[str, ...]
    link: tuple[str, ...]
    identity: str


def candidates() -> list[Compiler]:
    """Return the compilers to try, in order: $CXX, g++, clang++, c++, the wheel ziglang."""
    found: list[Compiler] = []
    for words in (tuple(shlex.split(os.environ.get("CXX", ""))), *((name,) for name in NAMES)):
        path = shutil.which(words[0]) if words else None
        if path is not None:
            command = (path, *words[1:])
            found.append(Compiler(Path(words[0]).name, command, command, _identity(path)))
    if importlib.util.find_spec("ziglang") is not None:
        version = importlib.metadata.version("ziglang")
        zig = (sys.executable, "-m", "ziglang")  # zig c++ would build its C++ library to link
        found.append(Compiler("zig c++", (*zig, "c++"), (*zig, "cc"), version))
    return list({compiler.identity: compiler for compiler in reversed(found)}.values())[::-1]


def _identity(path: str) -> str:
    real = os.path.realpath(path)
    stat = os.stat(real)
    return f"{real} {stat.st_size} {stat.st_mtime_ns}"


def machine_flags() -> tuple[str, ...]:
    """Return the flags that ask for the instructions of this very processor."""
    return ("-march=native",) if is_x86() else ("-mcpu=native",)


def is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64", "i386", "i686", "x86")


def machine() -> str:
    """Return what the instructions of a library depend on: system, architecture, CPU flags.

    A home directory that machines share then never gives one of them foreign instructions.
    """
    words = [sys.platform, platform.machine(), *platform.libc_ver()]
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key = line.partition(":")[0].strip()
                if key in ("model name", "flags", "Features", "CPU implementer", "CPU part"):
                    words.append(line.strip())
                if not line.strip():  # the first processor stands for all
                    break
    except OSError:  # not Linux
        words += [platform.processor(), platform.node(), os.environ.get("PROCESSOR_IDENTIFIER", "")]
    return "\n".join(words)
