"""The training loop: epochs, validation, early stopping, checkpoints, Ctrl-C."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from gpubackprop import schedules
from gpubackprop.backends import LossScaling
from gpubackprop.backends.numpy import get_num_threads
from gpubackprop.data import split_rows
from gpubackprop.data.frames import as_array
from gpubackprop.distributed import Communicator, join
from gpubackprop.errors import NonFiniteLossError, OptionError, OutOfMemory, ShapeError
from gpubackprop.layout.fixed import assignable
from gpubackprop.losses import Loss
from gpubackprop.network import MLP
from gpubackprop.ops import display
from gpubackprop.ops.checks import no_own_methods, number
from gpubackprop.optimizers import Optimizer
from gpubackprop.schedules import Schedule
from gpubackprop.training.batches import Batches
from gpubackprop.training.evaluation import EvaluationStep, custom_metrics
from gpubackprop.training.history import History, Row
from gpubackprop.training.memory_estimate import MemoryEstimate, estimated
from gpubackprop.training.profile import Profile, measured
from gpubackprop.training.run import Run
from gpubackprop.training.settings import Settings
from gpubackprop.training.shared_run import SharedEvaluation, SharedRun, shared_metrics
from gpubackprop.training.state import FitOptions, TrainingState
from gpubackprop.training.step import Regularization
from gpubackprop.training.team import Devices, Team, team_of

Array = np.ndarray
Callback = Callable[["Trainer", Row], Any]
Metric = Callable[[Array, Array], float]


class Trainer(Settings):
    """Trains a network by gradient descent.

    The parameters may be assigned to, which takes effect from the next epoch on. `network`, `seed`,
    `stochastic_rounding`, the loss's scale and an optimizer of another formula cannot be assigned:
    make another Trainer.

    A copy by `copy.deepcopy`, or a pickle, has a network of its own and goes on bit for bit as this
    one would, even if it was made within a callback. `copy.copy` trains the same network, with a
    state of its own. A pickle wants callbacks and metrics that can be pickled: functions of a
    module.

    Parameters
    ----------
    network : MLP
        Its parameters are changed in place.
    loss : Loss, str or None
        A loss or its name; None is the loss that belongs to the network's output.
    optimizer : Optimizer or str
        An optimizer or its name ("adam", "sgd", ...).
    schedule : Schedule, str or None
        A schedule or its name; None is a constant learning rate.
    batch_size : int
        Rows per step; if it exceeds the number of rows, all rows.
    l2 : float
        Factor of the penalty l2 / 2 * sum of squared weights (without biases) that is added to the
        loss.
    clip_norm : float or None
        The largest global norm of the gradient.
    shuffle : bool
        Whether every epoch has a new order of the rows.
    seed : int
        Seed of the shuffles, of the split into validation rows, and of the network's dropout.
    loss_scale : float, "dynamic" or None
        Factor of the loss before the backward pass, with which float16 holds the gradients; the
        update divides by it. A step whose gradient is not finite is skipped. "dynamic" begins with
        2^16, halves the factor after such a step, and doubles it after 2,000 good steps (PyTorch's
        GradScaler). A number stays as it is. None is "dynamic" for float16, else no scaling.
    stochastic_rounding : bool
        Whether the 16-bit copy of the weights is rounded up or down by chance, with probabilities
        in proportion to the distances, instead of to nearest.
    metrics : mapping or None
        From a name to ``function(yhat, targets)``, which returns a float. Computed after each epoch
        on the training rows and on the validation rows (``"val_" + name``).
    callbacks : sequence of callable
        Called as ``callback(trainer, row)`` after each epoch. The returned value is ignored. If one
        raises `gpubackprop.StopTraining`, training ends after that epoch as after its last one, and
        history.stopped is "callback".
    progress : bool or None
        Whether to show a progress bar; None shows it in a terminal and in a notebook.
    distributed : {"auto", "mpi", "torchrun"}, Communicator or None
        Who trains together, see `gpubackprop.distributed.join`. Every rank builds the same network
        and trainer, and makes the same calls of `fit` and `evaluate` with the same arguments; x may
        be a memory map, of which a rank reads its rows. A batch has `batch_size` rows in all, and
        the results are those of one process up to rounding. Rank 0 writes checkpoints and computes
        metrics. None is one process alone.
    devices : "all", int, sequence of str, or None
        GPUs of this machine on which `fit` trains in threads, one for each: all of them, the first
        so many, or those of these names, of which the first is the network's. As with ranks, a
        batch has `batch_size` rows in all.
    shard_optimizer : bool
        Whether each of several ranks has a part of the optimizer's state alone, and updates its
        part of the parameters. Results stay the same, to rounding if a norm clips or more than two
        ranks add by MPI or NCCL. A step moves the same bytes. The trainer cannot be copied or
        pickled.
    deterministic : bool
        Whether the same training gives the same bits each time. False lets a GPU's products take
        algorithms, too, that add parts of a sum as they come (cuBLASLt's split K in place), where
        they are faster; not measured on a GPU. It changes nothing on the CPU.

    Attributes
    ----------
    history : History
        The epochs of all calls of `fit`.
    state : TrainingState
        Where the training stands: history, position, random state, the last step.
    feature_names : tuple of str, or None
        Names of the data frame that the last `fit` was given.
    target_names : tuple of str, or None
        Likewise of the targets, if they were several columns.

    Raises
    ------
    OptionError
        An option is unknown or out of range, or `network` is no MLP, or of a class with `logits`,
        `forward` or `gradients` of its own, which a training would not call.

    Examples
    --------
    >>> from gpubackprop.optimizers import Adam
    >>> network = MLP([2, 8, 2], "tanh", seed=1)
    >>> x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    >>> trainer = Trainer(network, optimizer=Adam(lr=0.05), batch_size=4)
    >>> _ = trainer.fit(x, np.array([0, 1, 1, 0]), epochs=200)
    >>> print(network.predict(x).argmax(1))
    [0 1 1 0]

    A callback is a function of the trainer and of the epoch's row:

    >>> losses = []
    >>> trainer.callbacks = [lambda trainer, row: losses.append(row["loss"])]
    >>> _ = trainer.fit(x, np.array([0, 1, 1, 0]), epochs=2)
    >>> len(losses)
    2
    """

    def __init__(
        self,
        network: MLP,
        loss: str | Loss | None = None,
        optimizer: str | Optimizer = "adam",
        *,
        schedule: str | Schedule | None = None,
        batch_size: int = 256,
        l2: float = 0.0,
        clip_norm: float | None = None,
        shuffle: bool = True,
        seed: int = 0,
        loss_scale: str | float | None = None,
        stochastic_rounding: bool = False,
        metrics: Mapping[str, Metric] | None = None,
        callbacks: Sequence[Callback] = (),
        progress: bool | None = None,
        distributed: str | Communicator | None = None,
        devices: Devices = None,
        shard_optimizer: bool = False,
        deterministic: bool = True,
    ) -> None:
        if not isinstance(network, MLP):
            raise OptionError(
                f"network is a {type(network).__name__} but must be an MLP; an Ensemble is trained "
                "member by member, and MLP.from_torch takes a PyTorch module"
            )
        no_own_methods(
            network, ("logits", "forward", "gradients"),
            "a training would not call; train with network.gradients in a loop of your own",
        )  # fmt: skip
        self.deterministic = bool(deterministic)
        self.shard_optimizer = bool(shard_optimizer)
        if distributed is not None:
            self.joined(join(distributed))
        self.network, self.loss, self.optimizer = network, loss, optimizer
        self.schedule, self.batch_size = schedule, batch_size
        self.regularization = Regularization()
        self.l2, self.clip_norm = l2, clip_norm
        self.shuffle, self.seed = shuffle, int(number(seed, "seed", 0, whole=True))
        self.scaling = _check_scaling(loss_scale, network)
        self.stochastic_rounding = bool(stochastic_rounding)
        if self.stochastic_rounding and not network.mixed_precision:
            raise OptionError(
                "stochastic_rounding is of weights in 16 bits; build the network with "
                'MLP(..., precision="bfloat16") or "float16"'
            )
        self.metrics, self.callbacks, self.progress = metrics, callbacks, progress
        self.state = TrainingState(np.random.default_rng(self.seed))
        self._team = team_of(devices, network)
        if self.shard_optimizer and (self._team or self.stochastic_rounding):
            raise OptionError(
                "shard_optimizer is for ranks that are processes, without stochastic_rounding; "
                "leave it out, or start the program with mpirun"
            )
        if self._team and not self.is_alone:
            raise OptionError(
                "devices and distributed are two ways to the same; give each rank its own GPU with "
                "MLP(..., device=...), or train in one process with devices"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a pickle, also from before its parts were one record."""
        state = dict(state)
        if "_rng" in state:
            parts = (state.pop(name) for name in ("_rng", "history", "_position", "_step"))
            state["state"] = TrainingState(*parts)
        if "state" in state:
            state["_state"] = state.pop("state")
        vars(self).update(state)
        # The ranks are those of where the pickle is read; a copy made within a team's fit has none.
        self.joined(None if self._team else self._joined)

    def __copy__(self) -> Trainer:
        """Return a trainer of the same network that goes on from here with a state of its own."""
        twin: Trainer = object.__new__(type(self))
        vars(twin).update(vars(self))
        for name in ("_state", "_callbacks", "_metrics", "_schedule"):
            vars(twin)[name] = copy.copy(vars(self)[name])
        if self._team:
            twin.joined(None)
        return twin

    @assignable
    def state(self, state: TrainingState) -> TrainingState:
        """Where the training stands; a copy that was kept may be assigned between two fits."""
        if "_state" in vars(self) and self.state.running:
            raise _running("its state cannot be changed meanwhile")
        return state

    @property
    def history(self) -> History:
        """The epochs of all calls of `fit`."""
        return self.state.history

    def _trained_with(self) -> str | None:
        return self.state.formula if "_state" in vars(self) else None

    @property
    def has_others(self) -> bool:
        """Whether several devices or ranks train the network."""
        return self._team is not None or not self.is_alone

    def _described(self) -> dict[str, Any]:
        """Return the settings that are not the default."""
        values = {
            "l2": self.l2 or None, "clip_norm": self.clip_norm, "loss_scale": self.scaling,
            "stochastic_rounding": self.stochastic_rounding or None,
            "deterministic": None if self.deterministic else False,
            "shuffle": None if self.shuffle else False, "metrics": list(self.metrics) or None,
            "callbacks": len(self.callbacks) or None,
        }  # fmt: skip
        constant = isinstance(self.schedule, schedules.Constant)
        main = {"loss": self.loss, "optimizer": self.optimizer, "batch_size": self.batch_size}
        main |= {} if constant else {"schedule": self.schedule}
        main |= {} if self.is_alone else {"distributed": self._joined}
        main |= {"devices": list(self._team.devices)} if self._team else {}
        return main | {name: value for name, value in values.items() if value is not None}

    def __repr__(self) -> str:
        done = f"{self.epochs} epochs, {self.state.steps} steps done"
        return display.call("Trainer", self.network, **self._described(), seed=self.seed) + (
            f" with {done}" if self.state.step else ""
        )

    def _repr_html_(self) -> str:
        rows = [[name, repr(value)] for name, value in self._described().items()]
        table = display.html_table(f"Trainer of {self.network!r}", ["setting", "value"], rows)
        return table + (self.history._repr_html_() if len(self.history) else "")

    @property
    def epochs(self) -> int:
        """Number of epochs done so far."""
        return self.state.position.epoch

    # -- the public methods -----------------------------------------------------------------------

    def fit(
        self,
        x: Any,
        targets: Any,
        *,
        epochs: int = 10,
        rows: Any = None,
        validation: float | tuple[Any, ...] | Array | None = None,
        sample_weight: Any = None,
        patience: int | None = None,
        min_delta: float = 0.0,
        restore_best: bool | None = None,
        window: int = 1,
        standardizer: Any = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int | None = None,
        checkpoint_seconds: float = 0.0,
    ) -> History:
        """Train for `epochs` more epochs.

        A second call continues: optimizer state, step count, random state and history go on.
        Therefore fit(epochs=3) and fit(epochs=2) end where fit(epochs=5) ends, unless best weights
        are restored in between, or the schedule depends on the number of all steps (cosine).

        Ctrl-C ends training after the current step, with the weights of the best epoch so far
        (before the first epoch is done, the current ones); history.stopped is then "interrupted". A
        second Ctrl-C raises KeyboardInterrupt at once, with the same weights.

        Parameters
        ----------
        x : (N, D_0) array or data frame
            Any real dtype; a memory map is read batch by batch. A data frame (pandas, polars,
            pyarrow) is read column by column, and the columns of later frames are found by its
            names.
        targets : array-like or data frame
            As the loss wants them: (N,) class indices, (N, K) numbers, ...; also a column or a
            frame. Several columns of a later frame are found by the names of the first.
        epochs : int
            Number of further epochs.
        rows : (M,) int array or None
            Numbers of the rows to train on, so that a memory map need not be cut.
        validation : float, array, tuple or None
            A share of the rows to hold out (drawn from the seed, by class if targets are class
            indices); or an integer array of row numbers of x, which are then removed from `rows`;
            or (x, targets) or (x, targets, sample_weight).
        sample_weight : (N,) array or None
            Non-negative factor of each row. Rows without effect (weight 0, a class of weight 0,
            ignore_index) do not enter the batches.
        patience : int or None
            Stop after so many epochs in a row without an improvement of the validation loss
            (without validation, of the training loss) by more than `min_delta`.
        min_delta : float
            See `patience`.
        restore_best : bool or None
            Whether to end with the weights of the best epoch. None does so if there is validation,
            and after Ctrl-C.
        window : int
            Number of epochs over which that loss is averaged before it decides which epoch is the
            best, and when patience ends. With a dozen validation rows, one epoch's loss is chance.
        standardizer : Standardizer, TablePreprocessor or None
            Applied to each batch of x and of the validation rows. A preprocessor takes tables with
            text, dates and missing values, and encodes them once.
        checkpoint : path or None
            File to write after each epoch, and every `checkpoint_every` steps. If it exists when
            the trainer has not trained yet, training resumes from it and goes on bit for bit as if
            it had never stopped; `epochs` may then be larger than before. One file belongs to one
            call of `fit`.
        checkpoint_every : int or None
            Number of steps between two checkpoints within an epoch.
        checkpoint_seconds : float
            Least time between two checkpoints after epochs. If epochs take milliseconds, writing
            would otherwise take longer than training.

        Returns
        -------
        History
            The trainer's history.

        Raises
        ------
        ShapeError
            The arrays do not fit the network; nothing has been changed.
        DtypeError
            An array has no numeric dtype; nothing has been changed.
        TargetRangeError
            A label is out of range; nothing has been changed.
        OptionError
            An option is out of range, or a fit of this trainer is running (a callback has called
            fit); nothing has been changed.
        DataError
            There are no rows, a frame has a column of text or a missing value, or targets hold NaN;
            nothing has been changed.
        NonFiniteLossError
            The loss became NaN or infinite. The message names the step, and the first NaN in x. The
            network then has the weights of the best epoch, or those from before training if no
            epoch was finished, and the optimizer starts afresh.
        ModelFileError
            The checkpoint is damaged or of another training; nothing has been changed.
        StorageError
            A checkpoint could not be written; the network has its best weights so far.
        DistributedError
            The ranks have different options, data, weights or versions, or some of them failed; the
            message names the rank. All ranks raise it.
        """
        if self.state.running:
            raise _running("another one would change its network and state")
        if self._team is not None and self.is_alone:
            given = {name: value for name, value in locals().items() if name != "self"}
            return self._team.fit(self, given)
        options = FitOptions.checked(
            epochs=epochs, patience=patience, min_delta=min_delta, restore_best=restore_best,
            checkpoint=checkpoint, checkpoint_every=checkpoint_every,
            checkpoint_seconds=checkpoint_seconds, window=window,
        )  # fmt: skip

        def prepare() -> tuple[Batches, Batches | None]:
            train, held_out = self._batches(x, targets, sample_weight, standardizer, rows), None
            if validation is not None:
                train, held_out = self._validation(train, validation, standardizer)
                held_out = held_out.weighed()
            return self._counting(train), held_out

        try:
            if self.is_alone:
                train, held_out = prepare()
                step = self.state.new_step(self, train)
            else:
                train, held_out = self.ranks.all_succeed(prepare)
                step = self.ranks.all_succeed(lambda: self.state.new_step(self, train))
            self.feature_names = train.feature_names or self.feature_names
            self.target_names = train.target_names or self.target_names
            kind = Run if self.is_alone else SharedRun
            self.state.running = True
            try:
                return kind(self, self.state, step, held_out, options).run()
            except NonFiniteLossError as error:
                parts = [data for data in (train, held_out) if data is not None]
                places = self.ranks.from_root(lambda: [data.not_finite() for data in parts])
                error.args = (" ".join([str(error), *filter(None, places)]),)
                raise
            finally:
                self.state.running = False
        except OutOfMemory as error:
            self._say_what_fits(error, x)
            raise

    def evaluate(
        self,
        x: Any,
        targets: Any,
        sample_weight: Any = None,
        standardizer: Any = None,
        *,
        rows: Any = None,
    ) -> dict[str, float]:
        """Compute mean loss (without penalty), accuracy or rmse, and the metrics, on these rows.

        Weights enter loss and rmse. Accuracy and metrics count all rows alike, but for those of
        sample weight 0, which enter nothing.

        Parameters
        ----------
        x : (N, D_0) array or data frame
            As for `fit`.
        targets : (N,) or (N, K) array-like, or data frame
            As for `fit`.
        sample_weight : (N,) array or None
            As for `fit`.
        standardizer : Standardizer or None
            As for `fit`.
        rows : (M,) int array or None
            Numbers of the rows to evaluate on.

        Returns
        -------
        dict
            The figures by their names.

        Raises
        ------
        ShapeError
            The arrays do not fit the network.
        DataError
            There are no rows, or targets hold NaN.
        DistributedError
            As for `fit`.
        """
        made_from = self.network, self.loss

        def prepare() -> Batches:
            data = self._batches(x, targets, sample_weight, standardizer, rows)
            data.require_finite_targets(self.loss)
            return data.weighed()

        if self.is_alone:
            data = prepare()
            step = EvaluationStep(*made_from, data, self.batch_size)
            return step.measure() | custom_metrics(self.network, self.metrics, data)
        ranks = self.ranks
        data = ranks.all_succeed(prepare)
        step = SharedEvaluation(ranks, *made_from, data, self.batch_size)
        return step.measure() | shared_metrics(ranks, self.network, self.metrics, data)

    def profile(
        self,
        x: Any,
        targets: Any,
        sample_weight: Any = None,
        standardizer: Any = None,
        *,
        repeats: int = 10,
    ) -> Profile:
        """Time each operation of a training step. Nothing of this trainer or network is changed.

        On a GPU each operation is a range of NVTX, which Nsight Systems shows.

        Parameters
        ----------
        x : (N, D_0) array or data frame
            As for `fit`; the step is of the first `batch_size` rows.
        targets : (N,) or (N, K) array-like, or data frame
            As for `fit`.
        sample_weight : (N,) array or None
            As for `fit`.
        standardizer : Standardizer or None
            As for `fit`.
        repeats : int
            Times that each operation and the whole step run; medians are reported.

        Returns
        -------
        Profile
            Operations with their times and bytes. It prints as a table.

        Raises
        ------
        ShapeError
            The arrays do not fit the network.
        DataError
            There are no rows, or targets hold NaN.
        OptionError
            `repeats` is below 1, or the trainer is one of several ranks.
        """
        if not self.is_alone:
            raise OptionError(
                f"profile times a step of one process, and this is {self._joined.who()}; profile a "
                f"Trainer without distributed"
            )
        repeats = int(number(repeats, "repeats", 1, whole=True))
        data = self._counting(self._batches(x, targets, sample_weight, standardizer))
        twin = copy.deepcopy(self)
        step, lr = twin.state.new_step(twin, data), twin.optimizer.lr
        rows = step.place(np.arange(step.batch_size))
        batch = step.update(rows, lr)
        return measured(step, batch, lambda: step.update(rows, lr), repeats)

    def memory_estimate(
        self, rows: int, dtype: Any = np.float32, *, staged: bool | None = None
    ) -> MemoryEstimate:
        """Estimate the memory of a training before anything of it is allocated; of each rank.

        Parameters
        ----------
        rows : int
            Rows to train on.
        dtype : dtype
            Dtype of the inputs.
        staged : bool or None
            Whether the inputs stay with the host of a GPU, as a memory map does; None if they do
            not fit into what is free there.

        Returns
        -------
        MemoryEstimate
            Bytes by what takes them; `total` is the sum.

        Raises
        ------
        OptionError
            `rows` is below 1.
        """
        rows = int(number(rows, "rows", 1, whole=True))
        return estimated(
            self.network, self.loss, self.optimizer, self.batch_size, rows, np.dtype(dtype),
            get_num_threads(), self._joined.size, self.shard_optimizer, staged,
        )  # fmt: skip

    # -- what a caller passes, as batches ---------------------------------------------------------

    feature_names: tuple[str, ...] | None = None
    target_names: tuple[str, ...] | None = None
    _team: Team | None = None

    def _say_what_fits(self, error: OutOfMemory, x: Any) -> None:
        """Add to the error the batch that would fit into the GPU."""
        rows = max(1, len(x))
        estimate = self.memory_estimate(rows, getattr(x, "dtype", np.float32))
        fits = estimate.largest_batch(min(self.batch_size, rows), error.free)
        advice = f"batch_size={fits} would fit" if fits else "no batch size would fit"
        wanted = f"the training takes about {estimate.total / 2**30:.3g} GiB"
        error.args = (f"{error}; {wanted}, {advice} (Trainer.memory_estimate)",)

    def _batches(
        self, x: Any, targets: Any, sample_weight: Any, standardizer: Any, rows: Any = None,
        names: tuple[str, ...] | None = None, what: str = "x",
        target_names: tuple[str, ...] | None = None,
    ) -> Batches:  # fmt: skip
        """Return checked batches of these rows of x; if there are none, an error names `what`."""
        names = names or self.feature_names
        data = Batches.check(
            self.network,
            self.loss,
            x,
            targets,
            sample_weight,
            standardizer,
            names,
            target_names or self.target_names,
        )
        data = data if rows is None else data.at(rows, "rows")
        data.require_rows(what)
        return data

    def _counting(self, data: Batches) -> Batches:
        """Return the rows that a training learns from, at least one, with finite targets."""
        data = data.counting(self.loss)
        data.require_rows("x, without the rows of weight 0,")
        data.require_finite_targets(self.loss)
        return data

    def _validation(
        self, train: Batches, validation: float | tuple[Any, ...] | Array, standardizer: Any
    ) -> tuple[Batches, Batches]:
        if isinstance(validation, Real):
            order, by_class = train.order(None), None
            if self.loss.output == "softmax" and train.targets.ndim == 1:
                by_class = train.targets[order]
            kept, held_out = split_rows(len(train), float(validation), self.seed, by_class)
            return train.select(order[kept]), train.select(order[held_out])
        if not isinstance(validation, tuple | list) or all(
            isinstance(row, int | np.integer) for row in validation
        ):  # row numbers, which may come from a frame's index
            validation = as_array(validation, "validation")
            held = train.at(validation, "validation")
            held.require_rows("validation")
            rest = train.select(np.setdiff1d(train.order(None), validation))
            rest.require_rows("x, without the rows of validation,")
            return rest, held
        if len(validation) not in (2, 3):
            raise ShapeError(
                "validation must be a share of the rows such as 0.1, an array of row numbers, "
                "(x, targets), or (x, targets, sample_weight)"
            )
        data = self._batches(
            validation[0], validation[1], validation[2] if len(validation) == 3 else None,
            standardizer, names=train.feature_names, what="the validation set",
            target_names=train.target_names,
        )  # fmt: skip
        data.require_finite_targets(self.loss)
        return train, data


def _running(consequence: str) -> OptionError:
    """Return the error of a call within a callback of `fit`, or from another thread."""
    return OptionError(
        f"this trainer's fit is running, and {consequence}; wait for its end, or take "
        f"copy.deepcopy(trainer), which goes on from here with a network of its own"
    )


def _check_scaling(spec: Any, network: MLP) -> LossScaling | None:
    if spec is None:
        return LossScaling() if network.precision == np.float16 else None
    if spec == "dynamic":
        return LossScaling()
    if isinstance(spec, str):
        raise OptionError(f'loss_scale is {spec!r} but must be "dynamic", a number or None')
    return LossScaling(number(spec, "loss_scale", 2.0**-24, 2.0**64), 0)
