"""Look-up by name, with an error that lists the names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

from gpubackprop.errors import OptionError

Entry = TypeVar("Entry")


def lookup(registry: Mapping[str, Entry], name: object, what: str) -> Entry:
    """The entry called `name`, or OptionError that lists the names and the nearest one."""
    if isinstance(name, str) and name in registry:
        return registry[name]
    near = difflib.get_close_matches(str(name), registry, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise OptionError(f"{what} is {name!r} but must be one of {', '.join(sorted(registry))}{hint}")
