"""Operations for which CuPy's own elementwise kernels are as good: no reuse, no tuned reduction.

None of these is in the steady loop of a plain training step. Output functions belong to prediction,
`standardize` to training with a per-batch standardizer, the rest to sums instead of means.
"""

from __future__ import annotations

from functools import cache
from typing import Any

# name: inputs, outputs, operation
KERNELS = {
    "add_scaled": ("T x, T scale, T y", "T out", "out = y + scale * x"),
    "divide": ("T x, float64 divisor", "T out", "out = T(x / T(divisor))"),
    "exponential": ("T a", "T out", "out = exp(a)"),
    # In float64, as in `Standardizer.transform`: float32 would lose the digits of 1e8 + small.
    "standardize": (
        "S raw, float64 mean, float64 scale", "T out", "out = T((double(raw) - mean) / scale)"
    ),
}  # fmt: skip


@cache
def kernel(cupy: Any, name: str) -> Any:
    """Return CuPy's kernel of that name, compiled at its first call for each pair of dtypes."""
    inputs, outputs, operation = KERNELS[name]
    return cupy.ElementwiseKernel(inputs, outputs, operation, f"gpubackprop_{name}")
