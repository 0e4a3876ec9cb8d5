"""The package's errors as a program for PyTorch expects them: each is also of PyTorch's type.

`except RuntimeError` around `torch.nn.functional.linear_cross_entropy` keeps working around the
function of the same name here, and so does ``except ValueError``.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from gpubackprop import errors
from gpubackprop.ops import checks
from gpubackprop.ops.softmax_cross_entropy import REDUCTIONS


class ShapeError(errors.ShapeError, RuntimeError):
    """A tensor has the wrong number of dimensions or the wrong sizes."""


class DtypeError(errors.DtypeError, NotImplementedError):
    """A tensor has a dtype that the operation cannot use, or is no tensor."""


class OptionError(errors.OptionError, RuntimeError, TypeError):
    """An option has an unknown name, a value outside its range or another type."""


def check_tensors(op: str, **tensors: Any) -> None:
    """Raise DtypeError if one of `tensors` is no tensor."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise DtypeError(
                f"{name} is a {type(tensor).__name__} but {op} wants a tensor; make it one with "
                f"torch.as_tensor"
            )


def loss_options(
    reduction: Any, label_smoothing: Any, ignore_index: Any, z_loss: Any
) -> tuple[str, float, int, float]:
    """Return the checked options of a loss, or raise OptionError."""
    given = type(reduction), type(label_smoothing), type(ignore_index), type(z_loss)
    plain = given == (str, float, int, float) and reduction in REDUCTIONS
    if plain and 0.0 <= label_smoothing <= 1.0 and 0.0 <= z_loss < math.inf:
        return reduction, label_smoothing, ignore_index, z_loss
    try:
        reduction = checks.choice(reduction, "reduction", REDUCTIONS)
        smoothing = checks.number(label_smoothing, "label_smoothing", 0.0, 1.0)
        factor = checks.number(z_loss, "z_loss", 0.0)
    except errors.OptionError as error:
        raise OptionError(str(error)) from None
    try:
        return reduction, smoothing, int(ignore_index), factor
    except (TypeError, ValueError):
        raise OptionError(
            f"ignore_index is {ignore_index!r} but must be an integer; the default is -100"
        ) from None
