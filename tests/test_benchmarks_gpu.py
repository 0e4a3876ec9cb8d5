"""The benchmarks' GPU half, on the stand-in for CuPy and on faked events of PyTorch.

Every line that runs on a card runs here first, down to graph replay; times mean nothing.
"""

from __future__ import annotations

import re
import types
from contextlib import nullcontext
from dataclasses import asdict

import pytest

from gpubackprop.backends import devices
from gpubackprop.bench import (
    harness,
    limits,
    notes,
    operations,
    problems,
    run,
    tables,
    timers,
    torch_common,
    torch_peer,
    worker,
)
from gpubackprop.bench import record as records
from gpubackprop.bench.cases import cases
from gpubackprop.bench.shapes import Case
from tests import emulator
from tests.benchmark_records import InProcess
from tests.emulator import cupy_arrays, cupy_stub

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(
        bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
    ),
]


@pytest.fixture
def card(monkeypatch):
    monkeypatch.setattr(devices, "choose", lambda device: (
        ("cpu", "") if device == "cpu" else ("cuda:0", "emulated")))  # fmt: skip
    for name in ("COPY_BYTES", "SQUARE"):
        monkeypatch.setattr(limits, name, {"cpu": 1 << 10, "cuda": 1 << 10})
    monkeypatch.setitem(limits.SQUARE, "cuda", 16)
    for name, value in (("warm_seconds", 0.0), ("busy_bytes", 1 << 10), ("sweep_bytes", 1 << 12)):
        monkeypatch.setattr(timers.BESIDE, name, value)
    monkeypatch.setattr(worker, "SETS_OF_L2", 0)
    with cupy_arrays.installed() as cupy:
        yield cupy


def answers(provider: str, case: Case) -> tuple[dict, dict, dict | None]:
    """Of prepare, of a round of plain calls, and of one of replays where there is a graph."""
    session = worker.Session(provider, "cuda:0")
    prepared = session.do({"do": "prepare", "case": asdict(case)})
    if "missing" in prepared or "wrong" in prepared:
        return prepared, {}, None
    plain = session.do({"do": "round", "repeats": 2})
    replay = (
        session.do({"do": "round", "repeats": 2, "replay": True}) if prepared["replay"] else None
    )
    session.do({"do": "drop"})
    return prepared, plain, replay


CASES = [case for case in cases("smoke", "cuda") if case.op != "cold_start"]


@pytest.mark.slow
@pytest.mark.parametrize("op", sorted({case.op for case in CASES}))
def test_raw_kernels_are_right_and_are_timed_by_events_and_by_replay(card, op):
    for case in (case for case in CASES if case.op == op):
        prepared, plain, replay = answers("cupy_raw", case)
        assert prepared.get("error", 1) < 0.01, (case.name, prepared)
        assert plain["seconds"] > 0
        assert plain["host"] > 0
        if op not in ("training_step", "affine_layer", "transfer"):
            assert replay["seconds"] > 0, case.name


def test_array_expressions_are_right_or_say_why_not(card):
    done = 0
    for case in (case for case in CASES if case.op != "transfer"):
        prepared, plain, _ = answers("cupy_arrays", case)
        if "missing" in prepared:
            assert any(part in prepared["missing"] for part in
                       ("bfloat16", "written for", "cupyx.scipy.special"))  # fmt: skip
            continue
        assert prepared["error"] < 1e-5, case.name
        assert plain["seconds"] > 0
        done += 1
    assert done > 25


@pytest.mark.parametrize(
    "op", ["softmax_cross_entropy", "column_sum", "training_step", "affine_layer"]
)
def test_the_limits_of_a_card_are_measured_beside_a_case(card, op):
    case = next(case for case in CASES if case.op == op and case.dtype == "float32")
    prepared, plain, _ = answers("limit", case)
    assert "missing" not in prepared
    assert plain["seconds"] > 0


def test_the_machine_has_three_rates(card):
    found = worker.Session("limit", "cuda:0").do({"do": "machine"})
    assert set(found) == {"copy", "read", "product"}
    assert min(found.values()) > 0


def test_inputs_rotate_over_sets_beyond_the_cache(card, monkeypatch):
    monkeypatch.setattr(worker, "SETS_OF_L2", 3)
    monkeypatch.setattr(worker, "MOST_SETS", 3)
    session = worker.Session("cupy_raw", "cuda:0")
    case = Case("activation_forward", (9, 40), variant="relu")
    assert "error" in session.do({"do": "prepare", "case": asdict(case)})
    made = []
    works = [timers.Work(lambda i=i: made.append(i), dict, replay=lambda i=i: made.append(-i))
             for i in range(3)]  # fmt: skip
    work = timers.rotated(works)
    for _ in range(4):
        work.run()
    work.replay()
    assert made == [1, 2, 0, 1, -1]


def test_a_card_whose_cublaslt_is_at_hand_takes_the_faster_product(card, monkeypatch):
    class Matmul:
        def __init__(self, x, y):
            self.x, self.y = x, y

        def plan(self):
            pass

        def autotune(self, iterations):
            assert iterations > 0

        def execute(self):
            return self.x @ self.y

    module = types.SimpleNamespace(Matmul=Matmul)
    real = limits.importlib.import_module
    monkeypatch.setattr(limits.importlib, "import_module", lambda name: (
        module if name == "nvmath.linalg.advanced" else real(name)))  # fmt: skip
    where = timers.CupyTimer("cuda:0")
    chosen = []
    monkeypatch.setattr(limits, "_quick_time", lambda where, run: chosen.append(run) or len(chosen))
    run = limits.product_run(where, "float32", [(3, 4, 5)])
    assert len(chosen) == 2
    run()


def test_the_products_of_a_cards_limit_are_queued_before_it_is_free_to_do_them(card, monkeypatch):
    """A small product is done sooner than the host has launched it."""
    log = []

    class Event(cupy_stub.Event):
        def record(self, stream=None):
            super().record(stream)
            log.append("event")

        @property
        def done(self):
            return log.count("busy") < 7  # the card was waiting for the host

    monkeypatch.setattr(card.cuda, "Event", Event)
    where = timers.CupyTimer("cuda:0")
    monkeypatch.setattr(where, "copier", lambda size: lambda: log.append("busy"))
    call = lambda: log.append("call")  # noqa: E731
    assert where.queued_time(call, 2, 100)[0] > 0
    assert log == [
        *["busy"], *["event", "call", "call", "event"],
        *["busy"] * 2, *["event", "call", "call", "event"],
        *["busy"] * 4, *["event", "call", "call", "event"],
    ]  # fmt: skip
    log.clear()
    Event.done = False
    where.queued_time(call, 1000, 100)  # two of 100 launches fit into the queue
    assert log.count("call") == 2 * timers.MOST_QUEUES
    work = limits.setup(next(case for case in CASES if case.op == "affine_layer"), where, "limit")
    assert work.launches == 3


def test_a_run_measures_both_devices_and_shows_the_speed_up(card, monkeypatch):
    monkeypatch.setattr(harness, "Process", InProcess)
    monkeypatch.setitem(run.ROUNDS, "smoke", (2, 1e-6))
    settings = run.Settings("smoke", "cuda:0", "emulated", "/tanh/f32", threads=(1,))
    record = run.measure(settings)
    assert set(record["limits"]) == {"cpu", "cuda:0"}
    rows = records.rows_of(record)
    ours = next(row for row in rows if row.provider == "cupy_raw" and "backward" in row.op)
    assert ours.graph
    assert ours.plain
    assert ours.host
    assert ours.share
    assert {row.provider for row in rows if row.device == "cuda:0"} == {
        "cupy_raw", "cupy_arrays", "limit"
    }  # fmt: skip
    arrays = next(row for row in rows if row.provider == "cupy_arrays")
    assert arrays.ratio
    head, *lines = tables.lines(rows)
    assert "speed-up" in head
    shown = r"affine_layer/tanh/f32/5x7x6 +[\d.]+ [um]s +[\d.]+ [um]s +[\d.e-]+ +[\d.]+ products"
    assert any(re.match(shown, line) for line in lines), lines
    assert records.card(record) == "unknown-card"
    assert "unknown card" in notes.summary(record)


class FakeEvent:
    def __init__(self, enable_timing=False):
        assert enable_timing, "elapsed_time would raise"

    def record(self):
        pass

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 6.0  # milliseconds


class FakeStream:
    def wait_stream(self, other):
        assert isinstance(other, FakeStream)


@pytest.fixture
def torch_card(monkeypatch):
    """PyTorch's CUDA as far as the clock uses it; tensors stay on the CPU."""
    torch = pytest.importorskip("torch", reason="the peer is PyTorch")
    captured = []
    graph = types.SimpleNamespace(replay=lambda: captured.append("replayed"))
    fakes = {
        "is_available": lambda: True, "set_device": lambda number: None, "Event": FakeEvent,
        "synchronize": lambda: None,
        "empty_cache": lambda: None, "Stream": FakeStream, "current_stream": FakeStream,
        "stream": lambda stream: nullcontext(), "CUDAGraph": lambda: graph,
        "graph": lambda graph: nullcontext(),
        "get_device_properties": lambda device: types.SimpleNamespace(L2_cache_size=50 << 20),
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    where = torch_peer.timer("cuda:0", "torch eager")
    where.device = "cpu"  # where its tensors are made
    where.captured = captured
    return where


def test_pytorch_is_timed_by_its_events_and_its_graph(torch_card):
    seconds, issued = torch_card.time(lambda: None, 3)
    assert seconds == pytest.approx(2e-3)
    assert issued > 0
    assert torch_card.l2_bytes() == 50 << 20
    ran = []
    replay, why = torch_card.capture(lambda: ran.append(1))
    replay()
    assert (len(ran), why, torch_card.captured) == (4, "", ["replayed"])
    replay, why = torch_card.capture(lambda: 1 / 0)
    assert (replay, why) == (None, "ZeroDivisionError: division by zero")
    torch_card.release()


def test_bfloat16_goes_to_pytorch_and_back_bit_for_bit(torch_card):
    np = pytest.importorskip("numpy")
    bfloat16 = pytest.importorskip("ml_dtypes", reason="bfloat16 of NumPy").bfloat16
    array = np.array([[1.0, -2.5], [3e38, 1e-30]], bfloat16)
    peer = torch_common.Torch(torch_card.torch, torch_card, "torch eager")
    found = torch_card.host(peer.tensor(array))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found.view(np.int16), array.view(np.int16))


@pytest.mark.parametrize("op", sorted({case.op for case in CASES if case.dtype == "bfloat16"}))
def test_pytorchs_bfloat16_results_are_held_to_bfloat16s_tolerance(torch_card, op):
    pytest.importorskip("ml_dtypes", reason="bfloat16 of NumPy")
    for case in (case for case in CASES if (case.op, case.dtype) == (op, "bfloat16")):
        work = torch_peer.setup(case, torch_card, "torch eager")
        found = work.outputs()
        ratio, _ = operations.get(op).check(case, found)
        assert ratio <= 1, case.name
        (name, *_) = (one for one, array in found.items() if array.ndim == 2)
        found[name] = found[name].copy()
        found[name][0, 0] += 1
        assert operations.get(op).check(case, found)[0] > 1


UPDATES = [Case("update", (600,), variant="adam"), Case("update_many", (2 * 4096,), variant="adam"),
           Case("training_step", (4, 6, 5, 3), variant="adam")]  # fmt: skip


def prepared(provider, case, where):
    session = worker.Session(provider, "cuda:0")
    session._timer = where
    return session, session.do({"do": "prepare", "case": asdict(case)})


@pytest.mark.parametrize("case", UPDATES, ids=lambda case: case.op)
@pytest.mark.parametrize("provider", ["torch eager", "torch fused"])
def test_pytorchs_updates_are_captured_after_they_were_compared(
    torch_card, monkeypatch, provider, case
):
    events, real = [], operations.get(case.op).check
    monkeypatch.setattr(type(operations.get(case.op)), "check", lambda self, *args: (
        events.append("checked"), real(*args))[1])  # fmt: skip
    capture = torch_card.capture
    monkeypatch.setattr(
        torch_card, "capture", lambda run: (events.append("captured"), capture(run))[1]
    )
    monkeypatch.setattr(worker, "MOST_SETS", 2)
    session, answer = prepared(provider, case, torch_card)
    assert answer["replay"], answer
    sets = 1 if case.op == "training_step" else 2
    assert events == ["checked", *["captured"] * sets]
    assert "seconds" in session.do({"do": "round", "repeats": 1, "replay": True})
    assert torch_card.captured == ["replayed"]


@pytest.mark.parametrize("case", UPDATES, ids=lambda case: case.op)
def test_compiled_pytorch_has_its_optimizer_compiled_or_says_that_it_is_not(
    torch_card, monkeypatch, case
):
    compiled, ran = [], []

    def compile(function, **options):
        compiled.append(function.__name__)

        def call(*args):
            ran.append(function.__name__)
            return function(*args)

        return call

    monkeypatch.setattr(torch_card.torch, "compile", compile)
    _, answer = prepared("torch.compile", case, torch_card)
    assert answer["error"] < 1e-5
    assert (answer["replay"], answer["remark"]) == (False, "")
    assert ran.count("step") >= 2

    def fails(function, **options):
        def call(*args):
            raise RuntimeError("no compiler")

        return call if function.__name__ == "step" else function

    monkeypatch.setattr(torch_card.torch, "compile", fails)
    _, answer = prepared("torch.compile", case, torch_card)
    assert answer["error"] < 1e-5
    assert answer["remark"] == "optimizer eager: RuntimeError"


def test_liger_is_called_with_the_same_options_or_left_out(torch_card, monkeypatch):
    torch, given = torch_card.torch, {}

    class LigerCrossEntropyLoss:
        def __init__(self, **options):
            given.update(options)

        def __call__(self, z, labels):
            return torch.nn.functional.cross_entropy(
                z, labels, ignore_index=given["ignore_index"],
                label_smoothing=given["label_smoothing"],
            )  # fmt: skip

    monkeypatch.setitem(
        worker.sys.modules, "liger_kernel.transformers",
        types.SimpleNamespace(LigerCrossEntropyLoss=LigerCrossEntropyLoss),
    )  # fmt: skip
    case = Case("softmax_cross_entropy", (9, 40), variant="label_smoothing")
    work = torch_peer.setup(case, torch_card, "Liger")
    assert operations.get(case.op).check(case, work.outputs())[0] <= 1
    assert given == {"ignore_index": -100, "lse_square_scale": 0.0, "label_smoothing": 0.2}
    assert work.replay is None
    with pytest.raises(problems.Unsupported, match="class weights"):
        torch_peer.setup(Case("softmax_cross_entropy", (9, 40), variant="all"), torch_card, "Liger")
