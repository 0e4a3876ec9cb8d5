"""Networks spread over ranks: each rank trains its share, and at the end all have all results.

The ranks talk before the training, to compare what they are about to train, and once after it.
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from gpubackprop.distributed import Communicator
from gpubackprop.distributed.contract import agreed
from gpubackprop.errors import OptionError
from gpubackprop.many.moved import state_of, take_state
from gpubackprop.many.settings import Training
from gpubackprop.many.worker import portable, unsendable

Errors = list[BaseException | None]


def train_over_ranks(
    todo: Sequence[Training], ranks: Communicator, train: Callable[[Sequence[Training]], Errors]
) -> Errors:
    """Train every network on one of the ranks; return the error of each, or None, on all of them.

    Rank r of R trains the networks r, r + R, r + 2 R and so on.

    Parameters
    ----------
    todo : sequence of Training
        The trainings of all networks, the same on every rank.
    ranks : Communicator
        The ranks; all of them call this.
    train : callable
        Trains a share in this process.

    Raises
    ------
    DistributedError
        A network, or a setting, differs between the ranks; nothing has been trained.
    """
    ranks.require_same(_record(todo), "fit_many")
    places = range(ranks.rank, len(todo), ranks.size)
    own = [todo[place] for place in places]
    outcomes = [_outcome(each, error) for each, error in zip(own, train(own), strict=True)]
    errors: Errors = [None] * len(todo)
    for rank, contents in enumerate(ranks.gather(outcomes)):
        for place, content in zip(range(rank, len(todo), ranks.size), contents, strict=True):
            state, error = pickle.loads(content)
            if state is not None and rank != ranks.rank:
                take_state(todo[place].trainer, state)
            errors[place] = None if error is None else agreed(error)
    return errors


def check_alone(todo: Sequence[Training]) -> None:
    """Raise OptionError if a trainer has ranks of its own."""
    for place, training in enumerate(todo, 1):
        if not training.trainer.is_alone:
            raise OptionError(
                f"network {place} of {len(todo)} is a Trainer of several ranks, and distributed "
                "gives each network to one rank; build it without distributed"
            )


def _outcome(training: Training, error: BaseException | None) -> bytes:
    """Return (state, error), pickled: the ranks may be threads, and must not share it."""
    try:
        return pickle.dumps((state_of(training.trainer), error and portable(error)))
    except (AttributeError, TypeError, pickle.PicklingError) as failure:
        return pickle.dumps((None, unsendable(failure)))


def _record(todo: Sequence[Training]) -> dict[str, Any]:
    """Return what must be the same on all ranks, without the data."""
    record: dict[str, Any] = {"networks": len(todo)}
    for place, training in enumerate(todo, 1):
        trainer, network = training.trainer, training.trainer.network
        weights = network.backend.to_host(network.parameters)
        record |= {
            f"the architecture of network {place}": network.config(),
            f"the settings of network {place}": {
                "loss": trainer.loss.config(), "optimizer": trainer.optimizer.config(),
                "schedule": trainer.schedule.config(), "batch_size": trainer.batch_size,
                "l2": trainer.l2, "clip_norm": trainer.clip_norm, "shuffle": trainer.shuffle,
                "seed": trainer.seed, "epochs": training.arguments.get("epochs"),
            },
            f"the weights of network {place}": f"checksum {zlib.crc32(weights.tobytes()):08x}",
            f"the steps done by network {place}": trainer.state.steps,
        }  # fmt: skip
    return record
