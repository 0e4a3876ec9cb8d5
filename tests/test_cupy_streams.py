"""Streams, events, captures and the memory pool: the CUDA backend on the stand-in's machine.

The stand-in runs nothing before somebody waits, then its streams take turns in a random order. Each
test therefore runs with several seeds; the right values are the NumPy backend's.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from gpubackprop import MLP, Trainer, ops
from gpubackprop.backends import devices
from gpubackprop.backends.cupy import CupyBackend, CupyProducts, Products
from gpubackprop.backends.loss import LossOptions
from gpubackprop.cli import info
from gpubackprop.errors import TargetRangeError
from gpubackprop.formulas import ACTIVATIONS, POINTWISE_LOSSES
from tests import emulator
from tests.emulator import cupy_stub
from tests.emulator.cupy_queue import Mark
from tests.emulator.cupy_stub import STATE, CUDARuntimeError

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
RNG = np.random.default_rng(0)
LOGITS, LABELS = RNG.normal(size=(6, 4)), np.array([0, 1, 2, 3, 1, 0])
SEEDS = range(8)
REPORT = devices.probe()  # of this machine, before a stand-in is there


@pytest.fixture(autouse=True, params=SEEDS)
def counts(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[cupy_stub.Counts]:
    monkeypatch.setattr(devices, "choose", lambda device: ("cuda:0", "emulated"))
    monkeypatch.setenv("GPUBACKPROP_RESIDENT", "0")  # the launches of steps are tested here
    with cupy_stub.installed(request.param) as counted:
        yield counted


@pytest.fixture
def cuda() -> CupyBackend:
    return CupyBackend(0)


def stream() -> Any:
    return cupy_stub.Stream(non_blocking=True)


def busy(other: Any) -> None:
    """Something for a stream to do first, so that what follows is late."""
    for _ in range(3):
        STATE.append(other, lambda: None)


# -- order between streams ------------------------------------------------------------------------


def test_a_mean_on_one_stream_does_not_read_a_divisor_that_another_has_not_filled(cuda):
    """A divisor of 6 and the flag for bad labels are made on `first` and shared with `second`."""
    first, second = stream(), stream()
    z = [cuda.asarray(LOGITS) for _ in range(2)]
    y = [cuda.asarray(LABELS) for _ in range(2)]
    first.wait_event(STATE.stream.record())
    second.wait_event(STATE.stream.record())
    busy(first)
    cuda_ops = partial(ops.softmax_cross_entropy, upstream=0.5)
    results = []
    for mine, logits, labels in zip((first, second), z, y, strict=True):
        with mine:
            results.append(cuda_ops(logits, labels))
    wanted_loss, wanted_delta = cuda_ops(LOGITS, LABELS)
    for mine, (loss, delta) in zip((second, first), reversed(results), strict=True):
        with mine:
            np.testing.assert_allclose(loss.get(), wanted_loss, rtol=1e-14)
            np.testing.assert_allclose(delta.get(), wanted_delta, rtol=1e-13)


def test_numbers_that_the_host_knows_are_in_the_launch_and_no_stream_waits_for_them(cuda, counts):
    """The divisor of a mean and an upstream gradient that is a number: nothing is filled for them."""
    z, y = cuda.asarray(LOGITS), cuda.asarray(LABELS)
    shapes = {"loss": (), "row_loss": 6, "scale": 6, "delta": (6, 4)}
    result = {name: cuda.zeros(shape, float) for name, shape in shapes.items()}
    cuda.softmax_cross_entropy(z, y, LossOptions(), result)  # makes the flag for bad labels
    mine, formula = stream(), POINTWISE_LOSSES["squared_error"]
    mine.wait_event(STATE.stream.record())
    with mine:  # makes the stream's counter
        cuda.softmax_cross_entropy(z, y, LossOptions(), result, upstream=2.0)
    counts.clear()
    before = len(mine.queue)
    with mine:
        cuda.softmax_cross_entropy(z, y, LossOptions(), result, upstream=0.5)
        cuda.pointwise_loss(z, z, formula, LossOptions(), result, upstream=0.25)
    assert counts.kernels == [
        "softmax_cross_entropy_lanes_w16_f64", "pointwise_loss_squared_error_f64",
    ]  # fmt: skip
    assert (counts.uploads, counts.waits) == (0, 0)
    queued = [item for _, item in list(mine.queue)[before:]]
    assert sum(isinstance(item, Mark) for item in queued) <= 1, "that of the flag"


def layer(verbs: Any, x: Any, W: Any, b: Any, h: Any, grad_b: Any) -> None:
    verbs.affine_forward(x, W, b, ACTIVATIONS["relu"], h, h)
    verbs.column_sum(h, grad_b)


def arrays(cuda: CupyBackend) -> list[Any]:
    shapes = ((40, 4), (3, 4), (3,), (40, 3), (3,))
    return [cuda.asarray(RNG.normal(size=shape)) for shape in shapes]


def expected(x: np.ndarray, W: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum(x @ W.T + b, 0).sum(0)


class Capturable(Products):
    obstacle = ""

    def __call__(self, x: Any, y: Any, out: Any) -> None:
        STATE.queue(partial(np.matmul, x._host, y._host, out._host))


@pytest.mark.parametrize("products", [None, Capturable()])
def test_a_plan_made_on_one_stream_and_replayed_on_others_is_right(products):
    cuda = CupyBackend(0, products)
    made, first, second = stream(), stream(), stream()
    with made:
        busy(made)
        given = arrays(cuda)
        step = cuda.plan(lambda verbs: layer(verbs, *given))
    for mine in (first, second, made, first):
        with mine:
            busy(mine)
            step()
    with first:
        x, W, b = (array.get() for array in given[:3])
        wanted = expected(x, W, b)
        np.testing.assert_allclose(given[4].get(), wanted, rtol=1e-12)


def test_working_memory_of_a_dropped_plan_is_not_given_away_while_another_stream_uses_it(cuda):
    made, other = stream(), stream()
    with made:
        given = arrays(cuda)
        step = cuda.plan(lambda verbs: layer(verbs, *given))
    with other:
        step()
    while "column_sum_finish_f64" not in str(getattr(other.queue[0][1], "args", ())):
        STATE.turn()  # up to the kernel that reads working memory
    del step
    with made:
        taken = [cuda.empty(3, np.float64) for _ in range(4)]
        for array in taken:
            cuda.fill(array, 1e6)
    STATE.run(made)
    with other:
        x, W, b, _, grad_b = (array.get() for array in given)
    np.testing.assert_allclose(grad_b, expected(x, W, b), rtol=1e-12)


def test_training_gives_the_same_bits_on_the_default_stream_and_on_another():
    x = RNG.normal(size=(24, 5)).astype(np.float32)
    y = np.arange(24) % 3

    def trained() -> np.ndarray:
        network = MLP([5, 8, 3], seed=1, device="cuda")
        Trainer(network, optimizer="adam", batch_size=10, seed=1).fit(x, y, epochs=2)
        return network.backend.to_host(network.parameters)

    plain = trained()
    with stream():
        np.testing.assert_array_equal(trained(), plain)


# -- labels ---------------------------------------------------------------------------------------


def test_a_bad_label_met_on_a_stream_is_named_by_a_check_on_that_stream(cuda):
    bad = LABELS.copy()
    bad[2] = 9
    with stream():
        ops.softmax_cross_entropy(cuda.asarray(LOGITS), cuda.asarray(bad))
        with pytest.raises(TargetRangeError, match=r"targets\[2\] of a batch was 9"):
            ops.softmax_cross_entropy(cuda.asarray(LOGITS), cuda.asarray(LABELS), check=True)


# -- arrays of 0 dimensions -----------------------------------------------------------------------


@pytest.mark.parametrize("contiguous", [True, False])
def test_an_upstream_of_0_dimensions_scales_every_row_by_itself(cuda, contiguous):
    """Behind it in memory stand 100 and 1000, which are not for the other rows."""
    values = np.array([2.0, 0.0, 100.0, 0.0, 1000.0, 0, 0, 0])
    buffer = cuda.asarray(values)
    upstream = (buffer[:1] if contiguous else buffer[::2][:1]).reshape(())
    z, y = cuda.asarray(LOGITS), cuda.asarray(LABELS)
    _, delta = ops.softmax_cross_entropy(z, y, upstream=upstream, reduction="sum")
    _, wanted = ops.softmax_cross_entropy(LOGITS, LABELS, upstream=2.0, reduction="sum")
    np.testing.assert_allclose(delta.get(), wanted, rtol=1e-13)


# -- captures -------------------------------------------------------------------------------------


class Failing(Capturable):
    """What CUDA refuses while a stream is captured."""

    def __call__(self, x: Any, y: Any, out: Any) -> None:
        if STATE.captured:
            STATE.not_while_capturing("cublasLtMatmulAlgoGetHeuristic")
        super().__call__(x, y, out)


def test_a_capture_that_fails_leaves_a_plan_that_replays_its_calls_and_says_why():
    cuda = CupyBackend(0, Failing())
    given = arrays(cuda)
    step = cuda.plan(lambda verbs: layer(verbs, *given))
    step()
    x, W, b, _, grad_b = (array.get() for array in given)
    np.testing.assert_allclose(grad_b, expected(x, W, b), rtol=1e-12)
    assert "cublasLtMatmulAlgoGetHeuristic while capturing" in step.uncaptured


def test_a_plan_that_is_captured_or_cannot_be_says_so(cuda):
    z = cuda.asarray(LOGITS)
    out = cuda.empty(4, np.float64)
    assert cuda.plan(lambda verbs: verbs.column_sum(z, out)).uncaptured == ""
    given = arrays(cuda)
    assert cuda.plan(lambda verbs: layer(verbs, *given)).uncaptured == ""
    through_cupy = CupyBackend(0, CupyProducts(cuda.cupy))
    assert "CuPy" in through_cupy.plan(lambda verbs: layer(verbs, *given)).uncaptured


# -- the stand-in itself --------------------------------------------------------------------------


def test_nothing_runs_before_somebody_waits_for_it(cuda):
    x = cuda.asarray(np.ones(3))
    STATE.run_all()
    cuda.fill(x, 5.0)
    assert not (x._host == 5).any()
    assert (x.get() == 5).all()


def test_a_block_that_is_free_again_is_poisoned_for_who_still_reads_it(cuda):
    mine, other = stream(), stream()
    with mine:
        x = cuda.asarray(np.ones(64))
    mine.synchronize()
    with other:
        y = cuda.empty(64, np.float64)
        held = STATE.random.choice
        STATE.queue(partial(np.copyto, y._host, x._host))
    del x
    with mine:
        z = cuda.empty(64, np.float64)  # the very block
    STATE.random.choice = lambda ready: min(ready, key=lambda s: s.number)  # type: ignore[method-assign]
    mine.synchronize()
    STATE.random.choice = held  # type: ignore[method-assign]
    with other:
        assert np.isnan(y.get()).all()
    assert z.size == 64


def test_the_default_stream_waits_for_blocking_streams_and_not_for_others(cuda):
    x = cuda.asarray(np.zeros(1))
    STATE.run_all()
    blocking, free = cupy_stub.Stream(), stream()
    with blocking:
        cuda.fill(x, 1.0)
    assert x.get() == 1
    y = cuda.asarray(np.zeros(1))
    STATE.run_all()
    with free:
        cuda.fill(y, 1.0)
        STATE.append(free, lambda: None)
    STATE.random.choice = lambda ready: min(ready, key=lambda s: s.number)  # type: ignore[method-assign]
    assert y.get() == 0


def test_a_capture_refuses_what_cuda_refuses_and_ends_with_an_error(cuda):
    event = STATE.stream.record()
    mine = stream()
    with pytest.raises(RuntimeError, match="default"):
        STATE.stream.begin_capture()
    for forbidden in (
        lambda: cuda.cupy.empty(3),
        mine.synchronize,
        lambda: mine.wait_event(event),
    ):
        with mine:
            mine.begin_capture()
            with pytest.raises(CUDARuntimeError, match=r"StreamCapture(Unsupported|Isolation)"):
                forbidden()
            with pytest.raises(CUDARuntimeError, match="Invalidated"):
                mine.end_capture()


def test_a_stream_of_another_device_cannot_become_current(cuda):
    mine = stream()
    with (
        cuda.cupy.cuda.Device(1),
        pytest.raises(RuntimeError, match="does not match with the current device"),
        mine,
    ):
        pass


def test_astype_keeps_the_order_in_memory_and_flags_are_cupys():
    x = cupy_stub.ndarray(np.asfortranarray(RNG.normal(size=(3, 4))), 0)
    y = x.astype(np.float32)
    assert y.flags.f_contiguous
    assert not y.flags.c_contiguous
    assert not hasattr(y.flags, "writeable")
    np.testing.assert_array_equal(y.get(), x.get().astype(np.float32))


def test_an_array_of_another_device_is_refused_by_kernels_fills_and_copies(cuda):
    with cuda.cupy.cuda.Device(1):
        x = cuda.cupy.empty((3,), np.float64)
    for forbidden in (
        lambda: x.fill(1.0),
        lambda: x.astype(np.float32),
        lambda: x.copy(),
        lambda: cuda.cupy.exp(x, x),
        lambda: cuda.cupy.sum(x),
    ):
        with pytest.raises(ValueError, match="Peer access is unavailable"):
            forbidden()


def test_info_says_what_is_captured_and_what_is_issued_call_by_call_and_why(monkeypatch):
    assert info.cuda_graphs("cuda:0") == {"an operation": "", "a layer": ""}
    monkeypatch.setenv("GPUBACKPROP_PRODUCTS", "cupy")
    graphs = info.cuda_graphs("cuda:0")
    assert graphs["an operation"] == ""
    assert "matrix products through CuPy" in graphs["a layer"]
    text = "\n".join(info.lines(REPORT, "cuda:0", "emulated", graphs))
    assert "CUDA graphs   an operation: captured" in text
    assert "CUDA graphs   a layer: call by call (a call that cannot be captured: matrix" in text
    assert info.cuda_graphs("cpu") == {}
