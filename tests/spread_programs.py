"""Searches that ranks run: ``mpiexec -n 2 python -m tests.spread_programs NAME FILE``."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import BaggingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV

from gpubackprop.distributed import Alone, Communicator, join
from gpubackprop.sklearn import MLPClassifier, spread
from tests.ranks_programs import some_rows

GRID = {"alpha": [1e-4, 0.1], "hidden_layer_sizes": [(4,), (6,)]}
warnings.simplefilter("ignore", ConvergenceWarning)


class Noting(ClassifierMixin, BaseEstimator):
    """A classifier that notes on which rank it is fitted, and fails if told so."""

    here: ClassVar[dict[int, list[Any]]] = {}  # by rank: what was fitted there
    rank = staticmethod(lambda: join("auto").rank)

    def __init__(self, value: float = 0.0) -> None:
        self.value = value

    def fit(self, X: Any, y: Any) -> Noting:
        self.here.setdefault(self.rank(), []).append(self.value)
        if self.value < 0:
            raise ValueError(f"{self.value} is no value")
        self.classes_ = np.unique(y)
        return self

    def predict(self, X: Any) -> Any:
        return np.where(X[:, 0] > self.value, self.classes_[-1], self.classes_[0])


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [str(each) for each in column]
        for name, column in results.items()
        if "_time" not in name
    }


def searched(ranks: Communicator | str | None) -> dict[str, Any]:
    """Search over networks; return what the search found."""
    X, y = some_rows()
    net = MLPClassifier(max_iter=5, random_state=0, device="cpu")
    with spread(ranks):
        search = GridSearchCV(net, GRID, cv=3, return_train_score=True).fit(X, y)
        bag = BaggingClassifier(net, n_estimators=5, random_state=1).fit(X, y)
    return {
        "results": without_times(search.cv_results_),
        "best": str(search.best_params_),
        "predicted": search.predict(X).tolist(),
        "bagged": bag.predict_proba(X).tolist(),
        "alone": isinstance(join("auto"), Alone),
    }


def search(file: str) -> None:
    """Every rank writes what it found, and what was fitted there."""
    found = searched("auto")
    with spread():
        GridSearchCV(Noting(), {"value": [0.0, 1.0, 2.0]}, cv=2, refit=False).fit(*some_rows())
    found["fitted here"] = Noting.here[join("auto").rank]
    Path(f"{file}.{join('auto').rank}").write_text(json.dumps(found))


def fail(file: str) -> None:
    """The third fit, which is rank 0's, and no other fails."""
    settings = {"value": [0.0, -1.0, 1.0]}
    with spread():
        GridSearchCV(Noting(), settings, cv=2, error_score="raise").fit(*some_rows())


def one_searches(file: str) -> None:
    """Rank 1 does not search."""
    if join("auto").rank == 0:
        with spread():
            GridSearchCV(Noting(), {"value": [0.0, 1.0]}, cv=2).fit(*some_rows())


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
