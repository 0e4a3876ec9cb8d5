"""The kernel that kernels/README.md begins with. The package never launches it: it is no row of
`cupy_launch.KERNELS`, and the tests that walk that table name it from here."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray
SOURCE, ENTRY = "naive_softmax_cross_entropy.cu", "naive_softmax_cross_entropy_f32"
THREADS = 128


def launch(z: Array, y: Array, row_loss: Array, delta: Array) -> tuple[Any, ...]:
    """(entry, grid, block, arguments), a thread to a row."""
    rows, cols = z.shape
    arguments = (z, y, row_loss, delta, np.int64(rows), np.int64(cols))
    return ENTRY, (-(-rows // THREADS),), (THREADS,), arguments
