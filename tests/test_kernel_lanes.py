"""Softmax cross entropy of rows in tiles, a lane or a few to a row: what tiles, pieces and lanes can get wrong.

Options are in `test_kernel_softmax.py`; here are tiles that are just full, rows that fill a lane's registers,
rows that start at different places, and two tiles in place of three, against PyTorch in float64.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gpubackprop.backends.cupy_launch import DeviceProperties
from tests import emulator, references
from tests.emulator.arrays import Guarded, ulps, wide
from tests.emulator.operations import DTYPES, Operations, collect, run_now

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
CARD = DeviceProperties(132, 232_448, (9, 0))  # few rows do not fill it with pairs of rows
UNITS = {"f64": 8.0, "f32": 4.0, "f16": 0.51, "bf16": 0.51}  # as in test_kernel_softmax.py
# dtype, columns, elements after 16 bytes, bytes of a piece: pieces of each width; with 128 bytes of a row
# all the registers of a lane are taken
ROWS_OF = [
    ("f32", 12, 0, 16), ("f32", 32, 0, 16), ("f32", 32, 1, 4), ("f32", 10, 0, 8), ("f32", 36, 0, 16),
    ("f32", 77, 0, 4), ("f16", 64, 1, 2), ("bf16", 64, 0, 16), ("f64", 16, 0, 16),
]  # fmt: skip
TILE = 128  # rows, of one lane each


class Case:
    """A matrix, its labels and what is wanted of them."""

    def __init__(self, dtype: str, cols: int, rows: int, shift: int = 0) -> None:
        self.memory, self.dtype = Guarded(cols), dtype
        compute = np.float64 if dtype == "f64" else np.float32
        self.z = self.memory.normal((rows, cols), DTYPES[dtype], shift=shift, scale=3)
        self.y = self.memory.put(self.memory.rng.integers(0, cols, rows))
        self.result = {
            "row_loss": self.memory.empty((rows,), compute),
            "predicted": self.memory.empty((rows,), np.int64),
            "delta": self.memory.empty((rows, cols), DTYPES[dtype], shift=shift),
            "loss": np.full((), 7, compute),
            "correct_rows": np.full((), 7, np.int64),
        }

    def run(self, device: DeviceProperties = CARD, grid: int = 0, **options: Any) -> Any:
        """Launch and check that nothing else was written; return the launch."""

        def now(launched: Any) -> None:
            run_now(replace(launched, grid=(grid, 1, 1)) if grid else launched)

        (launch,) = Operations(now, device).softmax_cross_entropy(
            self.z, self.y, self.result, reduction="sum", **options
        )
        self.memory.check()
        return launch

    def check(self) -> None:
        z = wide(self.z)
        rows, _ = references.cross_entropy(z, self.y, reduction="none")
        _, delta = references.cross_entropy(z, self.y, reduction="sum")
        kind = self.result["row_loss"].dtype
        assert ulps(self.result["row_loss"], rows, kind) <= 4
        assert ulps(self.result["delta"], delta, DTYPES[self.dtype]) <= UNITS[self.dtype]
        assert ulps(self.result["loss"], rows.sum(), kind) <= 2
        if "predicted" in self.result:
            assert np.array_equal(self.result["predicted"], z.argmax(1))
        assert self.result["correct_rows"] == (z.argmax(1) == self.y).sum()


@pytest.mark.parametrize(
    "rows", [1, TILE - 1, TILE, TILE + 1], ids=["one", "tile-1", "tile", "tile+1"]
)
@pytest.mark.parametrize("form", ROWS_OF, ids=str)
def test_rows_of_every_kind_of_piece_match_pytorch_and_a_tile_may_be_just_full(form, rows):
    dtype, cols, shift, width = form
    case = Case(dtype, cols, rows, shift)
    plain = Case(dtype, cols, rows, shift)  # no option of single rows: a shorter end of a row
    del plain.result["predicted"]
    for one in (case, plain):
        assert one.run().entry == f"softmax_cross_entropy_lanes_w{width}_{dtype}"
        one.check()


@pytest.mark.parametrize("cols", [128, 256, 512, 1020], ids=["4", "8", "16", "32 lanes"])
def test_rows_of_many_lanes_match_pytorch(cols):
    """From 16 lanes on, one access has pieces of one row alone."""
    case = Case("f32", cols, 37)
    launch = case.run()
    assert launch.entry == "softmax_cross_entropy_lanes_w16_f32"
    assert launch.block[0] == -(-cols // 32)
    case.check()


@pytest.mark.parametrize(
    ("dtype", "cols", "shift"), [("f32", 32, 0), ("f32", 32, 1), ("f32", 64, 0), ("f16", 64, 1)]
)
def test_smoothed_labels_of_rows_that_take_all_registers_match_pytorch(dtype, cols, shift):
    case = Case(dtype, cols, 5, shift)
    assert "lanes" in case.run(label_smoothing=0.25).entry
    z, compute = wide(case.z), case.result["row_loss"].dtype
    rows, _ = references.cross_entropy(z, case.y, reduction="none", label_smoothing=0.25)
    _, delta = references.cross_entropy(z, case.y, reduction="sum", label_smoothing=0.25)
    assert ulps(case.result["row_loss"], rows, compute) <= 4
    assert ulps(case.result["delta"], delta, DTYPES[dtype]) <= UNITS[dtype]


@pytest.mark.parametrize("name", ["row_loss", "delta", "loss", "correct_rows"])
def test_each_result_alone_is_that_of_all_at_once(name):
    whole, alone = Case("f32", 12, 300), Case("f32", 12, 300)
    del whole.result["predicted"]
    whole.run()
    alone.result = {name: alone.result[name]}
    alone.run()
    assert alone.result[name].tobytes() == whole.result[name].tobytes()


@pytest.mark.parametrize("cols", [8, 16, 24, 32, 64, 72])
def test_a_row_has_the_same_bits_wherever_it_lies(cols):
    """Rows start at different pieces, against bank conflicts; their sums must not show it."""
    case = Case("f32", cols, 320)
    same = np.arange(320) % 7
    case.z[...], case.y[...] = case.z[same], case.y[same]
    case.run()
    for name in ("row_loss", "delta", "predicted"):
        assert (case.result[name] == case.result[name][same]).all()


@pytest.mark.parametrize(("dtype", "cols", "shift", "width"), [ROWS_OF[0], ROWS_OF[2]])
def test_any_grid_and_two_tiles_or_three_give_the_same_bits(dtype, cols, shift, width):
    case = Case(dtype, cols, 700, shift)
    case.run()
    case.check()
    tile = TILE * cols * 4 + 16
    for shared, tiles in ((232_448, 3), (2 * tile + 2048, 2)):
        for grid in (1, 2, 3):
            again = Case(dtype, cols, 700, shift)
            launch = again.run(DeviceProperties(132, shared, (9, 0)), grid)
            assert (launch.shared_packs, f"_w{width}_" in launch.entry) == (tiles, True)
            for name in ("row_loss", "delta", "predicted", "correct_rows"):
                assert np.array_equal(again.result[name], case.result[name])


@pytest.mark.parametrize("mode", ["address", "thread"])
def test_no_finding_of_the_sanitizers(mode):
    """A lane's registers all taken; several tiles of a block, a last one that is not whole."""
    launches: list[emulator.Launch] = []
    for dtype, cols, shift, _ in (ROWS_OF[1], ROWS_OF[2]):
        case = Case(dtype, cols, 300, shift)
        Operations(collect(launches), CARD).softmax_cross_entropy(
            case.z, case.y, case.result, reduction="sum"
        )
    launches = [replace(launch, grid=(grid, 1, 1)) for launch in launches for grid in (1, 2)]
    assert emulator.run_sanitized(launches, mode) == ""


@pytest.mark.parametrize(("dtype", "cols", "shift"), [("f32", 2, 1), ("f16", 2, 3), ("f32", 3, 0)])
def test_a_matrix_within_one_pack_is_read_and_written_element_by_element(dtype, cols, shift):
    launches: list[emulator.Launch] = []
    case = Case(dtype, cols, 1, shift)
    case.y[...] = wide(case.z).argmin()  # a gradient near 1, which keeps its digits
    Operations(collect(launches), CARD).softmax_cross_entropy(
        case.z, case.y, case.result, reduction="sum"
    )
    assert "lanes" in launches[0].entry
    assert emulator.run_sanitized(launches, "address") == ""
    case.run()
    rows, _ = references.cross_entropy(wide(case.z), case.y, reduction="none")
    _, delta = references.cross_entropy(wide(case.z), case.y, reduction="sum")
    assert ulps(case.result["row_loss"], rows, np.float32) <= 4
    assert ulps(case.result["delta"], delta, DTYPES[dtype]) <= UNITS[dtype]


@pytest.mark.parametrize(("cols", "shift", "width"), [(8, 0, 16), (6, 2, 4)])
def test_pairs_of_16_bits_stay_in_their_pieces(cols, shift, width):
    launches: list[emulator.Launch] = []
    case = Case("bf16", cols, 8, shift)
    Operations(collect(launches), CARD).softmax_cross_entropy(
        case.z, case.y, case.result, reduction="sum"
    )
    assert launches[0].entry == f"softmax_cross_entropy_lanes_w{width}_bf16"
    assert emulator.run_sanitized(launches, "address") == ""
