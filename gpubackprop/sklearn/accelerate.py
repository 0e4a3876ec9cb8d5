"""Run a program that was written for scikit-learn with this package's two classes."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
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

    Inside the context every module has this package's classes, even if it has imported the names
    before. Afterwards the names are restored; modules that were first imported inside keep this
    package's classes. If scikit-learn's own code does fit after all (an estimator that was made
    before, an unpickled one, a subclass), the report says so.

    Other processes, such as joblib's, fit and report the estimators that they receive. What they
    import from scikit-learn themselves is not exchanged there, and not reported.

    Parameters
    ----------
    verbose : bool
        Whether to print the report to stderr at the end.

    Yields
    ------
    Report
        The list of fits, with the device of each.

    Examples
    --------
    >>> import sklearn.neural_network as nn
    >>> with accelerate(verbose=False) as fits:
    ...     _ = nn.MLPRegressor(max_iter=500, tol=1.0, device="cpu").fit([[0.0], [1.0]], [0.0, 1.0])
    >>> fits.rows[0]["device"], fits.rows[0]["rows"]
    ('cpu', 2)
    """
    fits = report.Report()
    with contextlib.ExitStack() as stack:
        path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "fits.jsonl")
        for original, verb in itertools.product(EXCHANGED, ("fit", "partial_fit")):
            observed = Observed(inspect.getattr_static(original, verb))
            stack.enter_context(_binding(original, verb, observed))
        for module, name, ours in _bindings():
            stack.enter_context(_binding(module, name, ours))
        try:
            with report.collecting(path):
                yield fits
        finally:
            fits.read(path)
            if verbose:
                print(fits, file=sys.stderr)


@contextlib.contextmanager
def _binding(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set owner.name = value for a time; afterwards restore what was there, or inherited."""
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
    """List (module, name, class of this package) for each name of one of scikit-learn's classes.

    The modules that define scikit-learn's classes are excluded: pickle finds the class of
    scikit-learn's estimators there.
    """
    ours = {id(original): exchanged for original, exchanged in EXCHANGED.items()}
    home = {original.__module__ for original in EXCHANGED}
    return [
        (module, key, ours[id(value)])
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] != "gpubackprop" and name not in home
        if hasattr(module, "__dict__")
        for key, value in list(vars(module).items())
        if id(value) in ours
    ]


class Observed:
    """`fit` or `partial_fit` of scikit-learn's own class, which then adds to the report.

    Parameters
    ----------
    verb : object
        The attribute as it is in the class: a function, or the descriptor that hides it from
        "lbfgs".
    """

    def __init__(self, verb: Any) -> None:
        self.verb = verb

    def __get__(self, estimator: Any, owner: type) -> Any:
        fit = self.verb.__get__(estimator, owner)
        if estimator is None:
            return fit

        @functools.wraps(fit)
        def observed(X: Any, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = fit(X, *args, **kwargs)
            shape = (_num_samples(X), estimator.n_features_in_)
            report.add(estimator, shape, time.perf_counter() - started)
            return result

        return observed
