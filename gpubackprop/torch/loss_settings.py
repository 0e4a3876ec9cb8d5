"""The settings of a loss as one object, from the public function to the backend."""

from __future__ import annotations

import math
import operator
from typing import Any, NamedTuple

from gpubackprop import errors
from gpubackprop.backends import LossOptions
from gpubackprop.ops import checks
from gpubackprop.ops.softmax_cross_entropy import REDUCTIONS, plain_options
from gpubackprop.torch.errors import OptionError


class LossSettings(NamedTuple):
    """The options of a cross entropy that are no tensors, in the order of the operators' arguments.

    Attributes
    ----------
    reduction : {"mean", "sum", "none"}
        How rows become the loss.
    ignore_index : int
        Label of rows that are ignored.
    label_smoothing : float
        Share in [0, 1] of each target that is spread evenly over the classes.
    z_loss : float
        Factor of lse^2.
    """

    reduction: str
    ignore_index: int
    label_smoothing: float
    z_loss: float

    def options(self, class_weight: Any, *, may_be_ignored: bool) -> LossOptions:
        """Return these for a backend, with class weights that are its array or None.

        `may_be_ignored` says that the targets are labels, of which some may be `ignore_index`.
        """
        ignored = self.ignore_index if may_be_ignored else None
        if class_weight is None:
            numbers = (self.label_smoothing, self.z_loss, 0.0, self.reduction, "nan")
            return plain_options(ignored, *numbers)
        return LossOptions(
            class_weight, ignored, self.label_smoothing, self.z_loss, reduction=self.reduction
        )


SCHEMA = "str reduction, int ignore_index, float label_smoothing, float z_loss"


def checked(reduction: Any, label_smoothing: Any, ignore_index: Any, z_loss: Any) -> LossSettings:
    """Return the settings of a loss, or raise OptionError for a wrong one."""
    given = type(reduction), type(label_smoothing), type(ignore_index), type(z_loss)
    plain = given == (str, float, int, float) and reduction in REDUCTIONS
    if plain and 0.0 <= label_smoothing <= 1.0 and 0.0 <= z_loss < math.inf:
        return LossSettings(reduction, ignore_index, label_smoothing, z_loss)
    try:
        reduction = checks.choice(reduction, "reduction", REDUCTIONS)
        smoothing = checks.number(label_smoothing, "label_smoothing", 0.0, 1.0)
        factor = checks.number(z_loss, "z_loss", 0.0)
    except errors.OptionError as error:
        raise OptionError(str(error)) from None
    try:
        if isinstance(ignore_index, bool):
            raise TypeError
        return LossSettings(reduction, operator.index(ignore_index), smoothing, factor)
    except TypeError:
        raise OptionError(
            f"ignore_index is {ignore_index!r} but must be an integer; the default is -100"
        ) from None
