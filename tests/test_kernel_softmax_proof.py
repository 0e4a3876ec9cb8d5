"""Softmax cross entropy: what each form moves, against the minimum."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from gpubackprop.backends.cupy_launch import DeviceProperties
from gpubackprop.dtypes import compute_dtype
from tests import emulator
from tests.emulator.arrays import Guarded
from tests.emulator.cupy_stub import Launched
from tests.emulator.operations import DTYPES, Operations
from tests.emulator.traffic import count_launch
from tests.test_kernel_traffic import module

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
H200 = DeviceProperties(2, 232_448, (9, 0))
WIDE = DeviceProperties(132, 232_448, (9, 0))  # 1024 rows do not fill it with pairs of rows
NO_TILES = DeviceProperties(2, 8192, (9, 0))  # no room for tiles of whole rows
LINES: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def table():
    yield
    print(
        "\n\nSoftmax cross entropy, traffic by the emulator (times the buffer; sectors / minimum)"
    )
    print("\n".join(LINES))


class Moved(NamedTuple):
    """Of logits and delta, summed over the launches of `names`. reads, writes: times the buffer.
    sectors : the worst ratio to the fewest that each request needs. touched : sectors in all.
    losses : times that row_loss was written."""

    reads: float
    writes: float
    sectors: float
    touched: int
    losses: float
    names: list[str]


def moved(rows, cols, dtype, device=H200, *, shift=0, in_place=False, targets=None, **options):
    """What a call of the verb moves."""
    memory, kind = Guarded(), DTYPES[dtype]
    z = memory.normal((rows, cols), kind, shift=shift)
    delta = z if in_place else memory.empty((rows, cols), kind, shift=shift)
    labels = memory.rng.integers(0, cols, rows) if targets is None else targets
    names, totals = [], {"logits": [], "delta": [], "row_loss": []}
    result = {"row_loss": np.empty(rows, compute_dtype(kind)), "delta": delta}

    def run(launched: Launched) -> None:
        names.append(launched.entry)
        for array, traffic in count_launch(module(launched.source, launched.defines), launched):
            if array is z:
                totals["logits"].append(traffic)
            elif array is delta:
                totals["delta"].append(traffic)
            elif array is result["row_loss"]:
                totals["row_loss"].append(traffic)

    Operations(run=run, device=device).softmax_cross_entropy(z, labels, result, **options)
    both = totals["logits"] + totals["delta"]
    touched, losses = sum(t.sectors for t in both), sum(t.writes for t in totals["row_loss"])
    reads = sum(t.reads for t in totals["logits"])
    writes = sum(t.writes for t in both)
    sectors = max(t.sectors_per_minimum for t in both)
    LINES.append(
        f"  {names[0][22:]:24} ({rows}, {cols}) {'in place' if in_place else '':9}"
        f"{reads:.3f} read {writes:.3f} written, {sectors:.2f} sectors, "
        f"{max(t.widest for t in both)} B"
    )
    return Moved(reads, writes, sectors, touched, losses, names)


# Beside every element once: the label's delta is written once more.
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    ("rows", "cols", "dtype", "form", "options"),
    [
        (1024, 10, "f32", "pairs", {}),
        (1024, 10, "f32", "lanes", {"device": WIDE}),
        (512, 64, "bf16", "lanes", {}),
        (512, 33, "bf16", "lanes", {}),
        (512, 33, "f32", "lanes", {}),
        (256, 256, "f32", "lanes", {}),
        (256, 100, "f32", "lanes", {}),
        (64, 1000, "bf16", "lanes", {}),
        # A row for each warp, which the count takes to go in step.
        (32, 512, "bf16", "rows", {"device": NO_TILES}),
        (16, 4096, "f32", "rows", {}),
        (8, 8192, "bf16", "rows", {}),
        (2, 32_000, "bf16", "rows", {}),
        (1, 100_000, "bf16", "rows", {"cluster": 1}),
        (1, 128_256, "bf16", "cluster4", {"cluster": 4}),
        (1, 262_144, "f16", "cluster8", {"cluster": 8}),
        (1, 131_072, "f32", "cluster8", {"cluster": 8}),
    ],
)
def test_each_logit_is_read_once_and_each_gradient_written_once(
    rows, cols, dtype, form, options, in_place
):
    reads, writes, sectors, *_, names = moved(rows, cols, dtype, in_place=in_place, **options)
    assert names[0].removeprefix("softmax_cross_entropy_").startswith(form)
    # The label's logit comes from what the thread holds; in a tile its delta goes to shared memory.
    extra = 0 if form in ("lanes", "pairs") else 1 / cols
    assert reads == 1
    assert writes == pytest.approx(1 + extra, abs=1e-9)
    assert sectors <= 1.001, "not coalesced"


@pytest.mark.parametrize(
    ("rows", "cols", "dtype", "device"),
    [(64, 512, "bf16", H200), (16, 4096, "f32", H200), (2, 9216, "f32", DeviceProperties(2, 8192))],
)
def test_every_pack_of_an_aligned_row_is_one_access(rows, cols, dtype, device):
    """Element by element the last one would be as many sectors as elements."""
    own = cols * DTYPES[dtype].itemsize // 32
    again = (cols - 256 * (4 + 1) * 4) // 8 if device is not H200 else 0  # as in the test of that
    labels = np.arange(rows)  # of one that was read twice the label's logit is read once more
    found = moved(rows, cols, dtype, device, cluster=1, targets=labels)
    assert found.touched == rows * (own + again + own + 1)  # 1: the label's


@pytest.mark.parametrize(
    ("rows", "cols", "dtype", "device"),
    [
        (64, 501, "f32", NO_TILES), (2, 50_257, "bf16", H200), (4, 9001, "f32", H200),
        (16, 1003, "f16", NO_TILES),
    ],
)  # fmt: skip
def test_odd_rows_are_still_moved_once_with_few_sectors_more(rows, cols, dtype, device):
    """Head and tail of a row are peeled; each is a sector or two of its own."""
    reads, writes, sectors, *_ = moved(rows, cols, dtype, device)
    assert (reads, writes) == pytest.approx((1, 1 + 1 / cols), abs=1e-9)
    itemsize = DTYPES[dtype].itemsize
    assert sectors <= 1.001 + 16 * (32 // itemsize) / cols


@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("cols", [1, 3, 10, 33, 255, 1003])
def test_short_rows_of_any_length_move_whole_packs(cols, shift):
    """A tile is contiguous: only its ends are partial, whatever the rows are."""
    rows = 128 // -(-cols // 32)
    reads, writes, sectors, _, losses, _ = moved(rows, cols, "f32", shift=shift)
    assert (reads, writes) == (1, 1)
    assert losses == 1, "a row belongs to one tile"
    assert sectors <= 1.03


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (1, 3)])
@pytest.mark.parametrize("shift", [0, 1, 2, 3])
def test_a_tile_of_less_than_a_pack_moves_that_and_no_more(shape, shift):
    reads, writes, *_ = moved(*shape, "f32", shift=shift)
    assert (reads, writes) == (1, 1)


def test_every_option_reads_each_logit_once():
    weight = np.ones(8192, np.float32)
    options = {
        "class_weight": weight, "label_smoothing": 0.1, "z_loss": 0.1, "soft_cap": 30.0,
        "ignore_index": 3, "sample_weight": np.ones(4, np.float32),
        "upstream": np.ones(4, np.float32),
    }  # fmt: skip
    reads, writes, *_, names = moved(4, 8192, "bf16", **options)
    assert "general" in names[0]
    assert (reads, writes) == pytest.approx((1, 1 + 1 / 8192))


def test_what_fits_nowhere_is_read_twice_and_parts_are_too():
    small = DeviceProperties(2, 8192)
    reads, writes, *_ = moved(1, 9001, "f32", small, cluster=1)
    on_chip = 256 * (4 + 1) * 4  # elements in registers and in 4 KiB of shared memory
    assert reads == pytest.approx(1 + (9001 - on_chip) / 9001, abs=1e-3)
    assert writes == pytest.approx(1, abs=1e-3)
    reads, writes, *_, names = moved(1, 33_000, "f32", DeviceProperties(100))
    assert [name.split("_")[3] for name in names] == ["parts", "finish"]
    assert reads == pytest.approx(2, abs=1e-3)
    assert writes == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("options", [{}, {"soft_cap": 30.0}], ids=["labels", "general"])
@pytest.mark.parametrize("shift", [0, 1])
def test_of_an_ignored_row_the_first_16_kib_are_read_and_no_more(shift, options):
    """They are requested before the label is known; what is beyond them waits for it."""
    labels, cols = np.array([5, -1, -1, 7]), 16_384
    reads, writes, *_, names = moved(
        4, cols, "f32", targets=labels, ignore_index=-1, shift=shift, **options
    )
    assert names[0].endswith("general_f32" if options else "labels_f32")
    assert reads == pytest.approx((2 + 2 * 4096 / cols) / 4, abs=1e-4)
    assert writes == pytest.approx(1 + 2 / (4 * cols), abs=1e-9)


def test_a_label_at_the_edge_of_a_blocks_part_has_one_owner():
    """With two of them, in two blocks, the second's gradient might come after the first's."""
    cols, edge = 128_256, 4008 * 8  # a block has 4,008 packs of 8
    for label in (edge - 1, edge):
        reads, writes, *_ = moved(1, cols, "bf16", cluster=4, targets=np.array([label]))
        assert (reads, writes) == pytest.approx((1, 1 + 1 / cols), abs=1e-9)


@pytest.mark.parametrize("cols", [10, 300, 9000])
def test_a_bad_label_is_reported_by_one_thread_of_its_row(cols):
    """Every label is bad: each row has one look at the flag. The first row claims it by an atomic
    operation, which reads and writes, and writes its two words."""
    rows, memory, found = 24, Guarded(), []
    z = memory.normal((rows, cols), np.float32)
    flag = np.array([-1, -1])

    def run(launched: Launched) -> None:
        counts = count_launch(module(launched.source, launched.defines), launched)
        found.extend(traffic for array, traffic in counts if array is flag)

    result = {"row_loss": np.empty(rows, np.float32), "bad_label": flag}
    Operations(run=run, device=H200).softmax_cross_entropy(z, np.full(rows, cols), result)
    assert sum(t.reads for t in found) * flag.nbytes == (rows + 1) * 8
    assert sum(t.writes for t in found) * flag.nbytes == 3 * 8
    assert flag[1] == cols
    assert 0 <= flag[0] < rows
