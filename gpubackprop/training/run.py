"""One call of `Trainer.fit`: the loop over epochs and steps."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop.backends import Total
from gpubackprop.errors import NonFiniteLossError, StopTraining
from gpubackprop.schedules import Progress
from gpubackprop.training.batches import Batches
from gpubackprop.training.checkpoint import Checkpoint
from gpubackprop.training.epochs import is_resident, train_epoch
from gpubackprop.training.evaluation import EvaluationStep, custom_metrics
from gpubackprop.training.history import History, Row
from gpubackprop.training.interrupt import InterruptGuard
from gpubackprop.training.progress import ProgressBar
from gpubackprop.training.rounds import SHARED
from gpubackprop.training.settings import Settings
from gpubackprop.training.state import FitOptions, Position, TrainingState
from gpubackprop.training.step import TrainStep
from gpubackprop.training.threads import stop_requested

MAX_SKIPPED = 50  # so many skipped updates in a row: no loss scale, from 2^16 down, can help


class Run:
    """One call of `Trainer.fit`."""

    def __init__(
        self,
        settings: Settings,
        state: TrainingState,
        step: TrainStep,
        held_out: Batches | None,
        options: FitOptions,
    ) -> None:
        self.settings, self.state, self.options = settings, state, options
        self.network, self.held_out = settings.network, held_out
        state.position = replace(
            state.position, step=0, first_epoch=state.position.epoch,
            best_loss=math.inf, bad_epochs=0, seconds=0.0,
        )  # fmt: skip
        backend, parameters = self.network.backend, self.network.parameters
        # Weights to return to: those of the best epoch, or the first ones.
        self.best = backend.empty(parameters.shape, parameters.dtype)
        backend.copy(parameters, self.best)
        self.saved_at = time.monotonic()
        self.progress, self.speaks = settings.progress, True
        self.updates = (-1, 0)  # (updates applied, updates skipped) at the last applied update
        self._follow(step)

    @property
    def history(self) -> History:
        return self.state.history

    @property
    def position(self) -> Position:
        """The trainer's position, so that a copy of the trainer made meanwhile has it too."""
        return self.state.position

    def _follow(self, step: TrainStep) -> None:
        """Make the objects that depend on this step."""
        self.step, held_out, checkpoint = step, self.held_out, self.options.checkpoint
        self.steps_per_epoch = -(-len(step.data) // step.batch_size)
        whole = self.settings.is_alone and self.options.checkpoint_every is None
        self.resident = whole and self.network.backend.asynchronous and is_resident(step)
        self.validation = self.checkpoint = None
        if held_out is not None:
            self.validation = self._evaluation(held_out)
        if checkpoint is not None:
            self.checkpoint = self._checkpoint(checkpoint)

    def _evaluation(self, data: Batches) -> EvaluationStep:
        settings = self.settings
        return EvaluationStep(self.network, settings.loss, data, settings.batch_size)

    def _checkpoint(self, path: Path) -> Checkpoint:
        return Checkpoint(
            path, self.settings, self.state, self.step, self.held_out, self.steps_per_epoch
        )

    def run(self) -> History:
        self.history.stopped = ""
        if self.checkpoint is not None:
            self._resume(self.checkpoint)
        self.last_epoch = self.position.first_epoch + self.options.epochs
        position, rows = self.position, len(self.step.data)
        done = position.epoch * rows + position.step * self.step.batch_size
        bar = ProgressBar(self.last_epoch * rows, done, self.last_epoch, self.progress)
        counted = SHARED.rounds.fit(self.resident) if SHARED.rounds else nullcontext()
        with InterruptGuard(self.speaks) as guard, counted:
            try:
                while position.epoch < self.last_epoch and not self.history.stopped:
                    self._epoch(bar, guard)
            except BaseException as error:
                if isinstance(error, NonFiniteLossError):
                    self.state.step = None  # its slots are no longer finite either
                    self.network.backend.copy(self.best, self.network.parameters)
                self._restore_best()
                raise
            finally:
                bar.close()
        self.history.stopped = self.history.stopped or "epochs"
        restore = self.options.restore_best
        if restore is None:
            restore = self.validation is not None or self.history.stopped == "interrupted"
        if restore:
            self._restore_best()
        return self.history

    def _restore_best(self) -> None:
        """Restore the best epoch's weights; before an epoch is done the current ones stay."""
        if math.isfinite(self.position.best_loss):
            self.network.backend.copy(self.best, self.network.parameters)

    def _resume(self, checkpoint: Checkpoint) -> None:
        """Go to the checkpoint file's position, in a trainer that has not trained yet."""
        loaded = checkpoint.load() if self.step.steps == 0 else None
        if loaded is None:
            checkpoint.save(self.position, self.best)  # a read-only folder must raise now
            return
        self.state.position, best = loaded
        self.network.backend.from_host(best, self.best)
        if self._out_of_patience():
            self.history.stopped = "patience"

    def _epoch(self, bar: ProgressBar, guard: InterruptGuard) -> None:
        """Train the rest of the epoch of `position`."""
        position, settings, rng = self.position, self.settings, self.state.rng
        if position.step == 0 and self.step.planned != settings.planned():
            self._follow(self.state.new_step(settings, self.step.data))
        step = self.step
        step.refresh()  # a callback, or a metric, may have written other weights
        if position.step == 0:
            step.reset_totals()
            position.rng_state = dict(rng.bit_generator.state)
        else:
            rng.bit_generator.state = position.rng_state
        order = step.place(step.data.order(rng if settings.shuffle else None))
        waits = self.network.backend.asynchronous  # reading a step's result then waits for it
        began, size = time.perf_counter(), step.batch_size
        progress = Progress(step.steps, position.epoch, self.last_epoch * self.steps_per_epoch)
        if self.resident:
            lr = self._whole_epoch(order, progress, bar, guard)
        while position.step < self.steps_per_epoch:
            rows = order[position.step * size : (position.step + 1) * size]
            progress.step = step.steps
            lr = settings.optimizer.lr * settings.schedule.factor(progress)
            step.update(rows, lr)
            position.step += 1
            if not waits and step.totals[Total.BAD_STEP] >= 0:
                self._report_bad_step()
            if bar.shown:
                bar.advance(len(rows), position.epoch, None if waits else step.summary)
            every = self.options.checkpoint_every
            due = every is not None and step.steps % every == 0
            if self.checkpoint is not None and due and position.step < self.steps_per_epoch:
                self._check_steps()
                position.seconds += time.perf_counter() - began
                self.checkpoint.save(position, self.best)
                began = time.perf_counter()
            if self._asked_to_stop(guard):
                self.history.stopped = "interrupted"
                break
        self._check_steps()
        position.seconds += time.perf_counter() - began
        if position.step == self.steps_per_epoch:
            self._finish_epoch(bar, lr)
        self._save_after_epoch()

    def _whole_epoch(
        self, order: Any, progress: Progress, bar: ProgressBar, guard: InterruptGuard
    ) -> float:
        """Train the rest of the epoch in one launch; return the learning rate of its last batch."""
        position, settings, step = self.position, self.settings, self.step
        rates = []
        for progress.step in range(step.steps, step.steps + self.steps_per_epoch - position.step):
            rates.append(settings.optimizer.lr * settings.schedule.factor(progress))
        train_epoch(step, order, np.array(rates), position.step)
        if bar.shown:
            bar.advance(len(order) - position.step * step.batch_size, position.epoch, None)
        position.step = self.steps_per_epoch
        if self._asked_to_stop(guard):
            self.history.stopped = "interrupted"
        return float(rates[-1])

    def _check_steps(self) -> None:
        """Wait for the steps that a GPU has not done yet, and check that all went well."""
        if not self.network.backend.asynchronous:
            return  # each step was checked when it was done
        totals = self.step.totals_of_all()
        if totals[Total.BAD_STEP] >= 0:
            self._report_bad_step(int(totals[Total.STEPS] - totals[Total.BAD_STEP]) - 1)
        if self.settings.scaling is None and self.step.updater.skipped():
            self._report_bad_step()

    def _check_skipped(self) -> None:
        """Raise NonFiniteLossError if the last MAX_SKIPPED updates were all skipped.

        An update is skipped if the scaled gradient is not finite.
        """
        if self.settings.scaling is None:
            return
        done, skipped = self.step.updater.counts()
        if done != self.updates[0]:
            self.updates = done, skipped
        elif skipped - self.updates[1] >= MAX_SKIPPED:
            raise NonFiniteLossError(
                f"the gradient was NaN or infinite in each of the last {skipped - self.updates[1]} "
                f"steps, whatever the loss scale; lower the learning rate "
                f"({self.settings.optimizer.lr:g}), or use precision bfloat16 or float32. "
                f"{self._given_back()}",
                self.step.steps - 1,
            )

    def _save_after_epoch(self) -> None:
        """Write the checkpoint, unless the last one is younger than `checkpoint_seconds`."""
        last = bool(self.history.stopped) or self.position.epoch >= self.last_epoch
        if self.checkpoint is not None and (last or self._due()):
            self.checkpoint.save(self.position, self.best)
            self.saved_at = time.monotonic()

    def _finish_epoch(self, bar: ProgressBar, lr: float) -> None:
        position, step, settings = self.position, self.step, self.settings
        self._check_skipped()
        if not self.network.backend.all_finite(self.network.parameters):  # the last step's doing
            self._report_bad_step()
        row: Row = {"epoch": position.epoch + 1, "steps": step.steps, "lr": lr}
        row |= step.summary(step.totals_of_all()) | self._metrics(step.data)
        if self.validation is not None:
            measured = self.validation.measure()
            measured |= self._metrics(self.validation.data)
            row |= {f"val_{name}": value for name, value in measured.items()}
            if math.isnan(measured["loss"]):
                self._report_bad_validation()
        row["seconds"] = position.seconds
        row["samples_per_second"] = len(step.data) / max(position.seconds, 1e-9)
        row = self._agreed(row)
        self.history.rows.append(row)
        monitored: float = row["loss"] if self.validation is None else row["val_loss"]
        self._keep_best(self._recent(monitored))
        settings.schedule.observe(monitored)
        position.epoch, position.step, position.seconds = position.epoch + 1, 0, 0.0
        bar.finish_epoch(row)
        stopped = "patience" if self._out_of_patience() else ""
        stopped = "callback" if self._callbacks_stop(row) else stopped
        self.history.stopped = stopped or self.history.stopped

    # -- what several ranks do otherwise: see `gpubackprop.training.shared_run` --------------------

    def _asked_to_stop(self, guard: InterruptGuard) -> bool:
        return guard.requested or (SHARED.rounds is not None and stop_requested())

    def _due(self) -> bool:
        return time.monotonic() - self.saved_at >= self.options.checkpoint_seconds

    def _metrics(self, data: Batches) -> dict[str, float]:
        return custom_metrics(self.network, self.settings.metrics, data)

    def _agreed(self, row: Row) -> Row:
        return row

    def _callbacks_stop(self, row: Row) -> bool:
        """Call all callbacks; return whether one asked to stop."""
        stop = False
        for callback in self.settings.callbacks:
            try:
                callback(self.settings, row)
            except StopTraining:
                stop = True
        return stop

    def _recent(self, monitored: float) -> float:
        """Return the mean of the watched loss over the last `window` epochs of this call."""
        epochs = min(self.options.window, self.position.epoch - self.position.first_epoch + 1)
        if epochs == 1:
            return monitored
        name = "loss" if self.validation is None else "val_loss"
        return math.fsum(row[name] for row in self.history.rows[-epochs:]) / epochs

    def _keep_best(self, monitored: float) -> None:
        position = self.position
        if monitored < position.best_loss - self.options.min_delta:
            position.best_loss, position.bad_epochs = monitored, 0
            self.history.best_epoch = position.epoch + 1
            self.network.backend.copy(self.network.parameters, self.best)
        else:
            position.bad_epochs += 1

    def _out_of_patience(self) -> bool:
        patience = self.options.patience
        return patience is not None and self.position.bad_epochs >= patience

    def _report_bad_validation(self) -> None:
        raise NonFiniteLossError(
            f"the validation loss is NaN after epoch {self.position.epoch + 1} though all weights "
            f"are finite; look for NaN among the validation rows, or for rows that all have "
            f"weight 0. {self._given_back()}",
            self.step.steps - 1,
        )

    def _report_bad_step(self, steps_since: int = 0) -> None:
        number, batch = self.step.steps - 1 - steps_since, self.position.step - steps_since
        raise NonFiniteLossError(
            f"the loss became NaN or infinite at step {number} (epoch {self.position.epoch + 1}, "
            f"batch {batch} of {self.steps_per_epoch}); lower the learning rate "
            f"({self.settings.optimizer.lr:g}), set clip_norm, or look for huge or NaN inputs. "
            f"{self._given_back()}",
            number,
        )

    def _given_back(self) -> str:
        kept = f"of epoch {self.history.best_epoch}"
        if not math.isfinite(self.position.best_loss):
            kept = "from before training"
        return f"The network has been given back the weights {kept}."
