"""A grid search whose settings are spread over the ranks of MPI, each a fit of its own.

    mpirun -n 3 python -m mpi4py.futures examples/search_over_ranks.py

Rank 0 hands out the settings, and the others score them.
"""

from mpi4py.futures import MPIPoolExecutor
from sklearn.datasets import load_digits
from sklearn.model_selection import ParameterGrid, cross_val_score

from gpubackprop.sklearn import MLPClassifier

GRID = {"hidden_layer_sizes": [(16,), (32,), (64,)], "alpha": [1e-4, 1e-2, 0.1, 1.0]}


def score(settings):
    X, y = load_digits(return_X_y=True)
    net = MLPClassifier(random_state=0, max_iter=30, tol=1e-2, device="cpu", **settings)
    return cross_val_score(net, X / 16, y, cv=3).mean()


if __name__ == "__main__":
    settings = list(ParameterGrid(GRID))
    with MPIPoolExecutor() as ranks:
        scores = list(ranks.map(score, settings))
    best = max(range(len(scores)), key=scores.__getitem__)
    print(f"best of {len(settings)} settings: {settings[best]}, accuracy {scores[best]:.4f}")
