"""gpubackprop.torch beside PyTorch eager, its other Adams, torch.compile and Liger.

    python -m benchmarks.bench_torch [OUT.json] [--device cuda] [--rounds 7] [--cases cross_entropy]

It times forward and backward passes and optimizer steps with the harness of the other benchmarks.
Each provider has its own process and is compared with float64 before it is timed. Rounds are
interleaved. Compare only ratios within a run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import front_ends
from gpubackprop.bench.front_ends import torch_cases

# The names of the providers for --providers.
PROVIDERS = {
    "gpubackprop": ("gpubackprop.torch",),
    "eager": ("torch eager", "torch foreach", "torch fused"),
    "compile": ("torch.compile",),
    "liger": ("Liger",),
}


def main(arguments: list[str] | None = None) -> int:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", help="file for the results as JSON")
    parser.add_argument("--device", default="cpu", help='"cpu", "cuda" or "cuda:1"')
    parser.add_argument("--rounds", type=int, default=7, help="turns of each case")
    parser.add_argument("--cases", default="", help="names that contain this")
    parser.add_argument("--providers", default=",".join(PROVIDERS), help="with commas")
    options = parser.parse_args(arguments)
    groups = options.providers.split(",")
    if unknown := set(groups) - set(PROVIDERS):
        parser.error(f"no provider {sorted(unknown)[0]!r}; valid are {', '.join(PROVIDERS)}")
    names = {name: name for group in groups for name in PROVIDERS[group]}
    chosen = [
        case for case in torch_cases(options.device.partition(":")[0])
        if options.cases in case.name
    ]  # fmt: skip
    record = front_ends.measure(chosen, names, options, torch.get_num_threads())
    return front_ends.finish(record, options.out)


if __name__ == "__main__":
    sys.exit(main())
