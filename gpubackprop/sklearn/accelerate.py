"""A program written for scikit-learn, with the two classes exchanged while it runs."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from sklearn.utils.validation import _num_samples

from gpubackprop.sklearn import report
from gpubackprop.sklearn.classifier import MLPClassifier
from gpubackprop.sklearn.convert import ORIGINALS
from gpubackprop.sklearn.regressor import MLPRegressor

EXCHANGED = {
    ORIGINALS["MLPClassifier"]: MLPClassifier,
    ORIGINALS["MLPRegressor"]: MLPRegressor,
}


@contextlib.contextmanager
def accelerate(verbose: bool = True) -> Iterator[report.Report]:
    """Exchange scikit-learn's MLPClassifier and MLPRegressor for this package's.

    Inside the context every module has the exchanged classes, those that have imported the names
    before included; afterwards these are what they were, and modules first imported inside keep
    the exchanged ones. Yields the `Report` of what was fitted
    where, joblib's processes included; it is printed to stderr at the end if `verbose`. A fit that
    scikit-learn's own code does after all (an estimator made or unpickled before, a subclass) is
    listed as such.

    >>> import sklearn.neural_network as nn
    >>> with accelerate(verbose=False) as fits:
    ...     _ = nn.MLPRegressor(max_iter=500, tol=1.0, device="cpu").fit([[0.0], [1.0]], [0.0, 1.0])
    >>> fits.rows[0]["device"], fits.rows[0]["rows"]
    ('cpu', 2)
    """
    fits = report.Report()
    with contextlib.ExitStack() as stack:
        path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "fits.jsonl")
        for original in EXCHANGED:
            stack.enter_context(_binding(original, "fit", _observed(original.fit)))
        for module, name, ours in _bindings():
            stack.enter_context(_binding(module, name, ours))
        before = os.environ.get(report.VARIABLE)
        os.environ[report.VARIABLE] = path  # inherited by the processes of joblib
        try:
            yield fits
        finally:
            os.environ.pop(report.VARIABLE)
            if before is not None:
                os.environ[report.VARIABLE] = before
            fits.read(path)
            if verbose:
                print(fits, file=sys.stderr)


@contextlib.contextmanager
def _binding(owner: Any, name: str, value: Any) -> Iterator[None]:
    """owner.name = value for a time; what was there, or inherited, comes back."""
    absent = object()
    before = vars(owner).get(name, absent)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is absent:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _bindings() -> list[tuple[Any, str, Any]]:
    """(module, name, class of this package) wherever a name is bound to one of scikit-learn's."""
    ours = {id(original): exchanged for original, exchanged in EXCHANGED.items()}
    return [
        (module, key, ours[id(value)])
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] != "gpubackprop" and hasattr(module, "__dict__")
        for key, value in list(vars(module).items())
        if id(value) in ours
    ]


def _observed(fit: Any) -> Any:
    """`fit` of scikit-learn's own class, which then tells the report."""

    @functools.wraps(fit)
    def observed(self: Any, X: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = fit(self, X, *args, **kwargs)
        shape = (_num_samples(X), self.n_features_in_)
        report.add(self, shape, time.perf_counter() - started)
        return result

    return observed
