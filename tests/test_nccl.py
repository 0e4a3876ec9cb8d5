"""The path of GPUs through NCCL: two ranks in threads, on the stand-in and emulated kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpubackprop import MLP, Trainer
from gpubackprop.backends import devices
from gpubackprop.backends.cupy import CupyBackend
from gpubackprop.distributed import Communicator, in_threads, on_device
from gpubackprop.distributed.nccl import CupyBinding
from gpubackprop.errors import DeviceUnavailable, NonFiniteLossError
from tests import emulator
from tests.emulator import cupy_stub
from tests.ranks_programs import figures, some_rows, trained
from tests.test_distributed import assert_close

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)


@pytest.fixture(autouse=True)
def _a_gpu_for_each_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = devices.choose

    def emulated(name: str) -> tuple[str, str]:
        return (name, "emulated") if name.startswith("cuda:") else choose(name)

    monkeypatch.setattr(devices, "choose", emulated)


def on_its_gpu(ranks: Communicator) -> str:
    return f"cuda:{ranks.local_rank}"


@pytest.mark.parametrize(
    "case",
    ["plain", "dropout", "weighted", "clipped", "batches of 3", "optimizer in parts, clipped"],
)
def test_two_gpus_learn_what_the_host_learns_alone(case: str) -> None:
    with cupy_stub.installed(seed=3):
        first, second = in_threads(
            2, lambda ranks: figures(trained(case, ranks, on_its_gpu(ranks), epochs=2))
        )
    assert first == second, "the ranks differ"
    assert_close(first, figures(trained(case, None, epochs=2)))


def test_the_sum_is_one_call_a_step_inside_its_graph() -> None:
    def work(ranks: Communicator) -> Any:
        network = MLP([4, 8, 3], "tanh", seed=1, device=on_its_gpu(ranks))
        trainer = Trainer(network, batch_size=52, distributed=ranks)
        trainer.fit(*some_rows(), epochs=1)
        step = trainer.state.step
        return [batch.replay.uncaptured for batch in step._plans.values()], step.steps

    with cupy_stub.installed() as counts:
        (plans, steps), _ = in_threads(2, work)
        calls = counts.kernels.count("nccl allReduce")
    assert plans == ["", ""]
    assert calls == 2 * (steps + 1), "a step of each rank, and the call that connects them"


def test_buffers_are_added_and_sent_on_the_device() -> None:
    def work(ranks: Communicator) -> Any:
        backend = CupyBackend(ranks.rank)
        there = on_device(ranks, backend)
        assert there is on_device(ranks, backend)
        total, sent = (backend.asarray(np.full(3, 1.0 + ranks.rank)) for _ in range(2))
        there.allreduce(total)
        there.broadcast(sent, root=1)
        return backend.to_host(total).tolist(), backend.to_host(sent).tolist()

    with cupy_stub.installed():
        assert in_threads(2, work) == [([3.0] * 3, [2.0] * 3)] * 2


def test_nan_on_one_gpu_stops_both_at_the_same_step() -> None:
    x, labels = some_rows()
    x[40, 1] = np.nan

    def work(ranks: Communicator) -> Any:
        network = MLP([4, 8, 3], "tanh", seed=1, device=on_its_gpu(ranks))
        with pytest.raises(NonFiniteLossError) as caught:
            Trainer(network, batch_size=52, shuffle=False, distributed=ranks).fit(x, labels)
        return caught.value.step

    with cupy_stub.installed():
        assert in_threads(2, work) == [0, 0]


def test_two_ranks_on_one_gpu_are_an_error_that_says_what_to_do() -> None:
    def work(ranks: Communicator) -> str:
        with pytest.raises(DeviceUnavailable) as caught:
            on_device(ranks, CupyBackend(0))
        return str(caught.value)

    with cupy_stub.installed():
        assert "give every rank of a machine its own GPU" in in_threads(2, work)[0]


def test_cupy_without_nccl_is_an_error_that_says_what_to_install() -> None:
    class Bare:
        cuda = object()

    with pytest.raises(DeviceUnavailable, match="pip install nvidia-nccl"):
        CupyBinding(Bare)


def test_ranks_that_call_different_collectives_are_found_by_the_stand_in() -> None:
    def work(ranks: Communicator) -> None:
        backend = CupyBackend(ranks.rank)
        there = on_device(ranks, backend)
        buffer = backend.zeros(3 + ranks.rank, np.float32)
        there.allreduce(buffer)
        backend.to_host(buffer)

    with pytest.raises(AssertionError, match="different collectives"), cupy_stub.installed():
        in_threads(2, work)
