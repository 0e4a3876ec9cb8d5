"""Warnings that come, for a program's filters, from where scikit-learn's come from."""

from __future__ import annotations

import sys
import warnings
from typing import Any

MODULE = "sklearn.neural_network._multilayer_perceptron"
_SHOWN: dict[Any, Any] = {}  # what "default" and "once" have shown


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """As `warnings.warn` in scikit-learn's module; the file and line shown are the caller's."""
    caller = sys._getframe(1)
    warnings.warn_explicit(
        message, category, caller.f_code.co_filename, caller.f_lineno, MODULE, _SHOWN
    )
