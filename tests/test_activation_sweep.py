"""Every activation and its slope over the whole range of every type: all numbers of the 16-bit types,
float32 and float64 in every binade. Windows of neighbouring numbers are compared one by one, each on
its own scale, so that a tail is held to as many digits as the middle."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from gpubackprop.formulas import ACTIVATIONS, Activation, activation
from tests import references, tolerances, ways
from tests.emulator.operations import DTYPES
from tests.ways import activation_backward, activation_forward

pytestmark = pytest.mark.usefixtures("way")
SPECS = (*ACTIVATIONS, "leaky_relu(0.2)", "elu(0.3)", "elu(1.7)")
FLOATS = ("f16", "bf16", "f32", "f64")
WINDOW = {"f16": 64, "bf16": 64, "f32": 256, "f64": 16}


def numbers(dtype: str) -> np.ndarray:
    """Ascending: all finite ones of 16 bits; of the others some in each binade, more where curves bend."""
    kind, rng = DTYPES[dtype], np.random.default_rng(0)
    if kind.itemsize == 2:
        every = np.arange(65536, dtype=np.uint16).view(kind)
        with np.errstate(invalid="ignore"):  # NumPy warns where a signalling NaN is converted
            wide = every.astype(np.float64)
        order = np.argsort(wide, kind="stable")
        return every[order[np.isfinite(wide[order])]]
    low, high, each, between = (-149, 128, 64, 20_000) if dtype == "f32" else (-1074, 1024, 4, 400)
    binades = range(low, high, 1 if dtype == "f32" else 29)
    bent = [np.ldexp(rng.uniform(1, 2, 4 * each), k) for k in range(-12, 8)]
    sides = np.concatenate(
        [np.ldexp(rng.uniform(1, 2, each), k) for k in binades]
        + bent
        + [rng.uniform(0, 30, between)]
    )
    return np.sort(np.concatenate([-sides, sides]).astype(kind))


@cache
def oracle(spec: str, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    entry, a = activation(spec), numbers(dtype)
    if dtype != "f64":
        return references.activation_oracle(entry.name, a, entry.parameter)
    both = [references.activation_by_mpmath(entry.name, float(x), entry.parameter) for x in a]
    return np.array([h for h, _ in both]), np.array([slope for _, slope in both])


@cache
def torchs(spec: str, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    entry = activation(spec)
    return references.activation(entry.name, numbers(dtype), entry.parameter)


def largest_errors(got: np.ndarray, exact: np.ndarray, dtype: str) -> np.ndarray:
    """Of each window, in units of its largest magnitude; 1e300 where a number is none."""
    size = WINDOW[dtype]
    whole = len(exact) // size * size
    epsilon, smallest = tolerances.UNITS[DTYPES[dtype].name]
    got = np.asarray(got, np.float64)[:whole].reshape(-1, size)
    exact = exact[:whole].reshape(-1, size)
    with np.errstate(all="ignore"):
        error = np.where(got == exact, 0.0, np.abs(got - exact))
        magnitude = np.where(np.isfinite(exact), np.abs(exact), 0.0).max(1, keepdims=True)
        units = error / np.maximum(magnitude * epsilon, smallest)
    return np.where(np.isfinite(units), units, 1e300).max(1)


def with_neighbours(errors: np.ndarray) -> np.ndarray:
    """The larger of each window's error and its neighbours': a window is a draw of few numbers."""
    return np.maximum.reduce([errors, np.r_[errors[1:], 0.0], np.r_[0.0, errors[:-1]]])


def allowed(entry: Activation, dtype: str) -> float:
    if dtype in ("f16", "bf16"):
        return 1.0
    short = references.SHORTFALLS.get(entry.name)
    if short is None:
        return 1.0
    if dtype == "f64":
        return short.float64
    if ways.CURRENT[-1].name == "native" and short.native is not None:
        return short.native
    return short.numpy if ways.on_host() else short.emulated


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("spec", SPECS)
def test_activation_and_slope_are_as_right_as_pytorchs_in_every_part_of_the_range(spec, dtype):
    entry, a = activation(spec), numbers(dtype)[None]
    h = activation_forward(a, entry)
    slope = activation_backward(np.ones_like(a), a if entry.saved == "a" else h, entry)
    for what, got, theirs, exact in zip(
        ("value", "slope"), (h[0], slope[0]), torchs(spec, dtype), oracle(spec, dtype), strict=True
    ):
        mine = largest_errors(got, exact, dtype)
        torchs_error = with_neighbours(largest_errors(theirs, exact, dtype))
        limit = allowed(entry, dtype) * np.maximum(torchs_error, 1.0)
        worst = np.argmax(mine / limit)
        at = a[0, worst * WINDOW[dtype]]
        assert (mine <= limit).all(), (
            f"{what} from {at} on: {mine[worst]:.3g} units, allowed {limit[worst]:.3g}"
        )


def test_elu_has_a_slope_where_the_value_has_no_digit_of_it_left():
    """The case that was found: bfloat16 at -8, gradient 0 for exp(-8) = 0.000335 times upstream -8."""
    kind = DTYPES["bf16"]
    a, upstream = np.full((1, 1), -8, kind), np.full((1, 1), -8, kind)
    entry = activation("elu")
    h = activation_forward(a, entry)
    delta = activation_backward(upstream, a if entry.saved == "a" else h, entry)
    assert float(delta[0, 0]) == pytest.approx(-8 * np.exp(-8), rel=2**-8)
