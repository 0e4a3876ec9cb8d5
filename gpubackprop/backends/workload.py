"""The device that a training is worth: the meaning of "auto" if the amount of work is known.

The numbers are predictions from counts and from the CPU; none was measured on a GPU. They are in
one place so that a measurement can replace them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from gpubackprop.backends import devices
from gpubackprop.backends.host import available_cores

# Seconds of a step that do not depend on its size. CPU: some 50 calls of NumPy. GPU: about 25
# launches that Python issues one by one, at 8 us each (docs/decisions/2026-11-23-cupy-plans.md).
CPU_STEP, GPU_STEP = 1e-4, 2e-4
# Multiplications and additions per second in the products of a step. One core reaches CPU_RATE in
# float32 (20 to 60 GFLOP/s were measured for such products, benchmarks/README.md). GPU_RATE is low,
# because small products do not fill a GPU. float64 takes twice as long on either.
CPU_RATE, GPU_RATE = 3e10, 5e12
# Seconds until a process has done its first step on a GPU: CuPy's import, the context, and NVRTC
# for the 13 kernels of a step (docs/decisions/2026-11-23-first-use-of-a-kernel.md).
FIRST_USE = 3.0


@dataclass(frozen=True)
class Training:
    """The size of a training.

    Attributes
    ----------
    widths : sequence of int
        The widths (D_0, ..., D_L) of the network.
    batch : int
        Rows of a batch.
    steps : int
        Updates in all.
    itemsize : int
        Bytes of a number, 4 or 8.
    """

    widths: Sequence[int]
    batch: int
    steps: int
    itemsize: int = 4

    @classmethod
    def of_epochs(
        cls, widths: Sequence[int], rows: int, batch: int, epochs: int, itemsize: int = 4
    ) -> Training:
        return cls(widths, batch, epochs * math.ceil(rows / max(1, batch)), itemsize)

    def seconds(self, cores: int) -> tuple[float, float]:
        """Predict the seconds on the CPU, and on a GPU that has not been used yet."""
        weights = sum(inputs * outputs for inputs, outputs in pairwise(self.widths))
        work = 6.0 * self.batch * weights * self.itemsize / 4  # three products
        cpu = self.steps * (CPU_STEP + work / (CPU_RATE * cores))
        return cpu, FIRST_USE + self.steps * (GPU_STEP + work / GPU_RATE)


def choose(training: Training) -> tuple[str, str]:
    """Return (device, reason) of "auto" for this training.

    The device is a GPU if there is one that works and that is predicted to finish sooner, else the
    CPU.
    """
    cpu, gpu = training.seconds(available_cores())
    if gpu <= cpu:
        return devices.choose("auto")
    name, reason = devices.chosen("auto")  # only the reason depends on it
    if name == "cpu":
        return name, reason
    return "cpu", (
        f"predicted {_short(cpu)} here and {_short(gpu)} on {name}, its first use included; "
        f'device="cuda" takes it nevertheless'
    )


def _short(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
