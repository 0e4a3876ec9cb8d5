"""``gpubackprop info --scaling``: what several ranks would move, and what they would gain."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from gpubackprop.cli.common import Say, count, real, whole
from gpubackprop.distributed.buckets import least_bytes
from gpubackprop.distributed.scaling import ASSUMPTIONS, Scaling


def widths(text: str) -> list[int]:
    """Read "784-512-10"."""
    parts = text.replace(",", "-").split("-")
    if len(parts) < 2 or not all(part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not of the form INPUTS-UNITS-...-OUTPUTS, such as 784-512-10"
        )
    return [int(part) for part in parts]


def numbers(text: str) -> list[int]:
    return [whole(1)(part) for part in text.split(",")]


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several ranks, estimated")
    group.add_argument(
        "--scaling", type=widths, metavar="WIDTHS", help="of this network, such as 784-512-10"
    )
    group.add_argument("--batch", type=whole(1), default=256, metavar="ROWS", help="(default 256)")
    group.add_argument(
        "--dtype", choices=["float32", "float64"], default="float32", help="(default float32)"
    )
    group.add_argument(
        "--ranks", type=numbers, default=[2, 4, 8, 16], metavar="N,...", help="(default 2,4,8,16)"
    )
    group.add_argument(
        "--bandwidth", type=real(1e-3), default=10.0, metavar="GB/s",
        help="of a rank's connection (default 10)",
    )  # fmt: skip
    group.add_argument(
        "--latency", type=real(), default=20.0, metavar="US",
        help="of a message, in microseconds (default 20)",
    )  # fmt: skip
    group.add_argument(
        "--rate", type=real(1e-3), default=100.0, metavar="GFLOPS",
        help="at which a rank multiplies (default 100; `gpubackprop bench` measures it)",
    )  # fmt: skip


def show(args: argparse.Namespace) -> int:
    scaling = Scaling(
        args.scaling, args.batch, np.dtype(args.dtype).itemsize, args.bandwidth * 1e9,
        args.latency * 1e-6, args.rate * 1e9,
    )  # fmt: skip
    say = Say(args.json)
    rows: list[dict[str, Any]] = [
        {
            "ranks": ranks,
            "moved_bytes": scaling.moved(ranks),
            "sum_seconds": scaling.adding(ranks),
            "left_seconds": scaling.left(ranks),
            "sharded_seconds": scaling.adding_in_parts(ranks),
            "slot_bytes": scaling.slot_bytes(ranks),
            "strong": scaling.strong(ranks),
            "weak": scaling.weak(ranks),
        }
        for ranks in args.ranks
    ]
    name = "-".join(map(str, args.scaling))
    step = scaling.computing(args.batch)
    say.line(f"{name}, {args.dtype}: a gradient of {scaling.gradient_bytes / 1e6:,.2f} MB; the")
    say.line(f"products of {count(args.batch, 'row')} take {1e3 * step:,.3f} ms on one rank")
    say.line()
    say.line(
        f"{'ranks':>6}{'MB a step':>12}{'sum, ms':>10}{'strong':>9}{'weak':>9}{'left, ms':>10}"
        f"{'sharded, ms':>13}{'slot, MB':>10}"
    )
    for row in rows:
        say.line(
            f"{row['ranks']:>6}{row['moved_bytes'] / 1e6:>12,.2f}{1e3 * row['sum_seconds']:>10.3f}"
            f"{row['strong']:>9.0%}{row['weak']:>9.0%}{1e3 * row['left_seconds']:>10.3f}"
            f"{1e3 * row['sharded_seconds']:>13.3f}{row['slot_bytes'] / 1e6:>10,.2f}"
        )
    say.line()
    say.line(f"strong: one batch of {args.batch} for all; weak: a batch of {args.batch} for each.")
    buckets = scaling.buckets()
    if buckets:
        sizes = ", ".join(f"{size / 1e6:,.1f}" for _, size in buckets)
        say.line("Between GPUs the sum goes in parts beside the backward pass, of so many MB:")
        say.line(f"{sizes}, and the biases.")
    else:
        say.line(
            f"Between GPUs, too, the sum is one call: parts of less than {least_bytes() / 1e6:g} MB"
        )
        say.line("do not pay.")
    say.line("left: what of that sum is not done when the backward pass has ended.")
    say.line(
        "sharded: the same bytes with shard_optimizer; slot: what a rank then keeps of each slot"
    )
    say.line(f"of the optimizer, instead of {scaling.gradient_bytes / 1e6:,.2f} MB.")
    say.line(
        f"An estimate, not measured: {args.bandwidth:g} GB/s, {args.latency:g} us and "
        f"{args.rate:g} GFLOPS are what was given, and:"
    )
    for assumption in ASSUMPTIONS:
        say.line(f"- {assumption}")
    say.object(
        {
            "widths": args.scaling, "batch": args.batch, "gradient_bytes": scaling.gradient_bytes,
            "step_seconds": step, "ranks": rows, "assumptions": ASSUMPTIONS,
            "buckets": [{"layer": layer, "bytes": size} for layer, size in buckets],
        }
    )  # fmt: skip
    return 0
