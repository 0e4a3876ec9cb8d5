"""Look-up by name, with an error that lists the names."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from gpubackprop.errors import OptionError

Found = TypeVar("Found")
_WITH_PARAMETER = re.compile(r"(\w+)\((.+)\)")


def lookup(registry: Mapping[str, Found], name: object, what: str) -> Found:
    """The entry called `name`, or OptionError that lists the names and the nearest one."""
    if isinstance(name, str) and name in registry:
        return registry[name]
    near = difflib.get_close_matches(str(name), registry, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise OptionError(f"{what} is {name!r} but must be one of {', '.join(sorted(registry))}{hint}")


def with_parameter(
    registry: Mapping[str, Any], spec: object, what: str, *, positive: bool = False
) -> Any:
    """The entry that `spec` names: "relu", or "elu(0.5)" with another value of its parameter.

    Raises
    ------
    OptionError : unknown name, no such parameter, or a parameter that is negative (with `positive`
        also one that is 0) or not finite.
    """
    match = _WITH_PARAMETER.fullmatch(spec) if isinstance(spec, str) else None
    if match is None:
        return lookup(registry, spec, what)
    entry = lookup(registry, match[1], what)
    if not entry.parameter_name:
        raise OptionError(f"{what} {spec!r}: {entry.name} has no parameter; write {entry.name!r}")
    try:
        parameter = float(match[2])
    except ValueError:
        parameter = math.nan
    if not 0.0 <= parameter < math.inf or (positive and parameter == 0):
        least = "above 0" if positive else "of at least 0"
        raise OptionError(
            f"{what} {spec!r}: {entry.parameter_name} must be a finite number {least}"
        )
    return replace(entry, parameter=parameter)


def spelled(registry: Mapping[str, Any], entry: Any) -> str:
    """What `with_parameter` reads: the name, and the parameter where it is not the default."""
    known = registry.get(entry.name)
    if known is None or entry.parameter == known.parameter:
        return str(entry.name)
    return f"{entry.name}({float(entry.parameter)!r})"


class Entry:
    """Base of the entries: files and copies hold an entry's name, not its functions.

    An entry that a program made itself is written field by field. `FINDERS` has the public function
    that finds the entries of each class.
    """

    def __reduce_ex__(self, protocol: Any) -> Any:
        if not self._is_registered():
            return super().__reduce_ex__(protocol)
        return FINDERS[type(self)], (str(self),)

    def __getstate__(self) -> dict[str, Any]:
        """For what walks attributes (skops): the name, and the parameter if it has one."""
        return {"entry": str(self)} if self._is_registered() else vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        find = FINDERS[type(self)]
        if "entry" in state:
            state = vars(find(state["entry"]))
        try:
            known = vars(find(state["name"]))  # for fields that are newer than the file
        except OptionError:
            known = {}
        vars(self).update(known | state)

    def _is_registered(self) -> bool:
        try:
            return bool(FINDERS[type(self)](str(self)) == self)
        except OptionError:
            return False


FINDERS: dict[type, Callable[[str], Any]] = {}
