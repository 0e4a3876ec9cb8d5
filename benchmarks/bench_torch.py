"""gpubackprop.torch beside PyTorch eager, torch.compile and Liger, in one process, interleaved.

    python -m benchmarks.bench_torch [OUT.json] [--device cuda] [--rounds 7] [--cases cross_entropy]

Forward and backward pass, or a step of an optimizer. Each contestant is checked against float64
before it is timed; what is not installed, does not compile or is wrong says so and is not timed.
Inputs rotate over more than three times the second-level cache of a GPU. Ratios within a run are
meant to be compared, nothing else.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)
from torch import Tensor

import gpubackprop.torch as gt
from gpubackprop.bench.table import spread, time_text

Inputs = list[Tensor]
Run = Callable[[Inputs], list[Tensor]]  # the loss and its gradients
CACHE_BYTES = 64 << 20  # of the largest GPUs
CONTESTANTS = ("gpubackprop", "eager", "compile", "liger")


@dataclass(frozen=True)
class Case:
    """One piece of work.

    Attributes
    ----------
    inputs : makes the tensors of a set; float tensors of at least two dimensions are leaves.
    functions : the loss of the inputs, by contestant; "compile" is "eager" compiled.
    tolerance : relative error against float64 up to which a contestant is right.
    """

    name: str
    inputs: Callable[[torch.Generator], Inputs]
    functions: dict[str, Callable[..., Tensor]]
    tolerance: float


def liger(name: str) -> Callable[..., Tensor]:
    """A function of Liger's; ImportError where it is not installed, when it is first called."""

    def call(*args: Any) -> Tensor:
        from liger_kernel.transformers import functional

        return getattr(functional, name)(*args)

    return call


def cases(device: str) -> Iterator[Case]:
    large = device != "cpu"
    kind = torch.bfloat16 if large else torch.float32
    shapes = [(4096, 1000), (256, 50257), (65536, 10)]
    shapes += [(4096, 32000), (4096, 128256)] if large else []
    for rows, classes in shapes:
        yield Case(
            f"cross_entropy/{str(kind)[6:]}/{rows}x{classes}",
            lambda g, n=rows, k=classes: [
                torch.randn(n, k, generator=g).to(kind), torch.randint(k, (n,), generator=g)
            ],
            {
                "gpubackprop": gt.cross_entropy, "eager": F.cross_entropy,
                "liger": liger("liger_cross_entropy"),
            },
            0.02 if large else 1e-4,
        )  # fmt: skip
    rows, features, classes = (4096, 4096, 128256) if large else (256, 64, 4008)
    yield Case(
        f"linear_cross_entropy/{str(kind)[6:]}/{rows}x{features}x{classes}",
        lambda g: [
            torch.randn(rows, features, generator=g).to(kind),
            (torch.randn(classes, features, generator=g) / features**0.5).to(kind),
            torch.randint(classes, (rows,), generator=g),
        ],
        {
            "gpubackprop": gt.linear_cross_entropy,
            "eager": lambda x, W, y: F.cross_entropy(F.linear(x, W), y),
            "liger": lambda x, W, y: liger("liger_fused_linear_cross_entropy")(x, W, y),
        },
        0.02 if large else 1e-4,
    )
    rows, width = (8192, 4096) if large else (512, 512)
    yield Case(
        f"linear_gelu/{str(kind)[6:]}/{rows}x{width}x{width}",
        lambda g: [
            torch.randn(rows, width, generator=g).to(kind),
            (torch.randn(width, width, generator=g) / width**0.5).to(kind),
        ],
        {
            "gpubackprop": lambda x, W: gt.linear_act(x, W, None, "gelu").square().mean(),
            "eager": lambda x, W: F.gelu(F.linear(x, W)).square().mean(),
        },
        0.02 if large else 1e-4,
    )


def run_of(function: Callable[..., Tensor]) -> Run:
    def run(inputs: Inputs) -> list[Tensor]:
        loss = function(*inputs)
        leaves = [t for t in inputs if t.requires_grad]
        return [loss, *torch.autograd.grad(loss, leaves)]

    return run


def leaves(inputs: Inputs, device: str, dtype: torch.dtype | None = None) -> Inputs:
    made = []
    for tensor in inputs:
        moved = tensor.to(device, dtype if tensor.is_floating_point() else None, copy=True)
        made.append(moved.requires_grad_(tensor.is_floating_point() and tensor.dim() > 1))
    return made


def verdict(case: Case, run: Run, device: str) -> str:
    """Why it is not timed, or ""."""
    inputs = case.inputs(torch.Generator().manual_seed(0))
    exact = run_of(case.functions["eager"])(leaves(inputs, device, torch.float64))
    try:
        got = run(leaves(inputs, device))
    except Exception as error:  # not installed, no compiler, out of memory: a contestant may
        return f"not measured: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    for ours, wanted in zip(got, exact, strict=True):
        error = ((ours.double() - wanted).abs().max() / wanted.abs().max()).item()
        if not error <= case.tolerance:
            return f"WRONG: differs from float64 by {error:.1e}"
    return ""


def seconds(device: str, work: Callable[[], Any], repeats: int) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def time_all(
    works: dict[str, Callable[[], Any]], device: str, rounds: int
) -> dict[str, list[float]]:
    """Rounds of about 50 ms, one contestant after the other in each."""
    repeats = {}
    for name, work in works.items():
        seconds(device, work, 2)
        repeats[name] = max(1, round(0.05 / seconds(device, work, 1)))
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(seconds(device, work, repeats[name]))
    return found


def rotating(run: Callable[[Any], Any], sets: list[Any]) -> Callable[[], Any]:
    turn = 0

    def work() -> None:
        nonlocal turn
        run(sets[turn % len(sets)])
        turn += 1

    return work


def measure(case: Case, device: str, rounds: int, names: tuple[str, ...]) -> list[dict[str, Any]]:
    runs = {name: run_of(f) for name, f in case.functions.items() if name in names}
    if "compile" in names:
        runs["compile"] = run_of(torch.compile(case.functions["eager"]))
    notes = {name: verdict(case, run, device) for name, run in runs.items()}
    g = torch.Generator().manual_seed(1)
    first = leaves(case.inputs(g), device)
    bytes_each = sum(tensor.nbytes for tensor in first)
    count = 1 if device == "cpu" else max(1, -(-3 * CACHE_BYTES // bytes_each))
    sets = [first, *(leaves(case.inputs(g), device) for _ in range(count - 1))]
    works = {name: rotating(run, sets) for name, run in runs.items() if not notes[name]}
    return rows_of(case.name, notes, time_all(works, device, rounds))


def rows_of(
    name: str, notes: dict[str, str], found: dict[str, list[float]]
) -> list[dict[str, Any]]:
    rows = []
    ours = found.get("gpubackprop", [])
    for contestant, note in notes.items():
        row: dict[str, Any] = {"case": name, "contestant": contestant, "note": note}
        times = found.get(contestant, [])
        if times:
            row |= {"seconds": statistics.median(times), "rounds": times}
            if ours:
                ratios = [a / b for a, b in zip(ours, times, strict=True)]
                row["ratio"] = statistics.median(ratios)
        rows.append(row)
    return rows


def measure_adam(device: str, rounds: int, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """A step of Adam on 1000 tensors of 4096; PyTorch's fused and foreach forms."""
    optimizers: dict[str, Any] = {}
    for name in names:
        group = [torch.nn.Parameter(torch.randn(4096, device=device)) for _ in range(1000)]
        for p in group:
            p.grad = torch.randn_like(p)
        if name == "gpubackprop":
            optimizers[name] = gt.Adam(group)
        elif name == "eager":
            optimizers["foreach"] = torch.optim.Adam(group, foreach=True)
            twins = [torch.nn.Parameter(p.detach().clone()) for p in group]
            for p in twins:
                p.grad = torch.randn_like(p)
            optimizers["fused"] = torch.optim.Adam(twins, fused=True)
    works = {name: optimizer.step for name, optimizer in optimizers.items()}
    notes = dict.fromkeys(works, "")
    return rows_of("adam/float32/1000x4096", notes, time_all(works, device, rounds))


def environment(device: str) -> dict[str, Any]:
    versions: dict[str, str] = {}
    for package in ("torch", "numpy", "cupy-cuda12x", "cupy-cuda13x", "triton", "liger-kernel"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    name = platform.processor() if device == "cpu" else torch.cuda.get_device_name()
    return {
        "device": name, "platform": platform.platform(), "versions": versions,
        "threads": torch.get_num_threads(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", help="file for the results as JSON")
    parser.add_argument("--device", default="cpu", help='"cpu" or "cuda"')
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cases", default="", help="names that begin so")
    parser.add_argument("--contestants", default=",".join(CONTESTANTS))
    options = parser.parse_args(arguments)
    names = tuple(options.contestants.split(","))
    rows = []
    for case in cases(options.device):
        if case.name.startswith(options.cases):
            rows += measure(case, options.device, options.rounds, names)
    if "adam".startswith(options.cases):
        rows += measure_adam(options.device, options.rounds, names)
    for row in rows:
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else row["note"] or "-"
        taken = "-"
        if "seconds" in row:
            taken = f"{time_text(row['seconds'])} ({spread(row['rounds'])})"
        print(f"{row['case']:48} {row['contestant']:12} {taken:32} ours / theirs {ratio}")
    record = {"environment": environment(options.device), "rows": rows}
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 1 if any(row["note"].startswith("WRONG") for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
