"""Helpers of the stages."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from gpubackprop import backends
from gpubackprop.backends import devices
from gpubackprop.cli.common import to_json
from gpubackprop.errors import DeviceUnavailable

SKIPPED = 77  # exit code of a stage without a device; its last line says why
WORST = 10  # the summary names so many results first
INTERPRETER = "GPUBACKPROP_GPU_PYTHON"  # a rehearsal sets it to one with an emulated card


def interpreter() -> list[str]:
    """Return the command that runs Python: ``[*interpreter(), "-m", "module"]``."""
    return os.environ.get(INTERPRETER, sys.executable).split()


def cuda_backend() -> Any:
    """Return the backend of the first GPU; without one, end the stage as skipped and say why."""
    try:
        name, _ = devices.choose("cuda")
        return backends.get(name)
    except DeviceUnavailable as error:
        skip(str(error))


def skip(reason: str) -> NoReturn:
    print(f"not measured on a GPU: {reason}", flush=True)
    sys.exit(SKIPPED)


def write_json(path: Path, value: Any) -> None:
    """Write a file whole or not at all, as a stage may be stopped at any time. NaN becomes null."""
    part = path.with_suffix(".part")
    part.write_text(to_json(value) + "\n")
    part.replace(path)
