"""The host, which computes if no GPU does: its processor, its cores and NumPy's BLAS."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class CpuReport:
    """The host. `cores` are those that this process may use; `blas_threads` is None if unknown."""

    model: str
    cores: int
    machine_cores: int
    blas: str
    blas_version: str
    blas_threads: int | None


def probe_cpu() -> CpuReport:
    """Report the processor, the cores that this process may use, and NumPy's BLAS."""
    machine_cores = os.cpu_count() or 1
    config: Any = np.show_config(mode="dicts")
    blas = config.get("Build Dependencies", {}).get("blas", {})
    return CpuReport(
        model=_cpu_model(),
        cores=available_cores(),
        machine_cores=machine_cores,
        blas=blas.get("name", "unknown"),
        blas_version=blas.get("version", "unknown"),
        blas_threads=_blas_threads(),
    )


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return getattr(os, "process_cpu_count", os.cpu_count)() or 1


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    return value.strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine() or "unknown"


def _blas_threads() -> int | None:
    if importlib.util.find_spec("threadpoolctl") is not None:
        pools = importlib.import_module("threadpoolctl").threadpool_info()
        blas = [pool for pool in pools if pool.get("user_api") == "blas"]
        # SciPy and PyTorch bring a BLAS of their own; NumPy's wheel keeps its one in numpy.libs.
        blas.sort(key=lambda pool: "numpy" not in pool.get("filepath", ""))
        if blas:
            return int(blas[0]["num_threads"])
    for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(variable, "")
        if value.isdecimal():
            return int(value)
    return None
