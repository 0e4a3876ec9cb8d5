"""Every kernel under AddressSanitizer + UBSan and under ThreadSanitizer, over awkward shapes; and
offsets beyond 2^32 elements."""

from __future__ import annotations

import math
import mmap
from dataclasses import replace
from functools import cache
from typing import Any, cast

import numpy as np
import pytest

from gpubackprop.backends.cupy.updates import COEFFICIENTS, PROCEED, UNSCALE
from gpubackprop.backends.cupy_launch import KERNELS, TABLE_UPDATES, entries
from gpubackprop.dtypes import compute_dtype
from gpubackprop.formulas import ACTIVATIONS, POINTWISE_LOSSES, UPDATES, Dropout
from gpubackprop.formulas.dropout import random_state
from gpubackprop.losses import Poisson, SoftmaxCrossEntropy
from gpubackprop.optimizers import SGD, Adam
from tests import emulator, resident_jobs, softmax_forms
from tests.emulator.arrays import Guarded, wide
from tests.emulator.operations import DTYPES, Operations, collect
from tests.test_kernel_update_table import table_of, table_settings
from tests.test_kernel_updates import STORAGE, settings

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
# The first is the only one of rows enough for loops that are unrolled.
SHAPES = [(200, 128), (1, 1), (7, 3), (65, 33), (3, 300), (150, 2), (40, 64)]
LAYOUTS = [(0, 0), (1, 0), (0, 3), (1, 8)]  # shift, gap
DROPOUT = Dropout(0.5, 1, random_state(1, 2))


def layers(verbs: Operations, dtype: str, names: tuple[str, ...]) -> None:
    kind = DTYPES[dtype]
    for shape in SHAPES:
        for shift, gap in LAYOUTS:
            memory = Guarded()
            x, bias = (
                memory.normal(shape, kind, shift=shift, gap=gap),
                memory.normal(shape[1:], kind, shift=1),
            )
            a, h = memory.empty(shape, kind, gap=gap), memory.empty(shape, kind, shift=1, gap=gap)
            a[...] = 1
            if kind.itemsize == 2:
                product = memory.normal(shape, np.float32, shift=shift, gap=gap)
                for name in names:
                    verbs.affine_epilogue(product, bias, a, h, name)
                    verbs.affine_epilogue(product, bias, a, h, name, 0.0, DROPOUT)
            for name in names:
                verbs.affine_epilogue(x, bias, a, h, name)
                verbs.affine_epilogue(x, None, None, x, name)
                verbs.activation_backward(x, a, h, name, 0.0, bias)
                verbs.affine_epilogue(x, bias, a, h, name, 0.0, DROPOUT)
                verbs.activation_backward(x, a, h, name, 0.0, bias, DROPOUT)
            verbs.column_sum(x, bias)


def losses(verbs: Operations, dtype: str, names: tuple[str, ...]) -> None:
    kind = DTYPES[dtype]
    compute = compute_dtype(kind)
    for shape in [*SHAPES, (2, 1100)]:
        for shift, gap in LAYOUTS:
            memory, (rows, classes) = Guarded(), shape
            z, t = (
                memory.normal(shape, kind, shift=shift, gap=gap),
                memory.empty(shape, compute, shift=1, gap=gap),
            )
            t[...] = 0.25
            per_row, per_class = np.ones(rows, compute), np.ones(classes, compute)
            result = {
                "row_loss": np.empty(rows, compute), "lse": np.empty(rows, compute),
                "correct": np.empty(rows, np.uint8), "bad_label": np.array([-1, -1]), "delta": z,
            }  # fmt: skip
            for name in names:
                verbs.pointwise_loss(z, t, name, result, per_row, per_row, per_row[:1])
                sums = {"loss": np.zeros((), compute), "correct_rows": np.zeros((), np.int64)}
                verbs.pointwise_loss(z, t, name, {"row_loss": result["row_loss"], **sums})
            labels = np.arange(rows) % classes
            labels[-1] = 2**40  # a bad one: nothing outside the row may be touched
            if dtype in ("f64", "f32"):
                for kind_of_label in (np.uint8, np.int32, np.int64):
                    some = labels.astype(kind_of_label)
                    verbs.row_weights(
                        some, per_row[:1].copy(), rows, per_row, per_class, 0, 1.0, classes
                    )
                verbs.accumulate(per_row[:1], rows, result["correct"], None, np.zeros(6))


def updates(verbs: Operations, names: tuple[str, ...]) -> None:
    for name in names:
        for p_type, g_type, copy_type, compute in STORAGE.values():
            for count, shift in ((1, 0), (1030, 0), (515, 1)):
                memory = Guarded()
                p, g = (
                    memory.normal((count,), DTYPES[p_type], shift=shift),
                    memory.normal((count,), DTYPES[g_type], shift=2),
                )
                slots = tuple(
                    memory.normal((count,), DTYPES[compute], shift=1) for _ in UPDATES[name].slots
                )
                copy = (
                    None
                    if copy_type is None
                    else memory.empty((count,), DTYPES[copy_type], shift=3)
                )
                c = np.zeros(COEFFICIENTS, DTYPES[compute])
                c[[PROCEED, UNSCALE]] = 1
                random = None if count == 1030 else np.array([1, 2], np.uint64)
                verbs.update(name, p, g, slots, c, copy, random, penalized=100)
                verbs.sum_of_squares(g, np.zeros(2, compute_dtype(g.dtype)))
        for compute in (np.float32, np.float64):
            norm, c, scaling = (np.zeros(n, compute) for n in (2, COEFFICIENTS, 2))
            verbs.prepare_update(name, settings(name), np.ones(4), norm, c, scaling)


def tables(verbs: Operations, names: tuple[str, ...], dtypes: tuple[str, ...]) -> None:
    for name in names:
        for dtype in dtypes:
            tensors = table_of(name, dtype, (1, 4096, 5, 4099), Guarded())
            verbs.update_table(name, tensors, table_settings(name), *np.ones((2, 1), np.float32))
            verbs.update_table(name, tensors, table_settings(name), None, np.zeros(1, np.float32))


def gathers(verbs: Operations, pairs: tuple[tuple[str, str], ...]) -> None:
    for source, out in pairs:
        for (rows, cols), (shift, gap) in zip(
            SHAPES, [*LAYOUTS, (2, 2), (0, 0), (3, 1)], strict=True
        ):
            memory = Guarded()
            table = memory.empty((9, cols), DTYPES[source], shift=shift, gap=gap)
            result = memory.empty((rows, cols), DTYPES[out], shift=1, gap=gap)
            verbs.gather_rows(table, np.arange(rows) % 12 - 1, result)


def resident_training() -> list[emulator.Launch]:
    """Five networks, whose layers, losses, updates and options differ; three of them in clusters,
    in which some blocks have no row of the last batch, and a slice of no parameter."""
    small = {"rows": 11, "batch": 8}
    networks: list[dict[str, Any]] = [
        {"activation": "gelu", "dropout": 0.3, "clip_norm": 0.1, "l2": 0.1},
        {"widths": (4, 1), "loss": Poisson(), "optimizer": SGD(0.1)},
        {"widths": (5, 1, 1, 3), "activation": "relu", "weights": np.ones(11)},
        {"widths": (64, 128, 10), "rows": 40, "batch": 40},
        {
            "widths": (7, 40),
            "loss": SoftmaxCrossEntropy(class_weight=[1.0] * 40),
            "optimizer": Adam(amsgrad=True),
        },  # the most slots: none behind the last
    ]
    launches = []
    for blocks, chosen in ((1, networks), (2, networks[:3]), (4, networks[:2]), (8, networks[:2])):
        for precision in (None, "tf32"):
            more: dict[str, Any] = small | {"precision": precision}
            with resident_jobs.emulated(), resident_jobs.planned(blocks):
                steps = [resident_jobs.step_of("cuda", **(more | options)) for options in chosen]
                jobs = [resident_jobs.job(step, 1) for step in steps]
                launches += [resident_jobs.launch_of(jobs)[0]]
    return launches


def spread_batches() -> list[emulator.Launch]:
    """Rows spread over the card: shares of one tile and of several, with and without weights."""
    launches = []
    kinds: list[dict[str, Any]] = [
        {"activation": "gelu", "dropout": 0.3, "rows": 37, "batch": 37},
        {"widths": (5, 1, 1, 3), "weights": np.ones(40), "batch": 40},
        {"widths": (4, 1), "loss": Poisson(), "rows": 3, "batch": 3},
        {"widths": (64, 128, 10), "rows": 260, "batch": 260},
    ]
    for options in [*kinds, *({**kind, "precision": "tf32"} for kind in kinds)]:
        with resident_jobs.emulated(), resident_jobs.spread(130):
            launches += resident_jobs.spread_launches_of(
                resident_jobs.step_of("cuda", **cast(Any, options))
            )[0]
    return launches


def one_hots(verbs: Operations, dtypes: tuple[str, ...]) -> None:
    for dtype in dtypes:
        for (rows, units), (shift, gap) in zip(
            [(0, 3), (1, 1), (9, 33), (300, 40)], [*LAYOUTS, (1, 3)][-4:], strict=True
        ):
            memory, groups = Guarded(), ((1, 10), (10, 11), (12, 30))
            codes = np.stack([np.arange(rows) % (q - p) + p for p, q in groups], 1).astype(np.int32)
            codes[::5, 1] = -1
            W, grad_W = (
                memory.normal((units, 31), DTYPES[dtype], shift=shift, gap=gap) for _ in range(2)
            )
            a = memory.normal((rows, units), DTYPES[dtype], shift=1, gap=gap)
            codes = memory.put(codes)
            for add in (False, True):
                verbs.one_hot_forward(codes, W, a, add=add)
            verbs.one_hot_backward(a, codes, groups, grad_W)


def some_of_each(launches: list[emulator.Launch]) -> list[emulator.Launch]:
    """ThreadSanitizer takes 0.3 s for a block; which barriers run depends little on the shape. Of
    each entry the last launch without gaps (joined rows), that of the most blocks, and the last two of
    all in a grid so small that a block takes one tile or row after another: a barrier may be there for
    the next one's sake."""
    by_entry: dict[str, list[emulator.Launch]] = {}
    for launch in launches:
        by_entry.setdefault(launch.entry, []).append(launch)
    chosen = []
    for group in by_entry.values():
        last = group[-1]
        cluster = emulator.Module(last.source, "thread", last.defines, load=False).clusters[
            last.entry
        ]
        chosen += [launch for launch in group if not has_gaps(launch)][-1:]
        chosen.append(max(group, key=lambda launch: math.prod(launch.grid)))
        chosen += [replace(launch, grid=(cluster, 1, 1)) for launch in group[-2:]]
    return chosen


def has_gaps(launch: emulator.Launch) -> bool:
    return not all(array.flags.c_contiguous for array in launch.arrays())


SOURCES = sorted({kernel.source for kernel in KERNELS.values()})


@cache
def launches_of_one_entry_each() -> list[emulator.Launch]:
    launches: list[emulator.Launch] = []
    verbs = Operations(run=collect(launches))
    layers(verbs, "f32", ("gelu",))
    layers(verbs, "bf16", ("relu",))
    losses(verbs, "f32", ("poisson",))
    softmax_forms.launch_forms(verbs, "f32")
    updates(verbs, ("adam",))
    tables(verbs, ("adam",), ("f32", "bf16"))
    gathers(verbs, (("u8", "f32"), ("f64", "f16"), ("i64", "i64")))
    one_hots(verbs, ("f32",))
    return [*launches, *resident_training(), *spread_batches()]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("mode", ["address", "thread"])
def test_no_finding_in_one_entry_of_each_kernel(source, mode):
    """The generic code of each kernel once, with the dtypes of 4 and 2 bytes; formulas share it."""
    launches = [launch for launch in launches_of_one_entry_each() if launch.source == source]
    assert launches
    if mode == "thread":
        launches = some_of_each([launch for launch in launches if launch.entry.endswith("f32")])
    assert emulator.run_sanitized(launches, mode) == ""


@pytest.mark.slow
@pytest.mark.timeout(900)  # whole sources, with checkers, on a slow machine
@pytest.mark.parametrize("mode", ["address", "thread"])
def test_no_finding_in_any_entry(mode, sweep):
    launches: list[emulator.Launch] = []
    verbs = Operations(run=collect(launches))
    for dtype in ("f64", "f32", "f16", "bf16"):
        layers(verbs, dtype, tuple(ACTIVATIONS))
        losses(verbs, dtype, tuple(POINTWISE_LOSSES))
        softmax_forms.launch_forms(verbs, dtype)
    updates(verbs, tuple(UPDATES))
    tables(verbs, TABLE_UPDATES, ("f64", "f32", "f16", "bf16"))
    gathers(verbs, KERNELS["gather_rows"].pairs)
    launches += [*resident_training(), *spread_batches()]
    one_hots(verbs, ("f64", "f32"))
    launched = {launch.entry for launch in launches}
    # Of pairs of rows there is an entry for each number of columns, from one text. Two stand for all:
    # one has rows that are neighbours, the other rows apart.
    pairs = {entry for entry in launched if "_pairs_k" in entry}
    some = {
        f"softmax_cross_entropy_pairs_k{k}_{dtype}"
        for k in (8, 9)
        for dtype in ("f32", "f16", "bf16")
    }
    assert some <= pairs
    assert launched - pairs == {entry for _, entry, _ in entries() if "_pairs_k" not in entry}
    launches = [one for one in launches if one.entry not in pairs or one.entry in some]
    names = sweep.cases(sorted({launch.entry for launch in launches}), keep=8)
    launches = [launch for launch in launches if launch.entry in names]
    # Of all entries whole files: one compilation each; of the softmax, for each dtype.
    for launch in launches if sweep.is_whole else ():
        keep = "softmax" in launch.source
        if launch.entry not in some:
            launch.defines = {"ONLY_DTYPE": launch.defines["ONLY_DTYPE"]} if keep else {}
    if mode == "thread":
        launches = some_of_each(launches)
    assert emulator.run_sanitized(launches, mode) == ""


# -- offsets of 64 bits ---------------------------------------------------------------------------

FAR = 2**32 + 40  # elements from one row to the next
MAP_NORESERVE = 0x4000  # Linux; Python names it from 3.13 on


def far_apart(rows: int, cols: int, dtype: np.dtype) -> np.ndarray:
    """(rows, cols) with FAR elements between rows: address space without memory behind it."""
    size = (FAR * (rows - 1) + cols) * dtype.itemsize
    try:
        memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    except (OSError, OverflowError):
        pytest.skip(f"no {size >> 30} GiB of address space here")
    flat = np.frombuffer(memory, dtype)
    return np.lib.stride_tricks.as_strided(
        flat, (rows, cols), (FAR * dtype.itemsize, dtype.itemsize)
    )


def test_offsets_beyond_32_bits_in_every_matrix_kernel():
    rng, kind = np.random.default_rng(0), np.dtype(np.float32)
    verbs = Operations()
    x, y, z = (far_apart(3, 70, kind) for _ in range(3))
    x[...], near = (
        (values := rng.standard_normal((3, 70), np.float32)),
        np.empty((3, 70), np.float32),
    )
    verbs.affine_epilogue(x, None, y, z, "silu")
    verbs.affine_epilogue(values, None, None, near, "silu")
    assert np.array_equal(z, near)
    assert np.array_equal(y, values)
    sums, wanted = np.empty(70, np.float32), np.empty(70, np.float32)
    verbs.activation_backward(x, y, z, "silu", 0.0, sums)
    verbs.activation_backward(values, values, near, "silu", 0.0, wanted)
    assert np.array_equal(z, near)
    assert np.allclose(sums, wanted, rtol=1e-5, atol=1e-6), "joined rows are added in another order"
    verbs.column_sum(x, sums)
    assert np.allclose(sums, wide(values).sum(0), rtol=1e-6, atol=1e-6)
    verbs.affine_epilogue(x, None, None, z, "silu", 0.0, DROPOUT)
    verbs.affine_epilogue(values, None, None, near, "silu", 0.0, DROPOUT)
    assert np.array_equal(z, near)
    far, close = ({"row_loss": np.empty(3, np.float32), "delta": d} for d in (z, near))
    verbs.pointwise_loss(x, y, "squared_error", far)
    verbs.pointwise_loss(values, values, "squared_error", close)
    assert np.array_equal(z, near)
    for a, b in ((np.array([0, 69, 5]), np.array([0, 69, 5])), (y, values)):
        verbs.softmax_cross_entropy(x, a, far)
        verbs.softmax_cross_entropy(values, b, close)
        assert np.allclose(z, near, rtol=0, atol=1e-6), "rows without gaps have another kernel"
    rows = np.array([2, 0, 1])
    verbs.gather_rows(x, rows, z)
    assert np.array_equal(z, values[rows])
    codes = np.array([[2], [69], [30]], np.int32)
    verbs.one_hot_forward(codes, x, far := far_apart(3, 3, kind))
    assert np.array_equal(far, values[:, codes[:, 0]].T)
    verbs.one_hot_backward(far, codes, ((0, 70),), z)
    assert np.array_equal(z[:, codes[:, 0]], far.T)
