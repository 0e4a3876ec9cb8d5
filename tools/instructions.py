"""Count compiled kernels' SASS instructions per element, and the rate that they allow on an H200.

    python -m tools.instructions                      # the softmax entries, for sm_90
    python -m tools.instructions --architecture 120 activation_backward_gelu_bf16

It needs NVRTC (or nvcc) and nvdisasm, but no GPU: nothing is measured. Instructions are counted on
the path of an entry's main loops (`tests.emulator.sass`), without heads, tails and the work that
comes once a row. An entry with several loops has a line for each ("elements of an iteration: bytes
of its accesses"). The entry's own line adds up the passes over a row. If a kernel keeps parts of a
row in different places, an element meets only the loops of its own place. If stores are narrower
than loads, the compiler split them.

The table gives the time of each unit that could be slower than memory. It is a share of the time in
which an element is read once and written once at 4.2 TB/s. Each of 132 multiprocessors has these:

    issue    4 schedulers, 1 instruction of a warp each a clock: 128 instructions of a thread
    exp      16 results a clock on the special function units (MUFU)
    alu      64 a clock: integers, logic, comparisons, selection, packing
    fma      128 a clock
    fp64     64 a clock

Above 100 % the kernel cannot reach 4.2 TB/s, however well it hides latency. "bound" is the rate in
TB/s that the slowest unit allows.

Source of the rates: CUDA C++ Programming Guide, "Arithmetic Instructions", throughput of native
arithmetic instructions, compute capability 9.0. These are assumed, not measured: 132
multiprocessors at the boost clock of 1.98 GHz (a lower clock under load lowers the bound in
proportion), and 4.2 TB/s of the card's 4.8 for a copy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpubackprop.backends.cupy_launch import entries
from tests.emulator import compilers, sass

MULTIPROCESSORS, CLOCK, MEMORY = 132, 1.98e9, 4.2e12  # H200: per second, bytes per second
UNITS = {"issue": ("total", 128), "exp": ("special", 16), "alu": ("alu", 64), "fma": ("fma", 128),
         "fp64": ("fp64", 64)}  # fmt: skip
COLUMNS = ("total", "exp", "mufu", "fma", "compare", "conversion", "alu", "load", "store", "shared")
_BYTES = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2}


@dataclass(frozen=True)
class Count:
    """One entry's main loops, and the bytes of an element."""

    entry: str
    loops: tuple[sass.Region, ...]
    itemsize: int


def shares(per_element: dict[str, float], itemsize: int) -> dict[str, float]:
    """Return each unit's time for an element over the time to move 2 * itemsize bytes."""
    memory = 2 * itemsize / MEMORY
    special = per_element.get("exp", 0) + per_element.get("mufu", 0)
    counts = {**per_element, "special": special}
    return {
        unit: counts.get(kind, 0) / (rate * MULTIPROCESSORS * CLOCK) / memory
        for unit, (kind, rate) in UNITS.items()
    }


def bound(per_element: dict[str, float], itemsize: int) -> float:
    """Return the bytes per second that the slowest unit allows."""
    return MEMORY / max(shares(per_element, itemsize).values())


def count(source: str, entry: str, defines: compilers.Defines, architecture: int) -> Count:
    """Compile one entry and count.

    Raises
    ------
    compilers.CompileError : there is no compiler or no disassembler, or the source does not
    compile.
    ValueError : no loop of the entry touches memory as a main loop does.
    """
    body = sass.bodies(compilers.sass(source, architecture, defines))[entry]
    itemsize = _BYTES[next(part for part in reversed(entry.split("_")) if part in _BYTES)]
    loops = sass.main_regions(body, itemsize)
    if not loops:
        raise ValueError(f"{entry}: no main loop found")
    return Count(entry, tuple(loops), itemsize)


def table(counts: Iterable[Count]) -> str:
    """Return a line for each entry, the sum of its loops; if there are several, also one for
    each."""
    heading = "".join(f"{name:>11}" for name in COLUMNS)
    units = "".join(f"{unit:>7}" for unit in UNITS)
    lines = [
        "instructions per element of the main loops; times of the units as shares of one read and",
        "one write at 4.2 TB/s on an H200, and the bound in TB/s; not measured on a GPU",
        f"{'entry':46}{heading}{units}{'bound':>7}",
    ]
    for one in counts:
        lines.append(_line(one.entry, one.loops, one.itemsize))
        for loop in one.loops if len(one.loops) > 1 else ():
            lines.append(_line(f"  {_described(loop)}", (loop,), one.itemsize))
    return "\n".join(lines)


def _described(loop: sass.Region) -> str:
    """Return an iteration's elements and the bytes of its accesses: "16: LDG 16 STG 16"."""
    names = {"load": "LDG", "store": "STG", "shared": "LDS"}
    widths = {name: "+".join(map(str, loop.widths(space))) for space, name in names.items()}
    return f"{loop.elements:g}: " + " ".join(f"{name} {w}" for name, w in widths.items() if w)


def _line(name: str, loops: tuple[sass.Region, ...], itemsize: int) -> str:
    counts = sass.per_element(loops)
    if len(loops) == 1 and not name.startswith(" "):
        name = f"{name}  {_described(loops[0])}"
    numbers = "".join(f"{counts.get(column, 0):11.2f}" for column in COLUMNS)
    parts = "".join(f"{share:7.0%}" for share in shares(counts, itemsize).values())
    return f"{name:46}{numbers}{parts}{bound(counts, itemsize) / 1e12:7.1f}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.instructions",
        description="SASS instructions per element, and the bound that they set on an H200.",
    )
    parser.add_argument(
        "entry", nargs="*", default=["softmax_cross_entropy"],
        help="entries, or the beginning of their names (default: softmax_cross_entropy)",
    )  # fmt: skip
    parser.add_argument(
        "--architecture", type=int, default=90, choices=compilers.ARCHITECTURES, metavar="N",
        help="75, 80, 86, 89, 90 (default), 100 or 120; the bound is an H200's all the same",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    chosen = [entry for entry in entries() if entry[1].startswith(tuple(options.entry))]
    if not chosen:
        parser.error(f"no entry begins with {' or '.join(options.entry)}")
    counts, failed = [], []
    for source, entry, defines in chosen:
        try:
            counts.append(count(source, entry, defines, options.architecture))
        except compilers.CompileError as error:
            print(error, file=sys.stderr)
            return 1
        except ValueError as error:
            failed.append(str(error))
    print("\n".join([table(counts), *failed]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
