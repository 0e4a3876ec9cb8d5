"""``gpubackprop train --members``: networks of several seeds, whose outputs are averaged."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop import MLP, Ensemble, History, Trainer, fit_many
from gpubackprop.backends import devices
from gpubackprop.cli.common import Device, count, metric_text
from gpubackprop.cli.train_claim import checkpoint_names
from gpubackprop.cli.train_rows import TrainingData
from gpubackprop.distributed import Communicator

Build = Callable[[argparse.Namespace, TrainingData, Device], Trainer]
_AS_IT_IS = ("epoch", "steps", "lr")  # columns of the history that are no results


def check(args: argparse.Namespace) -> None:
    """Report wrong usage (exit 2) if --members comes with an option for one network."""
    if args.members is not None and args.log:
        args.parser.error(
            f"--log {args.log[0]} writes the figures of one network, and --members trains "
            f"{args.members}; leave one of the two out"
        )


def seeds(args: argparse.Namespace) -> list[int]:
    """Return the seed of each member; the first one is --seed, the others are drawn from it."""
    drawn = np.random.SeedSequence(args.seed).generate_state((args.members or 1) - 1)
    return [args.seed, *map(int, drawn)]


def build_members(
    args: argparse.Namespace, data: TrainingData, device: Device, build: Build, ranks: Communicator
) -> list[Trainer]:
    """Return the trainer of each member, or of the one network.

    They have the same rows. Ranks train the one network together, and the members apart. Bars of
    trainings side by side would overwrite one another, so that the first one alone is shown then.
    """
    in_turn = devices.is_host(device.name) and args.jobs == ranks.size == 1
    trainers = []
    for place, seed in enumerate(seeds(args)):
        own = copy.copy(args)
        own.seed, own.quiet = seed, args.quiet or (place > 0 and not in_turn)
        if args.members is not None:
            own.distributed = "none"
        trainers.append(build(own, data, device))
    return trainers


def fit(
    args: argparse.Namespace,
    trainers: Sequence[Trainer],
    x: Any,
    targets: Any,
    output: Path,
    ranks: Communicator,
    **settings: Any,
) -> str:
    """Train the members, each with a checkpoint of its own; return why training ended.

    Each rank trains its share of them.

    Raises
    ------
    GpubackpropError
        A member failed; the message names the first one, and the others are trained.
    """
    files = [output / name for name in checkpoint_names(args)]
    found = fit_many(
        trainers, x, targets, n_jobs=args.jobs, distributed=ranks, return_errors=True,
        checkpoint=files, **settings,
    )  # fmt: skip
    for place, result in enumerate(found, 1):
        if not isinstance(result, History):
            result.args = (f"member {place} of {len(found)}: {result}", *result.args[1:])
            raise result
    reasons = [result.stopped for result in found]
    return next((why for why in ("interrupted", "epochs") if why in reasons), reasons[0])


def kept_network(trainers: Sequence[Trainer]) -> MLP | Ensemble:
    """Return the one network, or an ensemble of the members that have learned an epoch.

    If none has, it is of all.
    """
    if len(trainers) == 1:
        return trainers[0].network
    learned = [trainer.network for trainer in trainers if len(trainer.history)]
    return Ensemble(learned or [trainer.network for trainer in trainers])


# -- what is reported -----------------------------------------------------------------------------


def history_of(trainers: Sequence[Trainer]) -> History:
    """Return the one network's history, or the mean over the members that did an epoch, for each.

    The column "members" has their number. Each member has its own best epoch, so there is none.
    """
    if len(trainers) == 1:
        return trainers[0].history
    rows = []
    for epoch in range(max(len(trainer.history) for trainer in trainers)):
        there = [t.history.rows[epoch] for t in trainers if epoch < len(t.history)]
        means = {
            name: float(np.mean([row[name] for row in there if name in row]))
            for name in there[0]
            if name not in _AS_IT_IS
        }
        first = {name: there[0][name] for name in _AS_IT_IS}
        rows.append(first | {"members": len(there)} | means)
    return History(rows)


def rows_of(trainers: Sequence[Trainer]) -> History:
    """Return the one network's history, or all members' rows, with their numbers from 1."""
    if len(trainers) == 1:
        return trainers[0].history
    return History(
        [{"member": place} | row for place, t in enumerate(trainers, 1) for row in t.history.rows]
    )


def line(found: Sequence[dict[str, Any]], metric: str) -> str:
    """Return the members' own scores in words."""
    scores = [own[metric] for own in found if metric in own]
    part, name = metric.split("_", 1)
    each = " to ".join(metric_text(name, value) for value in (min(scores), max(scores)))
    return f"{'members':<12}{count(len(scores), 'network')}, {part} {name} of each {each}"


def described(args: argparse.Namespace, trainers: Sequence[Trainer]) -> list[dict[str, Any]]:
    """Return seed, epochs and end of each member."""
    return [
        {
            "seed": seed,
            "epochs": len(trainer.history),
            "best_epoch": trainer.history.best_epoch,
            "stopped": trainer.history.stopped,
        }
        for seed, trainer in zip(seeds(args), trainers, strict=True)
    ]
