"""The providers of PyTorch share this: tensors, compilation of functions, and optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpubackprop.bench import operations
from gpubackprop.bench.operations import LEARNING_RATE
from gpubackprop.bench.peer_timers import TorchTimer
from gpubackprop.bench.problems import Unsupported
from gpubackprop.bench.providers import FRONT_ENDS
from gpubackprop.bench.shapes import Case
from gpubackprop.bench.timers import Timer, Work


class Torch:
    """PyTorch's module, the device, and how functions are compiled."""

    def __init__(self, torch: Any, where: Timer, provider: str) -> None:
        self.torch, self.where, self.provider = torch, where, provider
        self.fused = provider == "torch fused"
        self.ours = provider == FRONT_ENDS[0]
        self.compiled = "compile" in provider

    def fast(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if not self.compiled:
            return function
        mode = "max-autotune" if "max-autotune" in self.provider else None
        compiled: Callable[..., Any] = self.torch.compile(function, mode=mode, fullgraph=True)
        return compiled

    def tensor(self, array: Any) -> Any:
        """Return a copy on the device; bfloat16 goes by its bits, as NumPy has no such type."""
        array = np.ascontiguousarray(array)
        if array.dtype.name == "bfloat16":
            bits = self.torch.from_numpy(array.view(np.int16).copy())
            return bits.view(self.torch.bfloat16).to(self.where.device)
        return self.torch.from_numpy(array.copy()).to(self.where.device)

    def inputs(self, case: Case) -> dict[str, Any]:
        found = operations.get(case.op).inputs(case)
        return {name: self.tensor(array) for name, array in found.items()}

    def host(self, values: dict[str, Any]) -> dict[str, Any]:
        convert = self.where.host if isinstance(self.where, TorchTimer) else host_array
        return {name: convert(tensor) for name, tensor in values.items()}

    def work(self, run: Callable[[], dict[str, Any]], *, capture: bool = True) -> Work:
        """Return the work of `run`, which gives results by name; eager GPU work is captured too."""
        work = Work(run, lambda: self.host(run()))
        if capture and not self.compiled and self.where.device != "cpu":
            work.replay, work.uncaptured = self.where.capture(run)
        return work

    def in_place(self, work: Work) -> Work:
        """Mark work that changes its own inputs: its graph is captured after the comparison."""
        if not self.compiled and isinstance(self.where, TorchTimer):
            work.capture = lambda: self.where.capture(work.run)
        return work


def host_array(tensor: Any) -> Any:
    return tensor.detach().numpy()


def optimizer_of(t: Torch, name: str, parameters: list[Any]) -> Any:
    if t.ours:
        from gpubackprop import torch as gt

        return gt.Adam(parameters, LEARNING_RATE)
    how: dict[str, Any] = {"fused": True} if t.fused else {}
    if t.provider == "torch foreach":
        how["foreach"] = True
    if t.where.device != "cpu" and name in ("adam", "adamw"):
        how["capturable"] = True  # keeps the step count on the GPU: a graph would freeze the host's
    optim = t.torch.optim
    makers: dict[str, Callable[[], Any]] = {
        "adam": lambda: optim.Adam(parameters, LEARNING_RATE, **how),
        "adamw": lambda: optim.AdamW(parameters, LEARNING_RATE, weight_decay=0.0, **how),
        "sgd": lambda: optim.SGD(parameters, LEARNING_RATE, momentum=0.9, **how),
    }
    if name not in makers:
        raise Unsupported(f"PyTorch is set up for {', '.join(makers)}")
    return makers[name]()


class Update:
    """An optimizer's step, compiled if the provider is; if that fails, eager with a remark."""

    def __init__(self, t: Torch, optimizer: Any) -> None:
        self._eager = self._step = optimizer.step
        self._remark = ""
        if t.compiled:
            self._step = t.torch.compile(optimizer.step)

    def __call__(self) -> None:
        try:
            self._step()
        except Exception as error:
            if self._step is self._eager:
                raise
            self._remark = f"optimizer eager: {type(error).__name__}"
            self._step = self._eager
            self._step()

    def remark(self) -> str:
        return self._remark
