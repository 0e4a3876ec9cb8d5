"""``gpubackprop check``: analytic gradients against central differences, for all there is.

With ``--device cuda`` it first compares every operation of the GPU (`gpubackprop.bench.parity`),
then the gradients as the GPU computes them. Not measured on a GPU.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

from gpubackprop import backends
from gpubackprop.backends import devices
from gpubackprop.bench import parity
from gpubackprop.cli.common import Say, add_device_options, count, set_threads, use_device, whole
from gpubackprop.errors import GpubackpropError
from gpubackprop.gradient_check import check_all

_EPILOG = """\
examples:
  gpubackprop check
  gpubackprop check --seed 7 --quiet
  gpubackprop check --device cuda
  gpubackprop check --json > check.json

Without --device the CPU is checked. With --device cuda every operation on the GPU is first compared
with a computation in float64: its error in units (the epsilon of the dtype times the largest
value), that of the CPU in the same dtype, and what passes.

Each line of the gradient check is the largest relative error of one random network, in float64,
between the gradients that the library computes and differences of the loss.
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
    """Run the checks; raise (exit 1) if an error is above the tolerance."""
    if args.threads is None:
        set_threads(1)  # the products are so small that threads would only wait for one another
    device = use_device(args, cpu_only=args.device == "auto")
    say = Say(args.json, args.quiet)
    rows: list[dict[str, Any]] = []
    on_gpu = not devices.is_host(device.name)
    parity_rows: list[parity.Result] = []
    wrong = _parity(device.name, args.seed, say, parity_rows) if on_gpu else []
    where = {"device": device.name} if on_gpu else {}
    for label, error, passed in check_all(seed=args.seed, **where):
        rows.append({"check": label, "worst_relative_error": error, "passed": passed})
        line = f"{label:<88} {error:9.1e}  {'ok' if passed else 'FAILED'}"
        (say.line if passed else say.result)(line)
    failed = [row["check"] for row in rows if not row["passed"]]
    worst = max((row["worst_relative_error"] for row in rows), default=math.nan)
    say.line(f"{count(len(rows), 'check')} on {device.name}, {len(failed)} failed")
    say.result(f"worst relative error: {worst:.1e}")
    found = {"worst_relative_error": worst, "device": device.name, "checks": rows}
    if on_gpu:
        found["parity"] = [row.row() for row in parity_rows]
    problem = _problem(device.name, rows, wrong)
    say.object({"passed": not problem} | found)
    if problem:
        raise GpubackpropError(problem)
    return 0


def _problem(device: str, rows: list[dict[str, Any]], wrong: list[parity.Result]) -> str:
    """Say what is wrong if a check did not pass; "" if it did."""
    if wrong:
        return (
            f"{count(len(wrong), 'comparison')} of {device} with the CPU failed, the first: "
            f"{_named(wrong[0])}; please report it with the output of `gpubackprop info`"
        )
    failed = [row["check"] for row in rows if not row["passed"]]
    if failed or not rows:
        return (
            f"{count(len(failed), 'gradient')} differ from central differences, the first: "
            f"{failed[0] if failed else 'nothing was checked'}"
        )
    return ""


def _parity(device: str, seed: int, say: Say, rows: list[parity.Result]) -> list[parity.Result]:
    """Fill `rows` with the short form of the comparison; return the rows that failed."""
    backend = backends.get(device)
    for result in parity.results(backend, short=True, seed=seed):
        rows.append(result)
    rows.extend(parity.training_results(device, short=True, seed=seed))
    for entry in parity.summary(rows):
        say.line(
            f"{entry['operation']:<24} {entry['dtype']:<10} {entry['units']:8.2f} units "
            f"(CPU {entry['numpy']:.2f}, passes {entry['limit']:g})  "
            f"{'FAILED' if entry['failed'] else 'ok'}"
        )
    wrong = [row for row in rows if not row.passed]
    for row in wrong:
        say.result(f"{_named(row)}  FAILED")
    say.line(f"{count(len(rows), 'comparison')} of {device} with the CPU, {len(wrong)} failed")
    return wrong


def _named(row: parity.Result) -> str:
    reason = row.error or f"{row.units:.2f} units, passes {row.limit:g}"
    if row.error == "" and not row.pattern:
        reason += ", NaN or infinities in other places"
    return f"{row.operation} {row.variant} {row.dtype}: {reason}"
