"""What an updater is told: the optimizer as plain numbers, without the layers above."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpubackprop.formulas import Update


@dataclass(frozen=True)
class UpdateRule:
    """An optimizer with the regularisation that is folded into its update.

    Attributes
    ----------
    formula, hyperparameters, lr : the optimizer's.
    weight_decay : coupled or decoupled as formula.decay says; 0 for none.
    l2 : l2 * p is added to the gradient of parameters[:penalized].
    clip_norm : largest global norm of the gradient, penalty included, or None.
    """

    formula: Update
    hyperparameters: Mapping[str, float]
    lr: float
    weight_decay: float = 0.0
    l2: float = 0.0
    clip_norm: float | None = None
    penalized: int = 0
