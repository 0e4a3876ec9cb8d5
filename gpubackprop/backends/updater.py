"""What an updater is told: the optimizer as plain numbers, without the layers above."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpubackprop.formulas import Update


@dataclass(frozen=True)
class LossScaling:
    """What the gradients are multiplied by so that float16 holds them, taken out in the update.

    Attributes
    ----------
    scale : the first, or the fixed one.
    growth_interval : the scale doubles after so many updates in a row, and halves where a gradient
        is not finite; 0: it stays. A step whose gradient is not finite is skipped in either case.
    """

    scale: float = 2.0**16
    growth_interval: int = 2000


STEPS, SKIPPED, SCALE, SINCE = range(4)  # of an updater's state, float64: updates done and left out


@dataclass(frozen=True)
class UpdateRule:
    """An optimizer with the regularisation that is folded into its update.

    Attributes
    ----------
    formula, hyperparameters, lr : the optimizer's.
    weight_decay : coupled or decoupled as formula.decay says; 0 for none.
    l2 : l2 * p is added to the gradient of parameters[:penalized].
    clip_norm : largest global norm of the gradient, penalty included, or None.
    scaling : of the loss, or None.
    stochastic : the 16-bit copy of the parameters is rounded stochastically.
    """

    formula: Update
    hyperparameters: Mapping[str, float]
    lr: float
    weight_decay: float = 0.0
    l2: float = 0.0
    clip_norm: float | None = None
    penalized: int = 0
    scaling: LossScaling | None = None
    stochastic: bool = False
