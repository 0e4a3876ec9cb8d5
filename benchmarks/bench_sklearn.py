"""`MLPClassifier.fit` of this package against scikit-learn's and PyTorch, on the CPU or a GPU.

    python benchmarks/bench_sklearn.py [--threads 1] [--device cpu] [--out results.json] [--sizes]

It uses the harness of the other benchmarks: each provider has its own process, and rounds are
interleaved. PyTorch, if it is installed, runs a plain loop over the same batches from the same
weights, with its default and with its fused Adam. Before timing, each loss curve is compared with
scikit-learn's. Figures of a busy machine mean nothing: run it on a quiet one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":  # as a script, the repository is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import front_ends
from gpubackprop.bench.front_ends import fit_cases

NAMES = {
    "gpubackprop.sklearn": "ours", "scikit-learn": "scikit-learn", "torch eager": "torch",
    "torch fused": "torch fused",
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="MLPClassifier.fit against its peers.")
    parser.add_argument("--device", default="cpu", help='"cpu", "cuda" or "cuda:1"')
    parser.add_argument("--rounds", type=int, default=7, help="turns of each case")
    parser.add_argument("--threads", type=int, default=1, help="BLAS threads of each process")
    parser.add_argument("--sizes", action="store_true", help="a table by data size instead")
    parser.add_argument("--only", type=int, help="the case of this number alone, from 0")
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    options = parser.parse_args(arguments)
    chosen = list(fit_cases(options.sizes))
    chosen = chosen if options.only is None else [chosen[options.only]]
    record = front_ends.measure(chosen, NAMES, options, options.threads)
    return front_ends.finish(record, options.out)


if __name__ == "__main__":
    sys.exit(main())
