"""The GPU compilers, which need no GPU: NVRTC by ctypes, or nvcc; and their report of an entry.

What they make of a single entry is kept on disk under what they read (`builds.kept`), so that other
tests, processes and runs find it.
"""

from __future__ import annotations

import ctypes
import pickle
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gpubackprop.backends.cupy.arguments import checks
from gpubackprop.backends.cupy.compiling import OPTIONS
from gpubackprop.backends.cupy_launch import entries, least_architecture
from tests.emulator import builds
from tests.emulator.module import KERNELS

# The most threads of a multiprocessor at once, and its KiB of shared memory (CUDA Programming
# Guide, table "Technical Specifications per Compute Capability").
MULTIPROCESSOR = {
    75: (1024, 64), 80: (2048, 164), 86: (1536, 100), 89: (1536, 100), 90: (2048, 228),
    100: (2048, 228), 120: (1536, 100),
}  # fmt: skip
ARCHITECTURES = tuple(MULTIPROCESSOR)
Defines = Sequence[tuple[str, str]]
Outputs = tuple[str, str, bytes]  # PTX, the report, the cubin


@dataclass(frozen=True)
class Resources:
    """The resources of one entry: registers per thread, bytes of shared memory, stack and spills."""

    registers: int
    shared: int
    stack: int
    spills: int

    def occupancy(self, threads: int, architecture: int) -> float:
        """Return the share of a multiprocessor's threads that run at once, in blocks of `threads`.

        Its 65,536 registers (in portions of 8 per thread) and its shared memory leave room for so
        many.
        """
        most_threads, shared_kib = MULTIPROCESSOR[architecture]
        registers = -(-max(self.registers, 1) // 8) * 8
        blocks = min(
            most_threads // threads,
            65536 // (registers * threads),
            shared_kib * 1024 // (self.shared + 1024),
        )
        return blocks * threads / most_threads


class CompileError(Exception):
    """The compiler's message."""


class Nvrtc:
    """libnvrtc of the wheel nvidia-cuda-nvrtc, or of a toolkit."""

    def __init__(self, library: str) -> None:
        self.name = f"NVRTC ({library})"
        major, minor = ctypes.c_int(), ctypes.c_int()
        ctypes.CDLL(library).nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = f"NVRTC {major.value}.{minor.value}"
        # NVRTC opens this library by name, and finds it only if it is already loaded.
        for builtins in sorted(Path(library).parent.glob("libnvrtc-builtins.so.*")):
            ctypes.CDLL(str(builtins))
        self._library = ctypes.CDLL(library)

    def _call(self, function: str, *arguments: Any) -> int:
        return int(getattr(self._library, function)(*arguments))

    def _text(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, buffer)
        return buffer.raw

    def compile(self, source: str, architecture: int, defines: Defines = ()) -> tuple[str, str]:
        """Return (PTX, ptxas's report) of a file below kernels/."""
        return kept(self, source, architecture, defines)[:2]

    def cubin(self, source: str, architecture: int, defines: Defines = ()) -> bytes:
        return kept(self, source, architecture, defines)[2]

    def outputs(self, source: str, architecture: int, defines: Defines) -> Outputs:
        program = ctypes.c_void_p()
        text, name = code_of(source, architecture, defines).encode(), source.encode()
        self._call("nvrtcCreateProgram", ctypes.byref(program), text, name, 0, None, None)
        options = [
            *OPTIONS, f"--gpu-architecture=sm_{architecture}", f"--include-path={KERNELS}",
            "--ptxas-options=-v", *(f"--define-macro={name}={value}" for name, value in defines),
        ]  # fmt: skip
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        code = self._call("nvrtcCompileProgram", program, len(options), array)
        log = self._text(program, "ProgramLog").decode(errors="replace")
        if code != 0:
            raise CompileError(f"{source} for sm_{architecture}: {log}")
        ptx, cubin = self._text(program, "PTX").decode(), self._text(program, "CUBIN")
        self._call("nvrtcDestroyProgram", ctypes.byref(program))
        return ptx, log, cubin


class Nvcc:
    """nvcc of a toolkit."""

    name = "nvcc"

    def __init__(self) -> None:
        said = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True)
        self.version = said.stdout.splitlines()[-1]

    def compile(self, source: str, architecture: int, defines: Defines = ()) -> tuple[str, str]:
        return kept(self, source, architecture, defines)[:2]

    def cubin(self, source: str, architecture: int, defines: Defines = ()) -> bytes:
        return kept(self, source, architecture, defines)[2]

    def outputs(self, source: str, architecture: int, defines: Defines) -> Outputs:
        options = [option.replace("--", "-", 1) for option in OPTIONS if option != "--std=c++17"]
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "source.cu"
            file.write_text(code_of(source, architecture, defines), encoding="utf-8")
            result = subprocess.run(
                ["nvcc", "-std=c++17", *options, f"-arch=sm_{architecture}", "-cubin",
                 "-Xptxas", "-v", "--keep", "--keep-dir", scratch, "-o", f"{scratch}/out.cubin",
                 *(f"-D{name}={value}" for name, value in defines), f"-I{KERNELS}", str(file)],
                capture_output=True, text=True,
            )  # fmt: skip
            if result.returncode:
                raise CompileError(f"{source} for sm_{architecture}: {result.stderr}")
            (ptx,) = Path(scratch).glob("*.ptx")
            return ptx.read_text(), result.stderr, Path(scratch, "out.cubin").read_bytes()


def code_of(source: str, architecture: int, defines: Defines) -> str:
    """Return a source, followed by the check of its entries' records (cupy/arguments.py)."""
    text = (KERNELS / source).read_text(encoding="utf-8")
    names = tuple(
        entry for file, entry, macros in entries()
        if file == source and (not defines or set(macros) == set(defines))
        if architecture >= least_architecture(entry)
    )  # fmt: skip
    return f'#line 1 "{KERNELS / source}"\n{text}{checks(names)}'


def device_code(source: str, architecture: int, version: str, defines: Defines = ()) -> str:
    """Return what a compiler of this version reads of a source for a card: its macros, includes and
    conditions are resolved, and what is only for the emulator, another card or another version is
    not there."""
    major, minor = re.findall(r"\d+", version)[:2]
    macros = {
        "__CUDACC__": "1", "__CUDA_ARCH__": f"{architecture}0",
        "__CUDACC_VER_MAJOR__": major, "__CUDACC_VER_MINOR__": minor, **dict(defines),
    }  # fmt: skip
    command = ["g++", "-E", "-P", "-std=c++17", f"-I{KERNELS}", "-x", "c++", "-"]
    command += [f"-D{name}={value}" for name, value in macros.items()]
    text = code_of(source, architecture, defines)
    result = subprocess.run(command, input=text, capture_output=True, text=True, cwd=KERNELS)
    if result.returncode:
        raise CompileError(f"{source} for sm_{architecture}: {result.stderr}")
    return result.stdout


def kept(tool: Nvrtc | Nvcc, source: str, architecture: int, defines: Defines) -> Outputs:
    """Return what `tool` makes of a source: kept, if it is of one entry, or made now."""
    if not defines or shutil.which("g++") is None:
        return tool.outputs(source, architecture, defines)
    code = device_code(source, architecture, tool.version, defines)
    found = builds.kept(
        (code, str(architecture), tool.version, *OPTIONS),
        lambda: pickle.dumps(tool.outputs(source, architecture, defines)),
    )
    outputs: Outputs = pickle.loads(found)
    return outputs


@cache
def compiler() -> Nvrtc | Nvcc | None:
    """Return NVRTC if it is installed, else nvcc, else None."""
    site = Path(sysconfig.get_path("purelib")) / "nvidia"
    found = [*site.glob("cu1*/lib/libnvrtc.so.1*"), *site.glob("cuda_nvrtc/lib/libnvrtc.so.1*")]
    for library in (*map(str, found), "libnvrtc.so.13", "libnvrtc.so.12"):
        try:
            return Nvrtc(library)
        except OSError:
            continue
    return Nvcc() if shutil.which("nvcc") else None


@cache
def disassembler() -> str | None:
    """Return the path of nvdisasm: in its wheel, on the search path, in a toolkit; else None."""
    site = Path(sysconfig.get_path("purelib")) / "nvidia"
    wheels = [*site.glob("cu1*/bin/nvdisasm"), *site.glob("cuda_nvdisasm/bin/nvdisasm")]
    toolkit = Path("/usr/local/cuda/bin/nvdisasm")
    return (
        next(map(str, wheels), None)
        or shutil.which("nvdisasm")
        or (str(toolkit) if toolkit.exists() else None)
    )


def sass(source: str, architecture: int, defines: Defines = ()) -> str:
    """Return what `disassembler` prints of a file below kernels/."""
    tool, gpu_compiler = disassembler(), compiler()
    if tool is None or gpu_compiler is None:
        raise CompileError(NONE_FOUND if gpu_compiler is None else NO_DISASSEMBLER)
    cubin = gpu_compiler.cubin(source, architecture, defines)
    return builds.kept((cubin.hex(), _version(tool)), lambda: _disassembled(tool, cubin)).decode()


@cache
def _version(tool: str) -> str:
    return subprocess.run([tool, "--version"], capture_output=True, text=True).stdout


def _disassembled(tool: str, cubin: bytes) -> bytes:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        result = subprocess.run([tool, "-c", file.name], capture_output=True)
    if result.returncode:
        raise CompileError(f"nvdisasm: {result.stderr.decode(errors='replace')}")
    return result.stdout


NO_DISASSEMBLER = "no nvdisasm found; run: pip install nvidia-cuda-nvdisasm"
NONE_FOUND = "no CUDA compiler found; run: pip install nvidia-cuda-nvrtc"

_REPORT = re.compile(
    r"Compiling entry function '(\w+)' for 'sm_\d+'(.*?)(?=Compiling entry function|\Z)", re.DOTALL
)


def resources(report: str) -> dict[str, Resources]:
    """Return the resources by entry, from ptxas's report."""

    def number(pattern: str, text: str) -> int:
        match = re.search(pattern, text)
        return int(match[1]) if match else 0

    return {
        name: Resources(
            number(r"Used (\d+) registers", text),
            number(r"(\d+) bytes smem", text),
            number(r"(\d+) bytes stack frame", text),
            number(r"(\d+) bytes spill stores", text) + number(r"(\d+) bytes spill loads", text),
        )
        for name, text in _REPORT.findall(report)
    }
