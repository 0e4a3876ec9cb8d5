"""Kernels of a graph that start before their turn: which, how they are launched, and what they compute."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubackprop.backends.cupy import CupyBackend, dependent
from gpubackprop.backends.cupy_launch import KERNELS, DeviceProperties, entries, plan
from tests import emulator
from tests.emulator import compilers, cupy_stub, sass
from tests.emulator.module import KERNELS as SOURCES

CARD = DeviceProperties(132, 232_448, (9, 0))
needs_emulator = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
needs_tools = pytest.mark.skipif(
    compilers.compiler() is None or compilers.disassembler() is None,
    reason=compilers.NONE_FOUND if compilers.compiler() is None else compilers.NO_DISASSEMBLER,
)


@pytest.fixture
def cuda() -> Iterator[CupyBackend]:
    with cupy_stub.installed():
        backend = CupyBackend(0)
        backend.launcher.properties = CARD
        yield backend


def three_kernels(verbs: Any, source: Any, rows: Any, x: Any, y: Any, total: Any) -> None:
    verbs.gather_rows(source, rows, x)  # nothing is in front of it
    verbs.gather_rows(x, rows, y)
    verbs.column_sum(y, total)  # two launches


def arrays(cuda: CupyBackend) -> list[Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 5))
    rows = cuda.asarray(np.array([5, 3, 1, 0, 2, 4]))
    return [
        cuda.asarray(x),
        rows,
        *(cuda.asarray(np.zeros(shape)) for shape in ((6, 5), (6, 5), (5,))),
    ]


def wanted(found: list[Any]) -> np.ndarray:
    source, rows = (array.get() for array in found[:2])
    return source[rows][rows].sum(0)


@needs_emulator
def test_a_kernel_behind_another_of_a_graph_is_launched_before_its_turn(cuda):
    given = arrays(cuda)
    step = cuda.plan(lambda verbs: three_kernels(verbs, *given))
    assert cupy_stub.DRIVER.followed == [
        "gather_rows_f64_f64", "column_sum_f64", "column_sum_finish_f64"
    ], "all but the first"  # fmt: skip
    step()
    np.testing.assert_allclose(given[4].get(), wanted(given), rtol=1e-12)


@needs_emulator
@pytest.mark.parametrize("refusal", [801, "AttributeError"])
def test_a_driver_that_refuses_gets_the_plan_as_a_usual_graph(cuda, monkeypatch, refusal):
    """801 is CUDA_ERROR_NOT_SUPPORTED; drivers before CUDA 12 have no cuLaunchKernelEx."""
    if refusal == 801:
        cupy_stub.DRIVER.refuses = 801
    else:
        monkeypatch.setattr(dependent, "driver", object)
    given = arrays(cuda)
    step = cuda.plan(lambda verbs: three_kernels(verbs, *given))
    assert step.uncaptured == ""
    assert cupy_stub.DRIVER.followed == []
    step()
    np.testing.assert_allclose(given[4].get(), wanted(given), rtol=1e-12)


@needs_emulator
def test_older_cards_and_plain_calls_launch_as_usual(cuda):
    given = arrays(cuda)
    three_kernels(cuda, *given)
    cuda.launcher.properties = DeviceProperties(108, 166_912, (8, 0))
    cuda.plan(lambda verbs: three_kernels(verbs, *given))()
    assert cupy_stub.DRIVER.followed == []
    np.testing.assert_allclose(given[4].get(), wanted(given), rtol=1e-12)


def test_only_launches_that_wait_and_stand_behind_a_launch_follow(monkeypatch):
    update = plan("update", (1000,), "float32", CARD, formula="adam")
    other = replace(update, source="naive_softmax_cross_entropy.cu")
    launches = {0: update, 1: update, 2: other, 3: update, 5: update}
    assert dependent.followers(launches, (9, 0)) == {1, 3}
    assert dependent.followers(launches, (8, 9)) == set()
    monkeypatch.setenv("GPUBACKPROP_DEPENDENT_LAUNCH", "0")
    assert dependent.followers(launches, (9, 0)) == set()


def test_the_structures_lie_as_in_cuda_h():
    """CUlaunchConfig and CUlaunchAttribute, on 64 bits; worked by hand from the header."""
    config, attribute = dependent.LaunchConfig, dependent.LaunchAttribute
    offsets = [getattr(config, name).offset for name, _ in config._fields_]
    assert offsets == [0, 12, 24, 32, 40, 48]
    assert (ctypes.sizeof(config), ctypes.sizeof(attribute)) == (56, 72)
    assert (attribute.id.offset, attribute.value.offset) == (0, 8)


@pytest.mark.parametrize("source", sorted({kernel.source for kernel in KERNELS.values()}))
def test_the_sources_that_follow_are_those_whose_every_entry_waits_first(source):
    text = Path(SOURCES, source).read_text(encoding="utf-8")
    bodies = re.findall(r'extern "C" __global__.*?\{(.*?)\}', text.replace("\\\n", "\n"), re.DOTALL)
    assert bodies
    waiting = [body.strip().startswith("ptx::follow_the_grid_in_front();") for body in bodies]
    assert waiting == [source in dependent.FOLLOWING] * len(bodies)


@needs_tools
@pytest.mark.slow
@pytest.mark.parametrize("source", sorted(dependent.FOLLOWING))
def test_compiled_entries_wait_before_they_touch_memory(source):
    """ACQBULK is griddepcontrol.wait; sm_80 has none. An entry for each source: a macro makes them all.

    No load goes through the read-only path (LDG.CONSTANT), which may keep what the grid in front
    changes while this grid waits."""
    _, entry, defines = next(one for one in entries() if one[0] == source)
    body = sass.bodies(compilers.sass(source, 90, defines))[entry]
    opcodes = re.findall(r"\*/\s+(?:@!?\w+ )?([A-Z]\w+)", body)
    wait = opcodes.index("ACQBULK")
    before = set(opcodes[:wait])
    assert not before & {"LDG", "LD", "STG", "ST", "ATOMG", "RED", "LDGSTS", "BRA", "EXIT"}
    assert opcodes.index("PREEXIT") > wait
    assert ".CONSTANT" not in body
    assert "ACQBULK" not in sass.bodies(compilers.sass(source, 80, defines))[entry]


@needs_emulator
def test_the_update_of_a_captured_training_step_follows_its_preparation(monkeypatch):
    from gpubackprop import MLP, Trainer, losses, optimizers
    from gpubackprop.backends import devices

    monkeypatch.setattr(devices, "choose", lambda device: ("cuda:0", "emulated"))
    monkeypatch.setenv("GPUBACKPROP_RESIDENT", "0")  # a step is a graph, and no part of one launch
    with cupy_stub.installed():
        network = MLP([5, 4, 3], seed=1, dtype="float32", device="cuda")
        trainer = Trainer(
            network, losses.SoftmaxCrossEntropy(), batch_size=8, optimizer=optimizers.Adam(0.05)
        )
        x = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
        trainer.fit(x, np.arange(16) % 3, epochs=1)
        assert "update_adam_f32" in cupy_stub.DRIVER.followed
