"""Loads first: what the compiled code of the softmax kernels waits for, read in SASS."""

from __future__ import annotations

import re

import pytest

from gpubackprop.backends.cupy_launch import entries
from tests.emulator import compilers, sass
from tools.counted_cases import loss

pytestmark = pytest.mark.skipif(
    compilers.compiler() is None or compilers.disassembler() is None,
    reason=compilers.NONE_FOUND if compilers.compiler() is None else compilers.NO_DISASSEMBLER,
)
REGISTER = re.compile(r"\bR(\d+)")
ROW_LOADS = ("LDG.E.128", "LDGSTS")  # to registers, to shared memory


def row_loop(entry: str, architecture: int = 90) -> tuple[sass.Instruction, ...]:
    """The path of the loop over rows: the last of the main loops, which holds the others."""
    source, defines = next((s, d) for s, name, d in entries() if name == entry)
    body = sass.bodies(compilers.sass(source, architecture, defines))[entry]
    itemsize = {"f64": 8, "f32": 4}.get(entry.split("_")[-1], 2)
    return sass.main_regions(body, itemsize)[-1].path


def first_use_of_a_scalar(path: tuple[sass.Instruction, ...]) -> int:
    """The place of the first instruction that reads what a load of up to 8 bytes brings."""
    waiting: set[str] = set()
    for place, instruction in enumerate(path):
        registers = REGISTER.findall(instruction.operands)
        made = registers[:1] if instruction.operands.startswith("R") else []  # else a predicate
        if waiting & set(registers[len(made) :]):
            return place
        waiting -= set(made)
        if instruction.name == "LDG" and instruction.width <= 8:
            waiting |= set(made)
    return len(path)


@pytest.mark.parametrize("entry", ["rows_labels_f32", "rows_labels_bf16", "cluster4_labels_bf16"])
def test_a_rows_own_loads_are_issued_before_anything_waits_for_a_scalar(entry):
    """Divisor, weights and label arrive while the row is on its way; the label's logit is taken from
    the row. The path is one without weights; the tests below show that the reading finds a fault."""
    path = row_loop(f"softmax_cross_entropy_{entry}")
    loads = [place for place, i in enumerate(path) if i.opcode.startswith(ROW_LOADS)]
    assert len(loads) >= 4
    assert loads[3] < first_use_of_a_scalar(path)


@pytest.mark.parametrize(("dtype", "classes"), [("f32", 4096), ("bf16", 8192)])
def test_a_row_in_registers_takes_one_round_trip(dtype, classes):
    """Its label is asked for while it is on its way. A copy of its words between the two, at which a
    warp waits, makes it two; the last trip is that of the block's sums."""
    (launch,) = loss(2 * 264, classes, dtype)().launches
    assert launch.blocks == 264, "two rows a block"
    assert launch.trips == 2 + 1


def listed(*lines: str) -> tuple[sass.Instruction, ...]:
    return tuple(sass.Instruction(*line.split(" ", 1), False) for line in lines)


def test_a_label_that_is_compared_before_the_row_is_requested_is_found():
    late = listed(
        "LDG.E.64 R4, desc[UR4][R2.64]", "ISETP.GE.AND P0, PT, R4, R9, PT",
        "LDG.E.128 R12, desc[UR4][R8.64]",
    )  # fmt: skip
    assert first_use_of_a_scalar(late) == 1
    early = listed(
        "LDG.E.64 R4, desc[UR4][R2.64]", "LDG.E.128 R12, desc[UR4][R8.64]",
        "ISETP.GE.AND P0, PT, R4, R9, PT",
    )  # fmt: skip
    assert first_use_of_a_scalar(early) == 2
