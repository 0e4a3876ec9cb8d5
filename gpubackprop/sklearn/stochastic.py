"""Training by mini-batches, epoch by epoch, that stops where scikit-learn stops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from typing import Any, cast

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from gpubackprop.backends import Total
from gpubackprop.errors import StopTraining
from gpubackprop.sklearn.fit_tasks import FitTasks
from gpubackprop.sklearn.held_out import HeldOut, Scores
from gpubackprop.sklearn.parameters import warn
from gpubackprop.sklearn.session import Session
from gpubackprop.sklearn.stored import read_parameters, write_parameters
from gpubackprop.sklearn.team import RankStep
from gpubackprop.training.epochs import train_epoch
from gpubackprop.training.progress import ProgressBar
from gpubackprop.training.rounds import SHARED, Rounds
from gpubackprop.training.threads import stop_requested

Array = np.ndarray


class EpochPlan:
    """The constants of all epochs: the places of the batches, and the weight of their rows.

    Attributes
    ----------
    starts : (batches + 1,) int array
        First row of each batch, and the number of rows at the end.
    counts : (batches,) int array
        Rows of each batch.
    rows_of : (N,) int array
        For each row, the rows of its batch.
    """

    def __init__(self, rows: int, batch_rows: int) -> None:
        self.rows = rows
        self.starts = np.append(np.arange(0, rows, batch_rows), rows)
        self.counts = np.diff(self.starts)
        self.rows_of = np.repeat(self.counts, self.counts)

    def sums_and_shares(self, weights: Array) -> tuple[Array, Array]:
        """Return (sum of the weights of each batch, share of each row in this sum), in float64.

        The weights are divided by the largest if their sums overflow.

        Parameters
        ----------
        weights : (N,) array
            Weights in the order of the epoch.
        """
        weights, largest = weights.astype(np.float64, copy=False), 1.0
        with np.errstate(over="ignore"):
            sums = np.add.reduceat(weights, self.starts[:-1])
        if not np.isfinite(sums).all():
            largest = float(np.abs(weights).max())
            weights = weights / largest
            sums = np.add.reduceat(weights, self.starts[:-1])
        if not sums.all():
            raise ZeroDivisionError("Weights sum to zero, can't be normalized")
        shares = weights / np.repeat(sums, self.counts)
        with np.errstate(over="ignore"):
            return sums * largest, shares


class StochasticFit:
    """The epochs of one call of `fit` or `partial_fit`.

    Parameters
    ----------
    estimator : BaseMLP
        The estimator, whose public attributes are kept up to date.
    session : Session
        The network and its step.
    order : (N,) int array
        Row numbers of the session's data to learn from.
    batch_rows : int
        Rows of a batch.
    y : (N, K) array
        Targets of these rows, as the estimator encodes them.
    weights : (N,) array or None
        Factor of each row.
    held_out : HeldOut or None
        Rows to score after each epoch.
    probabilities : dtype
        That of scikit-learn's probabilities, which bounds the loss of a classifier's rows. The
        network's is wider if it holds float64 intercepts, or numbers beyond float32.

    Attributes
    ----------
    scores : Scores or None
        Scores of the held-out rows after the last epoch.
    loss_type : type
        Type of the reported losses, float32 or float64.
    best : array
        Parameters with which early stopping ends, if `has_best`.
    has_best : bool
        Whether there are such parameters.
    """

    def __init__(
        self,
        estimator: Any,
        session: Session,
        order: Array,
        batch_rows: int,
        y: Array,
        weights: Array | None,
        held_out: HeldOut | None,
        probabilities: np.dtype,
    ) -> None:
        self.estimator, self.session, self.held_out = estimator, session, held_out
        self.rows, self.y, self.weights = order, y, weights
        self.probabilities = probabilities
        self.loss_type = session.objective.reported_type(probabilities, y, weights)
        if estimator.batch_size != "auto":  # then scikit-learn multiplies by a numpy.int64
            self.loss_type = np.float64
        self.scores: Scores | None = None
        self.tasks: FitTasks | None = None
        self.together: Rounds | None = None
        self.plan = EpochPlan(len(order), batch_rows)
        self.order = np.arange(len(order))  # every epoch shuffles the order of the epoch before
        network, backend = session.network, session.network.backend
        width = session.objective.record_width
        self.records: list[Any] = []  # of each device; a row that another one records is 0
        for step in session.steps:
            shape = len(order), width
            self.records.append(step.network.backend.zeros(shape, network.dtype))
        self.squares = backend.zeros(len(self.plan.counts), network.dtype)
        # scikit-learn's first fit falls back to the initial parameters; a warm start that never
        # improves the best score keeps the last ones.
        self.best, self.has_best = None, False
        if estimator.early_stopping:
            self.has_best = not estimator.validation_scores_
            self.best = backend.empty(network.layout.size, network.dtype)
            backend.copy(network.parameters, self.best)

    def run(
        self,
        *,
        incremental: bool,
        save: Callable[[bool], None] | None = None,
        tasks: FitTasks | None = None,
    ) -> None:
        """Train to the end, or for one epoch if `incremental`; Ctrl-C keeps what was learned.

        With early stopping the best parameters are then restored. After an error they stay as they
        are.

        Parameters
        ----------
        incremental : bool
            Whether this is one call of `partial_fit`.
        save : callable or None
            Writes a checkpoint; called as ``save(ended)`` every `checkpoint_every` epochs.
        tasks : FitTasks or None
            Calls scikit-learn's callbacks.
        """
        e, session, self.tasks = self.estimator, self.session, tasks
        session.differ = True
        self.together = SHARED.rounds
        total, done = len(self.order) * e.max_iter, len(self.order) * e.n_iter_
        bar = ProgressBar(total, done, e.max_iter, show=True) if e.progress else None
        counted = self.together.fit(session.resident) if self.together else nullcontext()
        try:
            with counted:
                while e.n_iter_ < e.max_iter:
                    if tasks is not None:
                        tasks.begin_epoch()
                    self._epoch()
                    if self._between(self._out_of_patience(), bar, save) or incremental:
                        break
                    if e.n_iter_ == e.max_iter:
                        warn(
                            f"Stochastic Optimizer: Maximum iterations ({e.max_iter}) "
                            "reached and the optimization hasn't converged yet.",
                            ConvergenceWarning,
                        )
        except KeyboardInterrupt:
            warn("Training interrupted by user.")
            e._interrupted = True
        except BaseException:
            write_parameters(e, session.network)  # always, because scikit-learn updates in place
            raise
        finally:
            if bar is not None:
                bar.close()
        if self.best is not None and self.has_best:
            session.network.backend.copy(self.best, session.network.parameters)
        write_parameters(e, session.network)

    def _between(
        self, ended: bool, bar: ProgressBar | None, save: Callable[[bool], None] | None
    ) -> bool:
        """Do the work after an epoch; return True if training ends.

        `ended` says that the epoch was the last.
        """
        e, scores = self.estimator, self.scores
        row = {"epoch": e.n_iter_, "loss": e.loss_}
        if scores is not None:
            row |= {"val_loss": scores.loss, "val_score": scores.score}
        if bar is not None:
            bar.advance(len(self.order), e.n_iter_ - 1, None)
            bar.finish_epoch(row)
        if e.callbacks:
            ended |= self._call_back(row)
        if self.tasks is not None:
            ended |= self.tasks.end_epoch(self._parameters)
        last = ended or e.n_iter_ >= e.max_iter
        if save is not None and (last or e.n_iter_ % e.checkpoint_every == 0):
            save(ended)
        return ended

    def _parameters(self) -> dict[str, Any]:
        """Return copies of coefs_ and intercepts_ as they are after this epoch."""
        e = self.estimator
        write_parameters(e, self.session.network)
        return {name: [a.copy() for a in getattr(e, name)] for name in ("coefs_", "intercepts_")}

    def _epoch(self) -> None:
        e, state = self.estimator, self.session.state
        if self.together is not None and stop_requested():
            raise KeyboardInterrupt
        if e.shuffle:
            self.order = self.order[e._random_state.permutation(len(self.order))]
        weights = None if self.weights is None else self.weights[self.order]
        rounds = None if self.session.resident else self.together
        with nullcontext() if rounds is None else rounds.turn():
            e.loss_ = self._train(weights)
        e.n_iter_ += 1
        e.t_ += len(self.order)
        e.loss_curve_.append(e.loss_)
        if e.verbose:
            print(f"Iteration {e.n_iter_}, loss = {e.loss_:.8f}")
        self.scores = None if self.held_out is None else self.held_out.evaluate()
        if self.scores is not None:
            e.validation_loss_curve_.append(self.scores.loss)
        self._count_improvement()
        monitored = e.loss_ if self.scores is None else self.scores.loss
        state.epoch_ends(e.t_, monitored)

    def _train(self, weights: Array | None) -> Any:
        """Do the updates of one epoch; return its mean loss, penalty included."""
        session, plan, alpha = self.session, self.plan, self.estimator.alpha
        state = session.state
        sums, shares = plan.counts, None
        if weights is not None:
            sums, shares = plan.sums_and_shares(weights)
        if session.resident:
            return self._train_whole(weights, alpha / sums)
        l2 = (alpha / sums).tolist()
        total_steps, rates = self.estimator.max_iter * len(plan.counts), []
        try:
            for _ in plan.counts:
                rates.append(state.rate(self.estimator.n_iter_, total_steps))
                state.steps += 1
            session.train(partial(self._update, shares, rates, l2))
        finally:
            state.steps = session.step.steps
        squares = session.network.backend.to_host(self.squares)
        penalty = 0.5 * float(np.dot(squares, plan.counts * l2))
        with np.errstate(over="ignore"):
            return self.loss_type((self._loss_sum(shares) + penalty) / plan.rows)

    def _update(
        self, shares: Array | None, rates: Sequence[float], l2: Sequence[float], place: int
    ) -> None:
        """Do an epoch's updates on the device with this number in the session."""
        step, record, alpha = self.session.steps[place], self.records[place], self.estimator.alpha
        backend, together = step.network.backend, len(self.records) > 1
        placed = None if shares is None else backend.asarray(shares, step.network.dtype)
        rows = step.place(self.rows[self.order])
        squares = step.squares.reshape(-1)[:1]
        for number, (start, stop) in enumerate(pairwise(self.plan.starts.tolist())):
            batch = step.update(
                rows[start:stop],
                rates[number],
                None if placed is None else placed[start:stop],
                l2[number] if alpha else None,
            )
            own = cast(RankStep, step).own_rows(start, stop) if together else slice(start, stop)
            if own.stop > own.start:
                backend.copy(batch.record, record[own])
            if not place:
                backend.copy(squares, self.squares[number : number + 1])

    def _train_whole(self, weights: Array | None, l2: Array) -> Any:
        """Do the updates in one launch, which other fits may share; return what `_train` does."""
        session, plan, step = self.session, self.plan, self.session.step
        state, e = session.state, self.estimator
        rates = []
        for state.steps in range(step.steps, step.steps + len(plan.counts)):
            rates.append(state.rate(e.n_iter_, e.max_iter * len(plan.counts)))
        step.reset_totals()
        order = step.place(self.rows[self.order])
        train_epoch(
            step, order, np.array(rates), l2=l2 if e.alpha else None,
            weights=None if weights is None else np.asarray(weights, session.network.dtype),
            eps=session.objective.total_eps(self.probabilities),
        )  # fmt: skip
        state.steps = step.steps
        totals = step.read_totals()
        mean = session.objective.value_of_total(totals[Total.LOSS] / plan.rows)
        return self.loss_type(mean + totals[Total.PENALTY] / plan.rows)

    def _loss_sum(self, shares: Array | None) -> float:
        """Return the sum over batches of rows times mean loss; `shares` are those of the rows."""
        session, steps = self.session, self.session.steps
        read = [
            step.network.backend.to_host(record)
            for step, record in zip(steps, self.records, strict=True)
        ]
        record = read[0] if len(read) == 1 else np.add.reduce(read)
        y = self.y[self.order] if session.objective.values_need_targets else None
        values = session.objective.row_values(record, y, shares, self.probabilities)
        return float(values.sum() if shares is None else values @ (shares * self.plan.rows_of))

    def _count_improvement(self) -> None:
        """Count epochs without an improvement; keep early stopping's best parameters."""
        e, network = self.estimator, self.session.network
        if not e.early_stopping:
            stalled = e.loss_curve_[-1] > e.best_loss_ - e.tol
            e.best_loss_ = min(e.best_loss_, e.loss_curve_[-1])
        else:
            assert self.scores is not None
            score = self.scores.score
            e.validation_scores_.append(score)
            if e.verbose:
                print(f"Validation score: {score:f}")
            stalled = score < e.best_validation_score_ + e.tol
            if score > e.best_validation_score_:
                e.best_validation_score_, self.has_best = score, True
                network.backend.copy(network.parameters, self.best)
        e._no_improvement_count = e._no_improvement_count + 1 if stalled else 0

    def _out_of_patience(self) -> bool:
        e = self.estimator
        if e._no_improvement_count <= e.n_iter_no_change:
            return False
        what = "Validation score" if e.early_stopping else "Training loss"
        stops = self.session.state.stops(
            f"{what} did not improve more than tol={e.tol:f} for {e.n_iter_no_change} "
            "consecutive epochs.",
            e.verbose,
        )
        if not stops:
            e._no_improvement_count = 0
        return stops

    def _call_back(self, row: dict[str, Any]) -> bool:
        """Call the callbacks; return True if one has raised `StopTraining`.

        What a callback returns is ignored. If it has written into coefs_ and intercepts_, training
        goes on from there.
        """
        e, network = self.estimator, self.session.network
        write_parameters(e, network)
        before = [array.copy() for array in (*e.coefs_, *e.intercepts_)]
        ended = False
        for callback in e.callbacks:
            try:
                callback(e, row)
            except StopTraining:
                ended = True
        pairs = zip(before, (*e.coefs_, *e.intercepts_), strict=True)
        if not all(np.array_equal(old, new, equal_nan=True) for old, new in pairs):
            read_parameters(e, network)
            self.session.differ = True
        return ended
