"""Backpropagation for feed-forward networks, in matrix form, at the speed of the hardware.

Four ways in, each complete alone:

    gpubackprop.ops            forward and backward pairs on arrays
    gpubackprop.MLP, Trainer   the whole network, trained
    gpubackprop.Model          a trained network on raw data, and its file
    gpubackprop (shell)        train, predict, export, check, bench, info
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from gpubackprop import data, losses, ops, optimizers, schedules
    from gpubackprop.ensemble import Ensemble
    from gpubackprop.errors import StopTraining
    from gpubackprop.gradient_check import gradient_check
    from gpubackprop.gradients import Gradients
    from gpubackprop.many import fit_many
    from gpubackprop.model import Model
    from gpubackprop.network import MLP
    from gpubackprop.training import History, Trainer

# Loaded at first use, so that importing the package costs little more than importing NumPy.
_HOME = {
    "MLP": "network",
    "Ensemble": "ensemble",
    "Gradients": "gradients",
    "Model": "model",
    "History": "training",
    "StopTraining": "errors",
    "Trainer": "training",
    "fit_many": "many",
    "gradient_check": "gradient_check",
}
_MODULES = ("data", "errors", "losses", "ops", "optimizers", "schedules")

__all__ = [
    "MLP",
    "Ensemble",
    "Gradients",
    "History",
    "Model",
    "StopTraining",
    "Trainer",
    "data",
    "fit_many",
    "gradient_check",
    "losses",
    "ops",
    "optimizers",
    "schedules",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"gpubackprop.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(f"gpubackprop.{_HOME[name]}"), name)
        globals()[name] = value  # in place of a module of that name, which the import has put there
        return value
    raise AttributeError(f"module 'gpubackprop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
