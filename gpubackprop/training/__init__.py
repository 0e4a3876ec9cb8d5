"""Training: the planned step, the loop around it, its history, its checkpoints and its profile."""

from gpubackprop.training import spread as _spread  # noqa: F401  (it gives TrainStep a function)
from gpubackprop.training.history import History
from gpubackprop.training.memory_estimate import MemoryEstimate
from gpubackprop.training.profile import Profile, ProfileRow
from gpubackprop.training.trainer import Trainer

__all__ = ["History", "MemoryEstimate", "Profile", "ProfileRow", "Trainer"]
