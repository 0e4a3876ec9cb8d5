"""What is asserted of a compiled entry, and which entries are the heaviest of each kernel.

Nothing is spilled to local memory; registers leave room for two blocks; no FP64 arithmetic in kernels
of 32 bits and less; accesses of 128 bits where the header promises them. A source whose entries are
asserted something else is due to be compiled again (`asserted`, `compiled.key_of`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable

from gpubackprop.backends.cupy_launch import KERNELS, entries, resident_kernel, spread_kernel
from tests.emulator.compilers import Resources

# One thread of them does scalar work that is float64 by meaning: coefficients and totals.
SCALAR_FLOAT64 = (
    "prepare_update", "prepare_table", "accumulate",
    *(resident_kernel(blocks, tf32) for blocks in (1, 2, 4, 8) for tf32 in (False, True)),
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
THREADS = {
    "column_sum_finish": 512, "sum_of_squares_finish": 1024, "prepare_update": 64,
    "softmax_cross_entropy_short": 128, "softmax_cross_entropy_lanes": 128,
    "softmax_cross_entropy_pairs": 128, "spread_sum": 64,
}  # fmt: skip
REGISTERS = 65_536  # of a multiprocessor: two blocks at least run at once
MAX_REGISTERS = REGISTERS // (2 * 256)


def kernel_of(entry: str) -> str:
    return max((name for name in KERNELS if entry == name or entry.startswith(f"{name}_")), key=len)


def heaviest() -> list[tuple[str, str, tuple[tuple[str, str], ...]]]:
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
        **{
            kernel: ("f32",) for tf32 in (False, True)
            for kernel in (
                spread_kernel(tf32), *(resident_kernel(blocks, tf32) for blocks in (1, 2, 4, 8))
            )
        },
        "spread_sum": ("f32",),
    }  # fmt: skip
    names = {f"{kernel}_{tail}" for kernel, tails in heavy.items() for tail in tails}
    chosen = [entry for entry in entries() if entry[1] in names]
    assert {kernel_of(entry) for _, entry, _ in chosen} == set(KERNELS)
    assert len(chosen) == len(names)
    return chosen


def asserted(entries: Iterable[str]) -> str:
    """Return what `check` asserts of these entries, as a text; another kernel's row is not in it."""
    rows = [
        (
            entry, THREADS.get(kernel, 256), kernel in SCALAR_FLOAT64, kernel in VECTORISED,
            entry.startswith(ONLY_NARROW_STREAMS),
        )
        for entry, kernel in ((entry, kernel_of(entry)) for entry in sorted(entries))
    ]  # fmt: skip
    return f"{REGISTERS} {rows}\n{inspect.getsource(check)}"


def line(entry: str, architecture: int, used: Resources) -> str:
    """A line of the table of resources."""
    occupancy = used.occupancy(THREADS.get(kernel_of(entry), 256), architecture)
    return (
        f"  {entry:44} sm_{architecture:<4} {used.registers:3} registers {used.shared:6} B shared "
        f"{used.stack:3} B stack {used.spills:3} B spilled  {occupancy:4.0%} of the threads"
    )


def check(entry: str, text: str, used: Resources) -> None:
    """Assert what is said above of an entry's PTX and of ptxas's report of it."""
    kernel, narrow = kernel_of(entry), "f64" not in entry
    threads = THREADS.get(kernel, 256)
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
