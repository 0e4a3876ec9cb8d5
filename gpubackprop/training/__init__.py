"""Training: the planned step, the loop around it, its history and its checkpoints."""

from gpubackprop.training.history import History
from gpubackprop.training.trainer import Trainer

__all__ = ["History", "Trainer"]
