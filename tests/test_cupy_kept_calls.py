"""Launches of an unplanned loss that are kept for the next call of the same form: the same numbers, on
other arrays, on any stream, in several threads; and what is never kept."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpubackprop import ops
from gpubackprop.backends import devices
from gpubackprop.backends.cupy import CupyBackend, kept_calls
from gpubackprop.backends.cupy.kept_calls import NEVER, ONCE, KeptCall
from gpubackprop.backends.loss import LossOptions
from tests import emulator
from tests.emulator import cupy_stub
from tests.emulator.cupy_stub import STATE

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
ROWS, CLASSES = 6, 4
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ignored rows": {"ignore_index": 1},
    "an upstream number": {"upstream": 0.5, "reduction": "sum"},
    "nothing in the mean": {"ignore_index": 1, "empty": "zero"},
    "weights of rows": {"sample_weight": np.linspace(0.5, 2, ROWS)},
    "weights of 32 bits for logits of 64": {"sample_weight": np.ones(ROWS, np.float32)},
    "probabilities": {"targets": np.full((ROWS, CLASSES), 0.25), "label_smoothing": 0.1},
}


@pytest.fixture(autouse=True, params=range(3))
def counts(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[cupy_stub.Counts]:
    monkeypatch.setattr(devices, "choose", lambda device: ("cuda:0", "emulated"))
    with cupy_stub.installed(request.param) as counted:
        yield counted


@pytest.fixture
def cuda() -> CupyBackend:
    return CupyBackend(0)


class Call:
    """A loss on arrays of its own, by `backend`, and by NumPy."""

    def __init__(self, backend: CupyBackend, seed: int, options: dict[str, Any]) -> None:
        rng, options = np.random.default_rng(seed), dict(options)
        self.z = rng.normal(size=(ROWS, CLASSES))
        self.y = options.pop("targets", rng.integers(0, CLASSES, ROWS))
        self.weight, self.upstream = (
            options.pop("sample_weight", None),
            options.pop("upstream", 1.0),
        )
        self.options, self.backend = LossOptions(**options), backend
        self.there = [
            None if a is None else backend.asarray(a) for a in (self.z, self.y, self.weight)
        ]
        shapes = {"loss": (), "row_loss": ROWS, "scale": ROWS, "delta": (ROWS, CLASSES)}
        self.result = {name: backend.zeros(shape, float) for name, shape in shapes.items()}

    def __call__(self) -> None:
        z, y, weight = self.there
        self.backend.softmax_cross_entropy(z, y, self.options, self.result, weight, self.upstream)

    def check(self) -> None:
        named = {name: getattr(self.options, name) for name in kept_calls._OPTIONS}
        del named["empty"]
        weight = None if self.weight is None else self.weight.astype(float)
        loss, delta = ops.softmax_cross_entropy(
            self.z, self.y, sample_weight=weight, upstream=self.upstream, **named
        )
        np.testing.assert_allclose(self.backend.to_host(self.result["loss"]), loss, rtol=1e-13)
        np.testing.assert_allclose(
            self.backend.to_host(self.result["delta"]), delta, rtol=1e-12, atol=1e-15
        )


def forms(backend: CupyBackend) -> list[Any]:
    return list(backend._kept._forms.values())


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_later_calls_of_a_form_reuse_its_launches_on_their_own_arrays(cuda, counts, options):
    calls = [Call(cuda, seed, options) for seed in range(4)]
    seen = []
    for call in calls:
        counts.clear()
        call()
        seen.append((list(counts.kernels), counts.allocations))
    kernels = [[name for name in names if name != "fill"] for names, _ in seen]
    assert kernels[0] == kernels[1] == kernels[2] == kernels[3]
    assert [allocations for _, allocations in seen[2:]] == [0, 0]
    for call in calls:
        call.check()
    (kept,) = forms(cuda)
    assert isinstance(kept, KeptCall)


def test_pointwise_losses_are_kept_too(cuda, counts):
    results = []
    for seed in range(3):
        a, t = np.random.default_rng(seed).normal(size=(2, ROWS, 3))
        device = ops.pointwise_loss("squared_error", cuda.asarray(a), cuda.asarray(t))
        results.append((device, ops.pointwise_loss("squared_error", a, t)))
    for (loss, delta), (wanted, wanted_delta) in results:
        assert float(loss.get()) == pytest.approx(float(wanted), rel=1e-14)
        np.testing.assert_allclose(delta.get(), wanted_delta, rtol=1e-13)


def test_kept_launches_hold_none_of_the_callers_arrays(cuda):
    for seed in range(3):
        Call(cuda, seed, {})()
    (kept,) = forms(cuda)
    roles = {which for _, _, which in kept.patches}
    assert roles == {"logits", "targets", "delta", "row_loss", "loss"}
    assert not any(name in record.arrays for record, name, _ in kept.patches)


@pytest.mark.parametrize(
    "change",
    [
        {"z_loss": 0.1}, {"reduction": "sum"}, {"upstream": -0.0}, {"ignore_index": 2},
        {"label_smoothing": 0.1}, {"soft_cap": 3.0},
    ],
)  # fmt: skip
def test_another_option_is_another_form(cuda, change):
    base = {"upstream": 0.0}
    for seed in range(3):
        Call(cuda, seed, base)()
    call = Call(cuda, 7, base | change)
    call()
    call.check()
    assert forms(cuda)[1:] == [ONCE]
    sign = np.signbit(cuda.to_host(call.result["delta"]))
    assert "upstream" not in change or not np.array_equal(sign, np.signbit(-call.z))


def test_another_alignment_and_another_aliasing_are_other_forms(cuda):
    calls = [Call(cuda, seed, {}) for seed in range(5)]
    for call in calls[:3]:
        call()
    shifted = cuda.zeros(ROWS * CLASSES + 1, float)[1:].reshape(ROWS, CLASSES)
    cuda.from_host(calls[3].z, shifted)
    calls[3].there[0] = shifted
    calls[4].result["delta"] = calls[4].there[0]
    for call in calls[3:]:
        call()
    for call in calls:
        call.check()
    assert len(forms(cuda)) == 3


def test_calls_on_two_streams_share_no_working_memory_at_once(cuda):
    """Its divisor is in working memory: that of one stream's call must not be the other's."""
    options = {"ignore_index": 1}
    calls = [Call(cuda, seed, options) for seed in range(8)]
    calls[0](), calls[1]()
    streams = [cupy_stub.Stream(non_blocking=True) for _ in range(2)]
    for stream in streams:
        stream.wait_event(STATE.stream.record())
    for number, call in enumerate(calls[2:]):
        with streams[number % 2]:
            call()
    for stream in streams:
        stream.synchronize()
    for call in calls:
        call.check()


def test_a_call_while_another_thread_uses_the_kept_launches_makes_its_own(cuda):
    calls = [Call(cuda, seed, {}) for seed in range(4)]
    for call in calls[:3]:
        call()
    (kept,) = forms(cuda)
    kept.replay = lambda: pytest.fail("the kept launches were used by two")
    with kept.lock:
        calls[3]()
    for call in calls:
        call.check()


def test_threads_that_call_at_once_get_their_own_numbers(cuda):
    calls = [
        [Call(cuda, 10 * thread + n, {"ignore_index": 1}) for n in range(6)] for thread in range(2)
    ]
    begin, errors = threading.Barrier(2, timeout=20), []

    def work(mine: list[Call]) -> None:
        try:
            begin.wait()
            for call in mine:
                call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for call in (*calls[0], *calls[1]):
        call.check()


def test_nothing_is_kept_of_a_capture_of_class_weights_of_the_host_and_of_much_memory(
    cuda, monkeypatch
):
    calls = [Call(cuda, seed, {}) for seed in range(3)]
    monkeypatch.setattr(CupyBackend, "_is_capturing", lambda self: True)
    for call in calls:
        call()
    assert forms(cuda) == []
    monkeypatch.undo()
    monkeypatch.setattr(devices, "choose", lambda device: ("cuda:0", "emulated"))
    for seed in range(2):
        Call(cuda, seed, {"class_weight": np.ones(CLASSES)})()
    assert forms(cuda) == []
    monkeypatch.setattr(kept_calls, "MOST_BYTES", 0)
    monkeypatch.setattr("gpubackprop.backends.cupy.MOST_BYTES", 0)
    for call in calls:
        call()
    assert forms(cuda) == [NEVER]
    for call in calls:
        call.check()


def test_the_forms_kept_are_bounded(cuda, monkeypatch):
    monkeypatch.setattr(kept_calls, "MOST_CALLS", 3)
    for rows in range(1, 7):
        ops.softmax_cross_entropy(cuda.zeros((rows, 2), float), cuda.zeros(rows, np.int64))
        assert len(cuda._kept) <= 3


def test_a_label_out_of_range_is_reported_by_kept_launches(cuda):
    calls = [Call(cuda, seed, {}) for seed in range(4)]
    cuda.from_host(np.array([0, 1, 9, 3, 0, 0]), calls[3].there[1])
    for call in calls:
        call()
    with pytest.raises(Exception, match=r"targets\[2\] of a batch was 9"):
        cuda.to_host(calls[3].result["loss"])
