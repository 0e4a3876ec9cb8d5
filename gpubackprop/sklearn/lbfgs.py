"""Training on all rows at once by SciPy's L-BFGS-B."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning

from gpubackprop.network import MLP
from gpubackprop.sklearn.fit_tasks import FitTasks
from gpubackprop.sklearn.host import source_of
from gpubackprop.sklearn.objective import Objective
from gpubackprop.sklearn.parameters import warn
from gpubackprop.sklearn.stored import replace_parameters
from gpubackprop.training.batch_step import GradientStep, StepOptions
from gpubackprop.training.batches import Batches

Array = np.ndarray
_STOPPED = 99  # SciPy's status after a StopIteration


class LossAndGradient:
    """Loss and gradient as functions of all parameters, packed as scikit-learn packs them.

    The coefs (D_{l-1}, D_l) of all layers come first, then the intercepts.

    Parameters
    ----------
    network : MLP
        The network.
    objective : Objective
        Its loss.
    data : Batches
        Inputs and targets, on the network's device.
    y : (N, K) array
        Targets as the estimator encodes them.
    weights : (N,) array or None
        Factor of each row.
    alpha : float
        L2 penalty, divided by the sum of the weights.

    Attributes
    ----------
    point : array or None
        The parameters of the last call.
    probabilities : dtype
        That of scikit-learn's probabilities, by which the loss of a classifier's rows is bounded.
    """

    def __init__(
        self,
        network: MLP,
        objective: Objective,
        data: Batches,
        y: Array,
        weights: Array | None,
        alpha: float,
    ) -> None:
        self.network, self.objective, self.y, self.weights = network, objective, y, weights
        backend, layout, rows = network.backend, network.layout, len(data)
        self._flat = np.zeros(layout.size, network.dtype)
        self.point: Array | None = None
        self.probabilities = network.dtype
        total = float(rows if weights is None else weights.sum(dtype=np.float64))
        self._l2 = alpha / total
        self._shares = self._placed = None
        if weights is not None:
            self._shares = weights / total
            self._placed = backend.asarray(self._shares, network.dtype)
        options = StepOptions(record=objective.record, weighted=weights is not None, whole=True)
        source = source_of(network, data)
        self._step = GradientStep(network, objective.loss(), source, rows, options)

    def __call__(self, packed: Array) -> tuple[float, Array]:
        network, step = self.network, self._step
        self.point = packed.copy()
        self.unpack(packed)
        record = network.backend.to_host(step.run(weights=self._placed).record)
        values = self.objective.row_values(record, self.y, self._shares, self.probabilities)
        value = float(values.mean() if self._shares is None else values @ self._shares)
        weights = self._flat[: network.layout.weights_end]
        gradient = network.backend.to_host(step.gradient).astype(np.float64)
        gradient[: len(weights)] += self._l2 * weights
        return value + 0.5 * self._l2 * float(np.dot(weights, weights)), self.pack(gradient)

    def pack(self, flat: Array) -> Array:
        """Return the flat buffer of the network's layout as the vector that SciPy sees."""
        W, b = self.network.layout.views(flat)
        return np.concatenate([view.T.ravel() for view in W] + list(b))

    def arrays(self) -> tuple[list[Array], list[Array]]:
        """Return the network's parameters as coefs_ and intercepts_, in memory of their own."""
        W, b = self.network.layout.views(self._flat)
        return [view.T.copy("C") for view in W], [view.copy() for view in b]

    def unpack(self, packed: Array) -> None:
        """Set the network's parameters from that vector."""
        start = 0
        W, b = self.network.layout.views(self._flat)
        for view in W:
            view[...] = packed[start : start + view.size].reshape(view.shape[::-1]).T
            start += view.size
        for view in b:
            view[...] = packed[start : start + view.size]
            start += view.size
        self.network.backend.from_host(self._flat, self.network.parameters)


def fit_lbfgs(
    estimator: Any, function: LossAndGradient, dtype: np.dtype, tasks: FitTasks | None = None
) -> None:
    """Minimise; set n_iter_, loss_, coefs_ and intercepts_. `dtype` is that of X."""
    e = estimator
    options: dict[str, Any] = {"maxfun": e.max_fun, "maxiter": e.max_iter, "gtol": e.tol}
    if tuple(int(part) for part in scipy.__version__.split(".")[:2]) < (1, 15):
        options["iprint"] = 1 if e.verbose else -1
    start = np.concatenate(
        [coef.ravel() for coef in e.coefs_] + [np.ravel(b) for b in e.intercepts_]
    )
    wide = function.probabilities = np.result_type(dtype, start.dtype)
    loss_type = function.objective.reported_type(wide, function.y, function.weights)
    after = None if tasks is None else _Iterations(e, function, tasks)
    try:
        result = minimize(
            function, start, method="L-BFGS-B", jac=True, options=options, callback=after
        )
        e.n_iter_, e.loss_, end = _iterations(result, e.max_iter), loss_type(result.fun), result.x
    except BaseException:  # after Ctrl-C the parameters learned so far stay, as in scikit-learn
        end = start if function.point is None else function.point
        raise
    finally:
        function.unpack(end)
        replace_parameters(e, *function.arrays())


class _Iterations:
    """SciPy's callback: the tasks of the iterations, for scikit-learn's callbacks."""

    def __init__(self, estimator: Any, function: LossAndGradient, tasks: FitTasks) -> None:
        self.estimator, self.function, self.tasks = estimator, function, tasks
        estimator.n_iter_ = 0
        tasks.begin_epoch()

    def __call__(self, intermediate_result: Any) -> None:
        e, point = self.estimator, intermediate_result.x
        e.n_iter_, e.loss_ = e.n_iter_ + 1, float(intermediate_result.fun)

        def parameters() -> dict[str, Any]:
            self.function.unpack(point)
            return dict(zip(("coefs_", "intercepts_"), self.function.arrays(), strict=True))

        if self.tasks.end_epoch(parameters):
            raise StopIteration
        if e.n_iter_ < e.max_iter:
            self.tasks.begin_epoch()


def _iterations(result: Any, max_iter: int) -> int:
    """Return the iterations done; warn in scikit-learn's words unless they converged."""
    count = int(min(result.nit, max_iter))
    if result.status not in (0, _STOPPED):
        more = ""
        if count == max_iter:
            more = (
                "\nIncrease the number of iterations to improve the convergence "
                f"(max_iter={max_iter})."
            )
        warn(
            f"lbfgs failed to converge after {count} iteration(s) (status={result.status}):\n"
            f"{result.message}\n{more}\nYou might also want to scale the data as shown in:\n"
            "    https://scikit-learn.org/stable/modules/preprocessing.html",
            ConvergenceWarning,
        )
    return count
