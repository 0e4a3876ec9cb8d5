"""Optimizer steps through a table of pointers: emulated kernels against the registry's formulas in
float64, tensor by tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpubackprop.backends.cupy.updates import COEFFICIENTS
from gpubackprop.backends.cupy_launch import TABLE_CHUNK, TABLE_UPDATES
from gpubackprop.dtypes import compute_dtype
from gpubackprop.formulas import UPDATES
from tests import emulator
from tests.emulator import Module, count_traffic
from tests.emulator.arrays import Guarded, ulps, wide
from tests.emulator.operations import DTYPES, Operations, pointer_table, record

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
UNITS = {"f64": 4.0, "f32": 4.0, "f16": 0.51, "bf16": 0.51}
SETTINGS = ((0.1, 0.05, 1.0), (0.02, 0.0, -0.5))  # lr, weight decay, factor; two groups


def table_settings(name: str) -> np.ndarray:
    own = list(UPDATES[name].hyperparameters.values())
    return np.array([[*row, *own, *[0.0] * (5 - len(own))] for row in SETTINGS])


def table_of(
    name: str, dtype: str, counts: tuple[int, ...], memory: Guarded, shifts: tuple[int, ...] = (0,)
) -> list[dict[str, Any]]:
    """Tensors with 0, 1, 2, ... steps behind them, in the two groups by turns."""
    kind = DTYPES[dtype]
    compute = compute_dtype(kind)
    return [
        {
            "p": memory.normal((count,), kind, shift=shifts[n % len(shifts)]),
            "g": memory.normal((count,), kind, shift=shifts[(n + 1) % len(shifts)]),
            "slots": tuple(
                memory.put(memory.rng.random(count).astype(compute), shift=shifts[n % len(shifts)])
                for _ in UPDATES[name].slots
            ),
            "step": np.array([n], np.float32),
            "group": n % 2,
        }
        for n, count in enumerate(counts)
    ]  # fmt: skip


def by_the_registry(
    name: str, tensor: dict[str, Any], scale: float = 1.0
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The tensor's step in float64."""
    formula, (lr, decay, factor) = UPDATES[name], SETTINGS[tensor["group"]]
    p, g = wide(tensor["p"]), wide(tensor["g"]) * factor / scale
    slots = [wide(slot) for slot in tensor["slots"]]
    if formula.decay == "decoupled":
        p *= 1 - lr * decay
    else:
        g += decay * p
    c = formula.coefficients(formula.hyperparameters, lr, int(tensor["step"][0]) + 1)
    formula.apply(
        p, g, tuple(slots), tuple(map(np.float64, c)), (np.empty_like(p), np.empty_like(p))
    )
    return p, slots


@pytest.mark.parametrize("dtype", UNITS)
@pytest.mark.parametrize("name", TABLE_UPDATES)
def test_every_tensor_gets_the_step_of_its_own_count_and_group(name, dtype):
    memory = Guarded(3)
    counts = (1, TABLE_CHUNK, 7, TABLE_CHUNK + 1, 3, 2 * TABLE_CHUNK - 1)
    tensors = table_of(name, dtype, counts, memory, shifts=(0, 1, 3))
    wanted = [by_the_registry(name, tensor, 4.0) for tensor in tensors]
    Operations().update_table(name, tensors, table_settings(name), np.array([4.0], np.float32))
    memory.check()
    for number, (tensor, (p, slots)) in enumerate(zip(tensors, wanted, strict=True)):
        assert ulps(tensor["p"], p, DTYPES[dtype]) <= UNITS[dtype]
        for slot, state in zip(tensor["slots"], slots, strict=True):
            assert ulps(slot, state, slot.dtype) <= 4
        assert tensor["step"] == number + 1


@pytest.mark.parametrize("shifts", [(0, 0, 0, 1), (1, 2), (2, 3), (3, 0), (0, 1, 2, 3)])
@pytest.mark.parametrize("count", [1, 3, 5, TABLE_CHUNK - 1, TABLE_CHUNK, TABLE_CHUNK + 1])
def test_any_count_and_alignment_of_any_tensor(count, shifts):
    memory = Guarded(4)
    tensors = table_of("adam", "f32", (count, 2, count), memory, shifts)
    wanted = [by_the_registry("adam", tensor)[0] for tensor in tensors]
    Operations().update_table("adam", tensors, table_settings("adam"))
    memory.check()
    for tensor, p in zip(tensors, wanted, strict=True):
        assert ulps(tensor["p"], p, np.float32) <= 4


def test_thousands_of_small_tensors_are_found_by_their_chunk():
    memory, rng = Guarded(5), np.random.default_rng(5)
    counts = tuple(int(n) for n in rng.integers(1, 40, 2000))
    tensors = table_of("gradient_descent", "f32", counts, memory)
    before = [tensor["p"].copy() for tensor in tensors]
    Operations().update_table("gradient_descent", tensors, table_settings("gradient_descent"))
    memory.check()
    wanted = []
    for tensor, p in zip(tensors, before, strict=True):
        lr, decay, factor = SETTINGS[tensor["group"]]
        wanted.append(wide(p) - lr * (factor * wide(tensor["g"]) + decay * wide(p)))
    got = np.concatenate([tensor["p"] for tensor in tensors])
    assert ulps(got, np.concatenate(wanted), np.float32) <= 1


def test_a_gradient_that_is_not_finite_leaves_everything_and_is_not_counted():
    tensors = table_of("adam", "f32", (5, 300), Guarded(6))
    before = [(t["p"].copy(), *(slot.copy() for slot in t["slots"])) for t in tensors]
    tensors[0]["g"][2] = np.inf
    found = np.array([1.0], np.float32)
    Operations().update_table("adam", tensors, table_settings("adam"), None, found)
    for number, (tensor, arrays) in enumerate(zip(tensors, before, strict=True)):
        for array, old in zip((tensor["p"], *tensor["slots"]), arrays, strict=True):
            assert np.array_equal(array, old)
        assert tensor["step"] == number


@pytest.mark.parametrize("shift", [(0, 0, 1), (1, 2, 3)])
def test_the_largest_second_moment_takes_nan_and_keeps_it(shift):
    """As torch.maximum does; and the slot of one tensor is written, nothing beside it."""
    memory = Guarded(8)
    tensors = table_of("adam_amsgrad", "f32", (6, 7), memory, shift)
    v, largest = tensors[0]["slots"][1:]
    v[:3], largest[:3] = (np.nan, 1.0, 0.0), (1.0, np.nan, 5.0)
    tensors[0]["g"][:3] = 0.0
    kept = tensors[1]["slots"][2].copy()
    Operations().update_table("adam_amsgrad", tensors, table_settings("adam_amsgrad"))
    memory.check()
    assert np.isnan(largest[:2]).all()
    assert largest[2] == 5.0
    assert np.isnan(tensors[0]["p"]).sum() == 2
    assert (tensors[1]["slots"][2] >= kept).all()


@pytest.mark.parametrize(("name", "bytes_each"), [("adam", 28), ("adamw_amsgrad", 36)])
def test_adam_through_a_table_moves_28_bytes_a_parameter_in_accesses_of_16(name, bytes_each):
    """With amsgrad 36."""
    (tensor,) = table_of(name, "f32", (2 * TABLE_CHUNK,), Guarded(7))
    table, owner = pointer_table([tensor])
    c = np.zeros((1, COEFFICIENTS), np.float32)
    c[0, -1] = 1.0  # proceed
    module = Module("update_table.cu", "traffic", {"ONLY_FORMULA": name, "ONLY_DTYPE": "f32"})
    streams = (tensor["p"], tensor["g"], *tensor["slots"])
    entry = f"update_table_{name}_f32"
    arguments = [record(entry, table=table, owner=owner, c=c)]
    counts = count_traffic(module, entry, (len(owner),), (256,), arguments, streams)[1:]
    moved = sum(one.read + one.written for one in counts)
    assert moved == bytes_each * len(tensor["p"])
    for one in counts:
        assert (one.widest, one.sectors_per_minimum) == (16, 1.0)
