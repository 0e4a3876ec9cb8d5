"""The architecture of a network: checks of its constructor's arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpubackprop.backends import Backend
from gpubackprop.dtypes import SIXTEEN_BIT, STORAGES
from gpubackprop.errors import DtypeError, OptionError, ShapeError
from gpubackprop.formulas import Activation, activation
from gpubackprop.formulas.dropout import MAX_STREAM
from gpubackprop.ops.dropout import dropout_rate


def check_dtype(dtype: Any) -> np.dtype:
    """Return the dtype of parameters that a program names, or raise DtypeError."""
    for candidate in (np.dtype(np.float32), np.dtype(np.float64)):
        if dtype in (candidate.name, candidate, candidate.type):
            return candidate
    raise DtypeError(f"dtype is {dtype!r} but the parameters of a network are float32 or float64")


def check_precision(precision: Any, dtype: np.dtype, backend: Backend) -> tuple[np.dtype, Backend]:
    """Return the dtype that products take, and the backend that computes in the precision asked.

    None is the parameters' dtype. "auto" is "tf32" on a card that has it, for float32 parameters,
    and else None.

    Raises
    ------
    DtypeError
        There is no such precision, or it goes with float32 parameters alone.
    """
    if precision == "auto":
        precision = None if dtype != np.float32 else backend.automatic_precision()
    if precision is None or precision in (dtype.name, dtype, dtype.type):
        return dtype, backend
    name = str(getattr(precision, "name", precision))
    if name not in SIXTEEN_BIT and name != "tf32":
        raise DtypeError(
            f"precision is {precision!r} but must be {', '.join(sorted(SIXTEEN_BIT))}, tf32, auto, "
            f"or {dtype.name}, the dtype of the parameters"
        )
    if dtype != np.float32:
        raise DtypeError(
            f"precision {name} goes with float32 parameters, not with dtype {dtype.name}"
        )
    return (dtype, backend.with_tf32()) if name == "tf32" else (STORAGES[name].numpy(), backend)


def check_widths(widths: Sequence[int]) -> tuple[int, ...]:
    """Return whole numbers of units, inputs first, or raise ShapeError."""
    try:
        checked = tuple(int(width) for width in widths)
        whole = all(int(width) == width for width in widths)
    except (TypeError, ValueError, OverflowError):
        checked, whole = (), False
    if not whole or len(checked) < 2 or min(checked) < 1:
        raise ShapeError(
            f"widths is {widths!r} but must be at least two whole numbers of at least 1: inputs, "
            f"hidden units of each layer, output units"
        )
    return checked


def check_activations(
    spec: str | Activation | Sequence[str | Activation], hidden: int
) -> tuple[Activation, ...]:
    """Return the activation of each hidden layer, from one for all or a list."""
    if isinstance(spec, (str, Activation)):
        return (activation(spec),) * hidden
    if not isinstance(spec, Sequence):
        raise OptionError(f"activation is {spec!r} but must be a name or a list of names")
    chosen = tuple(activation(item) for item in spec)
    if len(chosen) != hidden:
        raise ShapeError(
            f"activation has {len(chosen)} entries but the network has {hidden} hidden layers; "
            f"give one for each, or a single name for all"
        )
    return chosen


def check_dropout(spec: float | Sequence[float], hidden: int) -> tuple[float, ...]:
    """Return the rate of each hidden layer, from one for all or a list."""
    if isinstance(spec, (str, bytes)) or not isinstance(spec, Sequence):
        rates = (dropout_rate(spec),) * hidden
    else:
        rates = tuple(dropout_rate(rate) for rate in spec)
    if len(rates) != hidden:
        raise ShapeError(
            f"dropout has {len(rates)} entries but the network has {hidden} hidden layers; give "
            f"one for each, or a single rate for all"
        )
    if any(rates) and hidden > MAX_STREAM:
        raise OptionError(f"dropout is for at most {MAX_STREAM:,} hidden layers, not {hidden:,}")
    return rates
