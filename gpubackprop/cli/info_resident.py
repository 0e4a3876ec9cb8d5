"""``gpubackprop info --resident``: whether whole epochs of a network are one launch on a GPU."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gpubackprop import MLP, Ensemble, backends
from gpubackprop.backends import devices
from gpubackprop.backends.cupy_launch import DeviceProperties
from gpubackprop.backends.precision import automatic
from gpubackprop.backends.resident_plan import plan_resident
from gpubackprop.backends.spread_plan import plan_spread
from gpubackprop.cli.common import Say
from gpubackprop.cli.info_scaling import widths
from gpubackprop.ensemble import members_of
from gpubackprop.formulas import Activation, activation
from gpubackprop.optimizers import OPTIMIZERS, optimizer

if TYPE_CHECKING:
    from gpubackprop.backends.cupy import CupyBackend

# What a plan is made for where there is no GPU: 227 KB a block, as compute capability 9.0 has.
ASSUMED = DeviceProperties(132, shared_bytes=232_448, capability=(9, 0))


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("epochs of a small network in one launch of a GPU, planned")
    group.add_argument(
        "--resident",
        type=widths,
        metavar="WIDTHS",
        help="of this network, such as 64-128-10, which has --batch rows and --dtype; on the GPU "
        "that is here, else on one of compute capability 9.0",
    )
    group.add_argument(
        "--optimizer", choices=list(OPTIMIZERS), default="adam", help="(default adam)"
    )
    group.add_argument(
        "--activation", type=activation, default="relu", metavar="NAME", help="(default relu)"
    )
    group.add_argument(
        "--precision", choices=["tf32", "auto"],
        help="of products, as `train` has it: tf32 is tensor cores; auto is tf32 from compute "
        "capability 8.0 on (default: that of --dtype)",
    )  # fmt: skip


def show(args: argparse.Namespace) -> int:
    """Print the plan, or why there is none."""
    hidden = (activation(args.activation),) * (len(args.resident) - 2)
    precision = args.precision if args.dtype == "float32" else None
    if precision == "auto":
        major, minor = _card()[1].capability
        precision = automatic(10 * major + minor)
    found = planned(
        args.resident, hidden, precision or args.dtype, args.batch, args.optimizer
    )  # fmt: skip
    say = Say(args.json)
    say.line(f"{'-'.join(map(str, args.resident))}, {_words(found)}")
    say.object(found)
    return 0


def describe(network: MLP | Ensemble, say: Say) -> dict[str, Any]:
    """Print the answer for a model's network, if there is a GPU; return it as JSON values."""
    found = planned(
        network.widths, network.activations, members_of(network)[0].products, 256, "adam",
        members_of(network)[0].dropout,
    )  # fmt: skip
    if found["device"] is None:
        return {}
    say.line(f"epochs        {_words(found)}")
    return {"epochs": found}


def planned(
    widths: Sequence[int],
    activations: Sequence[Activation],
    precision: str,
    batch: int,
    name: str,
    dropout: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Return the plan of a network that learns classes, as JSON values."""
    device, card = _card()
    dtype = "float32" if precision == "tf32" else precision
    options: Any = {"dropout": dropout, "tf32": precision == "tf32"}
    plan = plan_resident(widths, activations, optimizer(name).formula, batch, card, **options)
    spread = plan_spread(widths, activations, batch, card, resident=plan, **options)
    reason, says = plan.reason, str(plan)
    if spread.way:
        reason = says = str(spread)
    if dtype != np.dtype(np.float32).name:
        reason = f"its numbers are {dtype} and not float32"
        says = f"no resident training: {reason}"
    return {
        "widths": list(widths), "dtype": dtype, "products": precision, "batch": batch,
        "optimizer": name, "device": device, "resident": not reason, "reason": reason,
        "blocks": 0 if reason else plan.blocks, "shared_bytes": plan.shared_bytes,
        "available_bytes": plan.available, "tile_rows": plan.tile_rows,
        "says": says,
    }  # fmt: skip


def _card() -> tuple[str | None, DeviceProperties]:
    """Return the name and the properties of the GPU that is here, or None and what is assumed."""
    name = devices.choose("auto")[0]
    if devices.is_host(name):
        return None, ASSUMED
    return name, cast("CupyBackend", backends.get(name)).launcher.properties


def _words(found: dict[str, Any]) -> str:
    where = found["device"] or "a GPU of compute capability 9.0 (there is none here)"
    return f"{found['optimizer']} and batches of {found['batch']} on {where}: {found['says']}"
