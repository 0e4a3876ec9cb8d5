"""Optimizer slots in parts: reduce-scatter, an update of each part, all-gather; on the host, on real
ranks, and through the stand-in for NCCL."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubackprop import MLP, Trainer, backends
from gpubackprop.backends import UpdateRule, devices
from gpubackprop.backends.cupy import CupyBackend, product_choice
from gpubackprop.backends.updater import LossScaling
from gpubackprop.distributed import Alone, Communicator, in_threads, nccl, on_device
from gpubackprop.distributed.threads import Threads
from gpubackprop.formulas import UPDATES
from gpubackprop.optimizers import Adam
from gpubackprop.training.gradient_parts import UNIT, padded, parts_of
from tests import emulator
from tests.emulator import cupy_stub
from tests.ranks_programs import CASES, figures, scattered, some_rows, trained
from tests.test_distributed import assert_close
from tests.test_distributed_mpi import as_torchrun, mpiexec, with_mpi

with_emulator = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
EXACT: dict[str, dict[str, Any]] = {  # no norm is taken, or one whose last bit changes nothing
    "adam": {"l2": 0.01, "dropout": 0.2},
    "scaled loss": {"l2": 0.01, "loss_scale": "dynamic"},
    "norm below the limit": {"l2": 0.01, "clip_norm": 100.0},
    "scaled loss, norm below the limit": {"loss_scale": 8.0, "clip_norm": 100.0},
    "batches of 3": {"batch_size": 3, "weighted": True},
}


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two emulated GPUs; products have the same bits in every run."""
    choose = devices.choose

    def emulated(name: str) -> tuple[str, str]:
        return (name, "emulated") if name.startswith("cuda:") else choose(name)

    monkeypatch.setattr(devices, "choose", emulated)
    monkeypatch.setattr(product_choice, "PROPOSALS", 1)
    return


@pytest.fixture
def others_terms_are_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a rank's part its own terms become NaN; gaps of the layout stay 0."""
    scatter = Threads.reduce_scatter

    def poisoned(ranks: Threads, buffer: np.ndarray, parts: Sequence[slice]) -> None:
        scatter(ranks, buffer, parts)
        own = buffer[parts[ranks.rank]].copy()
        buffer[buffer != 0] = np.nan
        buffer[parts[ranks.rank]] = own

    monkeypatch.setattr(Threads, "reduce_scatter", poisoned)


def trained_as(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]
) -> Any:
    monkeypatch.setitem(CASES, "this", options)
    return work()


# -- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("size", [32, 160, 4096, 4128])
def test_parts_are_the_whole_buffer_aligned_and_of_one_length_once_it_is_padded(
    size: int, ranks: int
) -> None:
    parts, length = parts_of(size, ranks), padded(size, ranks) // ranks
    assert [i for part in parts for i in range(size)[part]] == list(range(size))
    assert all(part.start % UNIT == 0 for part in parts if part.stop > part.start)
    assert size <= padded(size, ranks) < size + UNIT * ranks
    assert [part.stop - part.start for part in parts] == [
        max(0, min(length, size - length * rank)) for rank in range(ranks)
    ]


# -- the communicators ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_threads_scatter_the_sum_in_the_order_of_the_ranks_and_leave_the_rest(size: int) -> None:
    works = in_threads(size, scattered) if size > 1 else [scattered(Alone())]
    for found in works:
        assert all(case["bits as allreduce"] and case["rest as before"] for case in found)


@pytest.mark.slow
@with_mpi
@pytest.mark.parametrize("size", [2, 3, 4])
def test_mpi_scatters_the_sum_repeats_its_bits_and_two_ranks_have_those_of_allreduce(
    tmp_path: Path, size: int
) -> None:
    result = mpiexec(size, "tests.ranks_programs", "scatter", tmp_path / "found.json")
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == size
    for case in (case for rank in found for case in rank):
        assert case["repeats"]
        assert case["rest as before"]
        assert case["largest difference"] <= 4 * size * np.finfo(case["dtype"]).eps
        assert case["bits as allreduce"] or size > 2


@pytest.mark.slow
def test_sockets_scatter_the_sum_in_the_order_of_the_ranks(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    for status, error in as_torchrun(3, "tests.ranks_programs", "scatter", file):
        assert status == 0, error
    for case in (case for rank in json.loads(file.read_text()) for case in rank):
        assert case["bits as allreduce"]
        assert case["rest as before"]


# -- trainings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", EXACT)
@pytest.mark.parametrize("size", [2, 3, 4], ids=["2", "3", "4, one without a part"])
@pytest.mark.usefixtures("others_terms_are_nan")
def test_slots_in_parts_train_to_the_bits_of_whole_slots(
    case: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, found = ["cpu:numpy", "cpu"][size % 2], []
    for sharded in (True, False):
        monkeypatch.setitem(CASES, "this", EXACT[case] | {"shard_optimizer": sharded})
        found.append(in_threads(size, lambda ranks: figures(trained("this", ranks, device))))
    assert all(each == found[1][0] for each in [*found[0], *found[1]])


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.usefixtures("others_terms_are_nan")
def test_networks_of_16_bits_have_the_same_bits_with_slots_in_parts(precision: str) -> None:
    def work(ranks: Communicator, sharded: bool) -> bytes:
        network = MLP([4, 8, 6, 3], "relu", seed=1, precision=precision, device="cpu:numpy")
        trainer = Trainer(
            network, batch_size=32, optimizer=Adam(0.01), loss_scale="dynamic",
            distributed=ranks, shard_optimizer=sharded,
        )  # fmt: skip
        trainer.fit(*some_rows(), epochs=3)
        return network.parameters.tobytes()

    found = [in_threads(3, lambda ranks, s=sharded: work(ranks, s)) for sharded in (True, False)]
    assert len({*found[0], *found[1]}) == 1


def updated(
    ranks: Communicator, backend: Any, gradient: np.ndarray, rule: dict[str, Any]
) -> tuple[list[float], tuple[int, int]]:
    """Return p - gradient of all parts, clipped or skipped as the rule says, and what was counted."""
    there, dtype, size = on_device(ranks, backend), np.dtype(np.float64), len(gradient)
    part = parts_of(size, ranks.size)[ranks.rank]
    parameters, own = backend.zeros(size, dtype), backend.zeros(size, dtype)
    backend.from_host(np.where(np.arange(size) // UNIT == ranks.rank, gradient, np.nan), own)
    norm = backend.zeros(2, dtype)
    formula = UPDATES["gradient_descent"]
    made = UpdateRule(formula, {}, 1.0, penalized=size, part=part, **rule)
    updater = backend.updater(made, parameters, own, ())
    updater.agree_by(norm, lambda to: there.emit_allreduce(to, norm))
    updater.set(1.0, 1)
    backend.plan(updater.emit)()
    parts = ranks.gather(np.array(backend.to_host(parameters))[part].tolist())
    counts = updater.counts() if made.scaling else (1, 0)
    return [-p for each in parts for p in each], counts


def on_two(device: str, work: Callable[[Communicator, Any], Any]) -> list[Any]:
    if device != "cuda":
        return in_threads(2, lambda ranks: work(ranks, backends.get(device)))
    with cupy_stub.installed():
        return in_threads(2, lambda ranks: work(ranks, CupyBackend(ranks.rank)))


WAYS = ["cpu:numpy", "cpu", pytest.param("cuda", marks=with_emulator)]


@pytest.mark.parametrize("device", WAYS)
def test_the_norm_that_clips_is_that_of_all_parts_worked_by_hand(device: str) -> None:
    gradient = np.zeros(2 * UNIT)
    gradient[3], gradient[UNIT + 5] = 3.0, -4.0  # a norm of 5 = that of neither part
    found = on_two(device, lambda r, b: updated(r, b, gradient, {"clip_norm": 1.0}))
    wanted = gradient / (5.0 + 1e-6)
    for values, _ in found:
        np.testing.assert_allclose(values, wanted, rtol=1e-15)


@pytest.mark.parametrize("device", WAYS)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_an_element_that_is_not_finite_in_one_part_skips_the_update_of_all(
    device: str, bad: float, clip_norm: float | None
) -> None:
    gradient = np.ones(2 * UNIT)
    gradient[UNIT + 7] = bad
    rule = {"clip_norm": clip_norm, "scaling": LossScaling(4.0, 0)}
    found = on_two(device, lambda r, b: updated(r, b, gradient, rule))
    assert found == [([-0.0] * 2 * UNIT, (0, 1))] * 2
    gradient[UNIT + 7] = 1.0
    for values, counts in on_two(device, lambda r, b: updated(r, b, gradient, rule)):
        assert counts == (1, 0)
        factor = 0.25 if clip_norm is None else 0.25 / (0.25 * 8.0 + 1e-6)  # the norm is 8 / scale
        np.testing.assert_allclose(values, gradient * factor, rtol=1e-15)


# -- NCCL -----------------------------------------------------------------------------------------


def on_its_gpu(ranks: Communicator) -> str:
    return f"cuda:{ranks.local_rank}"


@with_emulator
@pytest.mark.parametrize("case", EXACT)
@pytest.mark.usefixtures("gpus")
def test_gpus_with_slots_in_parts_have_the_bits_of_whole_slots_with_and_without_buckets(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for sharded, least in ((True, 1), (True, 1 << 40), (False, 1 << 40)):
        monkeypatch.setattr(nccl, "least_bytes", lambda least=least: least)
        monkeypatch.setitem(CASES, "this", EXACT[case] | {"shard_optimizer": sharded})
        with cupy_stub.installed(seed=5):
            found += in_threads(
                2, lambda ranks: figures(trained("this", ranks, on_its_gpu(ranks), epochs=2))
            )
    assert all(each == found[-1] for each in found)
    monkeypatch.setitem(CASES, "this", EXACT[case])
    assert_close(found[0], figures(trained("this", None, epochs=2)))


def collectives(widths: list[int], least: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Return NCCL's calls of one rank in a step by their names, and check that a graph has them."""
    monkeypatch.setattr(nccl, "least_bytes", lambda: least)

    def work(ranks: Communicator) -> int:
        network = MLP(widths, "tanh", seed=1, device=on_its_gpu(ranks))
        trainer = Trainer(network, batch_size=52, distributed=ranks, shard_optimizer=True)
        trainer.fit(*some_rows(), epochs=1)
        step = trainer.state.step
        assert [batch.replay.uncaptured for batch in step._plans.values()] == ["", ""]
        return int(step.steps)

    with cupy_stub.installed() as counts:
        steps = in_threads(2, work)[0]
        names = [name.removeprefix("nccl ") for name in counts.kernels if name.startswith("nccl")]
    names.remove("allReduce")  # those that connect the ranks
    names.remove("allReduce")
    return {name: names.count(name) / 2 / steps for name in names}


@with_emulator
@pytest.mark.usefixtures("gpus")
def test_a_step_is_a_reduce_scatter_its_figures_and_an_all_gather(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 64 + 64 weights, and biases of 32 each: 192 elements, 96 for each rank.
    equal = collectives([4, 16, 3], 1 << 40, monkeypatch)
    assert equal == {"reduceScatter": 1, "allReduce": 1, "allGather": 1}
    # 128 + 96 weights, 64 biases: 320 elements with padding, but 160 + 128 of the parameters.
    uneven = collectives([4, 32, 3], 1 << 40, monkeypatch)
    assert uneven == {"reduceScatter": 1, "allReduce": 1, "broadcast": 2}


@with_emulator
@pytest.mark.usefixtures("gpus")
def test_a_bucket_is_reduced_to_the_ranks_whose_parts_it_meets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Buckets to 64, 128 and 192, where the second rank's part begins at 96: the middle of the second.
    found = collectives([4, 16, 3], 1, monkeypatch)
    assert found == {"reduce": 2, "reduceScatter": 1, "allReduce": 1, "allGather": 1}
    # To 128, 224 and, biases and padding, 320; the second part begins at 160.
    found = collectives([4, 32, 3], 1, monkeypatch)
    assert found == {"reduce": 1 + 2 + 1, "allReduce": 1, "broadcast": 2}


def refused(monkeypatch: pytest.MonkeyPatch, call: Callable[[Any, Any, Any], None]) -> str:
    """Return what the stand-in says to a call of rank 1's communicator of NCCL, with a buffer."""

    def work(ranks: Communicator) -> str:
        backend = CupyBackend(ranks.rank)
        there = on_device(ranks, backend)
        assert isinstance(there, nccl.Nccl)
        if not ranks.rank:
            return ""
        with backend.cupy.cuda.Device(backend.index), pytest.raises(AssertionError) as caught:
            call(there._connection, backend.zeros(64, np.float32), backend.cupy)
        return str(caught.value)

    with cupy_stub.installed():
        return str(in_threads(2, work)[1])


@with_emulator
def test_the_stand_in_refuses_buffers_that_meet_and_groups_that_do_not_match(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def at_the_beginning(connection: Any, buffer: Any, cupy: Any) -> None:  # MPI's way
        address, stream = buffer.data.ptr, cupy.cuda.get_current_stream().ptr
        connection.reduceScatter(address, address, 32, 7, 0, stream)

    def gathered_elsewhere(connection: Any, buffer: Any, cupy: Any) -> None:
        address, stream = buffer.data.ptr, cupy.cuda.get_current_stream().ptr
        connection.allGather(address, address, 32, 7, stream)

    for call in (at_the_beginning, gathered_elsewhere):
        assert "meet and are not in place" in refused(monkeypatch, call)
    assert "no group was started" in refused(
        monkeypatch, lambda connection, buffer, cupy: cupy.cuda.nccl.groupEnd()
    )
