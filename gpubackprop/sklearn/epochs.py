"""What happens between the epochs of a fit: callbacks, the progress bar, checkpoints."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from gpubackprop.sklearn.checkpoint import FitCheckpoint
from gpubackprop.sklearn.stored import write_parameters
from gpubackprop.training.progress import ProgressBar

if TYPE_CHECKING:
    from gpubackprop.sklearn.stochastic import StochasticFit


class BetweenEpochs:
    """Called after every epoch of `fit`; a context, so that the progress bar ends in any case."""

    def __init__(self, fit: StochasticFit, checkpoint: FitCheckpoint | None) -> None:
        self.fit, self.estimator, self.checkpoint = fit, fit.estimator, checkpoint
        e, rows = self.estimator, len(fit.order)
        self._bar = None
        if e.progress:
            self._bar = ProgressBar(rows * e.max_iter, rows * e.n_iter_, e.max_iter, show=True)

    def __call__(self, ended: bool) -> bool:
        """After an epoch, which was the last if `ended`; True if training ends here."""
        e = self.estimator
        row = self._row()
        if self._bar is not None:
            self._bar.advance(len(self.fit.order), e.n_iter_ - 1, None)
            self._bar.finish_epoch(row)
        if e.callbacks:
            write_parameters(e, self.fit.session.network)
            ended |= any([bool(callback(e, row)) for callback in e.callbacks])
        last = ended or e.n_iter_ >= e.max_iter
        if self.checkpoint is not None and (last or e.n_iter_ % e.checkpoint_every == 0):
            self.checkpoint.save(self.fit, ended=ended)
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
