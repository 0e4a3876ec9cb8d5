"""The options of a loss, and the places of a step's figures in the running totals."""

from __future__ import annotations

from dataclasses import dataclass

from gpubackprop.backends.memory import Array


@dataclass(frozen=True)
class LossOptions:
    """Options of a loss that do not depend on the batch; pointwise losses have only `reduction`.

    Attributes
    ----------
    class_weight : (K,) array or None
        Factor of each class.
    ignore_index : int or None
        Label of rows that are ignored.
    label_smoothing : float
        Share eps in [0, 1]; targets become (1 - eps) * target + eps / K.
    z_loss : float
        Factor of lse^2, which is added to each row's loss.
    soft_cap : float
        If c > 0, c tanh(z / c) takes the place of each logit z.
    reduction : str
        "mean", "sum" or "none"; for pointwise losses also "elementwise_mean".
    empty : str
        The mean over no row, or over weights that sum to 0: "nan" (as PyTorch) or "zero".
    """

    class_weight: Array | None = None
    ignore_index: int | None = None
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    soft_cap: float = 0.0
    reduction: str = "mean"
    empty: str = "nan"


class Total:
    """Indices into the running totals of an epoch."""

    LOSS, PENALTY, CORRECT, ROWS, STEPS, BAD_STEP = range(6)
    SIZE = 6  # BAD_STEP: the first step whose loss was not finite, or -1
