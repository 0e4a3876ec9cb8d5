"""The fitting of the estimators: initial parameters, data on the device, the two solvers."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split

from gpubackprop.formulas.dropout import random_state
from gpubackprop.network import MLP
from gpubackprop.sklearn import arrays
from gpubackprop.sklearn.checkpoint import FitCheckpoint
from gpubackprop.sklearn.extremes import outgrow_float32
from gpubackprop.sklearn.fit_tasks import FitTasks
from gpubackprop.sklearn.held_out import HeldOut
from gpubackprop.sklearn.lbfgs import LossAndGradient, fit_lbfgs
from gpubackprop.sklearn.objective import Objective
from gpubackprop.sklearn.rates import SolverState
from gpubackprop.sklearn.session import (
    Session,
    chosen_device,
    draw_parameters,
    initial_factor,
    make_network,
)
from gpubackprop.sklearn.stochastic import StochasticFit
from gpubackprop.sklearn.stored import (
    float_dtype,
    read_parameters,
    rounded_views,
    widths_of,
    write_parameters,
)
from gpubackprop.sklearn.team import TeamSession
from gpubackprop.training.batches import Batches
from gpubackprop.training.team import device_names

Array = Any
ValidationData = tuple[Any, ...] | None  # the argument of `fit`
Validation = tuple[Any, np.ndarray, np.ndarray | None] | None  # checked: X, encoded y, weights


class Fitting(BaseEstimator):
    """The inner part of `BaseMLP`: from checked data to fitted attributes."""

    loss: str

    # -- what the classes above say ---------------------------------------------------------------

    def _validate_input(
        self, X: Any, y: Any, incremental: bool, reset: bool
    ) -> tuple[Any, np.ndarray]:
        """Return checked X and y; set the classes of a classifier."""
        raise NotImplementedError

    def _validate_new(self, X: Any, y: Any, outputs: int) -> tuple[Any, np.ndarray]:
        """Return checked X and y to evaluate on, after `_validate_input`.

        `outputs` is the number of columns of encoded y that are learned.
        """
        raise NotImplementedError

    def _encode(self, y: Any) -> np.ndarray:
        """Return checked y as (N, K) one-hot, indicator or numbers."""
        raise NotImplementedError

    def _output_activation(self) -> str:
        raise NotImplementedError

    def _n_classes(self) -> int:
        """Return the number of classes; 0 for a regressor."""
        return 0

    def _weights(self, y: np.ndarray, sample_weight: np.ndarray | None) -> np.ndarray | None:
        return sample_weight

    # -- from checked data to fitted attributes ---------------------------------------------------

    def _initialize(self, units: list[int], dtype: np.dtype) -> None:
        """Draw the parameters and reset what training reports."""
        self.n_iter_ = self.t_ = 0
        self.n_layers_ = len(units)
        self.out_activation_ = self._output_activation()
        self.coefs_, self.intercepts_ = draw_parameters(
            self._random_state, units, initial_factor(self.activation), dtype
        )
        if self.solver == "lbfgs":
            return
        self.loss_curve_: list[float] = []
        self._no_improvement_count = 0
        stops = self.early_stopping
        self.validation_scores_: list[float] | None = [] if stops else None
        self.best_validation_score_ = -np.inf if stops else None
        self.best_loss_ = None if stops else np.inf
        self.validation_loss_curve_: list[float] | None = None

    def _objective(self) -> Objective:
        reported = "" if self._n_classes() else self.loss
        return Objective(self.out_activation_, self.n_outputs_, reported)

    def _place(
        self, X: Any, y: np.ndarray, objective: Objective, dtype: np.dtype, device: str, reason: str
    ) -> tuple[MLP, Batches]:
        """Return network and data on the device that computes."""
        network = make_network(self, objective.output, dtype, device, reason)
        read_parameters(self, network)
        others = () if self.devices is None else device_names(self.devices)[1:]
        self.device_ = ", ".join([network.device, *others])
        if self.verbose:
            why = f" ({network.backend.reason})" if network.backend.reason else ""
            print(f"Computing on {self.device_}{why}, {dtype}")
        return network, self._rows(network, X, objective.targets(y, dtype))

    def _rows(self, network: MLP, X: Any, targets: np.ndarray) -> Batches:
        x = self._placed(network, X)
        return Batches(x, network.backend.place(targets, targets.dtype), borrowed=x is X)

    def _placed(self, network: MLP, X: Any) -> Any:
        """Return checked X on the network's device, in its dtype."""
        if sparse.issparse(X):
            return X.astype(network.dtype, copy=False)
        return network.backend.asarray(X, network.dtype)

    def _fit_lbfgs(
        self, X: Any, y: np.ndarray, weights: np.ndarray | None, tasks: FitTasks | None
    ) -> None:
        dtype = np.dtype(self.precision or np.float64)  # SciPy has its parameters in float64
        objective = self._objective()
        network, data = self._place(X, y, objective, dtype, *chosen_device(self, X))
        function = LossAndGradient(network, objective, data, y, weights, float(self.alpha))
        fit_lbfgs(self, function, X.dtype, tasks)

    def _fit_stochastic(
        self,
        X: Any,
        y: np.ndarray,
        weights: np.ndarray | None,
        incremental: bool,
        validation: Validation,
        tasks: FitTasks | None,
    ) -> None:
        try:
            if self.early_stopping and incremental:
                raise ValueError("partial_fit does not support early_stopping=True")
            train, held = self._split(y, validation)
        except ValueError:
            # scikit-learn has made the optimizer by then, and a later call goes on with it
            self._session(X, y, weights, np.arange(len(y)), len(y), incremental)
            raise
        batch_rows = arrays.batch_rows(self.batch_size, len(train))
        session = self._session(X, y, weights, train, batch_rows, incremental)
        held_out = self._held_out(session, X, y, weights, held, validation)
        self.n_iter_ = 0
        own = None if weights is None else weights[train]
        probabilities = np.dtype(self.precision or float_dtype(X, *self.coefs_))
        fit = StochasticFit(
            self, session, train, batch_rows, y[train], own, held_out, probabilities
        )
        save = None
        if self.checkpoint is not None and not incremental:
            checkpoint = FitCheckpoint(self.checkpoint, fit)
            save = checkpoint.save
            if checkpoint.resume():
                write_parameters(self, session.network)
                return
        fit.run(incremental=incremental, save=save, tasks=tasks)
        session.release()

    def _split(self, y: np.ndarray, validation: Validation) -> tuple[np.ndarray, np.ndarray | None]:
        """Return numbers of the rows to learn from, and of those held out for early stopping."""
        rows = np.arange(len(y))
        if not self.early_stopping or validation is not None:
            return rows, None
        stratify = y if self._n_classes() and self.n_outputs_ == 1 else None
        train, held = train_test_split(
            rows,
            random_state=self._random_state,
            test_size=self.validation_fraction,
            stratify=stratify,
        )
        if len(held) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' "
                "or the size of your dataset."
            )
        return train, held

    def _held_out(
        self,
        session: Session,
        X: Any,
        y: np.ndarray,
        weights: np.ndarray | None,
        held: np.ndarray | None,
        validation: Validation,
    ) -> HeldOut | None:
        network, objective = session.network, session.objective
        if validation is not None:
            X, y, weights = validation
            x = self._placed(network, X)
        elif held is not None:
            x = arrays.take_rows(network.backend, session.step.data.x, held)
            y, weights = y[held], None if weights is None else weights[held]
        else:
            return None
        if getattr(self, "validation_loss_curve_", None) is None:  # from_sklearn leaves None
            self.validation_loss_curve_ = []
        dtype = np.dtype(self.precision or float_dtype(X, *self.coefs_, *self.intercepts_))
        return HeldOut(network, objective, x, y, weights, self._n_classes(), dtype)

    def _device(self, X: Any, incremental: bool) -> tuple[str, str]:
        """Return (device, reason) for this call.

        If the choice is ours, later calls of `partial_fit` stay on the device of the first one:
        batches of other sizes would otherwise move the network.
        """
        kept: Session | None = getattr(self, "_kept_session", None)
        ours = self.device == "auto" and self.devices is None and not arrays.on_gpu(X)
        if incremental and kept is not None and ours:
            return kept.network.device, "where partial_fit began"
        return chosen_device(self, X)

    def _session(
        self,
        X: Any,
        y: np.ndarray,
        weights: np.ndarray | None,
        train: np.ndarray,
        batch_rows: int,
        incremental: bool,
    ) -> Session:
        """Return the last `partial_fit`'s session with X and y loaded if it fits, or a new one."""
        state = getattr(self, "_optimizer", None) if incremental else None
        dtype = self._network_dtype(X, y, weights, state)
        objective = self._objective()
        weighted, stored = weights is not None, [*self.coefs_, *self.intercepts_]
        device, reason = self._device(X, incremental)
        names = (device,) if self.devices is None else device_names(self.devices)
        key = (
            device, sparse.issparse(X), dtype, widths_of(self.coefs_), objective,
            [array.dtype for array in stored], str(self.activation), str(self.dropout), weighted,
            float(self.alpha), names,
        )  # fmt: skip
        kept: Session | None = getattr(self, "_kept_session", None)
        same = incremental and kept is not None and kept.key == key and kept.state is state
        if kept is not None and same and batch_rows <= kept.step.batch_size:
            read_parameters(self, kept.network)
            kept.state.go_on(kept.step)
            targets = objective.targets(y, dtype)
            kept.load(lambda network: self._rows(network, X, targets))
            return kept
        network, data = self._place(X, y, objective, dtype, device, reason)
        if state is None:
            state = self._solver_state(network)
        if any(network.dropout) and state.random is None:
            state.random = random_state(int(self._random_state.randint(2**64, dtype=np.uint64)))
        made_from = key, network, objective, state, data, batch_rows
        options: dict[str, Any] = {"weighted": weighted, "alpha": float(self.alpha)}
        options["epoch"] = None if incremental else train
        if len(names) > 1:
            targets = objective.targets(y, dtype)
            session: Session = TeamSession(
                names, lambda other: self._rows(other, X, targets), partial(rounded_views, self),
                *made_from, **options,
            )  # fmt: skip
        else:
            session = Session(*made_from, **options, rounded=rounded_views(self, network))
        if self.verbose and session.way:
            print(f"Epochs: {session.way}")
        self._kept_session = session if incremental else None
        return session

    def _network_dtype(
        self, X: Any, y: np.ndarray, weights: np.ndarray | None, state: SolverState | None
    ) -> np.dtype:
        """Return the solvers' compute dtype: `precision`, or one that holds all numbers."""
        if self.precision is not None:
            return np.dtype(self.precision)
        dtype = float_dtype(X, *self.coefs_, *self.intercepts_)
        outgrown = dtype == np.float32 and (
            (state is not None and not state.fits(dtype)) or outgrow_float32(self, X, y, weights)
        )
        return np.dtype(np.float64) if outgrown else dtype

    def _solver_state(self, network: MLP) -> SolverState:
        """Return a new state; in a warm start the masks of dropout go on."""
        before: SolverState | None = getattr(self, "_optimizer", None)
        state = self._optimizer = SolverState(self, network)
        if self.warm_start and before is not None:
            state.random = before.random
        return state
