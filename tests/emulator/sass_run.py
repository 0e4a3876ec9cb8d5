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

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from tests.emulator import compilers, sass
from tests.emulator.sass_code import Code, translate
from tests.emulator.sass_thread import WINDOW, Block, Memory, Thread

PARAMETERS = 0x210  # where a kernel's parameters begin in the constant bank
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
        waiting = [t for t in warp if t.next >= 0 and t.sync[0] in ("shuffle", "warp", "vote")]
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
    elif lanes[0].sync[0] == "vote":
        _vote(lanes, warp)
    _together(lanes)


def _vote(lanes: list[Thread], warp: list[Thread]) -> None:
    """Give each lane what the lanes say together: a predicate, or a bit of each lane in a register."""
    said = {warp.index(t): t.sync[2] for t in lanes}
    for t in lanes:
        *_, results, how = t.sync
        for name in results:
            array = {"P": t.p, "U": t.q if name[1] == "P" else t.u, "R": t.r}[name[0]]
            place = name.lstrip("UPR")
            if not place.isdigit():  # PT, RZ
                continue
            if name.lstrip("U")[0] == "P":
                array[int(place)] = (any if how == "ANY" else all)(said.values())
            else:
                array[int(place)] = sum(1 << lane for lane, yes in said.items() if yes)


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
