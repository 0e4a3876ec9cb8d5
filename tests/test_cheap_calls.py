"""A call that runs at once: what it keeps for the next one changes no number and no error."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest

from benchmarks.bench_calls import way_of
from gpubackprop import ops
from gpubackprop.backends import LossOptions
from gpubackprop.backends.native import cross_entropy
from gpubackprop.backends.numpy import eager
from gpubackprop.errors import DtypeError, OptionError, TargetRangeError
from tests import ways
from tests.threads import run_in_threads

RNG = np.random.default_rng(0)
pytestmark = [
    pytest.mark.usefixtures("way"),
    pytest.mark.ways("numpy", "native", reason="calls that the host keeps"),
]


def planned(z: np.ndarray, y: np.ndarray, options: LossOptions, **inputs: Any) -> list[np.ndarray]:
    """[loss, delta, row_loss] of a plan, which keeps nothing from call to call."""
    compute = np.float64 if z.dtype == np.float64 else np.float32
    result = {name: np.empty(len(z), compute) for name in ("row_loss", "scale")}
    result |= {"loss": np.empty((), compute), "delta": np.empty_like(z)}
    ways.CURRENT[-1].backend.plan(
        lambda verbs: verbs.softmax_cross_entropy(z, y, options, result, **inputs)
    )()
    return [result["loss"], result["delta"], result["row_loss"]]


def test_alternating_calls_of_one_shape_give_what_a_plan_gives_bit_for_bit() -> None:
    z = RNG.normal(size=(40, 7)).astype(np.float32)
    y, weights, rows = RNG.integers(0, 7, 40), RNG.random(7), RNG.random(40)
    y_some = np.where(np.arange(40) % 3 == 0, -100, y)
    tau = RNG.random((40, 7))
    calls: list[tuple[np.ndarray, dict[str, Any]]] = [
        (y, {}),
        (y, {"upstream": 0.5}),
        (y, {"upstream": 0.0}),
        (y_some, {"ignore_index": -100}),
        (y, {"class_weight": weights}),
        (y, {"class_weight": weights[::-1]}),
        (y, {"class_weight": weights, "label_smoothing": 0.1}),
        (y, {"label_smoothing": 0.1}),
        (y, {"sample_weight": rows}),
        (y, {"z_loss": 0.01}),
        (tau, {}),
        (tau, {"upstream": -2.0}),
    ]
    order = [*range(len(calls)), *RNG.integers(0, len(calls), 60)]
    for number in order:
        targets, given = calls[number]
        loss, delta = ops.softmax_cross_entropy(z, targets, **given)
        inputs = {k: given[k] for k in ("sample_weight", "upstream") if k in given}
        options = LossOptions(**{k: v for k, v in given.items() if k not in inputs})
        wanted_loss, wanted_delta, _ = planned(z, targets, options, **inputs)
        assert loss.tobytes() == wanted_loss.tobytes(), given
        assert delta.tobytes() == wanted_delta.tobytes(), given


def test_threads_that_call_at_once_each_get_their_own_result() -> None:
    inputs = [RNG.normal(size=(64, 10)).astype(np.float32) for _ in range(4)]
    labels = RNG.integers(0, 10, 64)
    wanted = [planned(z, labels, LossOptions())[1].tobytes() for z in inputs]
    wrong, begin = list[int](), threading.Barrier(4)

    def work(number: int) -> None:
        begin.wait()
        for _ in range(200):
            if ops.softmax_cross_entropy(inputs[number], labels)[1].tobytes() != wanted[number]:
                wrong.append(number)

    run_in_threads(work)
    assert wrong == []


def test_what_is_kept_is_bounded_and_holds_no_array_of_the_caller() -> None:
    held = []
    for rows in range(1, 3 * eager.KEPT):
        z, y, w = np.zeros((rows, 3)), np.zeros(rows, np.int64), np.ones(3)
        loss, delta = ops.softmax_cross_entropy(z, y, class_weight=w, sample_weight=np.ones(rows))
        held += [weakref.ref(array) for array in (z, y, w, delta)]
        del z, y, w, loss, delta
    gc.collect()
    assert [ref for ref in held if ref() is not None] == []
    kept = cross_entropy._KEPT if ways.CURRENT[-1].name == "native" else eager._CROSS_ENTROPIES
    assert 0 < len(kept) <= eager.KEPT


def test_a_call_that_raises_inside_leaves_nothing_behind_for_the_next() -> None:
    z, y = RNG.normal(size=(5, 3)), np.array([0, 1, 2, 0, 1])
    wanted = ops.softmax_cross_entropy(z, y)[1]
    read_only = np.empty_like(z)
    read_only.flags.writeable = False
    result = {"loss": np.empty(()), "delta": read_only}
    with pytest.raises(ValueError, match="read-only"):
        ways.CURRENT[-1].backend.softmax_cross_entropy(z, y, LossOptions(), result)
    assert np.array_equal(ops.softmax_cross_entropy(z, y)[1], wanted)


def test_options_that_were_refused_once_are_refused_again_and_equal_ones_of_other_types() -> None:
    z, y = np.zeros((2, 3)), np.array([0, 1])
    ops.softmax_cross_entropy(z, y, ignore_index=1)
    for _ in range(2):
        with pytest.raises(OptionError, match=r"ignore_index is 1\.0 but must be an integer"):
            ops.softmax_cross_entropy(z, y, ignore_index=1.0)  # type: ignore[arg-type]
        with pytest.raises(OptionError, match=r"label_smoothing is 1\.5"):
            ops.softmax_cross_entropy(z, y, label_smoothing=1.5)
    smoothing = np.array(0.1)  # one object, another value
    first = ops.softmax_cross_entropy(z, y, label_smoothing=smoothing)[1]
    smoothing[...] = 0.4
    second = ops.softmax_cross_entropy(z, y, label_smoothing=smoothing)[1]
    assert np.allclose(first, [[-0.6 / 2, 0.3 / 2, 0.3 / 2], [0.3 / 2, -0.6 / 2, 0.3 / 2]])
    assert np.allclose(second, [[-0.4 / 2, 0.2 / 2, 0.2 / 2], [0.2 / 2, -0.4 / 2, 0.2 / 2]])


@pytest.mark.parametrize("code", ["i1", "i2", "i4", "i8", ">i8", "u1", "u2", "u4", "u8", ">u4"])
def test_a_label_out_of_range_is_named_for_integers_of_every_size_and_order(code: str) -> None:
    z, y = np.zeros((4, 3)), np.array([0, 2, 1, 2], code)
    loss, _ = ops.softmax_cross_entropy(z, y)
    assert np.isclose(loss, np.log(3))
    low, high = y.copy(), y.copy()
    high[3] = 3
    with pytest.raises(TargetRangeError, match=r"targets\[3\] is 3 but labels must be in \[0, 3\)"):
        ops.softmax_cross_entropy(z, high)
    if low.dtype.kind == "i":
        low[1] = -1
        with pytest.raises(TargetRangeError, match=r"targets\[1\] is -1.*1 of 4 rows"):
            ops.softmax_cross_entropy(z, low)
    with pytest.raises(DtypeError, match="class indices are integers"):
        ops.softmax_cross_entropy(z, y.astype(np.float64))


@pytest.mark.parametrize("ignored", [-100, 1])
def test_rows_are_ignored_whether_the_call_before_ignored_any_or_not(ignored: int) -> None:
    z = RNG.normal(size=(6, 3))
    some, none = np.array([0, ignored, 2, 2, ignored, 0]), np.array([0, 2, 2, 2, 0, 0])
    for _ in range(2):
        _, delta = ops.softmax_cross_entropy(z, some, ignore_index=ignored)
        assert np.array_equal(np.flatnonzero(~delta.any(1)), [1, 4])
        p = np.exp(z[0]) / np.exp(z[0]).sum()
        assert np.allclose(delta[0], (p - [1, 0, 0]) / 4)
        _, delta = ops.softmax_cross_entropy(z, none, ignore_index=ignored)
        assert np.allclose(delta[0], (p - [1, 0, 0]) / 6)


def test_float_settings_of_the_caller_are_neither_used_nor_changed() -> None:
    z = np.array([[np.inf, 0.0], [-np.inf, 1e300]])
    with np.errstate(all="raise"):
        for _ in range(2):
            loss, _ = ops.softmax_cross_entropy(z, np.array([0, 1]))
            assert np.isnan(loss)
        assert set(np.geterr().values()) == {"raise"}
        with pytest.raises(FloatingPointError):
            np.divide(1.0, np.zeros(1))


def test_a_loss_enters_at_most_20_functions_up_to_its_formula() -> None:
    z, y = np.zeros((64, 10), np.float32), np.zeros(64, np.int64)
    assert len(way_of(lambda: ops.softmax_cross_entropy(z, y))) <= 20
