"""The registers, the clock and the memory of a thread of a compiled kernel; see `sass_run.py`."""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.emulator.sass_values import M

WINDOW = 0x7E00  # the upper word of a generic address of shared memory


class Memory:
    """The arrays of a launch by address; elsewhere there is nothing."""

    def __init__(self, arrays: Iterable[np.ndarray]) -> None:
        bounds = {np.lib.array_utils.byte_bounds(array) for array in arrays if array.size}
        self.parts = [
            (low, high, memoryview((ctypes.c_ubyte * (high - low)).from_address(low)).cast("B"))
            for low, high in sorted(bounds)
        ]
        self.lows = [part[0] for part in self.parts]

    def at(self, address: int, size: int) -> tuple[memoryview, int]:
        place = bisect_right(self.lows, address) - 1
        if place >= 0 and address + size <= self.parts[place][1]:
            return self.parts[place][2], address - self.parts[place][0]
        raise IndexError(f"an access of {size} bytes at {address:#x}, which is in no array")


@dataclass
class Block:
    shared: bytearray
    threads: list[Thread] = field(default_factory=list)


class Thread:
    """Registers and predicates of a thread, and what its accesses cost."""

    def __init__(
        self, block: Block, cluster: list[Block], memory: Memory, constants: list[int]
    ) -> None:
        self.r, self.u, self.K = [0] * 256, [0] * 64, constants
        self.p, self.q = [False] * 7 + [True], [False] * 7 + [True]
        self.block, self.cluster, self.memory = block, cluster, memory
        self.special: dict[str, int] = {}
        self.pending: dict[int, int] = {}  # register: when it arrives
        self.clock, self.next, self.sync = 0, 0, None
        self.copies, self.groups = 0, []
        self.counts: list[int] = []
        self.flight: Counter[int] = Counter()
        self.global_log: list[tuple[int, int, int]] = []  # instruction, address, bytes
        self.shared_log: list[tuple[int, int, int]] = []

    # -- called by the code --------------------------------------------------------------------

    def wait(self, registers: Sequence[int]) -> None:
        for number in registers:
            arrival = self.pending.pop(number, 0)
            if arrival > self.clock:
                self.clock = arrival

    def _request(self, at: int, address: int, width: int, *, load: bool = True) -> None:
        self.global_log.append((at, address, width))
        if address % width:
            raise ValueError(f"a misaligned access of {width} bytes at {address:#x}")
        if load:
            self.flight[self.clock] += width

    def _keep(self, number: int, data: bytes, signed: bool, arrival: int = 0) -> None:
        if number == 255:
            return
        for n in range(max(1, len(data) // 4)):
            word = int.from_bytes(data[4 * n : 4 * n + 4], "little", signed=signed) & M
            self.r[number + n] = word
            if arrival:
                self.pending[number + n] = arrival

    def load(self, at: int, address: int, width: int, number: int, signed: bool) -> None:
        self._request(at, address, width)
        view, place = self.memory.at(address, width)
        self._keep(number, bytes(view[place : place + width]), signed, self.clock + 1)

    @staticmethod
    def _bytes(width: int, data: Any) -> bytes:
        if isinstance(data, tuple):
            return b"".join(word.to_bytes(4, "little") for word in data)
        return (data & (1 << 8 * width) - 1).to_bytes(width, "little")

    def store(self, at: int, address: int, width: int, data: Any) -> None:
        self._request(at, address, width, load=False)
        view, place = self.memory.at(address, width)
        view[place : place + width] = self._bytes(width, data)

    def _window(self, address: int) -> tuple[bytearray, int]:
        return self.cluster[address >> 24 & 0xFF].shared, address & 0xFFFFFF

    def load_shared(self, at: int, address: int, width: int, number: int, signed: bool) -> None:
        self.shared_log.append((at, address, width))
        view, place = self._window(address)
        self._keep(number, bytes(view[place : place + width]), signed)

    def store_shared(self, at: int, address: int, width: int, data: Any) -> None:
        self.shared_log.append((at, address, width))
        view, place = self._window(address)
        if place + width > len(view):
            raise IndexError(f"a store beyond shared memory at {address:#x}")
        view[place : place + width] = self._bytes(width, data)

    def load_generic(self, at: int, address: int, width: int, number: int, signed: bool) -> None:
        function = self.load_shared if address >> 32 == WINDOW else self.load
        function(at, address if function == self.load else address & M, width, number, signed)

    def store_generic(self, at: int, address: int, width: int, data: Any) -> None:
        function = self.store_shared if address >> 32 == WINDOW else self.store
        function(at, address if function == self.store else address & M, width, data)

    def copy(self, at: int, target: int, address: int, width: int, wanted: bool) -> None:
        data = bytes(width)
        if wanted:
            self._request(at, address, width)
            view, place = self.memory.at(address, width)
            data = bytes(view[place : place + width])
            self.copies = self.clock + 1
        self.shared_log.append((at, target, width))
        view, place = self._window(target)
        view[place : place + width] = data

    def commit(self) -> None:
        self.groups.append(self.copies)
        self.copies = 0

    def await_copies(self, left: int) -> None:
        done = self.groups[: len(self.groups) - left]
        self.clock = max(self.clock, *done, 0)

    def atomic(
        self, at: int, how: str, address: int, width: int, number: int, given: Sequence[int]
    ) -> None:
        self._request(at, address, width)
        view, place = self.memory.at(address, width)
        old = int.from_bytes(view[place : place + width], "little")
        new = {
            "CAS": lambda a, b=0: b if old == a else old,
            "ADD": lambda a: old + a & (1 << 8 * width) - 1,
            "INC": lambda a: 0 if old >= a else old + 1,
            "EXCH": lambda a: a, "MAX": lambda a: max(a, old), "MIN": lambda a: min(a, old),
        }[how](*given)  # fmt: skip
        view[place : place + width] = new.to_bytes(width, "little")
        self._keep(number, old.to_bytes(width, "little"), False, self.clock + 1)
