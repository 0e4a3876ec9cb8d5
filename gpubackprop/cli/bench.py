"""``gpubackprop bench``: two numbers about this machine; the real benchmarks are in benchmarks/."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop import MLP
from gpubackprop.cli.common import Say, add_device_options, to_json, use_device, versions
from gpubackprop.losses import loss
from gpubackprop.ops import softmax_cross_entropy
from gpubackprop.optimizers import optimizer
from gpubackprop.tensorfile import write_atomically
from gpubackprop.training.batches import Batches
from gpubackprop.training.step import Regularization, TrainStep

Array = np.ndarray
_EPILOG = """\
examples:
  gpubackprop bench
  gpubackprop bench --quick --json bench.json

Medians over repeated calls, with the 20th and 80th percentile. Nothing else should run meanwhile.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.usage = "gpubackprop bench [options]"
    parser.description = "Time a training step and the softmax cross entropy on this machine."
    parser.add_argument("--quick", action="store_true", help="half a second each, less exact")
    parser.add_argument(
        "--json", metavar="FILE", help="write the result as JSON; - prints that and nothing else"
    )
    add_device_options(parser)


def run(args: argparse.Namespace) -> int:
    device = use_device(args, cpu_only=True)
    say = Say(json=args.json == "-")
    seconds = 0.5 if args.quick else 3.0
    say.line(f"device: {device}")
    say.line(f"{'':<58}{'median':>9}  {'p20':>9}  {'p80':>9}")
    rows: list[dict[str, Any]] = []
    for name, work in cases():
        p20, median, p80 = measure(work, seconds)
        rows.append({"name": name, "median_s": median, "p20_s": p20, "p80_s": p80})
        say.line(f"{name:<58}{median * 1e3:>6.3f} ms  {p20 * 1e3:>6.3f} ms  {p80 * 1e3:>6.3f} ms")
    ratio = rows[1]["median_s"] / rows[0]["median_s"]
    say.line(f"softmax cross entropy takes {ratio:.2f} of the time of five lines of NumPy")
    result: dict[str, Any] = {"device": str(device), "versions": versions(), "results": rows}
    say.object(result)
    if args.json and not say.json:
        write_atomically(Path(args.json), to_json(result).encode())
    return 0


def cases() -> list[tuple[str, Callable[[], Any]]]:
    """What is timed: name and a call without arguments."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (4096, 1000)).astype(np.float32)
    labels = rng.integers(0, 1000, 4096)
    delta = np.empty_like(logits)
    return [
        (
            "softmax_cross_entropy/f32/4096x1000/five lines of NumPy",
            lambda: five_lines(logits, labels),
        ),
        (
            "softmax_cross_entropy/f32/4096x1000/gpubackprop",
            lambda: softmax_cross_entropy(logits, labels, out=delta),
        ),
        ("train_step/f32/784-512-512-10/batch 256/adam", train_step(rng)),
    ]


def five_lines(logits: Array, labels: Array) -> tuple[Any, Array]:
    """What one writes without a library."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = -np.log(p[np.arange(len(p)), labels]).mean()
    p[np.arange(len(p)), labels] -= 1
    return loss, p / len(p)


def train_step(rng: np.random.Generator) -> Callable[[], None]:
    """One update from a batch of 256 out of 4096 rows, gathering included."""
    x = rng.normal(size=(4096, 784)).astype(np.float32)
    labels = rng.integers(0, 10, 4096)
    network, chosen = (
        MLP([784, 512, 512, 10], initializer="he_uniform"),
        loss("softmax_cross_entropy"),
    )
    data = Batches.check(network, chosen, x, labels)
    step = TrainStep(network, chosen, data, 256, optimizer("adam"), Regularization())
    rows = rng.permutation(4096)[:256]
    return lambda: step.update(rows, 1e-3)


def measure(work: Callable[[], Any], seconds: float) -> tuple[float, float, float]:
    """20th percentile, median and 80th percentile of the time of a call, after three warm-ups."""
    for _ in range(3):
        work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return tuple(float(q) for q in np.percentile(times, [20, 50, 80]))  # type: ignore[return-value]
