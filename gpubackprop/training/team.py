"""Several devices in one process: a thread for each trains a copy of the network as one rank."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from gpubackprop.backends.cuda_driver import probe_driver
from gpubackprop.backends.devices import NAME, is_host, unknown
from gpubackprop.distributed.contract import Communicator
from gpubackprop.distributed.threads import Group, Threads, run_ranks
from gpubackprop.errors import DeviceUnavailable, OptionError
from gpubackprop.network import MLP
from gpubackprop.training.history import History

Trainer = Any  # the trainer of the module above, which makes a team
Devices = str | int | Sequence[str] | None


class Team:
    """The devices of a trainer. The first one is its network's, and its thread is the caller's.

    Parameters
    ----------
    devices : sequence of str
        Their names.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self.devices = tuple(devices)
        self._ranks: list[Threads] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return Team, (self.devices,)

    def __repr__(self) -> str:
        return f"Team({', '.join(self.devices)})"

    def fit(self, trainer: Trainer, arguments: dict[str, Any]) -> History:
        """Do `Trainer.fit` on all devices.

        Callbacks, metrics and the progress bar are the trainer's own. The copies of the network are
        made anew each time, so that what was done to the network in between holds for all.
        """
        group = Group(len(self.devices))
        if not self._ranks:  # kept: NCCL connects its ranks once
            self._ranks = [Threads(group, rank) for rank in range(group.size)]
        for rank in self._ranks:
            rank.group = group

        def work(ranks: Communicator) -> History:
            if ranks.rank:
                return _twin(trainer, ranks, self.devices[ranks.rank]).fit(**arguments)
            return trainer.fit(**arguments)

        trainer.joined(self._ranks[0])
        try:
            own: History = run_ranks(self._ranks, work)[0]
        except BaseException:
            self._ranks = []
            raise
        finally:
            trainer.joined(None)
        return own


def team_of(devices: Devices, network: MLP) -> Team | None:
    """Return the team that an argument `devices` means, or None for one device.

    Raises
    ------
    OptionError
        It is no such thing, or its first device is not the network's.
    DeviceUnavailable
        There is no GPU.
    """
    if devices is None:
        return None
    names = device_names(devices)
    if names[0] != network.device:
        raise OptionError(
            f"the network is on {network.device} but devices begin with {names[0]}; build it "
            f"with device={names[0]!r}"
        )
    return Team(names) if len(names) > 1 else None


def device_names(devices: Any) -> tuple[str, ...]:
    """Return the names that an argument `devices` means, at least one.

    Raises
    ------
    OptionError
        It is no such thing, a name is unknown, or the devices are of two kinds.
    DeviceUnavailable
        There is no GPU.
    """
    if isinstance(devices, str) and devices == "all":
        devices = len(probe_driver().gpus)
        if not devices:
            raise DeviceUnavailable(
                'devices="all" means all GPUs, and there is none here; `gpubackprop info` says '
                "what is missing; leave devices out to train on one device"
            )
    if isinstance(devices, Integral) and not isinstance(devices, bool) and int(devices) > 0:
        devices = [f"cuda:{number}" for number in range(int(devices))]
    named = isinstance(devices, list | tuple) and all(isinstance(name, str) for name in devices)
    if not named or not devices:
        raise OptionError(
            f'devices is {devices!r} but must be "all", a number of GPUs, or names such as '
            f'["cuda:0", "cuda:1"]'
        )
    for name in devices:
        if not NAME.fullmatch(name):
            raise unknown(name)
    if len({is_host(name) for name in devices}) > 1:
        raise OptionError(
            f"devices is {devices!r} but gradients of a CPU and of a GPU cannot be added; name "
            f"GPUs alone, or CPUs alone"
        )
    return tuple(devices)


def _twin(trainer: Trainer, ranks: Communicator, device: str) -> Trainer:
    """Return a trainer that goes on from the same state, with a copy of the network on `device`."""
    twin = copy.copy(trainer)
    vars(twin)["network"] = trainer.network.copy(device)
    twin.joined(ranks)
    twin.callbacks, twin.progress = [], False
    return twin
