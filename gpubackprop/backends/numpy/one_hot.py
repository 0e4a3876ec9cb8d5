"""The operations on one-hot inputs of the NumPy backend: columns of W by number."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gpubackprop.backends.base import Backend

Array = np.ndarray
ROWS = 256  # of `add_columns` at a time


class OneHotOperations(Backend):
    """`one_hot_forward` and `one_hot_backward` of `NumpyBackend`.

    Unlike other operations they take memory while they run: about twice that of delta.
    """

    _call: Callable[..., None]

    def one_hot_forward(self, codes: Array, W: Array, a: Array, *, add: bool) -> None:
        self._call(add_columns, codes, W, a, add)

    def one_hot_backward(
        self, delta: Array, codes: Array, groups: tuple[tuple[int, int], ...], grad_W: Array
    ) -> None:
        self._call(sum_by_code, delta, codes, groups, grad_W)


def add_columns(codes: Array, W: Array, a: Array, add: bool) -> None:
    """Set or increase a[i] by the sum of W[:, codes[i, g]], group by group.

    What is taken has a row for each unit; blocks of rows of `a` stay in the cache beside it.
    """
    if not add:
        a[...] = 0
    for start in range(0, len(a), ROWS):
        block = a[start : start + ROWS]
        for code in codes[start : start + ROWS].T:
            known = code >= 0
            if known.all():
                block += W.take(code, 1).T
            else:
                block[known] += W.take(code[known], 1).T


def sum_by_code(
    delta: Array, codes: Array, groups: tuple[tuple[int, int], ...], grad_W: Array
) -> None:
    """Set grad_W[:, j] to the sum of delta[i] over the rows of code j, added in float64.

    Rows are sorted by their code without changing the order of those of one code.
    """
    for code, (first, stop) in zip(codes.T, groups, strict=True):
        grad_W[:, first:stop] = 0
        order = np.argsort(code, kind="stable")
        order = order[np.searchsorted(code, 0, sorter=order) :]
        if not len(order):
            continue
        code = code[order]
        begins = np.flatnonzero(np.concatenate([[True], code[1:] != code[:-1]]))
        sums = np.add.reduceat(delta.take(order, 0), begins, 0, np.float64)
        grad_W[:, code[begins]] = sums.T
