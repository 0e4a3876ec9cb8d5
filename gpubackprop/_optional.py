"""Import of optional packages, with one message that says which extra installs them."""

from __future__ import annotations

import importlib
from types import ModuleType

from gpubackprop.errors import MissingDependencyError


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """The imported `module`, or MissingDependencyError naming the extra that brings it.

    Parameters
    ----------
    module : dotted name, e.g. "pyarrow.csv".
    extra : extra of gpubackprop that installs it, e.g. "cli".
    purpose : what it is needed for, to complete "... is needed to <purpose>".
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingDependencyError(
            f'{package} is needed to {purpose}; install it with: pip install "gpubackprop[{extra}]"'
        ) from error
