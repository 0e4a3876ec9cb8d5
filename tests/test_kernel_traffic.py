"""What each kernel moves, against the minimum: a table that is printed and asserted.

Reads and writes are in units of the buffer. Sectors are 32-byte pieces of memory that a warp's
request touches, over the fewest that its bytes need: 1.00 is perfectly coalesced. It needs no GPU.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from gpubackprop.backends.cupy.updates import COEFFICIENTS, PROCEED
from gpubackprop.backends.cupy_launch import DeviceProperties
from gpubackprop.dtypes import compute_dtype
from gpubackprop.formulas import UPDATES, Dropout
from gpubackprop.formulas.dropout import random_state
from tests import emulator, first_rung
from tests.emulator import Module, Traffic, count_traffic
from tests.emulator.arrays import Guarded
from tests.emulator.cupy_stub import Launched
from tests.emulator.operations import DTYPES, Operations
from tests.emulator.traffic import SharedAccess, conflicts, count_launch, shared_accesses

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
SHAPE = (1024, 160)
LINES: list[str] = []


@cache
def module(source: str, defines: tuple[tuple[str, str], ...]) -> Module:
    return Module(source, "traffic", dict(defines))


class Counted:
    """Operations whose launches are counted; results by the address of the buffer."""

    def __init__(self, multiprocessors: int = 1) -> None:
        self.seen: dict[int, Traffic] = {}
        self.total = 0
        self.launches: list[str] = []
        self.shared: dict[str, list[SharedAccess]] = {}
        self.conflicts: dict[str, float] = {}  # wavefronts in shared memory over the fewest
        self.verbs = Operations(run=self._run, device=DeviceProperties(multiprocessors))

    def _run(self, launched: Launched) -> None:
        self.launches.append(launched.entry)
        counted = module(launched.source, launched.defines)
        for array, traffic in count_launch(counted, launched):
            self.seen[array.ctypes.data] = traffic
            self.total += traffic.read + traffic.written
        self.shared[launched.entry] = shared_accesses(counted)
        self.conflicts[launched.entry] = conflicts(self.shared[launched.entry])

    def __getitem__(self, array: np.ndarray) -> Traffic:
        return self.seen[array.ctypes.data]


@pytest.fixture(scope="module", autouse=True)
def table():
    yield
    print("\n\nTraffic, measured by the emulator (times the buffer; sectors over the minimum)")
    print("\n".join(LINES))


def note(what: str, **arrays: Traffic) -> None:
    parts = (
        f"{name} {t.reads:.2f} read {t.writes:.2f} written, {t.sectors_per_minimum:.2f} sectors, "
        f"{t.widest} B" for name, t in arrays.items()
    )  # fmt: skip
    LINES.append(f"  {what:38} " + "; ".join(parts))


def assert_once(traffic: Traffic, read: int, written: int, widest: int = 16) -> None:
    assert traffic.reads == pytest.approx(read, abs=1e-3)
    assert traffic.writes == pytest.approx(written, abs=1e-3)
    assert traffic.widest == widest
    assert traffic.sectors_per_minimum <= 1.05


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64"])
def test_bias_and_activation_read_once_and_write_once(dtype):
    memory, kind = Guarded(), DTYPES[dtype]
    product, bias = memory.normal(SHAPE, kind), memory.normal(SHAPE[1:], kind)
    counted = Counted()
    counted.verbs.affine_epilogue(product, bias, None, product, "relu")
    note(f"affine_epilogue relu {dtype}", product=counted[product])
    assert_once(counted[product], 1, 1)
    assert counted.total < 2.1 * product.nbytes
    a, h = memory.empty(SHAPE, kind), memory.empty(SHAPE, kind)
    counted.verbs.affine_epilogue(product, bias, a, h, "silu")
    for array, reads in ((product, 1), (a, 0), (h, 0)):
        assert_once(counted[array], reads, 1 - reads)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_a_float32_product_is_read_once_for_a_layer_of_16_bits(dtype):
    """4 bytes read and 2 written an element, and 4 more that the product writes: 10 for the 6 of a
    product in 16 bits. A thread's eight float32 are two accesses that share their sectors, so that a
    warp's request touches twice the fewest; the second finds them in the first-level cache."""
    memory, kind = Guarded(), DTYPES[dtype]
    product, bias = memory.normal(SHAPE, np.float32), memory.normal(SHAPE[1:], kind)
    a, h = memory.empty(SHAPE, kind), memory.empty(SHAPE, kind)
    counted = Counted()
    counted.verbs.affine_epilogue(product, bias, None, h, "relu")
    note(f"affine_epilogue relu {dtype}_f32", product=counted[product], h=counted[h])
    read = counted[product]
    assert (read.reads, read.writes, read.widest) == (pytest.approx(1, abs=1e-3), 0, 16)
    assert read.sectors_per_minimum <= 2.05
    assert_once(counted[h], 0, 1)
    assert counted.total < 3.1 * h.nbytes
    counted.verbs.affine_epilogue(product, bias, a, h, "silu")
    for array in (a, h):
        assert_once(counted[array], 0, 1)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64"])
@pytest.mark.parametrize("shape", [SHAPE, (16_384, 10), (8, 20_000), (1024, 161)], ids=str)
def test_activation_backward_with_bias_gradient_reads_twice_and_writes_once(shape, dtype):
    memory, kind = Guarded(), DTYPES[dtype]
    grad, saved = memory.normal(shape, kind), memory.normal(shape, kind)
    delta, grad_b = memory.empty(shape, kind), memory.empty(shape[1:], kind)
    counted = Counted()
    counted.verbs.activation_backward(grad, saved, delta, "tanh", 0.0, grad_b)
    note(
        f"activation_backward {dtype} {shape}",
        grad=counted[grad],
        saved=counted[saved],
        delta=counted[delta],
    )
    assert_once(counted[grad], 1, 0)
    assert_once(counted[saved], 1, 0)
    assert_once(counted[delta], 0, 1)
    if shape[0] > 100:  # the partial sums, written and read again, are little
        assert counted.total < 3.2 * grad.nbytes * (1 if dtype != "bf16" else 1.1)
    assert len(counted.launches) == 2


@pytest.mark.parametrize("dtype", ["f64", "f32", "bf16"])
def test_both_stages_of_a_column_sum_have_no_bank_conflict(dtype):
    memory, kind = Guarded(), DTYPES[dtype]
    x, sums = memory.normal(SHAPE, kind), memory.empty(SHAPE[1:], kind)
    counted = Counted()
    counted.verbs.column_sum(x, sums)
    assert counted.conflicts == dict.fromkeys(counted.launches, 1.0)
    assert len(counted.conflicts) == 2


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [(7, "f32"), (8, "f32"), (10, "f32"), (16, "f32"), (24, "f32"), (32, "f32"), (48, "f32"),
     (64, "f32"), (96, "f32"), (8, "bf16"), (10, "bf16"), (32, "bf16"), (48, "bf16"), (64, "bf16")],
)  # fmt: skip
def test_rows_of_a_thread_have_no_bank_conflicts(classes, dtype):
    """Lanes that would meet in a bank start at different places of their rows; what is left is the
    label's logit and its gradient, one element each, whose place is the data's."""
    memory, rows, kind = Guarded(), 256, DTYPES[dtype]
    z, y = memory.normal((rows, classes), kind), memory.put(np.arange(rows) % classes)
    result = {"row_loss": memory.empty((rows,), np.float32), "delta": memory.empty(z.shape, kind)}
    counted = Counted()
    counted.verbs.softmax_cross_entropy(z, y, result)
    (entry,) = counted.launches
    LINES.append(f"  {entry} K={classes}: wavefronts {counted.conflicts[entry]:.2f}")
    meet = [one for one in counted.shared[entry] if one.wavefronts > one.least]
    assert sorted((one.store, one.bytes) for one in meet) in (
        [], [(0, kind.itemsize), (1, kind.itemsize)]
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_a_shifted_matrix_peels_its_head_and_stays_vectorised(dtype):
    memory, kind = Guarded(), DTYPES[dtype]
    product, h = (memory.normal(SHAPE, kind, shift=1) for _ in range(2))
    counted = Counted()
    counted.verbs.affine_epilogue(product, None, None, h, "relu")
    note(f"affine_epilogue {dtype} off 16 bytes", product=counted[product], h=counted[h])
    for array, reads in ((product, 1), (h, 0)):
        assert counted[array].widest == 16
        assert counted[array].read + counted[array].written == array.nbytes
        assert counted[array].sectors_per_minimum < 1.2
        assert bool(counted[array].read) == bool(reads)


def test_column_sum_reads_once():
    memory = Guarded()
    x, sums = memory.normal(SHAPE, np.float32), memory.empty(SHAPE[1:], np.float32)
    counted = Counted()
    counted.verbs.column_sum(x, sums)
    assert_once(counted[x], 1, 0)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_dropout_is_fused_and_keeps_no_mask(dtype):
    memory, kind, dropout = Guarded(), DTYPES[dtype], Dropout(0.5, 0, random_state(1, 2))
    x, saved = memory.normal(SHAPE, kind), memory.normal(SHAPE, kind)
    counted = Counted()
    counted.verbs.affine_epilogue(x, None, None, x, "relu", 0.0, dropout)
    note(f"affine_epilogue dropout relu {dtype}", product=counted[x])
    assert_once(counted[x], 1, 1)
    state = counted[dropout.state].read  # 16 bytes, by each thread: from the cache
    assert counted.total - state < 2.1 * x.nbytes
    counted = Counted()
    counted.verbs.activation_backward(x, saved, x, "tanh", 0.0, None, dropout)
    note(f"activation_backward dropout tanh {dtype}", grad=counted[x], saved=counted[saved])
    assert_once(counted[x], 1, 1)
    assert_once(counted[saved], 1, 0)
    assert counted.total - counted[dropout.state].read < 3.1 * x.nbytes


@pytest.mark.parametrize(
    ("name", "storage", "bytes_each"),
    [("adam", "f32", 28), ("adamw", "f32_bf16", 28), ("sgd", "f32", 20),
     ("gradient_descent", "f32", 12), ("adam", "f64", 56), ("adam", "bf16", 22), ("lion", "f32_f16", 20),
     ("adam", "f32_f32_bf16", 30), ("adam_amsgrad", "f32", 36)],
)  # fmt: skip
def test_an_update_moves_what_its_formula_needs(name, storage, bytes_each):
    """Adam in float32: p, m, v read and written, g read: 28 bytes. With a gradient and a copy in
    bf16 also: 2 bytes less, 2 more."""
    memory, count = Guarded(), 8192
    parts = storage.split("_")
    types = parts[0], parts[1 % len(parts)]
    p, g = memory.normal((count,), DTYPES[types[0]]), memory.normal((count,), DTYPES[types[1]])
    compute = compute_dtype(p.dtype)
    slots = tuple(memory.normal((count,), compute) for _ in UPDATES[name].slots)
    copy = memory.empty((count,), DTYPES[parts[-1]]) if "_" in storage else None
    c = np.zeros(COEFFICIENTS, compute)
    c[PROCEED] = 1
    counted = Counted()
    counted.verbs.update(name, p, g, slots, c, copy)
    moved = sum(counted[a].read + counted[a].written for a in (p, g, *slots, copy) if a is not None)
    note(f"update {name} {storage}: {moved / count:.0f} B a parameter", p=counted[p], g=counted[g])
    assert moved == bytes_each * count
    for array in (p, g, *slots):
        assert counted[array].widest == min(16, 16 // compute.itemsize * array.itemsize)
        assert counted[array].sectors_per_minimum == 1
    assert counted.launches == [f"update_{name}_{storage}"]


@pytest.mark.parametrize("storage", ["f32", "bf16", "f64"])
def test_an_update_of_shifted_buffers_peels_its_head_and_stays_vectorised(storage):
    memory, count, kind = Guarded(), 8192, DTYPES[storage]
    p, g = (memory.normal((count,), kind, shift=1) for _ in range(2))
    compute = compute_dtype(p.dtype)
    m, v = (memory.normal((count,), compute, shift=1) for _ in range(2))
    c = np.zeros(COEFFICIENTS, compute)
    c[PROCEED] = 1
    counted = Counted()
    counted.verbs.update("adam", p, g, (m, v), c)
    note(f"update adam {storage} off 16 bytes", p=counted[p], g=counted[g])
    for array in (p, g, m, v):
        assert counted[array].widest == min(16, 16 // compute.itemsize * array.itemsize)
        assert counted[array].sectors_per_minimum < 1.05


def test_a_skipped_update_moves_nothing_but_the_flag():
    arrays = [np.ones(4096, np.float32) for _ in range(4)]
    counted = Counted()
    counted.verbs.update(
        "adam",
        arrays[0],
        arrays[1],
        (arrays[2], arrays[3]),
        np.zeros(COEFFICIENTS, np.float32),
    )
    assert all(counted[array].read + counted[array].written == 0 for array in arrays)


def test_norm_and_gather_read_once():
    memory = Guarded()
    g, out = memory.normal((16_384,), np.float32), memory.empty((2,), np.float32)
    counted = Counted()
    counted.verbs.sum_of_squares(g, out)
    note("sum_of_squares f32", g=counted[g])
    assert_once(counted[g], 1, 0)
    table = memory.put(memory.rng.integers(0, 256, (64, 784)).astype(np.uint8))
    rows, x = memory.rng.permutation(64), memory.empty((64, 784), np.float32)
    counted.verbs.gather_rows(table, rows, x)
    note("gather_rows u8 -> f32 (64, 784)", source=counted[table], out=counted[x])
    assert (counted[table].reads, counted[table].widest) == (1, 4)
    assert counted[table].sectors_per_minimum < 1.15, "rows of 784 bytes are 24.5 sectors"
    assert_once(counted[x], 0, 1)


def test_one_hot_layers_read_a_number_for_each_group_and_write_once():
    """The dense product would read 904 inputs of each row and all of W. An element of W is in a sector
    of its own, as a column goes across the rows of W: 8 times its bytes. Rows of 904 elements begin
    with a sector, so that the tiles of 8 columns of grad_W are whole ones."""
    memory, rows, units, groups = Guarded(), 256, 64, ((0, 600), (600, 904))
    codes = np.stack([memory.rng.integers(p, q, rows) for p, q in groups], 1).astype(np.int32)
    codes = memory.put(codes)
    W, grad_W = (memory.normal((units, 904), np.float32) for _ in range(2))
    a = memory.normal((rows, units), np.float32)
    counted = Counted()
    counted.verbs.one_hot_forward(codes, W, a)
    note("one_hot_forward f32 (256, 904 -> 64)", a=counted[a], W=counted[W])
    assert_once(counted[a], 0, 1, widest=4)
    assert counted[W].read == 2 * a.nbytes
    assert counted[codes].read == codes.nbytes * units / 32 * 32, "each lane of a warp reads it"
    counted.verbs.one_hot_backward(a, codes, groups, grad_W)
    note("one_hot_backward f32 (256, 904 -> 64)", delta=counted[a], grad_W=counted[grad_W])
    assert counted[a].read == 2 * a.nbytes, "once for each group"
    assert_once(counted[grad_W], 0, 1, widest=4)


def test_weights_of_rows_are_read_once():
    memory, rows = Guarded(), 20_000  # more than threads
    labels, sample = memory.put(np.arange(rows) % 7), memory.normal((rows,), np.float32)
    total, counted = memory.empty((1,), np.float32), Counted()
    counted.verbs.row_weights(labels, total, rows, sample, classes=7)
    note("row_weights i64", labels=counted[labels], sample_weight=counted[sample])
    assert_once(counted[labels], 1, 0, widest=8)
    assert_once(counted[sample], 1, 0, widest=4)
    assert counted[total].written == 4


@pytest.mark.parametrize(("cols", "widest"), [(8, 4), (9, 16), (41, 16)])
def test_a_pointwise_loss_takes_rows_of_two_packs_by_elements_and_longer_ones_by_packs(
    cols, widest
):
    """Where rows start off 16 bytes, too: their heads and tails are peeled."""
    memory, counted = Guarded(), Counted()
    z, delta = (memory.normal((40, cols), np.float32, shift=1, gap=1) for _ in range(2))
    targets = memory.normal((40, cols), np.float32, shift=1, gap=1)
    result = {"row_loss": memory.empty((40,), np.float32), "delta": delta}
    counted.verbs.pointwise_loss(z, targets, "squared_error", result)
    assert {counted[array].widest for array in (z, targets, delta)} == {widest}


@pytest.mark.parametrize("classes", [10, 1000, 4096])
def test_pointwise_losses_read_and_write_once(classes):
    """In accesses of 16 bytes. Rows of 40 bytes have heads and tails of two elements, and a request for
    those of eight rows touches a sector for each."""
    memory, rows = Guarded(), 64
    z, delta = (memory.normal((rows, classes), np.float32) for _ in range(2))
    result = {"row_loss": memory.empty((rows,), np.float32), "delta": delta}
    counted = Counted()
    targets = memory.normal((rows, classes), np.float32)
    counted.verbs.pointwise_loss(z, targets, "squared_error", result)
    note(
        f"pointwise_loss K={classes}", a=counted[z], targets=counted[targets], delta=counted[delta]
    )
    assert (counted[z].reads, counted[targets].reads, counted[delta].writes) == (1, 1, 1)
    assert counted[z].widest == 16
    assert counted[z].sectors_per_minimum <= (1.8 if classes == 10 else 1.05)


@pytest.mark.parametrize("classes", [10, 1000])
def test_the_naive_softmax_reads_the_logits_three_times_where_the_real_one_reads_them_once(classes):
    """Step by step in kernels/README.md. Beside the two reads too many, a warp of the naive kernel
    touches a sector of 32 bytes for each number of 4."""
    memory, rows = Guarded(), 128
    z, y = memory.normal((rows, classes), np.float32), memory.put(np.arange(rows) % classes)
    row_loss, delta = memory.empty((rows,), np.float32), memory.empty(z.shape, np.float32)
    entry, grid, block, arguments = first_rung.launch(z, y, row_loss, delta)
    naive = count_traffic(module(first_rung.SOURCE, ()), entry, grid, block, arguments)
    counted, result = Counted(), {"row_loss": row_loss, "delta": delta}
    counted.verbs.softmax_cross_entropy(z, y, result)
    note(f"naive softmax K={classes}", logits=naive[0], delta=naive[3])
    note(f"{counted.launches[0]} K={classes}", logits=counted[z], delta=counted[delta])
    assert (naive[0].reads, naive[3].writes, naive[0].widest) == (3, 1, 4)
    assert naive[0].sectors_per_minimum > (2 if classes == 10 else 7.9)
    for traffic, read in ((counted[z], 1), (counted[delta], 0)):  # and an element more of each row
        assert traffic.reads == pytest.approx(read, abs=2 / classes)
        assert traffic.writes == pytest.approx(1 - read, abs=2 / classes)
        assert traffic.sectors_per_minimum <= 1.05
