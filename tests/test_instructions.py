"""Counting SASS: the analysis on text written by hand, the tool on kernels of known content."""

from __future__ import annotations

import pytest

from gpubackprop.backends.cupy_launch import entries
from tests.emulator import compilers, sass
from tools import instructions

needs_tools = pytest.mark.skipif(
    compilers.compiler() is None or compilers.disassembler() is None,
    reason=compilers.NONE_FOUND if compilers.compiler() is None else compilers.NO_DISASSEMBLER,
)


def listing(*lines: str) -> str:
    """What nvdisasm would print of an entry: labels stand alone, instructions have addresses."""
    text = [
        line if line.endswith(":") else f"        /*{n:04x}*/  {line} ;"
        for n, line in enumerate(lines)
    ]
    return "\n".join([".text.entry:", *text])


ROW_LOOP = listing(
    "S2R R0, SR_CTAID.X",
    ".L_x_0:",  # rows
    "LDG.E R1, desc[UR4][R2.64]",  # the label: narrow, not counted
    "ISETP.NE.AND P1, PT, R9, RZ, PT",
    "@P1 BRA `(.L_x_3)",
    ".L_x_1:",  # main loop: 8 elements of 4 bytes
    "LDG.E.128 R4, desc[UR4][R2.64]",
    "LDG.E.128 R8, desc[UR4][R2.64+0x10]",
    *["MUFU.EX2 R4, R4"] * 8,
    *["FFMA R4, R4, R12, R13"] * 16,
    "STG.E.128 desc[UR4][R2.64], R4",
    "STG.E.128 desc[UR4][R2.64+0x10], R8",
    "@P0 BRA `(.L_x_1)",
    ".L_x_2:",  # what unrolling left over: 4 elements
    "LDG.E.128 R4, desc[UR4][R2.64]",
    *["MUFU.EX2 R4, R4"] * 4,
    *["FFMA R4, R4, R12, R13"] * 8,
    *["MOV R4, R5"] * 9,
    "STG.E.128 desc[UR4][R2.64], R4",
    "@P0 BRA `(.L_x_2)",
    "BRA `(.L_x_4)",
    ".L_x_3:",  # off 16 bytes
    "LDG.E R4, desc[UR4][R2.64]",
    "STG.E desc[UR4][R2.64], R4",
    "@P0 BRA `(.L_x_3)",
    ".L_x_4:",
    "@P2 BRA `(.L_x_0)",
    "EXIT",
)


def test_only_the_unrolled_vector_loop_counts():
    (region,) = sass.main_regions(sass.bodies(ROW_LOOP)["entry"], 4)
    assert region.elements == 8
    assert region.widths("load") == region.widths("store") == (16,)
    got = sass.per_element([region])
    assert got == {"total": 29 / 8, "load": 2 / 8, "exp": 1, "fma": 2, "store": 2 / 8}


def test_two_passes_of_different_work_are_added():
    text = listing(
        ".L_x_0:", "LDG.E.128 R4, desc[UR4][R2.64]", "FMNMX R4, R4, R5, !PT", "@P0 BRA `(.L_x_0)",
        ".L_x_1:", "LDG.E.128 R4, desc[UR4][R2.64]", *["MUFU.EX2 R4, R4"] * 8,
        "STG.E.128 desc[UR4][R2.64], R4", "@P0 BRA `(.L_x_1)", "EXIT",
    )  # fmt: skip
    regions = sass.main_regions(sass.bodies(text)["entry"], 2)
    assert [region.elements for region in regions] == [8, 8]
    assert sass.per_element(regions)["total"] == (3 + 11) / 8


def test_of_two_ways_with_equal_accesses_the_shorter_is_taken():
    text = listing(
        "LDG.E.128 R4, desc[UR4][R2.64]", "@P0 BRA `(.L_x_1)", *["FMUL R4, R4, R5"] * 7,
        ".L_x_1:", "STG.E.128 desc[UR4][R2.64], R4", "EXIT",
    )  # fmt: skip
    (region,) = sass.main_regions(sass.bodies(text)["entry"], 4)
    assert [i.name for i in region.path] == ["LDG", "BRA", "STG", "EXIT"]


@pytest.mark.parametrize(
    ("line", "kinds"),
    [
        ("MUFU.EX2 R1, R2", {"exp"}),
        ("MUFU.RCP R1, R2", {"mufu"}),
        ("FFMA R1, R2, R3, R4", {"fma"}),
        ("HADD2.F32 R1, -RZ, R2.H0_H0", {"conversion"}),
        ("IMAD.U32 R1, R2, 0x10000, RZ", {"conversion"}),
        ("LOP3.LUT R1, R2, 0xffff0000, RZ, 0xc0, !PT", {"conversion", "alu"}),
        ("F2FP.BF16.F32.PACK_AB R1, R2, R3", {"conversion", "alu"}),
        ("IMAD.WIDE R1, R2, 0x4, R3", set()),
        ("LDG.E.U16.CONSTANT R1, desc[UR4][R2.64]", {"load"}),
        ("LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]", {"load"}),
        ("LDS.128 R4, [R1]", {"shared"}),
        ("FMNMX R1, R2, R3, !PT", {"compare", "alu"}),
    ],
)
def test_an_instruction_counts_in_its_classes(line, kinds):
    opcode, _, operands = line.partition(" ")
    assert set(sass.Instruction(opcode, operands, False).classes) == {"total"} | kinds


def test_the_width_of_an_access_is_in_its_name():
    widths = {"LDG.E": 4, "LDG.E.64": 8, "LDG.E.128.CONSTANT": 16, "STG.E.U16": 2, "LDS.U8": 1}
    assert {name: sass.Instruction(name, "", False).width for name in widths} == widths


def test_shares_and_bound_are_those_worked_by_hand():
    # 2 + 2 bytes at 4.2 TB/s: 0.952 ps; 132 * 1.98e9 * 128 = 33.45e12 instructions a second
    counts = {"total": 31.86, "exp": 0.75, "mufu": 0.25, "alu": 8.0}
    shares = instructions.shares(counts, 2)
    assert shares["issue"] == pytest.approx(1.0, abs=0.001)
    assert shares["exp"] == pytest.approx(0.251, abs=0.001)
    assert shares["alu"] == pytest.approx(0.502, abs=0.001)
    assert instructions.bound(counts, 2) == pytest.approx(4.2e12, rel=0.001)


SOURCE = """#include "include/vector.cuh"
extern "C" __global__ void powers_f32(const float* x, float* y, int64 count) {
    int64 step = int64(gridDim.x) * blockDim.x * 4;
#pragma unroll 1
    for (int64 i = (int64(blockIdx.x) * blockDim.x + threadIdx.x) * 4; i < count; i += step) {
        Pack<float, 4> pack = global::load<float, 4>(x + i);
        for (int e = 0; e < 4; ++e) pack.v[e] = ptx::exp2_approx_ftz(pack.v[e] * 3.f + 1.f);
        global::store(y + i, pack);
    }
}"""


@needs_tools
@pytest.mark.parametrize("architecture", [75, 90, 120])
def test_a_kernel_of_one_fma_and_one_exponential_is_counted_as_such(tmp_path, architecture):
    source = tmp_path / "powers.cu"
    source.write_text(SOURCE)
    (loop,) = instructions.count(str(source), "powers_f32", (), architecture).loops
    per_element = sass.per_element([loop])
    assert (loop.elements, loop.widths("load"), loop.widths("store")) == (4, (16,), (16,))
    assert per_element["exp"] == per_element["fma"] == 1
    assert per_element["load"] == per_element["store"] == 0.25
    assert 3 < per_element["total"] < 6


@needs_tools
@pytest.mark.parametrize(
    "entry", ["affine_epilogue_relu_f32", "activation_backward_relu_bf16", "update_adam_f32"]
)
def test_main_loops_move_16_bytes_at_a_time_in_and_out(entry):
    (chosen,) = (one for one in entries() if one[1] == entry)
    loops = instructions.count(*chosen, 90).loops
    loops = [loop for loop in loops if loop.widths("store")]  # the bias is loaded before them
    assert loops
    for loop in loops:
        assert loop.widths("store") == (16,), "the compiler has split a store"
        assert max(loop.widths("load")) == 16


@needs_tools
def test_the_table_has_a_line_for_each_entry(capsys):
    assert instructions.main(["column_sum_f32", "affine_epilogue_relu_f32"]) == 0
    out = capsys.readouterr().out
    assert "not measured on a GPU" in out
    assert "affine_epilogue_relu_f32" in out
    assert "column_sum_f32" in out


def test_an_unknown_entry_is_a_usage_error(capsys):
    with pytest.raises(SystemExit, match="2"):
        instructions.main(["no_such_kernel"])
    assert "no entry begins with no_such_kernel" in capsys.readouterr().err


def test_without_a_disassembler_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(compilers, "disassembler", lambda: None)
    monkeypatch.setattr(compilers, "compiler", lambda: object())
    assert instructions.main(["column_sum_f32"]) == 1
    assert "pip install nvidia-cuda-nvdisasm" in capsys.readouterr().err
