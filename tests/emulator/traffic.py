"""The traffic of a kernel: bytes per buffer, sectors per request, wavefronts in shared memory."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.emulator.builds import EmulatorError
from tests.emulator.cupy_stub import Launched
from tests.emulator.module import Module


@dataclass(frozen=True)
class Traffic:
    """The traffic of one launch on one buffer.

    Attributes
    ----------
    read : int
        Bytes read, each access counted.
    written : int
        Bytes written, each access counted.
    size : int
        Bytes of the buffer.
    widest : int
        Bytes of the widest access.
    sectors : int
        32-byte sectors touched, request by request.
    least : int
        The fewest sectors that those bytes need.
    """

    read: int
    written: int
    widest: int
    sectors: int
    least: int
    size: int

    @property
    def reads(self) -> float:
        """How many times the buffer was read."""
        return self.read / self.size

    @property
    def writes(self) -> float:
        return self.written / self.size

    @property
    def sectors_per_minimum(self) -> float:
        """1.0 if every byte of every sector that a warp touched was wanted (coalesced)."""
        return self.sectors / self.least if self.least else 1.0


@dataclass(frozen=True)
class SharedAccess:
    """What one instruction of a launch did in shared memory; rules in traffic.cpp.

    Attributes
    ----------
    library : str
        Path of the library.
    offset : int
        The instruction's place in it.
    bytes : int
        Bytes of a thread's access.
    store : int
        1 for a store, 0 for a load.
    requests : int
        How often a warp executed it.
    wavefronts : int
        What these requests cost together.
    least : int
        What they would cost without a conflict.
    worst : int
        Wavefronts of the request that cost the most.
    """

    library: str
    offset: int
    bytes: int
    store: int
    requests: int
    wavefronts: int
    least: int
    worst: int

    @property
    def conflicts(self) -> float:
        """Wavefronts over the fewest: 8.0 is an 8-way conflict."""
        return self.wavefronts / self.least

    def place(self) -> str:
        """Return the source lines, those of inlined functions first."""
        said = subprocess.run(
            ["addr2line", "-i", "-e", self.library, hex(self.offset - 1)],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        return " < ".join(line.partition(" ")[0].rpartition("/")[2] for line in said.splitlines())


def shared_accesses(module: Module) -> list[SharedAccess]:
    """Return what the instructions of the launch that was counted last did in shared memory."""
    count = module.library.emu_traffic_shared
    count.restype = ctypes.c_size_t
    numbers = (ctypes.c_size_t * (7 * count(None)))()
    count(numbers)
    return [
        SharedAccess(str(module.library_path), *numbers[i : i + 7])
        for i in range(0, len(numbers), 7)
    ]


def conflicts(accesses: Sequence[SharedAccess]) -> float:
    """Return the wavefronts of all together over the fewest; 1.0 if there are none."""
    least = sum(one.least for one in accesses)
    return sum(one.wavefronts for one in accesses) / least if least else 1.0


def count_launch(module: Module, launched: Launched) -> list[tuple[np.ndarray, Traffic]]:
    """Return the arrays that a launch of the backend touches, and the traffic on each."""
    (record,) = launched.arguments
    arrays = list(record.arrays.values())
    counts = count_traffic(
        module, launched.entry, launched.grid, launched.block, (record,), arrays,
        shared=launched.shared,
    )[1:]  # fmt: skip
    return [(array, one) for array, one in zip(arrays, counts, strict=True) if one is not None]


def count_traffic(
    module: Module,
    entry: str,
    grid: Sequence[int],
    block: Sequence[int],
    arguments: Sequence[Any],
    also: Sequence[np.ndarray] = (),
    **options: int,
) -> list[Traffic | None]:
    """Run an entry of a module in mode "traffic"; return one result for each array.

    The results of the arrays among `arguments` are at their places (an array passed twice is
    counted at the first). The results of `also` follow; the addresses of these arrays are in a
    struct or a table among the arguments.
    """
    library = module.library
    library.emu_traffic_stop.restype = ctypes.c_size_t
    library.emu_traffic_start()
    places: dict[tuple[int, int], int] = {}
    for i, array in enumerate((*arguments, *also)):
        if isinstance(array, np.ndarray) and array.size:
            low, high = np.lib.array_utils.byte_bounds(array)
            if (low, high) not in places:
                places[low, high] = i
                library.emu_traffic_register(ctypes.c_size_t(low), ctypes.c_size_t(high - low))
    module(entry, grid, block, arguments, **options)
    numbers = (ctypes.c_size_t * (5 * len(places)))()
    strays = library.emu_traffic_stop(numbers)
    if strays:
        raise EmulatorError(f"{entry}: {strays} accesses just outside a buffer")
    result: list[Traffic | None] = [None] * (len(arguments) + len(also))
    for n, ((low, high), place) in enumerate(places.items()):
        result[place] = Traffic(*numbers[5 * n : 5 * n + 5], size=high - low)
    return result
