"""The matrix products of a training step by NumPy's BLAS and by PyTorch's, which is MKL on x86.

    python -m benchmarks.bench_products [--json FILE] [--rounds 9]

A step of this library multiplies with NumPy's BLAS, so a peer with a faster one is ahead before it
begins. Each library runs in a process of its own and computes the same products with operands laid
out as a step has them. The processes take turns; a ratio is the median of the ratios of the rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop.bench.process import environment
from gpubackprop.bench.shapes import Case, products

WIDTHS = (784, 512, 512, 10)
BATCHES = (64, 256, 1024, 4096)
SECONDS = 0.05  # of one library in one round


def numpy_product(x: np.ndarray, y: np.ndarray) -> Callable[[], Any]:
    """Return the call of NumPy's product into memory of its own."""
    out = np.empty((len(x), y.shape[1]), x.dtype)
    return lambda: np.matmul(x, y, out=out)


def torch_product(x: np.ndarray, y: np.ndarray) -> Callable[[], Any]:
    """Return the call of PyTorch's product of the same arrays."""
    import torch

    out = torch.empty(len(x), y.shape[1], dtype=torch.float32)
    left, right = torch.from_numpy(x), torch.from_numpy(y)
    return lambda: torch.mm(left, right, out=out)


LIBRARIES = {"numpy": numpy_product, "torch": torch_product}


def operands(batch: int, widths: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return both sides of each product of a step, as views of x, W, h and delta."""
    rng = np.random.default_rng(0)

    def array(rows: int, cols: int) -> np.ndarray:
        return rng.standard_normal((rows, cols), dtype=np.float32)

    found: list[tuple[np.ndarray, np.ndarray]] = []
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        h, W, delta = array(batch, inputs), array(outputs, inputs), array(batch, outputs)
        found += [(h, W.T), (delta.T, h)]
        if layer:
            found.append((delta, W))
    return found


def work(library: str) -> None:
    """Answer lines "batch" on standard input with the seconds of the products of one step."""
    calls: dict[int, list[Callable[[], Any]]] = {}
    for line in sys.stdin:
        batch = int(line)
        if batch not in calls:
            calls[batch] = [LIBRARIES[library](x, y) for x, y in operands(batch, WIDTHS)]
        for call in calls[batch]:
            call()
        times, end = [], time.perf_counter() + SECONDS
        while time.perf_counter() < end or len(times) < 3:
            start = time.perf_counter()
            for call in calls[batch]:
                call()
            times.append(time.perf_counter() - start)
        print(json.dumps(statistics.median(times)), flush=True)


def measure(threads: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each batch: the median seconds of both libraries, and their ratio."""
    command = [sys.executable, "-m", "benchmarks.bench_products", "--worker"]
    workers = {
        name: subprocess.Popen(
            [*command, name], env=environment(threads), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for name in LIBRARIES
    }  # fmt: skip
    rows = []
    for batch in BATCHES:
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(rounds + 1):
            for name, worker in workers.items():
                assert worker.stdin is not None
                assert worker.stdout is not None
                worker.stdin.write(f"{batch}\n")
                worker.stdin.flush()
                seconds[name].append(float(worker.stdout.readline()))
                time.sleep(0.15)  # OpenBLAS's threads spin for 120 ms
        kept = {name: values[1:] for name, values in seconds.items()}  # the first one warms up
        ratios = [a / b for a, b in zip(kept["numpy"], kept["torch"], strict=True)]
        rows.append(
            {"threads": threads, "batch": batch, "ratio": statistics.median(ratios)}
            | {name: statistics.median(values) for name, values in kept.items()}
        )
    for worker in workers.values():
        worker.terminate()
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows in Markdown, with the rate of each library."""
    head = ("threads", "batch", "NumPy", "PyTorch", "NumPy / PyTorch")
    lines = [head, ("---",) * len(head)]
    for row in rows:
        shapes = products(Case("training_step", (row["batch"], *WIDTHS)))
        work = 2e-9 * sum(m * k * n for m, k, n in shapes)
        cells = [f"{1e3 * row[n]:.2f} ms, {work / row[n]:.0f} GFLOP/s" for n in LIBRARIES]
        lines.append((str(row["threads"]), str(row["batch"]), *cells, f"{row['ratio']:.2f}"))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.bench_products", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--worker", choices=LIBRARIES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        return work(options.worker)
    counts = sorted({1, os.cpu_count() or 1})
    rows = [row for threads in counts for row in measure(threads, options.rounds)]
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
