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
# What other programs call an entry of ours. They are proposed and not taken, so that files and
# errors have one name for each thing.
OTHER_NAMES = {
    "sigmoid": "logistic",
    "swish": "silu",
    "linear": "identity",
    "identity": "linear",
    "none": "identity",
    "mse": "squared_error",
    "mse_loss": "squared_error",
    "l2_loss": "squared_error",
    "bce": "binary_cross_entropy",
    "bce_loss": "binary_cross_entropy",
    "bce_with_logits_loss": "binary_cross_entropy",
    "log_loss": "softmax_cross_entropy",
    "cross_entropy": "softmax_cross_entropy",
    "cross_entropy_loss": "softmax_cross_entropy",
    "poisson_nll_loss": "poisson",
    "gd": "gradient_descent",
    "xavier_uniform": "glorot_uniform",
    "xavier_normal": "glorot_normal",
    "kaiming_uniform": "he_uniform",
    "kaiming_normal": "he_normal",
}
_WITH_PARAMETER = re.compile(r"(\w+)\((.+)\)")


def lookup(registry: Mapping[str, Found], name: object, what: str) -> Found:
    """Return the entry called `name`.

    Parameters
    ----------
    registry : mapping
        Entries by their names.
    name : object
        The name; anything that is no key of the registry is an error.
    what : str
        What is looked up, for the error's message.

    Returns
    -------
    object
        ``registry[name]``.

    Raises
    ------
    OptionError
        The registry has no such name. The message lists the names and proposes the nearest one.

    Examples
    --------
    >>> lookup({"relu": 1, "tanh": 2}, "tanh", "activation")
    2
    """
    if isinstance(name, str) and name in registry:
        return registry[name]
    near = _nearest(registry, str(name))
    hint = f"; did you mean {near!r}?" if near else ""
    raise OptionError(f"{what} is {name!r} but must be one of {', '.join(sorted(registry))}{hint}")


def _nearest(registry: Mapping[str, Any], name: str) -> str | None:
    """Return the key that `name` may mean: "ReLU", "leaky-relu", "sigmoid", "rleu"."""
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[\s_-]+", "_", name.strip()).lower()
    keys = {key.replace("_", ""): key for key in registry}
    letters = plain.replace("_", "")
    others = {other.replace("_", ""): key for other, key in OTHER_NAMES.items() if key in registry}
    if letters in others | keys:
        return (others | keys)[letters]
    near = difflib.get_close_matches(plain, registry, n=1)
    return near[0] if near else None


def with_parameter(
    registry: Mapping[str, Any], spec: object, what: str, *, positive: bool = False
) -> Any:
    """Return the entry that `spec` names: "relu", or with a parameter "elu(0.5)".

    Raises
    ------
    OptionError
        The name is unknown, the entry has no parameter, or the parameter is not finite or negative
        (with `positive`, also if it is 0).
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
    """Return the text that `with_parameter` reads, without a parameter that is the default."""
    known = registry.get(entry.name)
    if known is None or entry.parameter == known.parameter:
        return str(entry.name)
    return f"{entry.name}({float(entry.parameter)!r})"


class Entry:
    """Base of the entries. Files and copies hold an entry's name, not its functions.

    An entry that a program made itself is written field by field. `FINDERS` has, for each class of
    entries, the public function that finds one by its name.
    """

    def __reduce_ex__(self, protocol: Any) -> Any:
        if not self._is_registered():
            return super().__reduce_ex__(protocol)
        return FINDERS[type(self)], (str(self),)

    def __getstate__(self) -> dict[str, Any]:
        """Return the name and a parameter, for programs that walk attributes (skops)."""
        return {"entry": str(self)} if self._is_registered() else vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        find = FINDERS[type(self)]
        if "entry" in state:
            state = vars(find(state["entry"]))
        try:
            known = vars(find(state["name"]))  # the file may lack fields that came later
        except OptionError:
            known = {}
        vars(self).update(known | state)

    def _is_registered(self) -> bool:
        try:
            return bool(FINDERS[type(self)](str(self)) == self)
        except OptionError:
            return False


FINDERS: dict[type, Callable[[str], Any]] = {}
