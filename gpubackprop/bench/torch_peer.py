"""PyTorch: eager, with its fused optimizers, compiled by default and max-autotune; Liger, and
`gpubackprop.torch`."""

from __future__ import annotations

import importlib
import importlib.util

from gpubackprop.bench import torch_front_ends, torch_operations
from gpubackprop.bench.peer_places import TorchPlace
from gpubackprop.bench.places import Place, Work
from gpubackprop.bench.problems import Unsupported
from gpubackprop.bench.shapes import Case
from gpubackprop.bench.torch_common import Torch


def place(device: str, contestant: str) -> Place:
    if contestant == "Liger":
        for package in ("liger_kernel", "triton"):
            if importlib.util.find_spec(package) is None:
                raise ImportError(f"No module named {package!r}")
    if device == "cpu":
        importlib.import_module("torch")
        return Place()
    if not importlib.import_module("torch").cuda.is_available():
        raise ImportError("the installed PyTorch has no CUDA")
    return TorchPlace(device)


def setup(case: Case, where: Place, contestant: str) -> Work:
    import torch

    chosen = Torch(torch, where, contestant)
    make = (torch_operations.SETUPS | torch_front_ends.SETUPS).get(case.op)
    if make is None:
        raise Unsupported(f"PyTorch is not set up for {case.op}")
    return make(chosen, case)
