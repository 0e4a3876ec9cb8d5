"""What a training changes of a trainer, on its way from another device or rank."""

from __future__ import annotations

import copy
from typing import Any

from gpubackprop.training import Trainer

Moved = dict[str, Any]


def state_of(trainer: Trainer) -> Moved:
    """Return parameters, state and schedule of a trainer, on the host; they can be pickled."""
    network = trainer.network
    return {
        "parameters": network.backend.to_host(network.parameters),
        "state": copy.copy(trainer.state),
        "schedule": trainer.schedule.copy(),
        "feature_names": trainer.feature_names,
        "target_names": trainer.target_names,
    }


def take_state(trainer: Trainer, moved: Moved) -> None:
    """Go on from what `state_of` returned for a trainer of the same network and settings."""
    network = trainer.network
    network.backend.from_host(moved["parameters"], network.parameters)
    trainer.state, trainer.schedule = moved["state"], moved["schedule"]
    trainer.feature_names = moved["feature_names"]
    trainer.target_names = moved["target_names"]
