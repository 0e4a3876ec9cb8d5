"""What a loss is told beside its batch, and where the figures of a step are added up."""

from __future__ import annotations

from dataclasses import dataclass

from gpubackprop.backends.memory import Array


@dataclass(frozen=True)
class LossOptions:
    """Options of a loss that do not depend on the batch; pointwise losses have only `reduction`.

    Attributes
    ----------
    class_weight : (K,) or None.
    ignore_index : label whose rows count for nothing, or None.
    label_smoothing : eps in [0, 1]; targets become (1 - eps) * target + eps / K.
    z_loss : factor of lse^2 added to each row's loss.
    soft_cap : c > 0 replaces each logit z by c tanh(z / c); 0 for none.
    reduction : "mean", "sum", "none"; pointwise also "elementwise_mean".
    empty : mean over no row, or of weights that sum to 0: "nan" (as PyTorch) or "zero".
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
