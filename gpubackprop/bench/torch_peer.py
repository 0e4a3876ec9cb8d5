"""PyTorch (eager, fused optimizers, compiled, max-autotune), Liger and `gpubackprop.torch`."""

from __future__ import annotations

import importlib
import importlib.util

from gpubackprop.bench import torch_front_ends, torch_operations
from gpubackprop.bench.peer_timers import TorchTimer
from gpubackprop.bench.problems import Unsupported
from gpubackprop.bench.shapes import Case
from gpubackprop.bench.timers import Timer, Work
from gpubackprop.bench.torch_common import Torch


def timer(device: str, provider: str) -> Timer:
    if provider == "Liger":
        for package in ("liger_kernel", "triton"):
            if importlib.util.find_spec(package) is None:
                raise ImportError(f"No module named {package!r}")
    if device == "cpu":
        importlib.import_module("torch")
        return Timer()
    if not importlib.import_module("torch").cuda.is_available():
        raise ImportError("the installed PyTorch has no CUDA")
    return TorchTimer(device)


def setup(case: Case, where: Timer, provider: str) -> Work:
    import torch

    chosen = Torch(torch, where, provider)
    make = (torch_operations.SETUPS | torch_front_ends.SETUPS).get(case.op)
    if make is None:
        raise Unsupported(f"PyTorch is not set up for {case.op}")
    return make(chosen, case)
