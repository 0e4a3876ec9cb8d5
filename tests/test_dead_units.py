"""A dead relu unit passes nothing on, not even a gradient that is not finite, as in PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.ways import activation_backward

pytestmark = pytest.mark.usefixtures("way")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("columns", [1, 3, 8, 67])
def test_an_infinite_gradient_ends_at_a_dead_unit_and_passes_a_live_one(columns, dtype):
    rng = np.random.default_rng(columns)
    a = rng.normal(size=(9, columns)).astype(dtype)
    a[0] = 0.0
    gradient = rng.choice([np.inf, -np.inf, np.nan, 1.5, -2.0], a.shape).astype(dtype)
    t = torch.tensor(a, requires_grad=True)
    torch.relu(t).backward(torch.tensor(gradient))
    h = np.maximum(a, 0)
    np.testing.assert_array_equal(activation_backward(gradient, h, "relu"), t.grad.numpy())
    out = gradient.copy()
    np.testing.assert_array_equal(activation_backward(out, h, "relu", out=out), t.grad.numpy())
