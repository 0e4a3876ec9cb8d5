"""Permutation importance: by how much a score falls if the values of one column are shuffled."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
SECONDS = 5.0  # about so long may it take


class Importance(NamedTuple):
    """By how much the score falls: the mean over the shuffles, and their standard deviation."""

    mean: float
    deviation: float


def permutation_importance(
    score: Callable[[Array], float],
    x: Array,
    groups: Mapping[str, Sequence[int]],
    *,
    repeats: int = 10,
    seed: int = 0,
    seconds: float = SECONDS,
) -> dict[str, Importance]:
    """Return by how much the score falls for each column.

    Parameters
    ----------
    score : callable
        ``score(x)`` is better if it is larger, such as an accuracy.
    x : (N, D) array
        Rows that were not learned from.
    groups : mapping
        From the name of a column to the numbers of the columns of x that it became, which are
        shuffled together.
    repeats : int
        Shuffles of each column; fewer if they would take longer than `seconds`.
    seed : int
        Seed of the shuffles.
    seconds : float
        About so long may it take. If one shuffle of each column takes longer, nothing is measured.

    Returns
    -------
    dict
        By the names of the columns, the largest mean first; empty if nothing was measured.

    References
    ----------
    L. Breiman, "Random forests", 2001.

    Examples
    --------
    >>> x = np.array([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    >>> found = permutation_importance(
    ...     lambda x: float(-np.square(x[:, 0] - range(4)).mean()), x, {"a": [0], "b": [1]}
    ... )
    >>> found["a"].mean > 1, found["b"].mean
    (True, 0.0)
    """
    began = time.perf_counter()
    whole = score(x)
    each = time.perf_counter() - began
    affordable = int(seconds / max(each * max(len(groups), 1), 1e-9))
    repeats = min(repeats, affordable)
    if repeats < 1 or len(x) < 2:
        return {}
    rng, shuffled = np.random.default_rng(seed), x.copy()
    found = {}
    for name, columns in groups.items():
        picked = list(columns)
        falls = []
        for _ in range(repeats):
            shuffled[:, picked] = x[rng.permutation(len(x))][:, picked]
            falls.append(whole - score(shuffled))
        shuffled[:, picked] = x[:, picked]
        found[name] = Importance(float(np.mean(falls)), float(np.std(falls)))
    return dict(sorted(found.items(), key=lambda item: -item[1].mean))
