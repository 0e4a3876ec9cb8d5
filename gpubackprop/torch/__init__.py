"""The kernels inside a PyTorch program: losses, layers and optimizers in the place of PyTorch's.

CPU tensors are worked on by the NumPy path, CUDA tensors by the raw CUDA kernels, by pointer and
without copies, on the current stream and in memory of PyTorch's allocator. No Triton, no compiler
on the user's machine, no wait for the device.

>>> import torch, gpubackprop.torch as gt
>>> model = gt.convert(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())).module
>>> optimizer = gt.AdamW(model.parameters(), lr=1e-3)
>>> loss = gt.cross_entropy(model(torch.zeros(2, 4)), torch.tensor([0, 1]))
>>> loss.backward()
>>> optimizer.step()
"""

from __future__ import annotations

from gpubackprop._optional import require

require("torch", "torch", "use gpubackprop.torch")

from torch.fx import wrap as _wrap  # noqa: E402 (needs torch)

from gpubackprop.torch.bridge import LabelError, check_labels  # noqa: E402 (needs torch)
from gpubackprop.torch.conversion import Conversion, convert  # noqa: E402 (needs torch)
from gpubackprop.torch.cross_entropy import CrossEntropyLoss, cross_entropy  # noqa: E402 (needs torch)
from gpubackprop.torch.layers import Linear, LinearAct, linear_act  # noqa: E402 (needs torch)
from gpubackprop.torch.linear_cross_entropy import linear_cross_entropy  # noqa: E402 (needs torch)
from gpubackprop.torch.optimizers import SGD, Adam, AdamW  # noqa: E402 (needs torch)
from gpubackprop.torch.patching import patch  # noqa: E402 (needs torch)

for _name in ("cross_entropy", "linear_act", "linear_cross_entropy"):
    _wrap(_name)  # one node of a graph that torch.fx traces, called by these names

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Conversion",
    "CrossEntropyLoss",
    "LabelError",
    "Linear",
    "LinearAct",
    "check_labels",
    "convert",
    "cross_entropy",
    "linear_act",
    "linear_cross_entropy",
    "patch",
]
