"""Import of optional packages, with one message that says which extra installs them."""

from __future__ import annotations

import importlib
from types import ModuleType

from gpubackprop.errors import MissingDependencyError


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Return the imported `module`; raise MissingDependencyError naming the extra that brings it.

    Parameters
    ----------
    module : str
        Dotted name, e.g. "pyarrow.csv".
    extra : str
        The extra of gpubackprop that installs it, e.g. "cli".
    purpose : str
        Completes the sentence "... is needed to <purpose>".
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingDependencyError(
            f'{package} is needed to {purpose}; install it with: pip install "gpubackprop[{extra}]"'
        ) from error
