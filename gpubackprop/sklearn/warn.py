"""Warnings that a program's filters see as coming from scikit-learn's module."""

from __future__ import annotations

import sys
import warnings
from typing import Any

MODULE = "sklearn.neural_network._multilayer_perceptron"
_SHOWN: dict[Any, Any] = {}  # the filters "default" and "once" note here what they have shown


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn as `warnings.warn` in scikit-learn's module; file and line are the caller's."""
    caller = sys._getframe(1)
    warnings.warn_explicit(
        message, category, caller.f_code.co_filename, caller.f_lineno, MODULE, _SHOWN
    )
