"""The time that a launch should take on an H200, from what its compiled code was counted to do.

    python -m tools.counts          # the counts, and this model's share, for the project's goals

**Predicted, not measured on a GPU.** One launch takes::

    time    = gap + (memory^p + issue^p + banks^p + latency^p)^(1/p)
    memory  = bytes / copy rate
    issue   = (rounds * warp instructions of a block + those of the end) / (4 schedulers * clock)
    banks   = rounds * wavefronts of a block in shared memory / clock
    latency = waves * trips * latency of a round trip under load + trips of the end * that of the
              second-level cache

    rounds  = ceil(blocks / multiprocessors)
    waves   = ceil(blocks / (multiprocessors * blocks of a multiprocessor at once))

The end is what the last block does alone, behind a counter (kernels/include/last_block.cuh). The
share of a case is its least bytes / copy rate / the sum of its launches' times.

Assumed, each to be put right by the first measurement:

- The four overlap, though not perfectly: with p = 4, two of equal length take 1.19 times as long as
  one alone.
- A block's instructions, wavefronts, trips and bytes are those of the block that was counted.
- All sectors that warps request come from memory, each time. Caches save nothing.
- A round trip takes 0.75 us under load; at the end, to sums that were just written and on an idle
  card, 0.3 us. Nothing else of a block takes time.
- From node to node of a graph the card idles for 1 us.
- 132 multiprocessors at 1.98 GHz, and a copy of 4.3 TB/s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from gpubackprop.bench.rows import Row

# What a multiprocessor of compute capability 9.0 has (CUDA Programming Guide, table "Technical
# Specifications per Compute Capability").
THREADS, BLOCKS, REGISTERS, SHARED = 2048, 32, 65_536, 228 * 1024
RESERVED = 1024  # bytes of shared memory that CUDA takes for each block


@dataclass(frozen=True)
class Card:
    """The constants of the model; the defaults are assumed for an H200."""

    multiprocessors: int = 132
    clock: float = 1.98e9
    copy: float = 4.3e12
    latency: float = 0.75e-6
    cached: float = 0.3e-6
    gap: float = 1.0e-6
    overlap: float = 4.0


H200 = Card()


@dataclass(frozen=True)
class Counts:
    """What a launch was counted to do (`tools.counts`).

    Attributes
    ----------
    entry : str
        The entry.
    blocks, threads : int
        Blocks of the grid, threads of a block.
    registers : int
        Registers of a thread.
    shared : int
        Bytes of shared memory of a block, static and dynamic.
    instructions : int
        Warp instructions of a block.
    wavefronts, least_wavefronts : int
        Those of its requests to shared memory, and what they were without bank conflicts.
    trips : int
        Dependent round trips of its slowest warp.
    bytes : float
        Bytes of the sectors that the launch requests.
    flight : float
        The most bytes that a thread's loads have in flight, averaged over the block.
    end_instructions, end_trips : int
        What the last block does beyond the others.
    """

    entry: str
    blocks: int
    threads: int
    registers: int
    shared: int
    instructions: float
    wavefronts: float
    least_wavefronts: float
    trips: int
    bytes: float
    flight: float
    end_instructions: float = 0
    end_trips: int = 0

    def at_once(self) -> int:
        """Return the blocks that one multiprocessor runs at once."""
        registers = -(-self.registers // 8) * 8 * max(self.threads, 32)
        return max(
            1,
            min(BLOCKS, THREADS // self.threads, REGISTERS // registers,
                SHARED // (self.shared + RESERVED)),
        )  # fmt: skip

    def in_flight(self, card: Card = H200) -> float:
        """Return the bytes in flight on a multiprocessor, at best.

        4.8 TB/s at 0.6 to 0.8 us are 22 to 29 KB on each of 132 (Little's law).
        """
        resident = min(self.at_once(), -(-self.blocks // card.multiprocessors))
        return resident * self.threads * self.flight


def parts(counts: Counts, card: Card = H200) -> dict[str, float]:
    """Return the seconds that memory, issue, banks and latency each take."""
    rounds = math.ceil(counts.blocks / card.multiprocessors)
    waves = math.ceil(counts.blocks / (card.multiprocessors * counts.at_once()))
    return {
        "memory": counts.bytes / card.copy,
        "issue": (rounds * counts.instructions + counts.end_instructions) / (4 * card.clock),
        "banks": rounds * counts.wavefronts / card.clock,
        "latency": waves * counts.trips * card.latency + counts.end_trips * card.cached,
    }


def seconds(counts: Counts, card: Card = H200) -> float:
    """Return the time of a launch."""
    p = card.overlap
    return card.gap + sum(part**p for part in parts(counts, card).values()) ** (1 / p)


def slowest(launches: Iterable[Counts], card: Card = H200) -> str:
    """Return the part that takes the most time over all launches, gaps among them."""
    launches = list(launches)
    sums = {"gaps": card.gap * len(launches)}
    for counts in launches:
        for name, part in parts(counts, card).items():
            sums[name] = sums.get(name, 0.0) + part
    return max(sums, key=lambda name: sums[name])


def share(launches: Sequence[Counts], least_bytes: float, card: Card = H200) -> float:
    """Return the predicted share of the copy rate of a case of several launches."""
    return least_bytes / card.copy / sum(seconds(counts, card) for counts in launches)


# -- against measured rows -------------------------------------------------------------------------


def measured_shares(rows: Iterable[Row]) -> dict[str, float]:
    """Return our shares of the limit by case, from the rows of a run on a GPU."""
    return {
        row.case: row.share
        for row in rows
        if row.provider == "cupy_raw" and row.share is not None and not row.wrong
    }


def errors(predicted: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, float]:
    """Return predicted / measured of the cases that are in both; 1.0 is right."""
    return {name: predicted[name] / measured[name] for name in predicted if name in measured}


Cases = Mapping[str, tuple[Sequence[Counts], float]]  # launches and least bytes of each


def fitted(cases: Cases, measured: Mapping[str, float], card: Card = H200) -> Card:
    """Return the card whose latency, gap and overlap predict the measured shares best.

    It is the one of a grid whose median absolute error is the least.

    Raises
    ------
    ValueError : no case was measured.
    """
    names = [name for name in cases if name in measured]
    if not names:
        raise ValueError("no case of the model was measured")

    def miss(one: Card) -> float:
        return median(abs(math.log(share(*cases[name], one) / measured[name])) for name in names)

    return min(
        (
            replace(card, latency=latency * 1e-6, gap=gap * 1e-6, overlap=overlap)
            for latency in (0.5, 0.6, 0.75, 0.9, 1.1, 1.4)
            for gap in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
            for overlap in (1.0, 2.0, 3.0, 4.0, 8.0)
        ),
        key=miss,
    )
