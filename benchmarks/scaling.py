"""Measure how ranks on this machine's CPU scale: ``mpirun -n 2 python -m benchmarks.scaling``.

Each rank has one thread. Strong: one batch for all ranks; weak: a batch for each. The times are
those of the fastest epoch. Compare with `python -m benchmarks.scaling`, which is one rank, on the
same idle machine.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import threadpoolctl

from gpubackprop import MLP, Trainer
from gpubackprop.backends.host import probe_cpu
from gpubackprop.backends.numpy import set_num_threads
from gpubackprop.distributed import join

STEPS, EPOCHS = 10, 4  # of an epoch; the first epoch plans


def milliseconds(widths: list[int], batch_size: int, ranks: Any, repeat: int = EPOCHS) -> float:
    """Return the time of a step, in the fastest epoch after the first."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS * batch_size, widths[0])).astype(np.float32)
    targets = rng.integers(0, widths[-1], len(x))
    trainer = Trainer(MLP(widths, seed=0), batch_size=batch_size, distributed=ranks)
    history = trainer.fit(x, targets, epochs=repeat)
    return 1e3 * min(history["seconds"][1:]) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--widths", default="784-512-512-10")
    parser.add_argument("--batch", type=int, default=1024)
    args = parser.parse_args()
    widths = [int(width) for width in args.widths.split("-")]
    ranks = join("auto")
    set_num_threads(1)
    with threadpoolctl.threadpool_limits(1):
        strong = milliseconds(widths, args.batch, ranks)
        weak = milliseconds(widths, args.batch * ranks.size, ranks)
    if ranks.rank == 0:
        found = {
            "machine": probe_cpu().model, "cores": probe_cpu().cores, "ranks": ranks.size,
            "widths": widths, "batch": args.batch, "strong_ms": strong, "weak_ms": weak,
        }  # fmt: skip
        print(json.dumps(found))


if __name__ == "__main__":
    main()
