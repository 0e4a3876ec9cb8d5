"""The project's tolerance, in one place.

    error(ours, oracle) <= max(error(PyTorch in the same dtype, oracle), 1 unit)

The oracle is float64: PyTorch in float64, or a closed form. `error` is the largest absolute error
of a tensor relative to the oracle's largest magnitude; a unit is the output type's epsilon (2^-23
in float32, one unit in the last place of 1.0), so that a power of two in the data changes nothing.
An update of the parameters feels that norm. It is fair to both sides: an element that is a
difference of large numbers need not have digits that no float32 formula has.
If every row (softmax) or every element (a function of one number) has a scale of its own,
`scale="rows"` or `"elements"` takes the unit from there; the largest count is compared.

Each known shortfall is named where it is used, with the largest error seen. The CUDA kernels
(emulated; not measured on a GPU) have these: four activations (1.6 units), the gradient through a
soft cap (1.4), and single draws of a softmax cross entropy of few rows (2.7), whose mean over draws
keeps the rule.

NaN and infinities must be in the same places, with the same sign, as in PyTorch's result of the
same dtype. They do not enter the comparison.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

Scale = Literal["tensor", "rows", "elements"]
UNITS = {  # epsilon, and the smallest subnormal, which is the least distance of two numbers
    "float16": (2.0**-10, 2.0**-24),
    "bfloat16": (2.0**-7, 2.0**-133),
    "float32": (2.0**-23, 2.0**-149),
    "float64": (2.0**-52, 2.0**-1074),
}


def ulps(got: Any, oracle: Any, dtype: Any, scale: Scale = "tensor") -> float:
    """Return the largest error of `got` in units of `dtype`: epsilon times the oracle's magnitude."""
    got, oracle = np.asarray(got, np.float64), np.asarray(oracle, np.float64)
    finite = np.isfinite(got) & np.isfinite(oracle)
    error = np.abs(np.where(finite, got, 0.0) - np.where(finite, oracle, 0.0))
    size = np.abs(np.where(finite, oracle, 0.0))
    if scale == "rows" and size.ndim == 2:
        size = size.max(1, keepdims=True, initial=0.0)
    elif scale != "elements":
        size = size.max(initial=0.0)
    epsilon, smallest = UNITS[np.dtype(dtype).name]
    return float((error / np.maximum(size * epsilon, smallest)).max(initial=0.0))


def assert_same_pattern(got: Any, reference: Any) -> None:
    """Assert that NaN, +inf and -inf are in the same places."""
    got, reference = np.asarray(got, np.float64), np.asarray(reference, np.float64)
    assert got.shape == reference.shape
    for name, test in (("NaN", np.isnan), ("+inf", np.isposinf), ("-inf", np.isneginf)):
        places = np.argwhere(test(got) != test(reference))
        assert not len(places), (
            f"{name} differs at {places[:5].tolist()}: got {got[tuple(places[0])]}, "
            f"reference {reference[tuple(places[0])]}"
        )


def assert_by_the_rule(
    got: Any, torch_result: Any, oracle: Any, *, scale: Scale = "tensor", primitive: float = 1.0
) -> None:
    """Assert the rule of this module's docstring.

    `primitive` replaces the 1 unit if NumPy's own exp, log or tanh is less accurate than PyTorch's
    and nothing else is the cause. Each use is a known shortfall and says so.
    """
    got = np.asarray(got)
    assert_same_pattern(got, torch_result)
    ours = ulps(got, oracle, got.dtype, scale)
    theirs = ulps(torch_result, oracle, got.dtype, scale)
    assert ours <= max(theirs, primitive), (
        f"{ours:.3f} units, PyTorch {theirs:.3f}, allowed {primitive} ({scale})"
    )


def assert_equal_in_float64(got: Any, oracle: Any, relative: float = 1e-14) -> None:
    """Assert a largest error of `relative` times the largest magnitude; NaN and infinities in place."""
    got = np.asarray(got)
    assert got.dtype == np.float64
    assert_same_pattern(got, oracle)
    error = ulps(got, oracle, np.float64) * 2.0**-52
    assert error <= relative, f"relative error {error:.2e}, wanted {relative:.0e}"


class Draws:
    """The rule over several draws of the data, for results that are sums of many roundings.

    In one draw, chance decides which of two orders of summation comes out better. In the mean over
    the draws it decides little, and how little the draws themselves say: ours may exceed PyTorch's
    by twice the standard error of the mean difference. Without that, which of two equally good
    libraries passes would depend on the BLAS of the machine.
    """

    def __init__(self) -> None:
        self.ours: list[float] = []
        self.theirs: list[float] = []

    def add(self, got: Any, torch_result: Any, oracle: Any, scale: Scale = "tensor") -> None:
        got = np.asarray(got)
        assert_same_pattern(got, torch_result)
        self.ours.append(ulps(got, oracle, got.dtype, scale))
        self.theirs.append(ulps(torch_result, oracle, got.dtype, scale))

    def check(self, primitive: float = 1.0) -> None:
        """Assert the rule for the mean; `primitive` as in `assert_by_the_rule`."""
        ours, theirs, count = np.mean(self.ours), np.mean(self.theirs), len(self.ours)
        difference = np.subtract(self.ours, self.theirs)
        chance = 2 * difference.std(ddof=1) / count**0.5 if count > 1 else 0.0
        assert ours <= max(theirs + chance, primitive), (
            f"{ours:.3f} units in the mean of {count} draws, PyTorch {theirs:.3f}, "
            f"chance {chance:.3f}, allowed {primitive}"
        )

    def check_each(self, chance: float = 2.0) -> None:
        """Assert `chance` times what the rule allows for each draw alone, in which chance takes part."""
        for one, other in zip(self.ours, self.theirs, strict=True):
            assert one <= chance * max(other, 1.0), (
                f"{one:.3f} units in one draw, PyTorch {other:.3f}, allowed {chance} times"
            )
