"""exp, log, expm1, log1p and tanh of the host path: within one unit in the last place.

`make test` tries a sample of the float arguments, one of 64 slices; `make test-all` tries 8 slices.
All 2^32 take minutes for each function: ``GPUBACKPROP_EVERY_ARGUMENT=1 python -m pytest
tests/test_host_math.py --timeout 3600``. References: the C library in double for float, mpmath for
double.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

import mpmath
import numpy as np
import pytest

from tests import host_library
from tests.sweeps import sampled

HERE = Path(__file__).parent
FUNCTIONS = ("exp", "log", "expm1", "log1p", "tanh")
SLICES = 64  # of the float arguments: every 64th pattern is one
EVERY = bool(os.environ.get("GPUBACKPROP_EVERY_ARGUMENT"))
x86 = platform.machine() in ("x86_64", "AMD64")
BUILDS = {
    "this machine": ("g++", ("-march=native",)),
    "without fused multiply-add": ("g++", ("-march=x86-64",) if x86 else ("-march=native",)),
    "clang": ("ziglang", ("-march=native",)),
}

pytestmark = pytest.mark.skipif(host_library.compiler() is None, reason="there is no C++ compiler")


@cache
def library(build: str) -> ctypes.CDLL:
    which, flags = BUILDS[build]
    command = (str(host_library.compiler()),)
    if which == "ziglang":
        if importlib.util.find_spec("ziglang") is None:
            pytest.skip("the package ziglang is not installed")
        command = (sys.executable, "-m", "ziglang", "c++")
    flags = (*(flag for flag in host_library.FLAGS if "march" not in flag), *flags)
    return ctypes.CDLL(str(host_library.compiled((HERE / "host_math.cpp",), flags, command)))


@cache
def reference() -> ctypes.CDLL:
    source = HERE / "host_math_reference.cpp"
    return ctypes.CDLL(str(host_library.compiled((source,), ("-std=c++17", "-O2", "-fPIC"))))


class Worst(ctypes.Structure):
    _fields_ = (("error", ctypes.c_double), ("at", ctypes.c_float), ("wrong", ctypes.c_longlong))


def of_double(build: str, name: str, x: np.ndarray) -> np.ndarray:
    x, y = np.ascontiguousarray(x, np.float64), np.empty(len(x))
    address = host_library.address
    getattr(library(build), f"{name}_f64")(
        ctypes.c_void_p(address(x)), ctypes.c_void_p(address(y)), ctypes.c_longlong(len(x))
    )
    return y


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("build", BUILDS)
def test_a_float_function_is_within_a_unit_in_the_last_place_of_every_argument(build, name, sweep):
    function = ctypes.cast(getattr(library(build), f"{name}_f32"), ctypes.c_void_p)
    slices = range(SLICES) if EVERY else sampled(range(SLICES), 8, name)
    for first in sweep.cases(slices, keep=1):
        worst = Worst()
        reference().largest_error(
            function, name.encode(), ctypes.c_longlong(first), ctypes.c_longlong(SLICES),
            ctypes.byref(worst),
        )  # fmt: skip
        assert worst.wrong == 0, f"{name}({worst.at!r}) is of another kind"
        bound = 0.91 if build == "without fused multiply-add" else 0.9
        assert worst.error <= bound, f"{name}({worst.at!r}) is off by {worst.error} units"


def test_a_float_function_is_right_where_results_end():
    """Around overflow, the smallest subnormal results, and the branches of the argument."""
    for name in FUNCTIONS:
        edges = [0.0, 88.72283, -87.33654, -103.97208, -103.2789, -126.0, 9.0109, 1e-38, 1e-45, 1.0]
        edges += [0.70710677, 1.4142135, 0.41421357, -0.29289323, 3.4028235e38, np.inf, np.nan]
        x = np.array(edges, np.float32)
        with np.errstate(all="ignore"):
            neighbours = [np.nextafter(x, np.float32(side)) for side in (-np.inf, np.inf)]
        x = np.concatenate([x, *neighbours])
        x = np.concatenate([x, -x])
        y = np.empty_like(x)
        getattr(library("this machine"), f"{name}_f32")(
            ctypes.c_void_p(host_library.address(x)), ctypes.c_void_p(host_library.address(y)),
            ctypes.c_longlong(len(x)),
        )  # fmt: skip
        with np.errstate(all="ignore"):
            exact = getattr(np, name)(x.astype(np.float64))
            rounded = exact.astype(np.float32)
        finite = np.isfinite(rounded)
        np.testing.assert_array_equal(y[~finite], rounded[~finite], err_msg=name)
        error = np.abs(y.astype(np.float64)[finite] - exact[finite])
        assert np.all(error <= 0.9 * np.spacing(np.abs(rounded[finite]))), name
        np.testing.assert_array_equal(np.signbit(y[finite]), np.signbit(rounded[finite]), name)


def doubles(count: int, seed: int) -> np.ndarray:
    """Any patterns, usual magnitudes, arguments near 0 and 1, and the ends of every range."""
    random = np.random.default_rng(seed)
    patterns = random.integers(0, 2**64, count, dtype=np.uint64).view(np.float64)
    sizes = np.exp(random.uniform(-80, 80, count)) * random.choice([-1, 1], count)
    close = random.uniform(-0.5, 0.5, count) * 10.0 ** random.integers(-16, 0, count)
    edges = [0.0, np.inf, np.nan, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 1.0]
    edges += [709.782712893384, 709.78271289338397, 745.1332191019411, 745.2, 708.4, 37.43, 20.0]
    edges += [1 - 2.0**-53, 2.0**-54, 2.0**-28, 0.34657359027997264, 0.41421356237309503]
    parts = [patterns, random.uniform(-750, 750, count), random.uniform(-2, 2, count), sizes, close]
    return np.concatenate([*parts, 1 + close, np.array(edges), -np.array(edges)])


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("build", BUILDS)
def test_a_double_function_is_within_a_unit_in_the_last_place_of_a_sample(build, name):
    x = doubles(200, seed=FUNCTIONS.index(name))
    mine = of_double(build, name, x)
    with np.errstate(all="ignore"):
        near = getattr(np, name)(x)
    np.testing.assert_array_equal(np.isnan(mine), np.isnan(near))
    infinite = np.isinf(mine) | np.isinf(near)
    np.testing.assert_array_equal(mine[infinite], near[infinite])
    number = ~np.isnan(near)
    np.testing.assert_array_equal(np.signbit(mine[number]), np.signbit(near[number]))
    with mpmath.workprec(160):
        for at, value, close in zip(x, mine, near, strict=True):
            if np.isfinite(close):
                error = mpmath.mpf(float(value)) - getattr(mpmath, name)(mpmath.mpf(float(at)))
                assert abs(error) <= np.spacing(abs(close)), (name, at, value)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("short", ["below", "shallow"])
def test_the_short_forms_of_exp_have_its_bits_for_the_arguments_that_they_take(build, short):
    x = np.concatenate([doubles(300, seed=9), -np.geomspace(1e-3, 1e3, 3000), [np.nan]])
    for dtype, least in ((np.float32, -87), (np.float64, -708)):
        taken = x[~(x > 0) & ~((x < least) & (short == "shallow"))]
        with np.errstate(all="ignore"):
            narrow = np.append(taken, dtype(least)).astype(dtype)
        results = [np.empty_like(narrow), np.empty_like(narrow)]
        for name, y in zip((f"exp_{short}", "exp"), results, strict=True):
            getattr(library(build), f"{name}_f{8 * narrow.itemsize}")(
                ctypes.c_void_p(host_library.address(narrow)),
                ctypes.c_void_p(host_library.address(y)), ctypes.c_longlong(len(narrow)),
            )  # fmt: skip
        np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("build", BUILDS)
def test_fma_keeps_what_a_rounded_product_would_lose(build):
    """As tanh's slope wants it: 1 - h h near h = 1. In steps it is exact to the last bit or two."""
    random = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        h = (1 - random.uniform(0, 1e-3, 1000)).astype(dtype)
        one, y = np.ones_like(h), np.empty_like(h)
        minus = -h
        arrays = [ctypes.c_void_p(host_library.address(a)) for a in (minus, h, one, y)]
        getattr(library(build), f"fma_f{8 * h.itemsize}")(*arrays, ctypes.c_longlong(len(h)))
        with mpmath.workprec(200):
            exact = [float(1 - mpmath.mpf(float(number)) ** 2) for number in h]
        np.testing.assert_allclose(y, np.array(exact), rtol=np.finfo(dtype).eps)


def test_every_function_becomes_vector_code(tmp_path):
    """g++ reports each loop of tests/host_math.cpp as vectorised, for float and for double."""
    include = f"-I{host_library.KERNELS}"
    flags = (
        *host_library.FLAGS,
        include,
        "-fopt-info-vec-optimized",
        "-c",
        str(HERE / "host_math.cpp"),
    )
    command = [str(host_library.compiler()), *flags, "-o", str(tmp_path / "out.o")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    if "loop vectorized" not in said:
        pytest.skip("the compiler writes no report of loops")
    places = {line.split(": optimized")[0] for line in said.splitlines() if "vectorized" in line}
    lines = (HERE / "host_math.cpp").read_text().splitlines()
    for number, line in enumerate(lines, 1):
        if line.startswith(("FUNCTION(", 'extern "C" void')):
            rows = (f"host_math.cpp:{number}:", f"host_math.cpp:{number + 1}:")
            found = [place for place in places if any(row in place for row in rows)]
            assert found or "fma" in line, f"not vectorised: {line}"
