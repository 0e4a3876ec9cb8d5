"""Networks spread over the devices of one machine: each is trained on one of them, in a thread."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from gpubackprop.errors import OptionError
from gpubackprop.many.moved import state_of, take_state
from gpubackprop.many.settings import Training
from gpubackprop.training.threads import side_by_side

Errors = list[BaseException | None]


def train_on_devices(todo: Sequence[Training], names: Sequence[str]) -> Errors:
    """Train network k on device k modulo their number; return the error of each, or None.

    A network that lies elsewhere is trained as a copy, whose parameters it has at the end.

    Parameters
    ----------
    todo : sequence of Training
        The trainings of all networks.
    names : sequence of str
        The devices.
    """
    return side_by_side(
        [
            partial(_train_on, training, names[place % len(names)])
            for place, training in enumerate(todo)
        ]
    )


def check_one_device(todo: Sequence[Training]) -> None:
    """Raise OptionError if a trainer has devices or ranks of its own."""
    for place, training in enumerate(todo, 1):
        if training.trainer.has_others:
            raise OptionError(
                f"network {place} of {len(todo)} is a Trainer of several devices or ranks, and "
                "devices gives each network to one device; build it without them"
            )


def _train_on(training: Training, device: str) -> None:
    trainer = training.trainer
    if trainer.network.device == device:
        training.run()
        return
    twin = copy.copy(trainer)
    vars(twin)["network"] = trainer.network.copy(device)
    try:
        replace(training, trainer=twin).run()
    finally:
        take_state(trainer, state_of(twin))
