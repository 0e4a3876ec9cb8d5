"""The folds of a cross-validation: seeded, by class or by group."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpubackprop.errors import DataError

Numbers = npt.NDArray[np.int64]


def fold_numbers(
    n: int,
    folds: int,
    seed: int,
    classes: npt.NDArray[np.generic] | None = None,
    groups: npt.NDArray[np.generic] | None = None,
) -> Numbers:
    """Return the fold of each row, from 0 to `folds` - 1; sizes differ by at most one row.

    With `classes`, the numbers of rows of each class in the folds differ by at most one too. With
    `groups`, the rows of a group are in one fold: the largest groups are placed first, each where
    there are the fewest rows so far.

    Parameters
    ----------
    n : int
        Number of rows.
    folds : int
        Number of folds, 2 or more.
    seed : int
        Seed of numpy.random.default_rng, 0 or more.
    classes : (n,) array or None
        Class of every row.
    groups : (n,) array or None
        Group of every row.

    Returns
    -------
    (n,) int64 array
        The fold in which each row is scored.

    Raises
    ------
    DataError
        There are fewer rows, or fewer groups, than folds.

    Examples
    --------
    >>> found = fold_numbers(6, 3, seed=0, classes=np.array([0, 0, 0, 1, 1, 1]))
    >>> sorted(found[:3].tolist()), sorted(found[3:].tolist())
    ([0, 1, 2], [0, 1, 2])
    """
    order = np.random.default_rng(seed).permutation(n)
    result = np.empty(n, np.int64)
    if groups is not None:
        _, codes, counts = np.unique(groups, return_inverse=True, return_counts=True)
        if len(counts) < folds:
            raise DataError(f"{len(counts)} groups are fewer than {folds} folds")
        rank = np.random.default_rng(seed).permutation(len(counts))
        taken, of_group = np.zeros(folds, np.int64), np.empty(len(counts), np.int64)
        for group in rank[np.argsort(-counts[rank], kind="stable")]:
            of_group[group] = taken.argmin()
            taken[of_group[group]] += counts[group]
        return of_group[codes]
    if n < folds:
        raise DataError(f"{n} rows are fewer than {folds} folds")
    if classes is not None:  # one class after another, so that each is dealt out evenly
        order = order[np.argsort(classes[order], kind="stable")]
    result[order] = np.arange(n) % folds
    return result
