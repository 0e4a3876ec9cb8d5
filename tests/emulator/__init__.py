"""The CUDA kernels' own source, compiled by g++ and run on NumPy arrays; see README.md."""

from tests.emulator.builds import EmulatorError
from tests.emulator.module import Module, missing_compiler
from tests.emulator.sanitizers import Launch, run_sanitized
from tests.emulator.traffic import SharedAccess, Traffic, count_traffic, shared_accesses

__all__ = [
    "EmulatorError", "Launch", "Module", "SharedAccess", "Traffic", "count_traffic",
    "missing_compiler", "run_sanitized", "shared_accesses",
]  # fmt: skip
