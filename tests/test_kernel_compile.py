"""Every entry through NVRTC (or nvcc) for the cards that are supported; no GPU is needed.

Every entry for sm_75 and sm_90 where a source has changed since it was compiled whole (compiled.py) and
the run is not a sample (sweeps.py), else some of its entries; the heaviest of each kernel for all seven architectures; every entry
for all with GPUBACKPROP_COMPILE_ALL=1. Asserted: it compiles; nothing is spilled to local memory;
registers leave room for two blocks; no FP64 arithmetic in kernels of 32 bits and less; accesses of
128 bits where the header promises them, for every card. How wide each access of an entry is, and that
none is narrower, test_compiled_accesses.py asserts in the compiled code for one of them.
"""

from __future__ import annotations

import inspect
import os
import re

import pytest

from gpubackprop.backends.cupy_launch import KERNELS, entries
from tests import compiled, first_rung
from tests.emulator import compilers
from tests.emulator.compilers import ARCHITECTURES, Resources
from tests.emulator.module import HERE

pytestmark = pytest.mark.skipif(compilers.compiler() is None, reason=compilers.NONE_FOUND)

# One thread of them does scalar work that is float64 by meaning: coefficients and totals.
SCALAR_FLOAT64 = (
    "prepare_update", "prepare_table", "accumulate", "resident_training",
    *(f"resident_training_cluster{blocks}" for blocks in (2, 4, 8)),
)  # fmt: skip
# Kernels whose header promises 16-byte accesses, as the compiler writes them.
VECTORISED = (
    "affine_epilogue",
    "activation_backward",
    "affine_epilogue_dropout",
    "activation_backward_dropout",
    "column_sum",
    "pointwise_loss",
    "update",
    "update_table",
    "sum_of_squares",
    "gather_rows",
    "softmax_cross_entropy",
    "softmax_cross_entropy_short",
    "softmax_cross_entropy_lanes",
    "softmax_cross_entropy_pairs",
)
ONLY_NARROW_STREAMS = (
    "update_gradient_descent_f16",
    "update_gradient_descent_bf16",
    "update_table_gradient_descent_f16",
    "update_table_gradient_descent_bf16",
    "gather_rows_i",
)
PTX_PROBE = HERE / "ptx_probe.cu"
THREADS = {
    "column_sum_finish": 512, "sum_of_squares_finish": 1024, "prepare_update": 32,
    "softmax_cross_entropy_short": 128, "softmax_cross_entropy_lanes": 128,
    "softmax_cross_entropy_pairs": 128, "spread_sum": 64,
}  # fmt: skip
REGISTERS = 65_536  # of a multiprocessor: two blocks at least run at once
MAX_REGISTERS = REGISTERS // (2 * 256)
LINES: dict[str, str] = {}


@pytest.fixture(scope="module", autouse=True)
def table():
    yield
    print(
        "\n\nResources and theoretical occupancy (ptxas), by entry and card; not measured on a GPU"
    )
    print("\n".join(LINES.values()))


def kernel_of(entry: str) -> str:
    return max((name for name in KERNELS if entry == name or entry.startswith(f"{name}_")), key=len)


def of_each_kernel() -> list[tuple[str, str, tuple[tuple[str, str], ...]]]:
    """The heaviest formulas of each kernel, in 4 and in 2 bytes."""
    heavy = {
        "affine_epilogue": ("gelu_f32", "gelu_bf16", "relu_f16", "gelu_bf16_f32"),
        "activation_backward": ("gelu_f32", "gelu_tanh_f16", "relu_bf16", "identity_f32"),
        "column_sum": ("f32", "f16"), "column_sum_finish": ("f32",),
        "affine_epilogue_dropout": ("gelu_f32", "relu_bf16", "gelu_f16_f32"),
        "activation_backward_dropout": ("gelu_f32", "gelu_tanh_f16", "relu_f32"),
        "pointwise_loss": ("binary_cross_entropy_f32",),
        "softmax_cross_entropy": (
            "rows_labels_f32", "rows_general_bf16", "cluster8_labels_bf16", "finish_labels_f16",
        ),
        "softmax_cross_entropy_short": ("general_f32", "general_bf16"),
        "softmax_cross_entropy_lanes": ("w16_f32", "w8_f32", "w16_bf16", "w2_f16"),
        "softmax_cross_entropy_pairs": ("k10_f32", "k16_f32", "k31_f16", "k32_bf16"),
        "row_weights": ("i64_f32",), "update": ("adam_f32", "adamw_f32_bf16", "lion_f16"),
        "update_table": ("adam_f32", "adamw_bf16"), "prepare_table": ("adam_f32",),
        "prepare_update": ("adam_f32",), "sum_of_squares": ("f32", "bf16"),
        "sum_of_squares_finish": ("f32",), "gather_rows": ("u8_f32", "f32_bf16"),
        "accumulate": ("f32",), "one_hot_forward": ("f32",), "one_hot_backward": ("f32", "f64"),
        "resident_training": ("f32",),
        **{f"resident_training_cluster{blocks}": ("f32",) for blocks in (2, 4, 8)},
        "spread_gradient": ("f32",), "spread_sum": ("f32",),
    }  # fmt: skip
    names = {f"{kernel}_{tail}" for kernel, tails in heavy.items() for tail in tails}
    chosen = [entry for entry in entries() if entry[1] in names]
    assert {kernel_of(entry) for _, entry, _ in chosen} == set(KERNELS)
    assert len(chosen) == len(names)
    return chosen


def check(entry: str, architecture: int, text: str, used: Resources) -> None:
    kernel, narrow = kernel_of(entry), "f64" not in entry
    threads = THREADS.get(kernel, 256)
    LINES[f"{entry} {architecture}"] = (
        f"  {entry:44} sm_{architecture:<4} {used.registers:3} registers {used.shared:6} B shared "
        f"{used.stack:3} B stack {used.spills:3} B spilled  "
        f"{used.occupancy(threads, architecture):4.0%} of the threads"
    )
    assert used.spills == 0, "spilled registers"
    assert used.registers * threads <= 65536
    if narrow:
        assert used.stack == 0, "local memory"
        assert used.registers <= REGISTERS // (2 * min(threads, 256))
    if narrow and kernel not in SCALAR_FLOAT64:
        assert not re.search(r"^\s+\w+[\w.]*\.f64", text, re.MULTILINE), "FP64 arithmetic"
    if kernel in VECTORISED and not entry.startswith(ONLY_NARROW_STREAMS):
        wide = re.compile(r"st\.(global\.)?(v4\.[bfu]32|v2\.[bfu]64)")
        reads = re.compile(
            r"ld\.(global\.)?(v4\.[bfu]32|v2\.[bfu]64)|cp\.async\.\w+\.shared\.global .*, 16"
        )
        if kernel not in ("column_sum", "sum_of_squares") and "parts" not in entry:
            assert wide.search(text), "no 128-bit store"
        if kernel != "gather_rows":
            assert reads.search(text), "no 128-bit load"


def bodies(ptx: str) -> dict[str, str]:
    """The PTX of each entry."""
    parts = re.split(r"\.visible \.entry (\w+)\(", ptx)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(architecture, marks=() if architecture in (75, 90) else pytest.mark.slow)
        for architecture in ARCHITECTURES
    ],
)
@pytest.mark.parametrize(
    ("source", "entry", "defines"),
    of_each_kernel(),
    ids=[entry for _, entry, _ in of_each_kernel()],
)
def test_entry_compiles_within_its_resources(source, entry, defines, architecture):
    ptx, report = compilers.compiler().compile(source, architecture, defines)
    check(entry, architecture, bodies(ptx)[entry], compilers.resources(report)[entry])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", sorted({kernel.source for kernel in KERNELS.values()}))
def test_every_entry_of_a_file_compiles_within_its_resources(source, architecture, sweep):
    """For the oldest card and an H100 or H200, a sample where nothing has changed since the whole
    was compiled (tests/compiled.py); all seven whole are a quarter of an hour of a core."""
    everything = os.environ.get("GPUBACKPROP_COMPILE_ALL")
    if architecture not in (75, 90) and not everything:
        pytest.skip("every entry for every card: set GPUBACKPROP_COMPILE_ALL=1")
    defines = {entry: macros for file, entry, macros in entries() if file == source}
    if architecture < 90:
        defines = {entry: macros for entry, macros in defines.items() if "_cluster" not in entry}
    wanted, name = set(defines), f"{source}-{architecture}"
    key = compiled.key_of(source, architecture, inspect.getsource(check))
    is_due = not compiled.is_on_record(name, key)
    if not (everything or (is_due and sweep.number(len(wanted), compiled.SAMPLE) == len(wanted))):
        for entry in compiled.sample(list(wanted), name):
            ptx, report = compilers.compiler().compile(source, architecture, defines[entry])
            check(entry, architecture, bodies(ptx)[entry], compilers.resources(report)[entry])
        return
    ptx, report = compilers.compiler().compile(source, architecture)
    texts, used = bodies(ptx), compilers.resources(report)
    assert set(texts) == set(used) == wanted
    failed = {}
    for entry in sorted(wanted):
        try:
            check(entry, architecture, texts[entry], used[entry])
        except AssertionError as error:
            failed[entry] = str(error).splitlines()[0], used[entry]
    assert not failed
    compiled.passed(name, key)


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(architecture, marks=() if architecture in (75, 90) else pytest.mark.slow)
        for architecture in ARCHITECTURES
    ],
)
def test_the_naive_kernel_compiles_for_every_card(architecture):
    """It is no row of the launch table. Its accesses are of 32 bits, which is the point of it."""
    ptx, report = compilers.compiler().compile(first_rung.SOURCE, architecture)
    used = compilers.resources(report)[first_rung.ENTRY]
    assert (used.spills, used.stack) == (0, 0)
    assert used.registers <= MAX_REGISTERS
    text = bodies(ptx)[first_rung.ENTRY]
    assert not re.search(r"\.v[24]\.[bfu]|^\s+\w+[\w.]*\.f64", text, re.MULTILINE)


def test_a_broken_source_is_refused_with_the_compilers_message():
    with pytest.raises(compilers.CompileError, match="sm_90"):
        compilers.compiler().compile("update.cu", 90, (("ONLY_FORMULA", "no_such_rule"),))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_ptx_wrappers_compile_for_every_card(architecture):
    ptx, _ = compilers.compiler().compile(str(PTX_PROBE), architecture)
    text = bodies(ptx)
    assert ("cp.async.cg.shared.global" in text["copies"]) == (architecture >= 80)
    assert ("mapa.u64" in text["cluster_of_8"]) == (architecture >= 90)
    assert ("reqnctapercluster 8" in text["cluster_of_8"]) == (architecture >= 90)
    for instruction in ("ld.global.L1::no_allocate.v4", "ld.global.nc.L1::no_allocate.v4"):
        assert instruction in text["streams"]
    assert "st.global.cs.v4" in text["streams"]
    assert {"ex2.approx.f32", "ex2.approx.ftz.f32"} <= set(text["exponentials"].split())
