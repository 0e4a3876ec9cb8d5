"""Softmax cross entropy of up to 32 columns, two rows to a thread: emulated, against PyTorch in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gpubackprop.backends.cupy import losses
from gpubackprop.backends.cupy_launch import PAIR_COLUMNS, DeviceProperties
from tests import emulator, references
from tests.emulator.arrays import Guarded, ulps, wide
from tests.emulator.operations import DTYPES, Operations, collect, run_now
from tests.tolerances import assert_same_pattern

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
ONE = DeviceProperties(1, 232_448, (9, 0))  # one block of 256 rows already fills this card
UNITS = {"f32": 4.0, "f16": 0.51, "bf16": 0.51}  # as in test_kernel_softmax.py
ROWS = 700  # two blocks' tiles, and a last one of 60 rows


class Case:
    """A matrix, its labels and what is wanted of them, on 16 bytes."""

    def __init__(self, dtype: str, cols: int, rows: int = ROWS, label: str = "i64") -> None:
        self.memory = Guarded(cols)
        self.z = self.memory.normal((rows, cols), DTYPES[dtype], scale=3)
        self.y = self.memory.put(self.memory.rng.integers(0, cols, rows).astype(DTYPES[label]))
        self.dtype, self.rows = dtype, rows
        self.result = {
            "row_loss": self.memory.empty((rows,), np.float32),
            "delta": self.memory.empty((rows, cols), DTYPES[dtype]),
            "loss": np.full((), 7, np.float32),
            "correct_rows": np.full((), 7, np.int64),
            "bad_label": np.array([-1, -1]),
        }

    def run(self, device: DeviceProperties = ONE, *, grid: int = 0, **options: Any) -> Any:
        """Launch and check that nothing else was written; return the launch."""

        def now(launched: Any) -> None:
            run_now(replace(launched, grid=(grid, 1, 1)) if grid else launched)

        (launch,) = Operations(now, device).softmax_cross_entropy(
            self.z, self.y, self.result, **options
        )
        self.memory.check()
        return launch

    def check(self, ignore_index: int | None = None, upstream: float = 1.0) -> None:
        """Hold everything that was wanted to float64."""
        z, y = wide(self.z), self.y.astype(np.int64)
        rows, _ = references.cross_entropy(z, y, reduction="none", ignore_index=ignore_index)
        _, delta = references.cross_entropy(z, y, reduction="sum", ignore_index=ignore_index)
        kept = y != ignore_index
        if "row_loss" in self.result:
            assert ulps(self.result["row_loss"], rows, np.float32) <= UNITS["f32"]
        if "delta" in self.result:
            assert (
                ulps(self.result["delta"], upstream * delta, DTYPES[self.dtype])
                <= UNITS[self.dtype]
            )
            assert (wide(self.result["delta"])[~kept] == 0).all()
        assert ulps(self.result["loss"], rows.sum(), np.float32) <= 2
        assert self.result["correct_rows"] == (kept & (z.argmax(1) == y)).sum()
        assert self.result["bad_label"].tolist() == [-1, -1]


@pytest.mark.sweep(keep=12)
@pytest.mark.parametrize("cols", range(1, PAIR_COLUMNS + 1))
@pytest.mark.parametrize("dtype", UNITS)
def test_rows_of_every_number_of_columns_match_pytorch_in_float64(dtype, cols):
    case = Case(dtype, cols)
    launch = case.run(reduction="sum")
    assert launch.entry == f"softmax_cross_entropy_pairs_k{cols}_{dtype}"
    case.check()


@pytest.mark.parametrize(("dtype", "cols"), [("f32", 10), ("f32", 12), ("bf16", 5)])
@pytest.mark.parametrize("rows", [1, 2, 33, 63, 64, 65, 256, 257])
def test_any_number_of_rows_is_covered_and_no_row_more(dtype, cols, rows):
    case = Case(dtype, cols, rows)
    case.run(reduction="sum")
    case.check()


@pytest.mark.parametrize("grid", [1, 2, 3])
@pytest.mark.parametrize("shared", [232_448, 2 * 256 * 40 + 2048])  # three tiles, two
def test_any_grid_and_two_tiles_or_three_give_the_same_bits(grid, shared):
    first, again = Case("f32", 10, 2000), Case("f32", 10, 2000)
    first.run(grid=3, reduction="sum")
    launch = again.run(DeviceProperties(1, shared), grid=grid, reduction="sum")
    assert launch.shared_packs == (3 if shared > 100_000 else 2)
    for name in ("row_loss", "delta", "correct_rows"):
        assert first.result[name].tobytes() == again.result[name].tobytes()
    again.check()
    if grid == 3:
        assert first.result["loss"].tobytes() == again.result["loss"].tobytes()


@pytest.mark.parametrize("cols", [10, 12])
@pytest.mark.parametrize("label", ["u8", "i32", "i64"])
def test_labels_and_losses_at_any_address_are_read_and_written(label, cols):
    for shift in (0, 1):
        case = Case("f32", cols, 300, label)
        case.y = case.memory.put(np.array(case.y), shift=shift)
        case.result["row_loss"] = case.memory.empty((300,), np.float32, shift=shift)
        assert "pairs" in case.run(reduction="sum").entry
        case.check()


@pytest.mark.parametrize(("dtype", "cols"), [("f32", 10), ("f16", 8)])
@pytest.mark.parametrize("weigh", [losses.KNOWN, losses.FIRST])
def test_ignored_rows_have_no_loss_no_gradient_and_no_share_in_the_mean(dtype, cols, weigh):
    case = Case(dtype, cols, 300)
    case.z[::7] *= np.asarray(np.inf).astype(case.z.dtype)  # of no row that counts
    case.y[::7] = 3
    kept = case.y != 3
    case.result["weight_sum"] = np.empty((), np.float32)
    divisor = float(kept.sum()) if weigh == losses.KNOWN else 1.0
    z, y = wide(case.z), case.y
    z[~kept] = 0
    case.run(ignore_index=3, weigh=weigh, divisor=divisor)
    assert case.result["weight_sum"] == kept.sum()
    rows, delta = references.cross_entropy(z, y, reduction="none", ignore_index=3)
    loss, delta = references.cross_entropy(z, y, reduction="mean", ignore_index=3)
    assert ulps(case.result["loss"], loss, np.float32) <= 2
    assert ulps(case.result["row_loss"], rows, np.float32) <= UNITS["f32"]
    assert ulps(case.result["delta"], delta, case.z.dtype) <= UNITS[dtype]
    assert (wide(case.result["delta"])[~kept] == 0).all()


@pytest.mark.parametrize("ignore_index", [-100, 255, 2**40])
def test_an_index_to_ignore_that_is_no_column_is_no_bad_label(ignore_index):
    case = Case("f32", 10, 300)
    case.y[[4, 100]] = ignore_index
    case.run(ignore_index=ignore_index, reduction="sum")
    case.check(ignore_index)
    plain = Case("f32", 10, 300)
    plain.run(reduction="sum")
    others = case.y != ignore_index
    for name in ("row_loss", "delta"):  # bit for bit: 2^40 is 0 in 32 bits, and label 0 counts
        assert np.array_equal(case.result[name][others], plain.result[name][others])


def test_the_loss_alone_is_a_launch_that_weighs_its_rows_as_it_goes():
    case = Case("f32", 10, 300)
    del case.result["delta"], case.result["row_loss"]
    case.result["weight_sum"] = np.empty((), np.float32)
    case.y[::5] = -1
    case.run(ignore_index=-1, weigh=losses.WITH_ROWS)
    rows, _ = references.cross_entropy(wide(case.z), case.y, reduction="none", ignore_index=-1)
    assert case.result["weight_sum"] == 240
    assert ulps(case.result["loss"], rows.sum() / 240, np.float32) <= 2


@pytest.mark.parametrize("weigh", [losses.KNOWN, losses.WITH_ROWS])
def test_the_sum_of_the_weights_needs_no_predictions_nor_they_the_weights(weigh):
    case = Case("f32", 10, 300)
    kept = case.y != 3
    name = "correct_rows" if weigh == losses.KNOWN else "weight_sum"
    case.result = {"loss": case.result["loss"], name: np.full((), 7, np.int64)}
    if name == "weight_sum":
        case.result[name] = np.full((), 7, np.float32)
    case.run(ignore_index=3, weigh=weigh)
    hits = wide(case.z).argmax(1) == case.y
    assert case.result[name] == (kept if name == "weight_sum" else kept & hits).sum()


@pytest.mark.parametrize("weigh", [losses.KNOWN, losses.FIRST])
def test_zero_in_place_of_an_empty_mean_changes_no_mean_over_rows(weigh):
    case, empty = Case("f32", 10, 70), Case("f32", 10, 70)
    case.y[::3] = empty.y[...] = 3
    for one in (case, empty):
        count = np.array((one.y != 3).sum(), np.float32)
        one.run(ignore_index=3, empty="zero", weigh=weigh, divisor=count)
    z, y = wide(case.z), case.y
    loss, delta = references.cross_entropy(z, y, reduction="mean", ignore_index=3)
    assert ulps(case.result["loss"], loss, np.float32) <= 2
    assert ulps(case.result["delta"], delta, np.float32) <= UNITS["f32"]
    assert not any(empty.result[name].any() for name in ("loss", "row_loss", "delta"))


def test_gradients_alone_and_row_losses_alone_are_those_of_all_at_once():
    whole = Case("bf16", 11, 300)
    whole.run(reduction="sum")
    for name in ("row_loss", "delta"):
        alone = Case("bf16", 11, 300)
        alone.result = {name: alone.result[name]}
        assert "pairs" in alone.run().entry
        assert alone.result[name].tobytes() == whole.result[name].tobytes()


def test_the_gradient_is_that_of_the_scale_that_memory_has():
    case = Case("f32", 10, 300)
    case.run(upstream=np.array(3.0, np.float32), divisor=np.array(6.0, np.float32), reduction="sum")
    wanted = references.cross_entropy(wide(case.z), case.y, reduction="sum")[1] / 2
    assert ulps(case.result["delta"], wanted, np.float32) <= UNITS["f32"]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("cols", [8, 10])
def test_rows_that_are_not_usual_are_those_of_the_form_with_options_and_leave_others_alone(
    dtype, cols
):
    """NaN, infinities, logits so large that a difference overflows, bad labels."""
    case = Case(dtype, cols, 300)
    usual = np.array(case.z)
    large = {"f32": 3e38, "f16": 6e4}[dtype]
    rows = {
        1: np.nan, 4: np.inf, 6: -np.inf, 70: large, 71: -large, 131: -1e30 if dtype == "f32" else -large,
    }  # fmt: skip
    for row, value in rows.items():
        case.z[row, 1::2] = value
    case.y[[6, 71, 131]] = 1  # the logit of the label is -inf, or far below the others
    case.z[200] = -np.inf
    case.z[201] = np.inf
    case.y[[20, 21, 299]] = [cols, -1, 2**40]
    case.run(reduction="sum")
    other = Case(dtype, cols, 300)
    other.z[...], other.y[...] = case.z, case.y
    other.result["lse"] = other.memory.empty((300,), np.float32)  # an option of single rows
    assert "lanes" in other.run(reduction="sum").entry
    for name in ("row_loss", "delta", "loss"):
        ours, theirs = wide(case.result[name]), wide(other.result[name])
        assert_same_pattern(ours, theirs)
        kind = dtype if name == "delta" else "f32"
        assert ulps(ours, theirs, DTYPES[kind]) <= UNITS[kind]
    assert case.result["correct_rows"] == other.result["correct_rows"]
    assert sorted(case.result["bad_label"].tolist()) in (
        sorted(pair) for pair in ([20, cols], [21, -1], [299, 2**40])
    )
    plain = Case(dtype, cols, 300)
    plain.z[...] = usual
    plain.run(reduction="sum")
    same = np.ones(300, bool)
    same[[*rows, 200, 201, 20, 21, 299]] = False
    for name in ("row_loss", "delta"):  # bit for bit, in any company
        assert np.array_equal(case.result[name][same], plain.result[name][same])


@pytest.mark.parametrize("cols", [8, 10])  # rows apart, neighbours
def test_an_ignored_row_beside_one_that_is_not_usual_counts_nothing(cols):
    """A label out of range is not ignored, though an index to ignore is given."""
    case, apart = Case("f32", cols, 300), 32 if cols == 8 else 1
    case.y[...] = (case.y + (case.y == 3)) % cols
    for row, wrong in ((2, np.nan), (66, None)):
        case.z[row, 3], case.y[row] = 50, 3
        if wrong is None:
            case.y[row + apart] = cols + 1
        else:
            case.z[row + apart, 1] = wrong
    case.z[130 + apart, 3], case.y[130 + apart], case.y[130] = 50, 3, -1
    other = Case("f32", cols, 300)
    other.z[...], other.y[...] = case.z, case.y
    other.result["lse"] = other.memory.empty((300,), np.float32)  # an option of single rows
    for one, form in ((case, "pairs"), (other, "lanes")):
        one.result["weight_sum"] = np.empty((), np.float32)
        assert form in one.run(ignore_index=3, weigh=losses.FIRST).entry
        assert np.isnan(one.result["weight_sum"])
        one.run(ignore_index=3, weigh=losses.KNOWN)
    for name in ("row_loss", "delta"):
        ours, theirs = wide(case.result[name]), wide(other.result[name])
        assert_same_pattern(ours, theirs)
        assert ulps(ours, theirs, np.float32) <= UNITS["f32"]
    unusual = [2 + apart, 66 + apart, 130]
    assert np.isnan(case.result["row_loss"]).nonzero()[0].tolist() == sorted(unusual)
    usual = np.ones(300, bool)
    usual[unusual] = False
    hits = usual & (case.y != 3) & (wide(case.z).argmax(1) == case.y)
    assert case.result["correct_rows"] == other.result["correct_rows"] == hits.sum()
    assert not case.result["row_loss"][[2, 66, 130 + apart]].any()


@pytest.mark.parametrize("cols", [8, 10])  # rows apart, neighbours
def test_a_row_beside_one_that_is_not_usual_is_predicted_as_elsewhere(cols):
    case, unusual = Case("f32", cols, 192), [4, 37, 71, 105, 160]
    case.y[...] = wide(case.z).argmax(1)
    case.y[unusual] = (case.y[unusual] + 1) % cols
    case.z[unusual, case.y[unusual] - 2] = np.nan
    case.run(reduction="sum")
    assert case.result["correct_rows"] == 192 - len(unusual)


@pytest.mark.parametrize("upstream", [np.inf, np.nan, 1e-40, 0.0])
def test_a_gradients_scale_that_is_no_usual_number_gives_what_the_form_with_options_gives(upstream):
    case, other = Case("f32", 10, 300), Case("f32", 10, 300)
    other.result["lse"] = other.memory.empty((300,), np.float32)
    case.run(upstream=upstream)
    other.run(upstream=upstream)
    ours, theirs = wide(case.result["delta"]), wide(other.result["delta"])
    assert_same_pattern(ours, theirs)
    assert ulps(ours, theirs, np.float32) <= UNITS["f32"]
    assert ulps(case.result["row_loss"], other.result["row_loss"], np.float32) <= UNITS["f32"]


def test_the_first_of_equal_logits_is_the_prediction_wherever_a_row_starts():
    for cols in (10, 16):  # neighbours; rows apart, which start at different places
        case = Case("f32", cols, 300)
        case.z[...] = np.arange(cols) % 3
        case.y[...] = np.arange(300) % cols
        case.run(reduction="sum")
        assert case.result["correct_rows"] == (case.y == 2).sum()


def test_the_losses_of_many_rows_add_up_to_their_last_place():
    """A thread of one block has 80 rows; in float32 alone their sum is several units off."""
    case = Case("f32", 10, 20_000)
    case.run(grid=1, reduction="sum")
    exact = case.result["row_loss"].astype(np.float64).sum()
    assert abs(float(case.result["loss"]) - exact) <= np.spacing(np.float32(exact)) / 2 * 1.01


def test_the_losses_of_equal_rows_add_up_to_their_last_place():
    """What each addition of a thread loses is the same for all: without it, the sum is units off."""
    case = Case("f32", 10, 20_000)
    case.z[...], case.y[...] = case.z[0], case.y[0]
    case.run(grid=1, reduction="sum")
    exact = case.result["row_loss"].astype(np.float64).sum()
    assert abs(float(case.result["loss"]) - exact) <= np.spacing(np.float32(exact)) / 2 * 1.01


def test_a_loss_is_its_two_terms_rounded_once():
    """The loss of the largest logit is log S; of any other it is log S + (m - z)."""
    best, case = Case("f32", 10), Case("f32", 10)
    z = wide(case.z)
    best.y[...] = z.argmax(1)
    for one in (best, case):
        one.run(reduction="sum")
    below = z.max(1) - z[np.arange(ROWS), case.y]
    exact = below + wide(best.result["row_loss"])
    assert ulps(case.result["row_loss"], exact, np.float32, "elements") <= 0.501


@pytest.mark.parametrize(("dtype", "cols"), [("f32", 10), ("bf16", 5), ("f32", 8)])
def test_losses_are_right_to_the_last_place_where_their_additions_round(dtype, cols):
    """m - z and log S + (m - z) are rounded; what they lose is added. Without it: a unit and more.

    log S is below a thousandth of the loss here, so its own error does not count.
    """
    case = Case(dtype, cols)
    case.z[...] *= np.asarray(20).astype(case.z.dtype)
    z = wide(case.z)
    case.y[...] = np.argsort(z, 1)[:, 0]
    case.run(reduction="sum")
    rows, _ = references.cross_entropy(z, case.y, reduction="none")
    far = rows > 30
    assert far.sum() > ROWS / 2
    assert ulps(case.result["row_loss"][far], rows[far], np.float32, "elements") <= 0.55


@pytest.mark.parametrize(
    ("dtype", "cols"),
    [
        ("f32", 4),
        ("f32", 10),
        ("f32", 12),
        ("f32", 16),
        ("f32", 24),
        ("f32", 28),
        ("f32", 32),
        ("f16", 8),
        ("f16", 16),
        ("f16", 32),
    ],
)
def test_a_row_has_the_same_bits_wherever_it_lies(dtype, cols):
    """Rows apart start at different columns; their sums must not show it."""
    case = Case(dtype, cols, 321)
    same = np.arange(320) % 7  # each of seven rows is at every distance from a multiple of 32
    case.z[:320], case.y[:320] = case.z[same], case.y[same]
    case.z[320, 0] = np.inf  # and beside a row that is not usual
    case.run(reduction="sum")
    for name in ("row_loss", "delta"):
        found = np.array(case.result[name])[:320]
        assert (found == found[same]).all()


@pytest.mark.parametrize("cols", [10, 12])
def test_beyond_a_last_row_that_is_not_usual_nothing_is_written(cols):
    case = Case("f32", cols, 65)
    case.z[64, 0] = np.nan
    case.run(reduction="sum")
    assert np.isnan(case.result["row_loss"][64])
    assert np.isfinite(case.result["row_loss"][:64]).all()


@pytest.mark.parametrize("mode", ["address", "thread"])
def test_no_finding_of_the_sanitizers(mode):
    """Rows that end within a tile; several tiles of a warp; a last row that is not usual; labels and
    losses of which no two are one access."""
    launches: list[emulator.Launch] = []
    for rows, shift in ((65, 0), (600, 1)):
        case = Case("f32", 10, rows, "i32")
        case.y = case.memory.put(np.array(case.y), shift=shift)
        case.result["row_loss"] = case.memory.empty((rows,), np.float32, shift=shift)
        case.z[rows - 1, 0] = np.inf
        Operations(collect(launches), ONE).softmax_cross_entropy(
            case.z, case.y, case.result, reduction="sum"
        )
    launches = [replace(launch, grid=(1, 1, 1)) for launch in launches]
    assert all("pairs" in launch.entry for launch in launches)
    assert emulator.run_sanitized(launches, mode) == ""
