"""Optimizer steps, their coefficients, and the norm of the gradient: emulated kernels against the
NumPy backend in float64."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from gpubackprop.backends import NumpyBackend
from gpubackprop.backends.cupy.updates import (
    COEFFICIENTS,
    DECAY,
    GRADIENT_FACTOR,
    L2,
    PROCEED,
    UNSCALE,
)
from gpubackprop.backends.cupy_launch import UPDATE_STORAGE, DeviceProperties
from gpubackprop.formulas import UPDATES
from tests import emulator
from tests.emulator.arrays import Guarded, ulps, wide
from tests.emulator.operations import DTYPES, Operations

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
# Storage -> (parameters, gradient, copy, compute).
STORAGE = {
    "f64": ("f64", "f64", None, "f64"), "f32": ("f32", "f32", None, "f32"),
    "f32_f16": ("f32", "f16", "f16", "f32"), "f32_bf16": ("f32", "bf16", "bf16", "f32"),
    "f32_f32_f16": ("f32", "f32", "f16", "f32"), "f32_f32_bf16": ("f32", "f32", "bf16", "f32"),
    "f16": ("f16", "f16", None, "f32"), "bf16": ("bf16", "bf16", None, "f32"),
}  # fmt: skip
UNITS = {"f64": 4.0, "f32": 4.0, "f16": 0.51, "bf16": 0.51}


def test_the_table_of_storages_is_complete():
    assert tuple(STORAGE) == UPDATE_STORAGE


def hyperparameters(name: str) -> dict[str, float]:
    """The defaults, but for those that would change nothing."""
    defaults, telling = dict(UPDATES[name].hyperparameters), {"dampening": 0.3, "lr_decay": 0.2}
    return defaults | {key: telling[key] for key in defaults if key in telling}


def coefficients(name: str, dtype: np.dtype, step: int = 3, **controls: float) -> np.ndarray:
    entry = UPDATES[name]
    c = np.zeros(COEFFICIENTS, dtype)
    own = entry.coefficients(hyperparameters(name), 0.01, step)
    c[: len(own)] = own
    c[DECAY] = controls.get("decay", 1.0 if entry.decay == "decoupled" else 0.0)
    c[L2], c[UNSCALE] = controls.get("l2", 0.0), controls.get("unscale", 1.0)
    c[GRADIENT_FACTOR], c[PROCEED] = controls.get("factor", 1.0), controls.get("proceed", 1.0)
    return c


def by_numpy(
    name: str,
    p: np.ndarray,
    g: np.ndarray,
    slots: tuple[np.ndarray, ...],
    c: np.ndarray,
    penalized: int,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """One step of the NumPy backend in float64 from the same numbers and coefficients."""
    p, g, states, c = (
        wide(p).copy(),
        wide(g) * float(c[UNSCALE]),
        [wide(s).copy() for s in slots],
        wide(c),
    )
    numbers = {"c": tuple(c[i : i + 1].reshape(()) for i in range(len(own_count(name))))}
    numbers |= {
        "decay": c[DECAY : DECAY + 1].reshape(()),
        "clip": c[GRADIENT_FACTOR : GRADIENT_FACTOR + 1].reshape(()),
    }
    numbers["l2"] = (penalized, c[L2 : L2 + 1].reshape(()))
    NumpyBackend().update(p, g, tuple(states), UPDATES[name], numbers)
    return p, states


def own_count(name: str) -> tuple[float, ...]:
    return UPDATES[name].coefficients(UPDATES[name].hyperparameters, 0.01, 1)


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("name", UPDATES)
def test_every_update_entry_matches_the_numpy_backend_in_float64(name, storage):
    memory, count = Guarded(1), 1003
    p_type, g_type, copy_type, compute = (
        None if t is None else DTYPES[t] for t in STORAGE[storage]
    )
    p, g = memory.normal((count,), p_type, shift=2), memory.normal((count,), g_type, shift=1)
    slots = tuple(
        memory.put(memory.rng.random(count).astype(compute), shift=1) for _ in UPDATES[name].slots
    )
    copy = None if copy_type is None else memory.empty((count,), copy_type, shift=3)
    decay = 0.999 if UPDATES[name].decay == "decoupled" else 0.05
    c = coefficients(name, compute, decay=decay, l2=0.02, unscale=0.5, factor=0.7)
    wanted, states = by_numpy(name, p, g, slots, c, 500)
    Operations().update(name, p, g, slots, c, copy, penalized=500)
    memory.check()
    assert ulps(p, wanted, p_type) <= UNITS[STORAGE[storage][0]]
    for slot, state in zip(slots, states, strict=True):
        assert ulps(slot, state, compute) <= 4
    if copy is not None:
        assert np.array_equal(copy, p.astype(copy_type))


def test_lion_makes_no_step_without_a_gradient_and_keeps_nan():
    p, g = np.array([1.0, 2.0, 3.0], np.float32), np.array([0.0, np.nan, -1.0], np.float32)
    momentum = np.zeros(3, np.float32)
    Operations().update("lion", p, g, (momentum,), coefficients("lion", np.dtype(np.float32)))
    np.testing.assert_array_equal(p, np.float32([1.0, np.nan, 3.01]))


@pytest.mark.parametrize("count", [1, 3, 4, 1021, 5000])
@pytest.mark.parametrize(
    "shifts", [(0, 0, 0, 0), (1, 1, 1, 1), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 2), (3, 2, 1, 0)]
)
def test_any_count_and_alignment(count, shifts):
    memory = Guarded(2)
    p, g = (
        memory.normal((count,), np.float32, shift=shifts[0]),
        memory.normal((count,), np.float32, shift=shifts[1]),
    )
    slots = tuple(
        memory.put(memory.rng.random(count).astype(np.float32), shift=s) for s in shifts[2:]
    )
    c = coefficients("adam", np.dtype(np.float32))
    wanted, _ = by_numpy("adam", p, g, slots, c, 0)
    Operations().update("adam", p, g, slots, c)
    memory.check()
    assert ulps(p, wanted, np.float32) <= 2


def test_blocks_take_parts_in_turn_where_the_grid_is_smaller_than_the_buffer():
    memory, verbs = Guarded(6), Operations(device=DeviceProperties(multiprocessors=1))
    p, g = (memory.normal((80_001,), np.float32, shift=1) for _ in range(2))
    c = coefficients("gradient_descent", np.dtype(np.float32))
    wanted = p - g * c[0]
    verbs.update("gradient_descent", p, g, (), c)
    memory.check()
    assert ulps(p, wanted, np.float32) <= 1


def test_a_step_that_may_not_proceed_writes_nothing():
    memory = Guarded(3)
    p, g = memory.normal((50,), np.float32), np.full(50, np.nan, np.float32)
    slots, copy = (
        (memory.normal((50,), np.float32), memory.normal((50,), np.float32)),
        np.zeros(50, np.float16),
    )
    before = [array.copy() for array in (p, *slots, copy)]
    c = coefficients("adam", np.dtype(np.float32), proceed=0.0)
    Operations().update("adam", p, g.astype(np.float16), slots, c, copy)
    for array, old in zip((p, *slots, copy), before, strict=True):
        assert np.array_equal(array, old)


# -- stochastic rounding --------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["bf16", "f16"])
@pytest.mark.parametrize("size", [1.0, -3e-6, 300.0])
def test_stochastic_rounding_takes_a_neighbour_and_is_right_on_average(storage, size):
    kind, count = DTYPES[storage], 40_000
    start = np.full(count, size, kind)
    g = np.full(count, -np.sign(size), kind)
    p, c = start.copy(), coefficients("gradient_descent", np.dtype(np.float32))
    c[0] = abs(size) / 3000
    exact = (
        np.float32(start[0]) + np.float32(np.sign(size)) * c[0]
    )  # far less than a step of the type
    Operations().update("gradient_descent", p, g, (), c, random=np.array([1, 2], np.uint64))
    values = np.unique(wide(p))
    assert len(values) == 2
    assert values[0] <= exact <= values[1]
    share = (float(exact) - values[0]) / (values[1] - values[0])
    assert (
        abs((wide(p) == values[1]).mean() - share) < 4 * np.sqrt(share * (1 - share) / count) + 1e-4
    )
    nearest = start.copy()
    Operations().update("gradient_descent", nearest, g, (), c)
    assert np.array_equal(nearest, start), (
        "to nearest, the step is lost: why stochastic rounding exists"
    )


@pytest.mark.parametrize("storage", ["bf16", "f16"])
def test_stochastic_rounding_leaves_exact_values_infinities_and_nan(storage):
    kind = DTYPES[storage]
    p = np.array(
        [0.0, -0.0, 1.5, -2.0, np.inf, -np.inf, np.nan, 2.0**-24, 60000.0], np.float32
    ).astype(kind)
    old = p.copy()
    c = coefficients("gradient_descent", np.dtype(np.float32))
    Operations().update(
        "gradient_descent", p, np.zeros_like(p), (), c, random=np.array([5, 0], np.uint64)
    )
    assert np.array_equal(wide(p), wide(old), equal_nan=True)


# The third word of this seed in step 1 begins with 24 zero bits: no number is small enough for it,
# but one that is exact must not be rounded up by it.
ZERO_BITS = 5150906, 1


@pytest.mark.parametrize("random", [ZERO_BITS, (2, 7)], ids=str)
@pytest.mark.parametrize("copy", ["bf16", "f16"])
def test_stochastic_rounding_is_the_numpy_backends_bit_for_bit(copy, random):
    rng, state = np.random.default_rng(0), np.array(random, np.uint64)
    limits = np.float32([65504, 2.0**-14, 2.0**-24, 65520, 0, np.inf])
    near = np.concatenate([limits, np.nextafter(limits, np.float32(0))])
    spread = rng.normal(size=1000) * 10.0 ** rng.uniform(-9, 5, 1000)
    p = np.concatenate([spread, near, -near]).astype(np.float32)
    p[2] = 3 * 2.0**-24
    out, wanted = np.empty(len(p), DTYPES[copy]), np.empty(len(p), DTYPES[copy])
    c = coefficients("gradient_descent", np.dtype(np.float32))
    NumpyBackend().round_to_storage(p, wanted, state)
    Operations().update("gradient_descent", p, np.zeros_like(p), (), c, out, random=state)
    np.testing.assert_array_equal(out.view(np.uint16), wanted.view(np.uint16))
    assert float(out[2]) == (p[2] if copy == "f16" else wanted[2])


# -- coefficients and bookkeeping -----------------------------------------------------------------


def settings(name: str, *, lr: float = 0.01, decay: float = 0.0, l2: float = 0.0, clip: float = 0.0,
             interval: float = 0.0) -> np.ndarray:  # fmt: skip
    return np.array([lr, decay, l2, clip, interval, *hyperparameters(name).values()])


@pytest.mark.parametrize("compute", ["f32", "f64"])
@pytest.mark.parametrize("name", UPDATES)
def test_prepare_update_gives_the_registrys_coefficients(name, compute):
    kind = DTYPES[compute]
    for steps_done in (0, 1, 1000, 2**20):
        state = np.array([steps_done, 0.0, 1024.0, 0.0])
        c, scaling = np.full(COEFFICIENTS, np.nan, kind), np.empty(2, kind)
        Operations().prepare_update(
            name, settings(name, decay=0.1, l2=0.5), state, None, c, scaling
        )
        entry = UPDATES[name]
        own = entry.coefficients(hyperparameters(name), 0.01, steps_done + 1)
        assert np.allclose(
            c[: len(own)], np.array(own, kind), rtol=2**-23 if compute == "f32" else 1e-15, atol=0
        )
        assert not c[len(own) : DECAY].any()
        assert c[DECAY] == kind.type(1 - 0.01 * 0.1 if entry.decay == "decoupled" else 0.1)
        assert c[L2:].tolist() == [0.5, 1 / 1024, 1.0, 1.0]
        assert state.tolist() == [steps_done + 1, 0, 1024, 1]
        assert scaling.tolist() == [1024, 1 / 1024]


@pytest.mark.parametrize(
    ("clip", "norm2", "wanted"),
    [(2.0, 16.0, 2.0 / (4.0 + 1e-6)), (2.0, 1.0, 1.0), (2.0, None, 1.0), (0.0, 16.0, 1.0)],
)
def test_clipping_follows_pytorch_and_small_gradients_are_left_alone(clip, norm2, wanted):
    c, scaling = np.empty(COEFFICIENTS, np.float32), np.empty(2, np.float32)
    state = np.array([0.0, 0.0, 1.0, 0.0])
    norm = None if norm2 is None else np.array([norm2, 0.0], np.float32)
    Operations().prepare_update("adam", settings("adam", clip=clip), state, norm, c, scaling)
    assert c[GRADIENT_FACTOR] == np.float32(wanted)


def test_a_gradient_that_is_not_finite_skips_the_step_and_halves_the_scale():
    c, scaling = np.empty(COEFFICIENTS, np.float32), np.empty(2, np.float32)
    state, chosen = np.array([5.0, 0.0, 1024.0, 1.0]), settings("adam", interval=3.0)
    verbs = Operations()
    verbs.prepare_update("adam", chosen, state, np.array([np.inf, 1.0], np.float32), c, scaling)
    assert c[PROCEED] == 0
    assert c[UNSCALE] == np.float32(1 / 1024), "the gradient at hand has the old scale"
    assert state.tolist() == [5, 1, 512, 0]
    assert scaling[0] == 512
    for _ in range(3):
        verbs.prepare_update("adam", chosen, state, np.array([1.0, 0.0], np.float32), c, scaling)
    assert state.tolist() == [8, 1, 1024, 0], "three good steps double it"


# -- norm of the gradient -------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 5, 1000, 40_001])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16"])
def test_sum_of_squares(dtype, shift, count):
    memory, kind = Guarded(4), DTYPES[dtype]
    compute = np.dtype(np.float64 if dtype == "f64" else np.float32)
    x = memory.normal((count,), kind, shift=shift)
    out = np.full(2, np.nan, compute)
    Operations().sum_of_squares(x, out)
    memory.check()
    assert ulps(out[0], (wide(x) ** 2).sum(), compute) <= 2
    assert out[1] == 0
    again = out.copy()
    Operations().sum_of_squares(x, again)
    assert np.array_equal(out, again)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("position", [0, 1, 1234, 4999])
def test_one_element_that_is_not_finite_is_found_anywhere(bad, position):
    x = np.ones(5000, np.float32)
    x[position] = bad
    out = np.zeros(2, np.float32)
    Operations().sum_of_squares(x, out)
    assert out[1] == 1


def test_an_overflow_of_the_sum_is_not_taken_for_a_bad_gradient():
    out = np.zeros(2, np.float32)
    Operations().sum_of_squares(np.full(100, 1e30, np.float32), out)
    assert out.tolist() == [np.inf, 0]


def test_the_norm_is_that_of_the_unscaled_gradient_with_its_penalty():
    memory = Guarded(5)
    g, p = (
        memory.normal((1001,), DTYPES["bf16"], shift=1),
        memory.normal((1001,), np.float32, shift=2),
    )
    unscale, l2, out = (
        np.array([0.25], np.float32),
        np.array([0.5], np.float32),
        np.empty(2, np.float32),
    )
    Operations().sum_of_squares(g, out, p, unscale, l2, penalized=333)
    total = wide(g) * 0.25
    total[:333] += 0.5 * wide(p[:333])
    assert ulps(out[0], (total**2).sum(), np.float32) <= 2
    assert g.dtype == ml_dtypes.bfloat16
