"""What the stages share."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from gpubackprop import backends
from gpubackprop.backends import devices
from gpubackprop.cli.common import to_json
from gpubackprop.errors import DeviceUnavailable

SKIPPED = 77  # exit code of a stage that had nothing to run on; the reason is its last line
WORST = 10  # results that the summary names first
INTERPRETER = "GPUBACKPROP_GPU_PYTHON"  # a rehearsal names one with an emulated card


def interpreter() -> list[str]:
    """What runs a module of Python: ``[*interpreter(), "-m", "module"]``."""
    return os.environ.get(INTERPRETER, sys.executable).split()


def cuda_backend() -> Any:
    """The backend of the first GPU; ends the stage as skipped, with the reason, without one."""
    try:
        name, _ = devices.choose("cuda")
        return backends.get(name)
    except DeviceUnavailable as error:
        skip(str(error))


def skip(reason: str) -> NoReturn:
    print(f"not measured on a GPU: {reason}", flush=True)
    sys.exit(SKIPPED)


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all: a stage may be stopped at any moment. NaN becomes null."""
    part = path.with_suffix(".part")
    part.write_text(to_json(value) + "\n")
    part.replace(path)
