"""Buckets of the gradient beside the backward pass: two ranks through the stand-in for NCCL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpubackprop import MLP, Trainer, passes
from gpubackprop.backends import devices
from gpubackprop.backends.cupy import CupyBackend, epilogues, product_choice
from gpubackprop.backends.cupy.second_stream import SecondStream
from gpubackprop.distributed import Communicator, in_threads, nccl, on_device
from gpubackprop.distributed.buckets import buckets_of, least_bytes
from gpubackprop.layout import ParameterLayout
from gpubackprop.sklearn import MLPClassifier, team
from tests import emulator
from tests.emulator import cublaslt, cupy_stub
from tests.emulator.cupy_queue import STATE, Mark, _Wait
from tests.emulator.cupy_stub import CUDARuntimeError
from tests.ranks_programs import figures, some_rows, trained
from tests.test_distributed import assert_close

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)


@pytest.fixture(autouse=True)
def _a_gpu_for_each_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    choose = devices.choose

    def emulated(name: str) -> tuple[str, str]:
        return (name, "emulated") if name.startswith("cuda:") else choose(name)

    monkeypatch.setattr(devices, "choose", emulated)
    # Products that are chosen by time would have other bits from run to run.
    monkeypatch.setattr(product_choice, "PROPOSALS", 1)
    yield
    cublaslt.library().standin_behave(0)


def on_its_gpu(ranks: Communicator) -> str:
    return f"cuda:{ranks.local_rank}"


def in_buckets_of(monkeypatch: pytest.MonkeyPatch, least: int) -> None:
    monkeypatch.setattr(nccl, "least_bytes", lambda: least)


# -- which buckets --------------------------------------------------------------------------------


def test_buckets_are_the_weights_from_the_last_layer_on_and_none_is_too_small() -> None:
    rng = np.random.default_rng(0)
    several = 0
    for _ in range(200):
        widths = rng.integers(1, 60, rng.integers(2, 7)).tolist()
        layout, least = ParameterLayout(widths, np.dtype(np.float32)), int(rng.integers(1, 9000))
        starts = layout.starts[0]
        found = buckets_of(starts, layout.weights_end, 4, least)
        several += bool(found)
        if not found:
            continue
        assert list(found) == sorted(found, reverse=True)
        stop = layout.weights_end
        for layer, part in found.items():
            assert part == slice(starts[layer], stop), "it ends with the layer that completes it"
            assert 4 * (part.stop - part.start) >= least
            stop = part.start
        assert (stop, min(found)) == (0, 0)
        assert len(found) > 1
    assert 50 < several < 180


@pytest.mark.parametrize(
    ("widths", "layers"),
    [
        ((784, 512, 512, 10), []),  # 2.7 MB
        ((1024, 1024, 1024, 10), []),  # 4 MB a layer
        ((2048, 2048, 2048, 2048), [2, 1, 0]),  # 16 MB a layer
        ((784, 4096, 4096, 10), [1, 0]),  # the output layer's 0.2 MB go with the next one's 67
        ((100, 4096, 4096, 4096), [2, 0]),  # the first layer's 1.6 MB go with the second's
    ],
)
def test_small_networks_keep_one_call(widths: tuple[int, ...], layers: list[int]) -> None:
    layout = ParameterLayout(widths, np.dtype(np.float32))
    assert list(buckets_of(layout.starts[0], layout.weights_end, 4, least_bytes())) == layers


def test_what_runs_on_the_host_has_no_buckets() -> None:
    def work(ranks: Communicator) -> Any:
        trainer = Trainer(MLP([4, 8, 3], seed=1, device="cpu:numpy"), distributed=ranks)
        trainer.fit(*some_rows(), epochs=1)
        return trainer.state.step.sum.buckets

    assert in_threads(2, work) == [{}, {}]


# -- what a training with them is -----------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [
        "plain", "dropout", "weighted", "scaled loss", "regression", "batches of 3",
    ],
)  # fmt: skip
def test_buckets_train_to_the_bits_of_one_call_and_to_what_the_host_learns(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, calls = [], []
    for least in (1, 1 << 40):
        in_buckets_of(monkeypatch, least)
        with cupy_stub.installed(seed=3) as counts:
            first, second = in_threads(
                2, lambda ranks: figures(trained(case, ranks, on_its_gpu(ranks), epochs=2))
            )
            calls.append(counts.kernels.count("nccl allReduce"))
        assert first == second, "the ranks differ"
        found.append(first)
    assert found[0] == found[1]
    assert calls[0] - 2 == 4 * (calls[1] - 2), "three layers and the biases"
    assert_close(found[0], figures(trained(case, None, epochs=2)))


def parameters_of(ranks: Communicator, precision: str | None, classes: int) -> list[float]:
    x, labels = some_rows()
    network = MLP(
        [4, 16, 16, classes], "relu", seed=1, device=on_its_gpu(ranks), precision=precision
    )
    scaled = {"loss_scale": "dynamic", "clip_norm": 0.5} if precision else {}
    trainer = Trainer(network, batch_size=52, distributed=ranks, **scaled)
    trainer.fit(x, labels, epochs=2)
    step = trainer.state.step
    assert [batch.replay.uncaptured for batch in step._plans.values()] == ["", ""]
    return network.backend.to_host(network.parameters).tolist()


@pytest.mark.parametrize("precision", [None, "float16"])
@pytest.mark.parametrize("chunked", [False, True], ids=["logits whole", "logits in chunks"])
def test_float16_with_a_scale_and_an_output_layer_in_chunks_have_the_bits_of_one_call(
    precision: str | None, chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "LARGE_LOGITS", 0 if chunked else 1 << 62)
    found = []
    for least in (1, 1 << 40):
        in_buckets_of(monkeypatch, least)
        with cupy_stub.installed(seed=2):
            found.append(in_threads(2, lambda ranks: parameters_of(ranks, precision, 3)))
    assert found[0][0] == found[0][1] == found[1][0]


@pytest.mark.filterwarnings("ignore:.*Maximum iterations")
def test_an_estimator_on_two_gpus_has_the_same_bits_with_buckets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, (x, labels) = [], some_rows()
    for least in (1, 1 << 40):
        in_buckets_of(monkeypatch, least)
        monkeypatch.setattr(team, "IDLE", {})
        with cupy_stub.installed(seed=1) as counts:
            model = MLPClassifier((8, 6), devices=2, device="auto", max_iter=2, random_state=0)
            model.fit(x, labels)
            found.append((model.loss_curve_, [w.tolist() for w in model.coefs_]))
            calls = counts.kernels.count("nccl allReduce")
    assert found[0] == found[1]
    assert calls == 2 * (1 + 2)


def test_calls_that_no_graph_can_hold_train_to_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for products in ("", "cupy"):
        in_buckets_of(monkeypatch, 1 if products else 1 << 40)
        monkeypatch.setenv("GPUBACKPROP_PRODUCTS", "cupy")
        with cupy_stub.installed(seed=4):
            found.append(
                in_threads(
                    2, lambda ranks: figures(trained("plain", ranks, on_its_gpu(ranks), epochs=2))
                )
            )
    assert found[0] == found[1]


def test_products_with_epilogues_learn_the_same_and_buckets_cost_none_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(epilogues.VARIABLE, "always")
    cublaslt.library().standin_behave(cublaslt.KEEPS_NAN)  # so that all of them are right
    found, calls = [], []

    def work(ranks: Communicator) -> Any:
        network = MLP([4, 8, 6, 3], "relu", seed=1, dtype="float64", device=on_its_gpu(ranks))
        trainer = Trainer(network, batch_size=103, distributed=ranks)
        trainer.fit(*some_rows(), epochs=3)
        (batch,) = trainer.state.step._plans.values()
        launches = len([node for _, node in batch.replay._plan._graph.nodes if callable(node)])
        return network.backend.to_host(network.parameters).tolist(), launches

    for least in (1, 1 << 40):
        in_buckets_of(monkeypatch, least)
        with cupy_stub.installed(seed=2):
            (first, nodes), (second, _) = in_threads(2, work)
        assert first == second
        found.append(first)
        calls.append(nodes)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-9, atol=1e-12)
    assert calls[0] - calls[1] == 2 * 3, "three more sums, of two nodes each here"


# -- the graph ------------------------------------------------------------------------------------


def test_a_bucket_is_on_a_second_branch_of_the_graph_while_products_are_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_buckets_of(monkeypatch, 1)

    def work(ranks: Communicator) -> Any:
        network = MLP([4, 8, 6, 3], "tanh", seed=1, device=on_its_gpu(ranks))
        trainer = Trainer(network, batch_size=103, distributed=ranks)
        trainer.fit(*some_rows(), epochs=1)
        (batch,) = trainer.state.step._plans.values()
        return batch.replay._plan._graph, batch.replay.uncaptured

    with cupy_stub.installed():
        (graph, uncaptured), _ = in_threads(2, work)
    assert uncaptured == ""
    assert len(graph.streams()) == 2
    kinds = []
    for stream, node in graph.nodes:
        if stream is graph.origin:
            kinds.append(
                "product" if isinstance(node, cublaslt._Job)
                else "join" if isinstance(node, _Wait)
                else "event" if isinstance(node, Mark) else ""
            )  # fmt: skip
        elif getattr(getattr(node, "func", None), "__name__", "") == "_arrive":
            kinds.append("sum")
    order = [kind for kind in kinds if kind in ("product", "sum", "join")]
    # Three products forward; grad_W and grad_h of layers 2 and 1; the biases; grad_W of layer 0.
    assert order == [
        *["product"] * 4, "sum", "product", "product", "sum", "product", "sum", "product", "sum",
        "join",
    ]  # fmt: skip


# -- the stand-in is strict -----------------------------------------------------------------------


def alone_on_a_gpu(work: Any) -> Any:
    """Return ``work(ranks, backend, buffer)`` of two ranks, each with its device."""

    def with_buffer(ranks: Communicator) -> Any:
        backend = CupyBackend(ranks.rank)
        there = on_device(ranks, backend)
        return work(there, backend, backend.asarray(np.full(64, 1.0 + ranks.rank)))

    with cupy_stub.installed():
        return in_threads(2, with_buffer)


def test_a_sum_beside_is_there_after_the_join() -> None:
    def work(ranks: Communicator, backend: Any, buffer: Any) -> Any:
        ranks.emit_beside(backend, buffer)
        ranks.emit_join(backend)
        return backend.to_host(buffer).tolist()

    assert alone_on_a_gpu(work) == [[3.0] * 64] * 2


@pytest.mark.parametrize("planned", [False, True], ids=["at once", "planned"])
@pytest.mark.parametrize("when", ["behind", "in front of"])
def test_a_call_that_uses_a_bucket_which_no_event_orders_is_found(when: str, planned: bool) -> None:
    def work(ranks: Communicator, backend: Any, buffer: Any) -> Any:
        def emit(to: Any) -> None:
            if when == "in front of":  # on the second stream's back
                second = ranks._second
                second._stream.wait_event = lambda event: None
            to.fill(buffer[8:], 1.0)
            ranks.emit_beside(to, buffer[:16])
            if when == "behind":
                to.fill(buffer[8:], 2.0)
            ranks.emit_join(to)

        if planned:
            plan = backend.plan(emit)
            raise AssertionError(plan.uncaptured)
        emit(backend)

    with pytest.raises(
        AssertionError, match=r"uses memory of .* on another stream|cudaErrorStream"
    ):
        alone_on_a_gpu(work)


def test_a_graph_that_does_not_join_its_second_stream_is_refused() -> None:
    def work(ranks: Communicator, backend: Any, buffer: Any) -> str:
        return str(backend.plan(lambda to: ranks.emit_beside(to, buffer)).uncaptured)

    assert all("StreamCaptureUnjoined" in text for text in alone_on_a_gpu(work))


def test_two_calls_of_a_communicator_on_two_streams_need_an_event_between_them() -> None:
    def work(ranks: Communicator, backend: Any, buffer: Any) -> None:
        other = backend.zeros(3, np.float64)
        ranks.emit_beside(backend, buffer)
        ranks.allreduce(other)

    with pytest.raises(AssertionError, match="two calls of a communicator on two streams"):
        alone_on_a_gpu(work)


def test_a_call_that_one_rank_alone_captures_is_found() -> None:
    def work(ranks: Communicator, backend: Any, buffer: Any) -> None:
        if ranks.rank:
            backend.plan(lambda to: ranks.emit_allreduce(to, buffer))()
        else:
            ranks.allreduce(buffer)
        backend.to_host(buffer)

    with pytest.raises(AssertionError, match="different collectives"):
        alone_on_a_gpu(work)


def test_captures_refuse_streams_and_events_as_cuda_does() -> None:
    with cupy_stub.installed():
        first, second = (cupy_stub.Stream(non_blocking=True) for _ in range(2))
        event = cupy_stub.Event(disable_timing=True)
        first.begin_capture()
        event.record(first)
        with pytest.raises(CUDARuntimeError, match="CapturedEvent"):
            assert event.done
        with pytest.raises(CUDARuntimeError, match="Implicit"):
            STATE.stream.wait_event(event)
        second.wait_event(event)
        assert second.is_capturing()
        with pytest.raises(CUDARuntimeError, match="Unmatched"):
            second.end_capture()
        other = cupy_stub.Stream(non_blocking=True)
        other.begin_capture()
        with pytest.raises(CUDARuntimeError, match="Merge"):
            other.wait_event(event)
        other.end_capture()
        first.end_capture()  # the second stream was given nothing to do
        assert not second.is_capturing()
        with pytest.raises(CUDARuntimeError, match="CapturedEvent"):
            second.wait_event(event)


def test_the_branches_of_a_graph_run_in_any_order_that_its_events_allow() -> None:
    seen = set()
    for seed in range(12):
        with cupy_stub.installed(seed):
            cupy = cupy_stub.module()
            stream, done = cupy.cuda.Stream(non_blocking=True), []
            second = SecondStream(cupy, 0)
            with stream:
                stream.begin_capture()
                STATE.queue(lambda done=done: done.append("a"))
                second.issue(STATE.queue, lambda done=done: done.append("beside"))
                STATE.queue(lambda done=done: done.append("b"))
                second.join()
                STATE.queue(lambda done=done: done.append("c"))
                graph = stream.end_capture()
                graph.launch()
                graph.launch()
                stream.synchronize()
            assert len(done) == 8
            for each in (done[:4], done[4:]):
                assert (each[0], each[3]) == ("a", "c")
                seen.add(tuple(each))
    assert len(seen) == 2
