"""Grid search over a pipeline, before and after the change of one import.

The program below was written for scikit-learn: it loads the bundled digits, scales them, trains a
multi-layer perceptron, and cross-validates penalty and width. This file runs it with scikit-learn's
class and with this package's. Both find the same scores, and it prints the times.

    python examples/sklearn_grid_search.py [--rows 1797] [--epochs 60] [--jobs 1] [--device auto]
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import numpy as np
import sklearn.neural_network
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gpubackprop.sklearn

GRID = {
    "mlpclassifier__alpha": [1e-4, 1e-2, 1.0],
    "mlpclassifier__hidden_layer_sizes": [(32,), (128,)],
}


def search(classifier: Any, x: np.ndarray, y: np.ndarray, jobs: int) -> GridSearchCV:
    """Search with any classifier: the program does not know whose it is."""
    pipeline = make_pipeline(StandardScaler(), classifier)
    return GridSearchCV(pipeline, GRID, cv=3, n_jobs=jobs).fit(x, y)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Grid search before and after.")
    parser.add_argument("--rows", type=int, default=1797, help="rows of the digits (default all)")
    parser.add_argument("--epochs", type=int, default=60, help="epochs of each fit")
    parser.add_argument("--jobs", type=int, default=1, help="processes of the search")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore", ConvergenceWarning)  # a few epochs do not converge

    x, y = load_digits(return_X_y=True)
    x, y = x[: options.rows], y[: options.rows]
    settings = {"max_iter": options.epochs, "random_state": 0}
    before = sklearn.neural_network.MLPClassifier(**settings)
    after = gpubackprop.sklearn.MLPClassifier(**settings, device=options.device)

    seconds, found = [], []
    for name, classifier in (("scikit-learn", before), ("gpubackprop", after)):
        started = time.perf_counter()
        found.append(search(classifier, x, y, options.jobs))
        seconds.append(time.perf_counter() - started)
        device = getattr(found[-1].best_estimator_[-1], "device_", "cpu")
        print(
            f"{name:13} on {device}: {seconds[-1]:.2f} s, best accuracy "
            f"{found[-1].best_score_:.4f} with {found[-1].best_params_}"
        )
    scores = [search.cv_results_["mean_test_score"] for search in found]
    print(f"time ratio {seconds[1] / seconds[0]:.2f}, largest difference of a score "
          f"{np.abs(scores[0] - scores[1]).max():.1e}")  # fmt: skip


if __name__ == "__main__":
    main()
