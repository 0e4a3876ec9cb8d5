"""Compiled kernels, executed instruction by instruction, with what a multiprocessor would charge.

`Program` is an entry that a GPU compiler made. `run` executes some of a launch's clusters: all their
threads, which write what they write on a card, and counts for each warp:

instructions
    The instructions that it issues. Lanes that are apart come together as soon as they can.
trips
    **Dependent round trips.** A thread has a clock that counts round trips to memory. A load that
    is issued at clock c arrives at c + 1. An instruction that reads or overwrites the register of a
    load (or waits for asynchronous copies) sets the clock to its arrival if it is behind. Nothing
    else takes time, and lanes of a warp, or warps at a barrier, go on with the latest clock among
    them. So loads that are issued together cost one trip, and a load whose address, predicate or
    turn comes behind another's value costs one more. The last clock is the count.
flight
    The bytes that the warp's lanes request within each trip.
memory, shared
    For each instruction, requests with their sectors of 32 bytes or wavefronts (rules in traffic.cpp).

The trips are the fewest that the code allows: a card has six scoreboards a warp, and a wait for one
of them may be for more loads than are needed. A load from the second-level cache is a trip as well.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from tests.emulator import compilers, sass
from tests.emulator.sass_code import Code, translate
from tests.emulator.sass_values import M

PARAMETERS, STACK, WINDOW = 0x210, 0x28, 0x7E00  # in the constant bank; upper word of shared memory
SHARED_START = 1024  # of a block's memory the first KiB is CUDA's


Defines = tuple[tuple[str, str], ...]


@cache
def program(source: str, entry: str, defines: Defines, architecture: int = 90) -> Code:
    """Compile an entry and translate it; raise `compilers.CompileError` without a compiler."""
    return translate(_bodies(source, defines, architecture)[entry])


@cache
def _bodies(source: str, defines: Defines, architecture: int) -> dict[str, str]:
    return sass.bodies(compilers.sass(source, architecture, defines))


@dataclass(frozen=True)
class Access:
    """The requests of one instruction of one warp.

    Attributes
    ----------
    opcode : str
        E.g. "LDG.E.128".
    width : int
        Bytes of a thread's access.
    requests : int
        How often the warp executed it with a lane at least.
    cost : int
        Sectors of 32 bytes, or wavefronts.
    least : int
        The fewest that those bytes need.
    """

    opcode: str
    width: int
    requests: int
    cost: int
    least: int


@dataclass
class Warp:
    """What a warp was charged for; see the module."""

    instructions: int
    trips: int
    flight: list[int]
    mix: Counter[str]
    memory: list[Access]
    shared: list[Access]


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
        self.instruction = 0

    # -- called by the code --------------------------------------------------------------------

    def wait(self, registers: Sequence[int], at: int) -> None:
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

    def await_copies(self, left: int, at: int) -> None:
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


def run(
    code: Code,
    launched: Any,
    clusters: Sequence[int] = (0,),
    size: int = 1,
    also: Sequence[np.ndarray] = (),
) -> list[Warp]:
    """Execute clusters of a launch, by number in order of x, then y; return all their warps.

    Parameters
    ----------
    code : Code
        The entry's.
    launched : Launched
        The launch; its arrays are read and written.
    clusters : sequence of int
        Which clusters.
    size : int
        Blocks of a cluster.
    also : sequence of arrays
        Those to which a table among the arguments points.
    """
    (record,) = launched.arguments
    return run_values(code, launched.grid, launched.block, record.values.tobytes(),
                      (*record.arrays.values(), *also), launched.shared, clusters, size)  # fmt: skip


def run_values(
    code: Code,
    grid: Sequence[int],
    block: Sequence[int],
    parameters: bytes,
    arrays: Iterable[np.ndarray],
    shared: int = 0,
    clusters: Sequence[int] = (0,),
    size: int = 1,
) -> list[Warp]:
    """The same, given the parameters as they lie in the constant bank."""
    grid, block = ((*shape, 1, 1)[:3] for shape in (grid, block))
    head = np.zeros(PARAMETERS // 4, np.uint32)
    head[:3], head[3:6] = block, grid
    constants = [
        *head.tolist(),
        *np.frombuffer(parameters + bytes(-len(parameters) % 4), np.uint32).tolist(),
    ]
    memory, warps = Memory(arrays), []
    for number in clusters:
        x, y = number % (grid[0] // size) * size, number // (grid[0] // size)
        blocks: list[Block] = []
        for rank in range(size):
            one = Block(bytearray(SHARED_START + shared + 49152))
            blocks.append(one)
            for n in range(int(np.prod(block))):
                thread = Thread(one, blocks, memory, constants)
                thread.special = {
                    "SR_TID.X": n % block[0], "SR_TID.Y": n // block[0] % block[1],
                    "SR_TID.Z": n // (block[0] * block[1]), "SR_CTAID.X": x + rank, "SR_CTAID.Y": y,
                    "SR_CTAID.Z": 0, "SR_LANEID": n % 32, "SR_CgaCtaId": rank, "SR_SWINHI": WINDOW,
                    "SR_CgaSize": size,
                }  # fmt: skip
                thread.counts = [0] * len(code.functions)
                one.threads.append(thread)
        _run_cluster(code, blocks)
        for one in blocks:
            threads = one.threads
            warps += [_warp(code, threads[i : i + 32]) for i in range(0, len(threads), 32)]
    return warps


def _run_cluster(code: Code, blocks: list[Block]) -> None:
    groups = [
        block.threads[i : i + 32] for block in blocks for i in range(0, len(block.threads), 32)
    ]
    running = True
    while running:
        running = False
        for warp in groups:
            running |= _run_warp(code, warp)
        for block in blocks:
            running |= _release([t for t in block.threads if t.next >= 0], "block")
        running |= _release(
            [t for block in blocks for t in block.threads if t.next >= 0], "cluster"
        )
    if any(t.next >= 0 for block in blocks for t in block.threads):
        raise RuntimeError("threads wait for one another for ever")


def _release(threads: list[Thread], kind: str) -> bool:
    if not threads or not all(t.sync and t.sync[0] == kind for t in threads):
        return False
    _together(threads)
    return True


def _together(threads: list[Thread]) -> None:
    clock = max(t.clock for t in threads)
    for t in threads:
        t.clock, t.sync = clock, None


def _run_warp(code: Code, warp: list[Thread]) -> bool:
    """Run the lanes until all have ended or wait at a barrier; return whether any came further."""
    moved = False
    while True:
        for t in warp:
            if t.next >= 0 and t.sync is None:
                moved = True
                _run_thread(code, t)
        waiting = [t for t in warp if t.next >= 0 and t.sync[0] in ("shuffle", "warp")]
        if not waiting:
            return moved
        first = min(t.sync[1] for t in waiting)
        _exchange([t for t in waiting if t.sync[1] == first], warp)


def _run_thread(code: Code, t: Thread) -> None:
    functions, counts, block = code.functions, t.counts, t.next
    while block >= 0 and t.sync is None:
        counts[block] += 1
        block = functions[block](t)
    t.next = block


def _exchange(lanes: list[Thread], warp: list[Thread]) -> None:
    """Let lanes that met at one shuffle take each other's values; others come back unchanged."""
    if lanes[0].sync[0] == "shuffle":
        values = {warp.index(t): t.sync[3] for t in lanes}
        for t in lanes:
            _, _, how, own, b, c, number, out = t.sync
            lane, segment = warp.index(t), c >> 8 & 31
            most = lane & segment | c & 31 & ~segment
            source = {
                "BFLY": lane ^ b, "IDX": lane & segment | b & ~segment & 31, "UP": lane - b, "DOWN": lane + b,
            }[how]  # fmt: skip
            inside = source >= most if how == "UP" else source <= most
            if number != 255:
                t.r[number] = values.get(source, own) if inside else own
            if out != "PT":
                t.p[int(out[1:])] = inside
    _together(lanes)


# -- what it cost -----------------------------------------------------------------------------------


def _warp(code: Code, lanes: list[Thread]) -> Warp:
    mix: Counter[str] = Counter()
    for n, block in enumerate(code.lines):
        times = max(t.counts[n] for t in lanes)
        for line in block if times else ():
            mix[line.name] += times
    trips = max(t.clock for t in lanes)
    flight = [sum(t.flight[clock] for t in lanes) for clock in range(trips)]
    names = {line.at: line.opcode for block in code.lines for line in block}
    memory = _accesses(names, [t.global_log for t in lanes], sectors)
    shared = _accesses(names, [t.shared_log for t in lanes], wavefronts)
    return Warp(sum(mix.values()), trips, flight, mix, memory, shared)


Lanes = list[tuple[int, int]]  # of a request: lane and address


def _accesses(
    names: dict[int, str], logs: list[list[tuple[int, int, int]]], cost: Any
) -> list[Access]:
    requests: defaultdict[tuple[int, int], Lanes] = defaultdict(list)
    widths: dict[int, int] = {}
    for lane, log in enumerate(logs):
        times: Counter[int] = Counter()
        for at, address, width in log:
            requests[at, times[at]].append((lane, address))
            times[at] += 1
            widths[at] = width
    sums: dict[int, list[int]] = {at: [0, 0, 0] for at in widths}
    for (at, _), lanes in requests.items():
        for n, value in enumerate((1, *cost(lanes, widths[at]))):
            sums[at][n] += value
    return [Access(names[at], widths[at], *sums[at]) for at in sorted(sums)]


def sectors(lanes: Lanes, width: int) -> tuple[int, int]:
    """Return the sectors of a request to memory, and the fewest for its bytes."""
    touched = {
        s for _, address in lanes for s in range(address // 32, (address + width - 1) // 32 + 1)
    }
    return len(touched), -(-len(lanes) * width // 32)


def wavefronts(lanes: Lanes, width: int) -> tuple[int, int]:
    """Return the wavefronts of a request to shared memory, and the fewest."""
    group = 8 if width > 8 else 16 if width > 4 else 32
    total = least = 0
    for first in range(0, 32, group):
        banks: defaultdict[int, set[int]] = defaultdict(set)
        for lane, address in lanes:
            if first <= lane < first + group:
                for word in range(address // 4, (address + width - 1) // 4 + 1):
                    banks[word % 32].add(word)
        total += max((len(words) for words in banks.values()), default=0)
        least += bool(banks)
    return total, least
