"""Seeded split of rows into a training and a test part, by class or by group."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpubackprop.data.frames import as_targets
from gpubackprop.data.labels import resolve_labels
from gpubackprop.errors import DataError, OptionError, ShapeError

Rows = npt.NDArray[np.int64]


def split_rows(
    n: int, fraction: float, seed: int, stratify: npt.ArrayLike | None = None
) -> tuple[Rows, Rows]:
    """Split the rows 0 .. n-1 into a training and a test part; the indices of both are ascending.

    They are ascending so that a memory-mapped file is read from front to back; the trainer shuffles
    the rows of each epoch. The same arguments give the same split.

    Parameters
    ----------
    n : int
        Number of rows, 2 or more.
    fraction : float
        Share of the rows that goes to the test part, above 0 and below 1. The number of test rows
        is round(n * fraction).
    seed : int
        Seed of numpy.random.default_rng, 0 or more.
    stratify : (n,) array-like or None
        Class of every row. Each class is then split by `fraction`; the rows left over go to the
        classes of the largest remainders. Each class of two rows or more keeps a row in both parts,
        for which the test part may differ from round(n * fraction). A class of one row goes to the
        training part.

    Returns
    -------
    train_rows : (n_train,) int64 array
        Ascending indices.
    test_rows : (n_test,) int64 array
        Ascending indices.

    Raises
    ------
    OptionError
        `fraction` is outside (0, 1) or leaves a part empty, or `seed` is below 0.
    ShapeError
        `stratify` is not (n,).
    DataError
        n < 2, no class has two rows, or a row has no class.

    Examples
    --------
    >>> train, test = split_rows(10, 0.2, seed=0, stratify=[0] * 5 + [1] * 5)
    >>> print(train.size, (test < 5).sum(), (test >= 5).sum())
    8 1 1
    """
    if n < 2:
        raise DataError(f"{n} rows cannot be split into a training and a test part; 2 are needed")
    if not 0 < fraction < 1:
        raise OptionError(f"fraction is {fraction}; the share of test rows lies between 0 and 1")
    if seed < 0:
        raise OptionError(f"seed is {seed}; it must be 0 or more")
    order = np.random.default_rng(seed).permutation(n)
    wanted = round(n * fraction)
    if not 0 < wanted < n:
        part = "test" if wanted == 0 else "training"
        raise OptionError(
            f"fraction {fraction} of {n} rows leaves the {part} part empty; "
            f"use a fraction from {1 / n:.3g} to {1 - 1 / n:.3g}"
        )
    in_test = np.zeros(n, dtype=bool)
    if stratify is None:
        in_test[order[:wanted]] = True
    else:
        in_test[_stratified(order, _classes(stratify), fraction, wanted)] = True
    return np.flatnonzero(~in_test).astype(np.int64), np.flatnonzero(in_test).astype(np.int64)


def split_groups(groups: npt.ArrayLike, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Split rows so that all rows of a group are in one part; the indices of both are ascending.

    Groups go to the test part in a random order, as long as that brings its number of rows nearer
    to the wanted one.

    Parameters
    ----------
    groups : (n,) array-like
        Group of every row.
    fraction : float
        Share of the rows that goes to the test part, above 0 and below 1.
    seed : int
        Seed of numpy.random.default_rng, 0 or more.

    Returns
    -------
    train_rows : (n_train,) int64 array
        Ascending indices.
    test_rows : (n_test,) int64 array
        Ascending indices.

    Raises
    ------
    OptionError
        `fraction` is outside (0, 1).
    DataError
        There are fewer than two groups.

    Examples
    --------
    >>> train, test = split_groups(["a", "b", "a", "c"], 0.5, seed=1)
    >>> sorted([len(train), len(test)])
    [2, 2]
    """
    if not 0 < fraction < 1:
        raise OptionError(f"fraction is {fraction}; the share of test rows lies between 0 and 1")
    _, codes, counts = np.unique(
        np.asarray(_classes(groups)), return_inverse=True, return_counts=True
    )
    if len(counts) < 2:
        raise DataError(
            f"{len(counts)} group cannot be split into a training and a test part; 2 are needed"
        )
    wanted, taken = fraction * len(codes), 0
    in_test = np.zeros(len(counts), bool)
    for group in np.random.default_rng(seed).permutation(len(counts)):
        nearer = abs(taken + counts[group] - wanted) < abs(taken - wanted)
        if (nearer or not in_test.any()) and in_test.sum() < len(counts) - 1:
            in_test[group] = True
            taken += counts[group]
    return np.flatnonzero(~in_test[codes]), np.flatnonzero(in_test[codes])


def _classes(stratify: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return the class of every row; objects become text or numbers, which can be sorted."""
    classes = as_targets(stratify, "stratify")
    objects = classes.dtype == object and classes.ndim == 1
    return resolve_labels(classes, "stratify") if objects else classes


def _stratified(order: Rows, classes: npt.NDArray[Any], fraction: float, wanted: int) -> Rows:
    """Return the test rows: of each class the first in `order`, as many as `_test_counts` says."""
    if classes.shape != order.shape:
        raise ShapeError(
            f"stratify has shape {classes.shape}; it wants one class per row, {order.shape}"
        )
    _, codes, counts = np.unique(classes, return_inverse=True, return_counts=True)
    if counts.max() < 2:
        raise DataError(
            f"all {counts.size} classes have one row, so none can be in both parts; "
            "split without stratify, or check that the target holds classes"
        )
    by_class = order[np.argsort(codes[order], kind="stable")]
    rank = np.arange(order.size) - np.repeat(np.cumsum(counts) - counts, counts)
    return by_class[rank < np.repeat(_test_counts(counts, fraction, wanted), counts)]


def _test_counts(counts: npt.NDArray[np.intp], fraction: float, wanted: int) -> Rows:
    """Return test rows per class, near counts * fraction and in [1, count - 1] if count > 1.

    Their sum is `wanted` unless the bounds forbid it.
    """
    ideal = counts * fraction
    low, high = np.minimum(counts - 1, 1), counts - 1
    test = np.clip(np.floor(ideal).astype(np.int64), low, high)
    while (lack := wanted - int(test.sum())) != 0:
        step = 1 if lack > 0 else -1
        movable = np.flatnonzero(test < high if step > 0 else test > low)
        if movable.size == 0:
            break
        need = step * (ideal - test)[movable]
        test[movable[np.argsort(-need, kind="stable")[: abs(lack)]]] += step
    return test
