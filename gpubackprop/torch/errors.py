"""The package's errors as a program for PyTorch expects them: each is also of PyTorch's type.

`except RuntimeError` around `torch.nn.functional.linear_cross_entropy` keeps working around the
function of the same name here, and so does ``except ValueError``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gpubackprop import errors


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
