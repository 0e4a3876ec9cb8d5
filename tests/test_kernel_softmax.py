"""Softmax cross entropy: every form of the kernel family, emulated, against PyTorch in float64.

The planner's thresholds are far above what an emulator likes, so most tests choose the form
themselves: a card with little shared memory, or a number of blocks to a row.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gpubackprop.backends import LossOptions, NumpyBackend
from gpubackprop.backends.cupy_launch import DeviceProperties
from gpubackprop.dtypes import compute_dtype
from tests import emulator, references
from tests.emulator.arrays import Guarded, ulps, wide
from tests.emulator.operations import DTYPES, Operations, run_now
from tests.tolerances import assert_same_pattern

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
FLOATS = ("f64", "f32", "f16", "bf16")
UNITS = {"f64": 8.0, "f32": 4.0, "f16": 0.51, "bf16": 0.51}

# name: (card, blocks to a row or None for the planner's choice, columns, what the entry is called)
FORMS = {
    "lane": (DeviceProperties(2), None, 15, "lanes"),
    "lanes": (DeviceProperties(2), None, 77, "lanes"),
    "warp": (DeviceProperties(2, 21_000), None, 300, "rows"),  # no room for tiles
    "block": (DeviceProperties(2), 1, 1501, "rows"),
    "shared": (DeviceProperties(2, 232_448, (9, 0)), 1, 9001, "rows"),
    "memory": (DeviceProperties(2, 8192), 1, 9001, "rows"),
    "cluster of 2": (DeviceProperties(2, 49_152, (9, 0)), 2, 1501, "cluster2"),
    "cluster of 4": (DeviceProperties(2, 232_448, (9, 0)), 4, 17_001, "cluster4"),
    "cluster of 8": (DeviceProperties(2, 8192, (9, 0)), 8, 3001, "cluster8"),
    "parts": (DeviceProperties(100), None, 33_001, "parts"),
}
OPTIONS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "class weights": {"class_weight": True},
    "weights and smoothing": {"class_weight": True, "label_smoothing": 0.2},
    "ignored inside": {"ignore_index": 0, "class_weight": True},
    "z loss": {"z_loss": 1e-3},
    "soft cap": {"soft_cap": 5.0},
    "low soft cap": {"soft_cap": 3.0},  # what is no logit would count, as one of -3
    "everything": {
        "class_weight": True, "label_smoothing": 0.1, "z_loss": 1e-2, "ignore_index": 1,
        "soft_cap": 30.0,
    },
}  # fmt: skip


def case(form, dtype, options, *, target="i64", rows=3, seed=3, gap=1, shift=1, in_place=False):
    """Run one case; everything that it gave beside PyTorch's numbers."""
    card, cluster, classes, name = FORMS[form]
    memory, kind, shape = Guarded(seed), DTYPES[dtype], (rows, classes)
    compute, options = compute_dtype(kind), dict(options)
    if form in ("lane", "lanes"):
        gap = 0
    if target == "prob":
        options.pop("ignore_index", None)
        targets = memory.put(memory.rng.random(shape).astype(compute), gap=1)
    else:
        labels = memory.rng.integers(0, min(classes, 200 if target == "u8" else classes), rows)
        labels[0] = 0
        if rows > 2:
            labels[-1] = min(classes, 256 if target == "u8" else classes) - 1
        targets = memory.put(labels.astype(DTYPES[target]))
    if options.pop("class_weight", False):
        options["class_weight"] = memory.rng.random(classes).astype(compute) + compute.type(0.5)
    logits = memory.normal(shape, kind, shift=shift, gap=gap, scale=4)
    z = wide(logits)
    result = {
        "row_loss": memory.empty(shape[:1], compute, shift=1),
        "lse": memory.empty(shape[:1], compute, shift=1),
        "predicted": memory.empty(shape[:1], np.int64, shift=1),
        "correct": memory.empty(shape[:1], np.uint8, shift=1),
        "bad_label": memory.put(np.array([-1, -1])),
        "delta": logits if in_place else memory.empty(shape, kind, gap=gap),
    }
    weight, upstream = memory.rng.random((2, rows)).astype(compute)
    verbs = Operations(device=card)
    launches = verbs.softmax_cross_entropy(
        logits, targets, result, sample_weight=weight, upstream=upstream, cluster=cluster, **options
    )
    memory.check()
    assert name in launches[0].entry.replace("short_general", "lanes short_general")
    assert len(launches) == (2 if form == "parts" else 1)
    outside = {key: wide(v) if isinstance(v, np.ndarray) else v for key, v in options.items()}
    wanted = reference(z, targets, wide(weight), wide(upstream), **outside)
    return result, wanted, targets, launches


def reference(z, targets, weight, upstream, *, soft_cap=0.0, **options):
    """Loss per row, delta, lse and first argmax, in float64; the cap's slope by the chain rule."""
    capped = soft_cap * np.tanh(z / soft_cap) if soft_cap else z
    t = targets.astype(np.int64) if targets.ndim == 1 else wide(targets)
    rows, _ = references.cross_entropy(capped, t, sample_weight=weight, reduction="none", **options)
    _, delta = references.cross_entropy(
        capped, t, sample_weight=weight * upstream, reduction="sum", **options
    )
    slope = 1 - (capped / soft_cap) ** 2 if soft_cap else 1.0
    m = capped.max(1, keepdims=True)
    lse = np.log(np.exp(capped - m).sum(1)) + m[:, 0]
    return {"row_loss": rows, "delta": delta * slope, "lse": lse, "predicted": capped.argmax(1)}


def assert_right(dtype, result, wanted, targets, options) -> None:
    kind = DTYPES[dtype]
    compute = compute_dtype(kind)
    assert (
        ulps(result["row_loss"], wanted["row_loss"], compute)
        <= UNITS["f64" if dtype == "f64" else "f32"]
    )
    if dtype != "f64":  # PyTorch's own error is larger there: see the test in extended precision
        assert ulps(result["delta"], wanted["delta"], kind) <= UNITS[dtype]
    assert ulps(result["lse"], wanted["lse"], compute) <= 2
    assert np.array_equal(result["predicted"], wanted["predicted"])
    right = np.zeros(len(targets), bool)
    if targets.ndim == 1:
        right = (wanted["predicted"] == targets) & (targets != options.get("ignore_index", -1))
    assert np.array_equal(result["correct"], right)
    assert result["bad_label"].tolist() == [-1, -1]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("target", ["i64", "prob"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_with_every_option_matches_pytorch_in_float64(form, target, options):
    dtype = {"i64": "f32", "prob": "bf16"}[target]
    result, wanted, targets, _ = case(form, dtype, options, target=target)
    assert_right(dtype, result, wanted, targets, options)


@pytest.mark.parametrize(
    ("card", "cluster", "classes", "name"),
    [
        *FORMS.values(),
        (DeviceProperties(2, 232_448, (9, 0)), 8, 34_001, "cluster8"),  # of 64 warps
        (DeviceProperties(100), None, 200_001, "parts"),  # 49 of them
    ],
)
@pytest.mark.parametrize("options", [{}, {"soft_cap": 30.0}], ids=["labels", "general"])
def test_of_equal_logits_the_first_is_predicted(card, cluster, classes, name, options):
    memory = Guarded()
    logits = memory.put(np.full((1, classes), 2.5, np.float32))
    result = {"row_loss": np.empty(1, np.float32), "predicted": np.empty(1, np.int64)}
    launches = Operations(device=card).softmax_cross_entropy(
        logits, np.array([3]), result, cluster=cluster, **options
    )
    assert name in launches[0].entry.replace("short_general", "lanes short_general")
    assert result["predicted"].tolist() == [0]


@pytest.mark.parametrize(
    ("form", "rows", "size"),
    [
        ("lane", 300, 1),
        ("lanes", 150, 1),
        ("warp", 41, 1),
        ("block", 5, 1),
        ("cluster of 2", 5, 2),
        ("parts", 3, 0),
    ],
)
def test_a_grid_of_fewer_groups_than_rows_takes_one_after_another(form, rows, size):
    """As where there are more rows than a grid may have blocks. The gradients lie otherwise than
    the logits, so that no lane has the same packs of both."""
    card, cluster, classes, _ = FORMS[form]
    found = []
    for few in (False, True):

        def run(launched, few=few):
            if few:
                launched = replace(launched, grid=(size or launched.grid[0], 1, 1))
            run_now(launched)

        memory = Guarded(5)
        kind = np.dtype(np.float32)
        z = memory.normal((rows, classes), kind)
        labels = memory.rng.integers(0, classes, rows)
        result = {
            "row_loss": np.empty(rows, np.float32), "lse": np.empty(rows, np.float32),
            "predicted": np.empty(rows, np.int64),
            "delta": memory.empty((rows, classes), kind, shift=1),
        }  # fmt: skip
        Operations(run, card).softmax_cross_entropy(z, labels, result, cluster=cluster)
        memory.check()
        found.append({name: array.tobytes() for name, array in result.items()})
    assert found[0] == found[1]


@pytest.mark.parametrize("form", ["lane", "lanes"])
def test_a_loss_alone_waits_before_it_takes_the_next_tile(form):
    card, _, classes, _ = FORMS[form]
    rows = 600 if form == "lane" else 150
    z = Guarded().normal((rows, classes), np.dtype(np.float32))
    found = []
    for blocks in (None, 1):

        def run(launched, blocks=blocks):
            run_now(replace(launched, grid=(blocks or launched.grid[0], 1, 1)))

        result = {"row_loss": np.empty(rows, np.float32)}
        Operations(run, card).softmax_cross_entropy(z, np.arange(rows) % classes, result)
        found.append(result["row_loss"].tolist())
    assert found[0] == found[1]


def test_each_part_of_a_row_leaves_its_own_statistics():
    card, _, classes, _ = FORMS["parts"]
    memory, seen = Guarded(), []
    z = memory.normal((3, classes), np.dtype(np.float32))

    def run(launched):
        run_now(launched)
        if "parts" in launched.entry:
            statistics = launched.arguments[0].arrays["partial"]
            seen.append((launched.grid[0], statistics.copy().view(np.float32)))

    result = {"row_loss": np.empty(3, np.float32)}
    Operations(run, card).softmax_cross_entropy(z, np.arange(3), result)
    ((parts, statistics),) = seen
    largest = statistics.reshape(3, parts, -1)[:, :, 0]
    assert parts > 1
    for row in range(3):
        head = z[row].ctypes.data % 16 // 4
        all_packs = -(-(head + classes) // 4)
        each = -(-all_packs // parts) * 4
        for part in range(parts):
            columns = z[row, max(0, part * each - head) : (part + 1) * each - head]
            assert largest[row, part] == columns.max()


@pytest.mark.parametrize("wanted", ["lse", "predicted"])
@pytest.mark.parametrize("form", ["lane", "lanes", "warp", "block"])
def test_an_ignored_row_is_read_where_something_of_it_is_wanted(form, wanted):
    card, cluster, classes, _ = FORMS[form]
    logits = Guarded().normal((3, classes), np.dtype(np.float32))
    z = wide(logits)
    result = {"row_loss": np.empty(3, np.float32)}
    result[wanted] = np.zeros(3, np.float32 if wanted == "lse" else np.int64)
    Operations(device=card).softmax_cross_entropy(
        logits, np.array([4, 9, 1]), result, ignore_index=9, cluster=cluster
    )
    expected = z.argmax(1) if wanted == "predicted" else np.log(np.exp(z).sum(1))
    np.testing.assert_allclose(result[wanted], expected, rtol=1e-6)
    assert result["row_loss"][1] == 0


@pytest.mark.parametrize("wanted", ["predicted", "correct"])
@pytest.mark.parametrize("form", ["lane", "lanes", "warp", "block"])
def test_predictions_and_correct_rows_are_to_be_had_one_without_the_other(form, wanted):
    card, cluster, classes, _ = FORMS[form]
    memory = Guarded()
    logits, labels = memory.normal((5, classes), np.dtype(np.float32)), np.arange(5)
    best = logits.argmax(1)
    labels[3:] = best[3:]
    result = {"row_loss": np.empty(5, np.float32)}
    result[wanted] = np.full(5, 7, np.int64 if wanted == "predicted" else np.uint8)
    Operations(device=card).softmax_cross_entropy(logits, labels, result, cluster=cluster)
    expected = best if wanted == "predicted" else best == labels
    assert result[wanted].tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_every_dtype_in_place_with_short_labels(form, dtype):
    for target, options in (("u8", {"label_smoothing": 0.1}), ("i32", {})):
        result, wanted, targets, _ = case(form, dtype, options, target=target, in_place=True)
        assert_right(dtype, result, wanted, targets, options)


@pytest.mark.parametrize("form", FORMS)
def test_float64_is_right_to_its_last_places_also_where_pytorchs_sums_are_not(form):
    """Against the formula in extended precision: smoothing over 33,001 classes costs PyTorch's
    backward pass more than a hundred units, so it is no oracle here."""
    card, cluster, classes, _ = FORMS[form]
    rng, eps = np.random.default_rng(8), np.longdouble(0.1)
    z, labels = rng.standard_normal((3, classes)) * 4, rng.integers(0, classes, 3)
    e = np.exp(z.astype(np.longdouble) - z.max(1, keepdims=True))
    tau = np.full(z.shape, eps / classes)
    tau[np.arange(3), labels] += 1 - eps
    wanted = e / e.sum(1, keepdims=True) - tau
    result = {"row_loss": np.empty(3), "delta": np.empty_like(z)}
    Operations(device=card).softmax_cross_entropy(
        z, labels, result, label_smoothing=0.1, cluster=cluster
    )
    assert ulps(result["delta"], wanted, np.float64) <= 2


# -- nasty cases, on every form -------------------------------------------------------------------


def run(form, z, targets, **options):
    """Loss and delta of float32 logits; deltas start as a sentinel, so that what is unwritten shows."""
    card, cluster, _, _ = FORMS[form]
    result = {
        "row_loss": np.full(len(z), 77, np.float32), "delta": np.full(z.shape, 77, z.dtype),
        "bad_label": np.array([-1, -1]), "lse": np.empty(len(z), np.float32),
        "predicted": np.empty(len(z), np.int64), "correct": np.empty(len(z), np.uint8),
    }  # fmt: skip
    Operations(device=card).softmax_cross_entropy(z, targets, result, cluster=cluster, **options)
    return result


def columns(form: str) -> int:
    return FORMS[form][2]


@pytest.mark.parametrize("form", FORMS)
def test_special_logits_give_pytorchs_pattern_wherever_they_stand(form):
    """-inf, +inf, NaN and the largest numbers first, last and where the storage changes."""
    classes = columns(form)
    places = sorted({0, 1, classes // 2, min(classes - 1, 4096), classes - 1})
    fills = [-np.inf, np.nan, 3.4e38, -3.4e38, np.inf]
    rows, labels = [], []
    for fill in fills:
        for place in places:
            row = np.zeros(classes, np.float32)
            row[place] = fill
            rows.append(row)
            row = np.full(classes, fill if fill < 0 else -np.inf, np.float32)
            row[place] = 1.0
            rows.append(row)
            labels += [place, classes - 1 - place]
    rows += [np.full(classes, -np.inf, np.float32), np.full(classes, np.nan, np.float32)]
    z, y = np.array(rows), np.array([*labels, 0, 0])
    result = run(form, z, y)
    loss, delta = references.cross_entropy(z, y, dtype="float32", reduction="none")
    assert_same_pattern(result["row_loss"], loss)
    assert_same_pattern(result["delta"], delta)
    finite = np.isfinite(delta)
    assert np.allclose(result["delta"][finite], delta[finite], rtol=2e-6, atol=1e-7)
    nan = np.isnan(z).any(1)
    assert (result["predicted"][nan] == -1).all()
    assert not result["correct"][nan].any()


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("form", FORMS)
def test_the_largest_numbers_of_16_bits(form, dtype):
    kind = DTYPES[dtype]
    largest = 65504.0 if dtype == "f16" else 3.3895314e38
    z = np.zeros((4, columns(form)), kind)
    z[0, 1], z[1, -1], z[2], z[3, 0] = largest, -largest, -largest, largest / 2
    z[2, 5] = -largest / 2
    result, y = run(form, z, np.array([1, 0, 5, 2])), np.array([1, 0, 5, 2])
    loss, delta = references.cross_entropy(wide(z), y, reduction="none")
    assert ulps(result["delta"], delta, kind) <= 0.51
    assert ulps(result["row_loss"], loss, np.float32) <= 4


@pytest.mark.parametrize("form", FORMS)
def test_a_large_common_offset_and_a_confident_row_keep_their_digits(form):
    z = np.random.default_rng(5).standard_normal((3, columns(form)))
    z[0, 3] += 40.0
    shifted = (z + np.array([[1e4], [-1e4], [1e4]])).astype(np.float32)
    labels = np.array([3, 1, columns(form) - 1])
    result = run(form, shifted, labels)
    loss, delta = references.cross_entropy(wide(shifted), labels, reduction="none")
    assert ulps(result["row_loss"], loss, np.float32) <= 4
    assert ulps(result["delta"][1:], delta[1:], np.float32, scale="rows") <= 4
    assert np.abs(result["delta"][0] - delta[0]).max() <= 2.0**-23, "p - 1 of a p that is 1"


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("form", FORMS)
def test_a_confident_prediction_forms_p_minus_1_before_it_is_rounded(form, dtype):
    """p is within 1e-6 of 1: rounded to 16 bits first, p - 1 would be 0 or 2^-9."""
    kind, classes = DTYPES[dtype], columns(form)
    z = np.full((1, classes), -40.0).astype(kind)
    z[0, 7], z[0, 9] = 0.0, -14.0
    result = run(form, z, np.array([7]))
    others = np.exp(-14.0) + (classes - 2) * np.exp(-40.0)
    assert wide(result["delta"])[0, 7] == pytest.approx(-others / (1 + others), rel=0.05)
    assert result["row_loss"][0] == pytest.approx(np.log1p(others), rel=0.08)
    alone = run(form, z[:, :1].copy(), np.array([0])) if form == "lanes" else None
    if alone is not None:
        assert (alone["row_loss"][0], wide(alone["delta"])[0, 0]) == (0, 0), "K = 1 is certain"


@pytest.mark.parametrize("bad", [-1, -(2**31), 2**31 - 1, "classes"])
@pytest.mark.parametrize("form", FORMS)
def test_a_bad_label_gives_a_row_of_nan_and_a_sticky_flag_and_touches_nothing_else(form, bad):
    classes = columns(form)
    bad = classes if bad == "classes" else bad
    z = np.random.default_rng(6).standard_normal((5, classes)).astype(np.float32)
    labels = np.array([0, classes - 1, bad, 3, bad]).astype(np.int32)
    result = run(form, z, labels, ignore_index=-100, label_smoothing=0.1)
    good = np.array([True, True, False, True, False])
    assert np.isnan(result["delta"][~good]).all()
    assert np.isnan(result["row_loss"][~good]).all()
    assert np.isfinite(result["delta"][good]).all()
    assert np.isfinite(result["row_loss"][good]).all()
    assert not result["correct"][~good].any()
    assert result["bad_label"][1] == bad
    assert result["bad_label"][0] in (2, 4)


@pytest.mark.parametrize("form", FORMS)
def test_an_ignored_row_of_nan_adds_nothing_and_is_read_only_where_something_is_wanted(form):
    z = np.zeros((3, columns(form)), np.float32)
    z[1] = np.nan
    for ignore in (-5, 2):
        result = run(form, z, np.array([0, ignore, 1]), ignore_index=ignore, z_loss=0.1)
        assert result["row_loss"][1] == 0
        assert not result["delta"][1].any()
        assert np.isnan(result["lse"][1])
    alone = {"row_loss": np.empty(3, np.float32), "delta": np.full_like(z, 9)}
    card, cluster, _, _ = FORMS[form]
    Operations(device=card).softmax_cross_entropy(
        z, np.array([0, -5, 1]), alone, ignore_index=-5, cluster=cluster
    )
    assert alone["row_loss"][1] == 0
    assert not alone["delta"][1].any()


@pytest.mark.parametrize("form", FORMS)
def test_every_launch_shape_of_ties_predicts_the_first(form):
    z = np.zeros((4, columns(form)), np.float32)
    z[1, [columns(form) - 1, columns(form) // 2, columns(form) // 2 - 1]] = 3.0
    z[2, -1], z[3, 0] = 1.0, 1.0
    result = run(form, z, np.array([0, columns(form) // 2 - 1, 0, 1]))
    assert result["predicted"].tolist() == [0, columns(form) // 2 - 1, columns(form) - 1, 0]
    assert result["correct"].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_softmax_and_log_softmax_are_the_same_parts(form, log, dtype):
    kind, card = DTYPES[dtype], FORMS[form][0]
    memory = Guarded(9)
    z = memory.normal((3, columns(form)), kind, shift=1, scale=3)
    exact = wide(z) - wide(z).max(1, keepdims=True)
    exact = exact - np.log(np.exp(exact).sum(1, keepdims=True))
    out = memory.empty(z.shape, kind, shift=1)
    Operations(device=card).softmax_cross_entropy(
        z, None, {"delta": out}, log=log, cluster=FORMS[form][1]
    )
    memory.check()
    assert ulps(out, exact if log else np.exp(exact), kind) <= UNITS[dtype]


@pytest.mark.parametrize("form", FORMS)
def test_loss_only_gives_the_same_loss_and_writes_nothing_else(form):
    card, cluster, classes, _ = FORMS[form]
    z = np.random.default_rng(2).standard_normal((3, classes)).astype(np.float32)
    y = np.array([0, 1, classes - 1])
    alone, before = {"row_loss": np.empty(3, np.float32)}, z.copy()
    Operations(device=card).softmax_cross_entropy(z, y, alone, cluster=cluster)
    assert np.array_equal(alone["row_loss"], run(form, z, y)["row_loss"])
    assert np.array_equal(z, before)


@pytest.mark.parametrize(
    "classes", [1, 2, 3, 7, 8, 9, 10, 16, 24, 31, 32, 33, 48, 63, 64, 65, 100, 255, 256, 257]
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_of_every_length_without_gaps_in_place_and_of_any_number(classes, dtype):
    """Tiles that end inside a row, and pointers of logits and delta that differ by an element."""
    kind = DTYPES[dtype]
    rows = 2 * 8192 // kind.itemsize // classes // 8 + 3
    for shift, delta_shift in ((0, 0), (1, 3), (3, None)):
        memory = Guarded(classes)
        z = memory.normal((rows, classes), kind, shift=shift, scale=3)
        y = memory.rng.integers(0, classes, rows)
        _, wanted = references.cross_entropy(wide(z), y, reduction="sum")
        delta = z if delta_shift is None else memory.empty(z.shape, kind, shift=delta_shift)
        result = {"row_loss": np.empty(rows, compute_dtype(kind)), "delta": delta}
        Operations().softmax_cross_entropy(z, y, result)
        memory.check()
        assert ulps(delta, wanted, kind) <= UNITS[dtype]


@pytest.mark.parametrize("classes", [*range(1500, 1516), 50_257, 128_256])
def test_long_rows_of_every_length_modulo_16_at_any_distance(classes):
    """With the planner's own choice on a card with clusters; every row is aligned differently."""
    kind, card = DTYPES["bf16"], DeviceProperties(1, 232_448, (9, 0))
    memory, rows = Guarded(classes), 2 if classes > 2000 else 9
    z = memory.normal((rows, classes), kind, shift=classes % 5, gap=classes % 3, scale=3)
    y = memory.rng.integers(0, classes, rows)
    loss, wanted = references.cross_entropy(wide(z), y, reduction="none")
    result = {"row_loss": np.empty(rows, np.float32), "delta": z}
    (launch,) = Operations(device=card).softmax_cross_entropy(z, y, result)
    assert ("cluster4" in launch.entry) == (classes == 128_256)
    memory.check()
    assert ulps(result["row_loss"], loss, np.float32) <= 4
    assert ulps(z, wanted, kind) <= 0.51


@pytest.mark.parametrize("form", FORMS)
def test_values_do_not_depend_on_the_number_of_blocks_and_repeat_bit_for_bit(form):
    card, cluster, classes, _ = FORMS[form]
    z = np.random.default_rng(4).standard_normal((5, classes)).astype(np.float32)
    y, seen = np.arange(5), []
    for multiprocessors in (card.multiprocessors, card.multiprocessors, card.multiprocessors + 40):
        other = DeviceProperties(multiprocessors, card.shared_bytes, card.capability)
        result = {"row_loss": np.empty(5, np.float32), "delta": np.empty_like(z)}
        Operations(device=other).softmax_cross_entropy(z, y, result, cluster=cluster)
        seen.append(result)
    assert np.array_equal(seen[0]["delta"], seen[1]["delta"])
    assert np.array_equal(seen[0]["row_loss"], seen[1]["row_loss"])
    if form != "parts":
        assert np.array_equal(seen[0]["delta"], seen[2]["delta"])
    assert ulps(seen[2]["delta"], wide(seen[0]["delta"]), np.float32) <= 4


@pytest.mark.parametrize("target", ["labels", "probabilities"])
@pytest.mark.parametrize("classes", [10, 33, 1000])
def test_the_numpy_path_means_the_same_with_cap_prediction_and_lse(classes, target):
    rng = np.random.default_rng(classes)
    z = (rng.standard_normal((40, classes)) * 9).astype(np.float32)
    z[3, 2] = np.nan
    y = rng.integers(0, classes, 40) if target == "labels" else rng.random(z.shape, np.float32)
    options = {"soft_cap": 7.0, "label_smoothing": 0.1, "z_loss": 0.01}
    names = {"row_loss": np.float32, "scale": np.float32, "lse": np.float32, "predicted": np.int64}
    theirs = {name: np.empty(40, kind) for name, kind in names.items()}
    theirs |= {"loss": np.zeros((), np.float32), "delta": np.empty_like(z)}
    if target == "labels":
        theirs["correct"] = np.empty(40, bool)
    NumpyBackend().softmax_cross_entropy(z, y, LossOptions(**options, reduction="sum"), theirs)
    ours = {name: np.empty_like(array) for name, array in theirs.items()}
    Operations().softmax_cross_entropy(z, y, ours, **options)
    for name in ("row_loss", "delta", "lse"):  # of the whole: where tanh is nearly 1, 1 - tanh^2
        assert ulps(ours[name], wide(theirs[name]), np.float32) <= 8, name  # has few digits
    assert np.array_equal(ours["predicted"], theirs["predicted"])
    assert theirs["predicted"][3] == -1
    assert np.array_equal(ours.get("correct"), theirs.get("correct"))
