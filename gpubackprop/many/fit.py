"""`fit_many`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpubackprop.backends.host import available_cores
from gpubackprop.distributed import Communicator, join
from gpubackprop.errors import OptionError
from gpubackprop.many.devices import check_one_device, train_on_devices
from gpubackprop.many.ranks import check_alone, train_over_ranks
from gpubackprop.many.settings import Training, trainings
from gpubackprop.many.workers import train_in_processes
from gpubackprop.network import MLP
from gpubackprop.training import History, Trainer
from gpubackprop.training.team import device_names
from gpubackprop.training.threads import side_by_side

Errors = list[BaseException | None]


def fit_many(
    networks: MLP | Trainer | Sequence[MLP | Trainer],
    x: Any,
    targets: Any,
    *,
    n_jobs: int | None = None,
    distributed: str | Communicator | None = None,
    devices: str | int | Sequence[str] | None = None,
    return_errors: bool = False,
    **settings: Any,
) -> list[Any]:
    """Train many networks, each as `Trainer.fit` alone would; on the CPU bit for bit.

    Where the networks differ, a setting is a list with one value for each network: optimizers,
    learning rates, schedules, seeds, batch sizes, rows such as those of folds, numbers of epochs,
    also x and targets. Anything that is no list holds for all: an array, a tuple, a number. Each
    network validates and stops early on its own.

    Networks on a GPU are trained at the same time, each by a thread: an epoch of all those that are
    small enough to stay in a block's memory is one launch. Networks on the CPU are trained one
    after another, or with `n_jobs` by so many processes; data are written to a file once, and
    mapped by the processes. `devices` and `distributed` spread the networks over several GPUs and
    over ranks, without communication while they train: results do not depend on their number.

    Ctrl-C ends each training after its step, and those that have not begun do not begin;
    history.stopped is then "interrupted". A training that fails hurts no other.

    Parameters
    ----------
    networks : sequence of MLP or Trainer, or one
        Their parameters are changed in place. A `Trainer` goes on from where it stands, with its
        own settings.
    x : (N, D_0) array, data frame, or list of these
        As for `Trainer.fit`.
    targets : (N,) or (N, K) array, data frame, or list of these
        As for `Trainer.fit`.
    n_jobs : int or None
        Number of processes, for networks on the CPU; -1 is one for each core, -2 is one less, and
        so on. None is 1, which trains in this process. With more, metrics and callbacks must be
        functions of a module, and act on a copy of the trainer in another process.
    distributed : {"auto", "mpi", "torchrun"}, Communicator or None
        The ranks over which the networks are spread, as for `Trainer`. Every rank makes the same
        call, with the same networks, settings and data; networks and settings are compared before
        the training. Rank r of R trains the networks r, r + R and so on, and writes their
        checkpoints. At the end every rank has all parameters and histories.
    devices : "all", int, sequence of str, or None
        The devices of this machine over which the networks are spread, as for `Trainer`. Network k
        is trained on device k modulo their number, in a thread; one that lies elsewhere as a copy,
        on which its callbacks act. x and targets are arrays of the host.
    return_errors : bool
        Whether an error stands in the result in the place of its history. Otherwise the first one
        is raised when all other networks are trained.
    **settings
        Parameters of `Trainer` and of `Trainer.fit`, by their names. `progress` is False unless
        given. Callbacks for all networks are a tuple: callbacks=(f, g). One network on several
        devices or ranks is a `Trainer` that has them.

    Returns
    -------
    list of History
        The history of each network, in the order of `networks`.

    Raises
    ------
    OptionError
        A setting is unknown, a list has not one entry for each network, or `n_jobs`, `devices` or
        `distributed` is not for these networks; nothing has been trained.
    DistributedError
        A network or a setting differs between the ranks; nothing has been trained.
    GpubackpropError
        Training failed as `Trainer.fit` says; a note names the network. The others are trained.

    Examples
    --------
    >>> import numpy as np
    >>> from gpubackprop import MLP
    >>> from gpubackprop.optimizers import Adam
    >>> x = np.linspace(-1, 1, 60)[:, None]
    >>> networks = [MLP([1, width, 1], "tanh", output="linear", seed=1) for width in (2, 8)]
    >>> histories = fit_many(networks, x, x**2, optimizer=[Adam(lr=0.01), Adam(lr=0.03)])
    >>> [len(history) for history in histories]
    [10, 10]
    """
    processes, ranks = _processes(n_jobs), join(distributed)
    names = None if devices is None else device_names(devices)

    def prepare() -> list[Training]:
        listed = [networks] if isinstance(networks, MLP | Trainer) else list(networks)
        todo = trainings(listed, x, targets, settings)
        if names is not None:
            check_one_device(todo)
            if processes > 1:
                raise OptionError("n_jobs and devices are two ways to train; leave one out")
        if processes > 1 and len(todo) > 1:
            _check_host(todo)
        if ranks.size > 1:
            check_alone(todo)
        return todo

    def train(todo: Sequence[Training]) -> Errors:
        if names is not None:
            return train_on_devices(todo, names)
        if min(processes, len(todo)) > 1:
            return train_in_processes(todo, min(processes, len(todo)))
        if len(todo) > 1 and _share_launches(todo):
            return side_by_side([training.run for training in todo])
        return train_in_turn(todo)

    if ranks.size > 1:
        todo = ranks.all_succeed(prepare)
        return _results(todo, train_over_ranks(todo, ranks, train), return_errors)
    todo = prepare()
    return _results(todo, train(todo), return_errors)


def train_in_turn(todo: Sequence[Training]) -> Errors:
    """Train one after another in this process; return the error of each, or None."""
    errors: Errors = []
    interrupted = False
    for training in todo:
        error: BaseException | None = None
        if interrupted:
            training.trainer.history.stopped = "interrupted"
        else:
            try:
                training.run()
            except Exception as caught:
                error = caught
            interrupted = training.trainer.history.stopped == "interrupted"
        errors.append(error)
    return errors


def _share_launches(todo: Sequence[Training]) -> bool:
    """Return whether all networks are on GPUs, where the epochs of each share launches."""
    return all(training.trainer.network.backend.asynchronous for training in todo)


def _processes(n_jobs: int | None) -> int:
    """Return a number of processes for joblib's `n_jobs`."""
    if n_jobs is None:
        return 1
    if isinstance(n_jobs, bool) or not isinstance(n_jobs, int) or n_jobs == 0:
        raise OptionError(
            f"n_jobs is {n_jobs!r} but must be a number of processes, -1 for one on each core "
            "(-2 for one less, and so on), or None for none"
        )
    return n_jobs if n_jobs > 0 else max(1, available_cores() + 1 + n_jobs)


def _check_host(todo: Sequence[Training]) -> None:
    for training in todo:
        network = training.trainer.network
        if network.backend.asynchronous:
            raise OptionError(
                f"n_jobs is a number of processes on the CPU but a network is on {network.device}; "
                "leave n_jobs out"
            )


def _results(todo: Sequence[Training], errors: Errors, return_errors: bool) -> list[Any]:
    failed = [place for place, error in enumerate(errors) if error is not None]
    if failed and not return_errors:
        first = errors[failed[0]]
        assert first is not None
        numbers = ", ".join(str(place + 1) for place in failed)
        note = f"fit_many: this is network {failed[0] + 1} of {len(todo)}"
        if len(failed) > 1:
            note += f"; networks {numbers} have failed"
        if len(failed) < len(todo):
            note += "; the others are trained"
        first.add_note(note)
        raise first
    results: list[History | BaseException] = []
    for training, error in zip(todo, errors, strict=True):
        results.append(training.trainer.history if error is None else error)
    return results
