"""environment.json: card, driver, current clocks, versions, commit. Nothing here needs a GPU."""

from __future__ import annotations

import dataclasses
import importlib
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpubackprop.backends import devices
from gpubackprop.cli.common import versions
from tools.gpu.common import write_json

QUERY = (
    "name,uuid,driver_version,vbios_version,pstate,memory.total,memory.used,clocks.sm,clocks.mem,"
    "clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu,ecc.mode.current,"
    "mig.mode.current,persistence_mode,clocks_event_reasons.active"
)


def run(*command: str) -> dict[str, Any]:
    """Return a command's output, or why it has none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": str(error)}
    text = done.stdout.strip() or done.stderr.strip()
    return {"text": text} if done.returncode == 0 else {"error": text, "code": done.returncode}


def nvidia_smi() -> dict[str, Any]:
    found = run("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader")
    if "text" not in found:
        return found | {"plain": run("nvidia-smi")}
    rows = [line.split(", ") for line in found["text"].splitlines()]
    return {"gpus": [dict(zip(QUERY.split(","), row, strict=False)) for row in rows]}


def cupy_properties() -> dict[str, Any]:
    """Return what CuPy says about its first device and its libraries."""
    try:
        cupy = importlib.import_module("cupy")
        attributes = {key: int(value) for key, value in cupy.cuda.Device(0).attributes.items()}
        free, total = cupy.cuda.runtime.memGetInfo()
        return {
            "version": cupy.__version__,
            "runtime": cupy.cuda.runtime.runtimeGetVersion(),
            "driver": cupy.cuda.runtime.driverGetVersion(),
            "nvrtc": list(cupy.cuda.nvrtc.getVersion()),
            "compute_capability": str(cupy.cuda.Device(0).compute_capability),
            "memory_free": int(free),
            "memory_total": int(total),
            "attributes": attributes,
        }
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> int:
    out, root = Path(sys.argv[1]), Path(__file__).resolve().parents[2]
    name, reason = devices.choose("auto")
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": name,
        "reason": reason,
        "commit": run("git", "-C", str(root), "rev-parse", "HEAD"),
        "changed_files": run("git", "-C", str(root), "status", "--short"),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "versions": versions(),
        "nvidia_smi": nvidia_smi(),
    }
    write_json(out / "environment.json", found)  # the next lines start CUDA, which may hang
    found["probe"] = dataclasses.asdict(devices.probe())
    found["cupy"] = cupy_properties()
    found["compute_sanitizer"] = run("compute-sanitizer", "--version")
    found["settings"] = {
        key: value for key, value in os.environ.items() if key.startswith(("CUPY_", "CUDA_"))
    }
    write_json(out / "environment.json", found)
    print(f"device auto means {name} ({reason})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
