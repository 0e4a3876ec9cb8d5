"""The work between the epochs of a fit: callbacks, the progress bar, checkpoints."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from gpubackprop.errors import StopTraining
from gpubackprop.sklearn.checkpoint import FitCheckpoint
from gpubackprop.sklearn.stored import read_parameters, write_parameters
from gpubackprop.training.progress import ProgressBar

if TYPE_CHECKING:
    from gpubackprop.sklearn.stochastic import StochasticFit


class BetweenEpochs:
    """Called after every epoch of `fit`; as a context it makes sure that the progress bar ends."""

    def __init__(self, fit: StochasticFit, checkpoint: FitCheckpoint | None) -> None:
        self.fit, self.estimator, self.checkpoint = fit, fit.estimator, checkpoint
        e, rows = self.estimator, len(fit.order)
        self._bar = None
        if e.progress:
            self._bar = ProgressBar(rows * e.max_iter, rows * e.n_iter_, e.max_iter, show=True)

    def __call__(self, ended: bool) -> bool:
        """Do the work after an epoch; return True if training ends.

        `ended` says that the epoch was the last.
        """
        e = self.estimator
        row = self._row()
        if self._bar is not None:
            self._bar.advance(len(self.fit.order), e.n_iter_ - 1, None)
            self._bar.finish_epoch(row)
        if e.callbacks:
            ended |= self._call_back(row)
        last = ended or e.n_iter_ >= e.max_iter
        if self.checkpoint is not None and (last or e.n_iter_ % e.checkpoint_every == 0):
            self.checkpoint.save(self.fit, ended=ended)
        return ended

    def _call_back(self, row: dict[str, Any]) -> bool:
        """Call the callbacks; return True if one has raised `StopTraining`.

        What a callback returns is ignored. If it has written into coefs_ and intercepts_, training
        goes on from there.
        """
        e, network = self.estimator, self.fit.session.network
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
        return ended

    def _row(self) -> dict[str, Any]:
        e, scores = self.estimator, self.fit.scores
        row = {"epoch": e.n_iter_, "loss": e.loss_}
        if scores is not None:
            row |= {"val_loss": scores.loss, "val_score": scores.score}
        return row

    def __enter__(self) -> BetweenEpochs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
