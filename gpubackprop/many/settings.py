"""The settings of many trainings: one value for all networks, or a list with one for each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral, Number
from typing import Any

from gpubackprop.errors import OptionError
from gpubackprop.network import MLP
from gpubackprop.training import Trainer


def _is_functions(entry: Any) -> bool:
    return isinstance(entry, Iterable)


def _is_mapping(entry: Any) -> bool:
    return entry is None or isinstance(entry, Mapping)


def _is_share_or_rows(entry: Any) -> bool:
    return not isinstance(entry, Integral)


def _is_any(entry: Any) -> bool:
    return True


def _is_array(entry: Any) -> bool:
    return not isinstance(entry, Number | str)


# Settings whose value for one network has parts: what an entry of a list for all networks must be,
# and how a value for all of them is written. A list of such parts would be spread.
_ENTRIES: dict[str, tuple[Callable[[Any], bool], str, str]] = {
    "callbacks": (_is_functions, "a tuple of functions", "callbacks=(f, g)"),
    "metrics": (_is_mapping, "a dictionary of functions", 'metrics={"name": f}'),
    "validation": (_is_share_or_rows, "a share or row numbers", "an array, np.array(validation)"),
} | {
    name: (_is_array, "an array", f"an array, np.array({name})")
    for name in ("x", "targets", "rows", "sample_weight")
}


@dataclass(frozen=True)
class Training:
    """One network's training: its trainer, its data and the arguments of its `Trainer.fit`."""

    trainer: Trainer
    x: Any
    targets: Any
    arguments: Mapping[str, Any]

    def run(self) -> None:
        """Train in this thread."""
        self.trainer.fit(self.x, self.targets, **self.arguments)


def trainings(
    networks: Sequence[MLP | Trainer], x: Any, targets: Any, settings: Mapping[str, Any]
) -> list[Training]:
    """Return the training of each network.

    Raises
    ------
    OptionError
        A setting is unknown or out of range, a list has another length than `networks`, a network
        is there twice, or a trainer comes with settings of its constructor.
    """
    _check_networks(networks)
    of_trainer, of_fit = _names()
    for name in settings:
        if name not in of_trainer | of_fit:
            known = ", ".join(sorted(of_trainer | of_fit))
            raise OptionError(f"fit_many has no setting {name!r}; it has {known}")
    given = {"x": x, "targets": targets, **settings}
    each = {name: _spread(name, value, len(networks)) for name, value in given.items()}
    files = [str(file) for file in each.get("checkpoint", ()) if file is not None]
    if len(set(files)) < len(files):
        raise OptionError(
            "checkpoint is one file for several networks; pass a list with a file for each"
        )
    found = []
    for place, network in enumerate(networks):
        own = {name: values[place] for name, values in each.items()}
        built = {name: own[name] for name in own if name in of_trainer}
        fitted = {name: own[name] for name in own if name in of_fit}
        try:
            trainer = _trainer(network, built)
        except OptionError as error:
            raise OptionError(f"network {place + 1} of {len(networks)}: {error}") from error
        found.append(Training(trainer, own["x"], own["targets"], fitted))
    return found


def _trainer(network: MLP | Trainer, settings: dict[str, Any]) -> Trainer:
    if isinstance(network, Trainer):
        if settings:
            raise OptionError(
                f"it is a Trainer, which has its own {', '.join(settings)}; assign them to the "
                "trainer, or pass its network"
            )
        return network
    return Trainer(network, **{"progress": False} | settings)


def _spread(name: str, value: Any, count: int) -> list[Any]:
    """Return a value for each network; a list has one for each already."""
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        networks = "there is 1 network" if count == 1 else f"there are {count} networks"
        raise OptionError(
            f"{name} is a list of {len(value)} but {networks}; a list has one entry for each "
            "network, and one value for all is an array, a tuple or a number"
        )
    fits, wanted, for_all = _ENTRIES.get(name, (_is_any, "", ""))
    for place, entry in enumerate(value):
        if not fits(entry):
            raise OptionError(
                f"{name} is a list, which has one entry for each network, but the entry of network "
                f"{place + 1} is {entry!r} and must be {wanted}; for all networks pass {for_all}"
            )
    return value


def _check_networks(networks: Sequence[Any]) -> None:
    if not networks:
        raise OptionError("networks is empty; pass at least one MLP or Trainer")
    for place, network in enumerate(networks):
        if not isinstance(network, MLP | Trainer):
            kind = type(network).__name__
            article = "an" if kind[0].lower() in "aeiou" else "a"
            raise OptionError(
                f"networks[{place}] is {article} {kind} but must be an MLP or a Trainer"
            )
    inner = [network.network if isinstance(network, Trainer) else network for network in networks]
    if len({id(network) for network in inner}) < len(inner):
        raise OptionError("networks holds a network twice; pass network.copy() for the second one")


@lru_cache
def _names() -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of the settings of `Trainer`, and of those of `Trainer.fit`."""
    spread = {"distributed", "devices"}  # of `fit_many` itself
    built = frozenset(inspect.signature(Trainer).parameters) - {"network"} - spread
    fitted = frozenset(inspect.signature(Trainer.fit).parameters) - {"self", "x", "targets"}
    return built, fitted
