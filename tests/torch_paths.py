"""The three ways of `gpubackprop.torch`: CPU tensors, emulated kernels, a GPU.

In the emulated way CPU tensors pass through the CUDA backend, on the stand-in for CuPy, so that the
same operators, launches and kernels work on their memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from gpubackprop.torch import bridge
from tests.emulator import cupy_stub
from tests.emulator.module import missing_compiler


class EmulatedBridge(bridge.CudaBridge):
    """`CudaBridge` for memory of the host: only pointers and streams are not its code."""

    @contextmanager
    def backend_of(self, like: torch.Tensor) -> Iterator[Any]:
        yield self.backend(0, 0, self.capturing())

    def array(self, tensor: torch.Tensor | None) -> Any:
        return None if tensor is None else cupy_stub.ndarray(bridge.numpy_view(tensor), 0)

    def capturing(self) -> bool:
        return bool(cupy_stub.STATE.captured)

    def _pinned(self, host: torch.Tensor) -> torch.Tensor:
        assert not self.capturing(), "cudaHostAlloc cannot be captured"
        return host.clone()

    def _copy_pinned(self, pinned: torch.Tensor, out: torch.Tensor) -> None:
        cupy_stub.STATE.queue(lambda: out.copy_(pinned))

    def _device_view(self, pinned: torch.Tensor, index: int) -> Any:
        return cupy_stub.ndarray(bridge.numpy_view(pinned), 0)


@contextmanager
def emulated() -> Iterator[cupy_stub.Counts]:
    """Send CPU tensors to emulated kernels within the context; give the counts of launches."""
    before = bridge.ROUTES["cpu"]
    with cupy_stub.installed(lazy=False) as counts:  # PyTorch reads its memory without waiting
        bridge.ROUTES["cpu"] = EmulatedBridge()
        try:
            yield counts
        finally:
            bridge.ROUTES["cpu"] = before


class Path:
    """The place where a test computes: `device` for its tensors."""

    def __init__(self, name: str) -> None:
        self.name, self.device = name, "cuda" if name == "cuda" else "cpu"

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if self.name == "cuda" and not torch.cuda.is_available():
            pytest.skip(f"needs a GPU: PyTorch {torch.__version__} sees none")
        if self.name != "emulated":
            yield
            return
        if missing_compiler():
            pytest.skip(missing_compiler())
        with emulated():
            yield


PATHS = [
    "numpy",
    pytest.param("emulated", marks=pytest.mark.emulated),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The three ways, one after the other; a test that wants them imports this."""
    chosen = Path(request.param)
    with chosen():
        yield chosen


def array(tensor: torch.Tensor) -> Any:
    """Return its values for a comparison, in NumPy's type of the same name."""
    return bridge.numpy_view(tensor.detach().cpu())
