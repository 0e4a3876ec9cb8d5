"""``gpubackprop check``: analytic gradients against central differences, for all there is."""

from __future__ import annotations

import argparse
import math
from typing import Any

from gpubackprop.cli.common import Say, add_device_options, count, use_device, whole
from gpubackprop.errors import GpubackpropError
from gpubackprop.gradient_check import check_all

_EPILOG = """\
examples:
  gpubackprop check
  gpubackprop check --seed 7 --quiet
  gpubackprop check --json > check.json

Each line is the largest relative error of one random network, in float64, between the gradients
that the library computes and differences of the loss.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.usage = "gpubackprop check [options]"
    parser.description = (
        "Compare every gradient of the library with central differences in float64: all "
        "activations, losses and options, and 30 layers of one unit."
    )
    parser.add_argument(
        "--seed", type=whole(0), default=0, metavar="N", help="of networks and data (default 0)"
    )
    parser.add_argument("--quiet", action="store_true", help="print failures and the worst only")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    add_device_options(parser)


def run(args: argparse.Namespace) -> int:
    """Exit code 1 (raised) if an error is above the tolerance."""
    device = use_device(args, cpu_only=True)
    say = Say(args.json, args.quiet)
    rows: list[dict[str, Any]] = []
    for label, error, passed in check_all(seed=args.seed):
        rows.append({"check": label, "worst_relative_error": error, "passed": passed})
        line = f"{label:<88} {error:9.1e}  {'ok' if passed else 'FAILED'}"
        (say.line if passed else say.result)(line)
    failed = [row["check"] for row in rows if not row["passed"]]
    worst = max((row["worst_relative_error"] for row in rows), default=math.nan)
    say.line(f"{count(len(rows), 'check')} on {device.name}, {len(failed)} failed")
    say.result(f"worst relative error: {worst:.1e}")
    say.object(
        {"passed": not failed, "worst_relative_error": worst, "device": device.name, "checks": rows}
    )
    if failed or not rows:
        raise GpubackpropError(
            f"{count(len(failed), 'gradient')} differ from central differences, the first: "
            f"{failed[0] if failed else 'nothing was checked'}"
        )
    return 0
