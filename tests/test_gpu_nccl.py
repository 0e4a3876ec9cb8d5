"""NCCL itself, on as many GPUs as there are, one included; the same calls on the stand-in.

Not measured on a GPU so far: the tests marked `gpu` have run nowhere yet.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpubackprop import MLP, Trainer, backends
from gpubackprop.backends.cuda_driver import probe_driver
from gpubackprop.backends.cupy import CupyBackend
from gpubackprop.distributed import Alone
from gpubackprop.distributed.nccl import Nccl
from tests import emulator
from tests.emulator import cupy_stub
from tests.ranks_programs import figures, some_rows


def check_one_rank(backend: Any) -> None:
    """Sums of one rank are its own, at once, in a graph, and on its second branch."""
    ranks, own = Nccl(Alone(), backend), np.arange(96, dtype=np.float32)
    buffer = backend.asarray(own)
    whole, uneven = [slice(0, 96)], [slice(0, 64)]

    def emit(to: Any) -> None:
        ranks.emit_allreduce(to, buffer)
        ranks.emit_reduce_scatter(to, buffer, whole)
        ranks.emit_reduce_scatter(to, buffer[32:], uneven)
        ranks.emit_allgather(to, buffer, whole)
        ranks.emit_allgather(to, buffer[32:], [slice(0, 32)])
        ranks.emit_beside(to, buffer[:64])
        ranks.emit_beside(to, buffer[64:], [slice(0, 32)])
        ranks.emit_join(to)

    emit(backend)
    plan = backend.plan(emit)
    assert plan.uncaptured == ""
    for _ in range(3):
        plan()
    assert backend.to_host(buffer).tolist() == own.tolist()


@pytest.mark.skipif(bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-")
def test_the_stand_in_has_the_sums_of_one_rank_at_once_and_in_a_graph() -> None:
    with cupy_stub.installed():
        check_one_rank(CupyBackend(0))


@pytest.mark.gpu
def test_nccl_has_the_sums_of_one_rank_at_once_and_in_a_graph() -> None:
    check_one_rank(backends.get("cuda:0"))


@pytest.mark.gpu
def test_all_gpus_of_this_machine_learn_what_one_learns() -> None:
    gpus = len(probe_driver().gpus)
    if gpus < 2:
        pytest.skip(f"needs two GPUs, and there is {gpus}")
    found = []
    for devices in (None, "all"):
        network = MLP([4, 8, 6, 3], "tanh", seed=1, dtype="float64", device="cuda:0")
        trainer = Trainer(network, batch_size=32, devices=devices)
        trainer.fit(*some_rows(), epochs=3)
        found.append(figures(trainer)["parameters"])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9, atol=1e-12)
