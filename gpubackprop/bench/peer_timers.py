"""The clocks of PyTorch and JAX on a GPU."""

from __future__ import annotations

import importlib
import time
from typing import Any

import numpy as np

from gpubackprop.bench.timers import (
    DeviceTimer,
    EventTimer,
    Run,
    Times,
    first_line,
    number,
)


class TorchTimer(EventTimer):
    """PyTorch on a GPU."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.torch = device, importlib.import_module("torch")
        self.torch.cuda.set_device(number(device))

    def event(self) -> Any:
        return self.torch.cuda.Event(enable_timing=True)

    def reached(self, event: Any) -> bool:
        return bool(event.query())

    def milliseconds(self, begin: Any, end: Any) -> float:
        return float(begin.elapsed_time(end))

    def copier(self, nbytes: int) -> Run:
        source = self.torch.zeros(nbytes, dtype=self.torch.uint8, device=self.device)
        target = self.torch.empty_like(source)
        return lambda: target.copy_(source)

    def wait(self) -> None:
        self.torch.cuda.synchronize()

    def release(self) -> None:
        super().release()
        self.wait()
        self.torch.cuda.empty_cache()

    def capture(self, run: Run) -> tuple[Run | None, str]:
        """Warm up on a side stream, then capture, as PyTorch's documentation says."""
        cuda = self.torch.cuda
        try:
            side = cuda.Stream()
            side.wait_stream(cuda.current_stream())
            with cuda.stream(side):
                for _ in range(3):
                    run()
            cuda.current_stream().wait_stream(side)
            graph = cuda.CUDAGraph()
            with cuda.graph(graph):
                run()
        except Exception as error:
            return None, first_line(error)
        return graph.replay, ""

    def host(self, array: Any) -> np.ndarray:
        """Return the array in its own dtype, in which it is compared; bfloat16 goes by its bits."""
        array = array.detach().cpu()
        if array.dtype != self.torch.bfloat16:
            return np.asarray(array)
        bits: np.ndarray = array.view(self.torch.int16).numpy()
        return bits.view(importlib.import_module("ml_dtypes").bfloat16)

    def l2_bytes(self) -> int:
        properties = self.torch.cuda.get_device_properties(self.device)
        return int(getattr(properties, "L2_cache_size", 0)) or 64 << 20


class JaxTimer(DeviceTimer):
    """JAX on any device: it queues the work, and the timer waits once, after the last call."""

    def __init__(self, device: str) -> None:
        self.device, self.jax = device, importlib.import_module("jax")

    def warm(self, run: Run) -> None:
        if self.device != "cpu":
            super().warm(run)

    def finish(self, run: Run, count: int) -> None:
        """Make the calls and wait for their results: JAX cannot wait for a device."""
        for _ in range(count):
            out = run()
        self.jax.block_until_ready(out)

    def time(self, run: Run, count: int) -> Times:
        start = time.perf_counter()
        for _ in range(count):
            out = run()
        issued = (time.perf_counter() - start) / count
        self.jax.block_until_ready(out)
        seconds = (time.perf_counter() - start) / count
        self.watch()  # after the host's clock has stopped
        return seconds, issued

    def l2_bytes(self) -> int:
        return 0 if self.device == "cpu" else 64 << 20
