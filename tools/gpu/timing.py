"""timing.json: a first timing of each kernel by CUDA events, with its share of the copy rate.

Each case and the device-to-device copy are timed in turn, round by round; the median, p20 and p80
of the rounds are written. Inputs are random and rotate over more than three times the L2 cache. The
bytes of a case are those of its minimum traffic; `share` is their rate over that of the copy, whose
bytes are counted read and written. A first look: the benchmarks have the peers and the shapes.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop.backends import LossOptions, UpdateRule
from gpubackprop.cli import parity
from gpubackprop.formulas import ACTIVATIONS, POINTWISE_LOSSES, UPDATES
from tools.gpu.common import cuda_backend, write_json

ROUNDS, WARM_UP = 9, 3
ROUND_MS = 4.0  # of work in one round of one case
COPY_BYTES = 1 << 30
CASE_BYTES = 1 << 29  # largest array of a case


@dataclass(frozen=True)
class Timed:
    """`make(bench)` gives one set of arrays as (arrays to keep, replay)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    make: Callable[[Bench], tuple[Any, Callable[[], None]]]


class Bench:
    """Arrays and clocks of one device.

    Parameters
    ----------
    backend : `CupyBackend`. scale : share of the full sizes, for trying the program out.
    """

    def __init__(self, backend: Any, scale: float = 1.0) -> None:
        self.backend, self.cupy, self.scale = backend, backend.cupy, scale
        device = self.cupy.cuda.Device(backend.index)
        free, _ = self.cupy.cuda.runtime.memGetInfo()
        self.room = int(free) // 2
        l2 = int(device.attributes.get("L2CacheSize", 0)) or 64 << 20
        self.l2 = int(l2 * scale)
        self._noise = np.random.default_rng(0).normal(size=1 << 20).astype(np.float32)

    def elements(self, itemsize: int) -> int:
        """Of the largest array of a case."""
        most = min(CASE_BYTES, self.room // 16)
        return max(1 << 10, int(most * self.scale) // itemsize)

    def random(self, shape: Any, dtype: Any) -> Any:
        """Normal numbers on the device: a million of them, over and over."""
        out = self.backend.empty(shape, dtype)
        noise = np.abs(self._noise) * 40 if dtype == np.uint8 else self._noise
        flat, block = out.reshape(out.size), noise.astype(dtype)
        first = min(len(block), out.size)
        self.backend.from_host(block[:first], flat[:first])
        done = first
        while done < out.size:  # doubling
            more = min(done, out.size - done)
            self.backend.copy(flat[:more], flat[done : done + more])
            done += more
        return out

    def wait(self) -> None:
        self.cupy.cuda.get_current_stream().synchronize()

    def release(self) -> None:
        """Give what CuPy's pool holds back, so that arrays of other sizes find room."""
        self.wait()
        self.cupy.get_default_memory_pool().free_all_blocks()

    def milliseconds(self, run: Callable[[int], None], count: int) -> float:
        """Of one of `count` calls in a row, by events on the current stream."""
        start, end = (self.cupy.cuda.Event() for _ in range(2))
        start.record()
        for number in range(count):
            run(number)
        end.record()
        end.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(start, end)) / count


# -- the cases ------------------------------------------------------------------------------------


def cases(bench: Bench) -> Iterator[Timed]:
    """Most important first: the stage may be stopped before its end."""
    f32 = np.dtype(np.float32)
    types = [dtype for name, dtype in parity.dtypes().items() if name in ("float32", "bfloat16")]
    rows = bench.elements(4) // 1024
    for dtype in types:
        yield _forward("relu", (rows, 1024), dtype)
        yield _backward("relu", (rows, 1024), dtype)
        yield _cross_entropy((bench.elements(4) // 1000, 1000), dtype)
    for columns in (10, 32000, 50257, 128256):
        yield _cross_entropy((max(1, bench.elements(4) // columns), columns), f32)
    yield _backward("relu", (max(1, min(1 << 20, bench.elements(4) // 16)), 16), f32)
    for name in UPDATES:
        yield _update(name, bench.elements(4) // 4, f32)
    yield _column_sum((rows, 1024), f32)
    yield _sum_of_squares(bench.elements(4), f32)
    for source in (np.dtype(np.uint8), f32):
        yield _gather((max(1, bench.elements(4) // 784), 784), source, f32)
    for name in POINTWISE_LOSSES:
        yield _pointwise(name, (rows, 1024), f32)
    for name in ACTIVATIONS:
        if name != "relu":
            yield _forward(name, (rows, 1024), f32)
            yield _backward(name, (rows, 1024), f32)


def _timed(
    name: str, dtype: np.dtype, shape: tuple[int, ...], moved: float, arrays: Any, emit: Any
) -> Timed:  # fmt: skip
    """`arrays(bench)` makes a dict, ``emit(verbs, **arrays)`` calls the verb."""

    def make(bench: Bench) -> tuple[Any, Callable[[], None]]:
        made = arrays(bench)
        return made, bench.backend.plan(lambda verbs: emit(verbs, **made))

    return Timed(name, dtype.name, shape, int(moved), make)


def _forward(name: str, shape: tuple[int, int], dtype: np.dtype) -> Timed:
    act = ACTIVATIONS[name]
    count = shape[0] * shape[1]
    return _timed(
        f"activation_forward/{name}", dtype, shape, 2 * count * dtype.itemsize,
        lambda bench: {"a": bench.random(shape, dtype), "h": bench.backend.empty(shape, dtype)},
        lambda verbs, a, h: verbs.activation_forward(a, act, h),
    )  # fmt: skip


def _backward(name: str, shape: tuple[int, int], dtype: np.dtype) -> Timed:
    act = ACTIVATIONS[name]
    count = shape[0] * shape[1]

    def arrays(bench: Bench) -> dict[str, Any]:
        return {
            "grad_h": bench.random(shape, dtype), "saved": bench.random(shape, dtype),
            "delta": bench.backend.empty(shape, dtype),
            "grad_b": bench.backend.empty(shape[1], dtype),
        }  # fmt: skip

    return _timed(
        f"activation_backward+bias_gradient/{name}", dtype, shape, 3 * count * dtype.itemsize,
        arrays,
        lambda verbs, grad_h, saved, delta, grad_b: verbs.activation_backward(
            grad_h, saved, act, delta, grad_b
        ),
    )  # fmt: skip


def _column_sum(shape: tuple[int, int], dtype: np.dtype) -> Timed:
    return _timed(
        "column_sum", dtype, shape, shape[0] * shape[1] * dtype.itemsize,
        lambda bench: {
            "x": bench.random(shape, dtype), "out": bench.backend.empty(shape[1], dtype)
        },
        lambda verbs, x, out: verbs.column_sum(x, out),
    )  # fmt: skip


def _loss_arrays(bench: Bench, shape: tuple[int, int], dtype: np.dtype) -> dict[str, Any]:
    empty, compute = bench.backend.empty, parity.compute_dtype(dtype)
    return {
        "loss": empty((), compute), "row_loss": empty(shape[0], compute),
        "scale": empty(shape[0], compute), "delta": empty(shape, dtype),
    }  # fmt: skip


def _cross_entropy(shape: tuple[int, int], dtype: np.dtype) -> Timed:
    def arrays(bench: Bench) -> dict[str, Any]:
        labels = np.random.default_rng(0).integers(0, shape[1], shape[0])
        return {
            "logits": bench.random(shape, dtype), "labels": bench.backend.asarray(labels),
            **_loss_arrays(bench, shape, dtype),
        }  # fmt: skip

    return _timed(
        "softmax_cross_entropy+delta", dtype, shape, 2 * shape[0] * shape[1] * dtype.itemsize,
        arrays,
        lambda verbs, logits, labels, **result: verbs.softmax_cross_entropy(
            logits, labels, LossOptions(), result
        ),
    )  # fmt: skip


def _pointwise(name: str, shape: tuple[int, int], dtype: np.dtype) -> Timed:
    formula = POINTWISE_LOSSES[name]
    return _timed(
        f"pointwise_loss+delta/{name}", dtype, shape, 3 * shape[0] * shape[1] * dtype.itemsize,
        lambda bench: {
            "a": bench.random(shape, dtype), "targets": bench.random(shape, dtype),
            **_loss_arrays(bench, shape, dtype),
        },
        lambda verbs, a, targets, **result: verbs.pointwise_loss(
            a, targets, formula, LossOptions(), result
        ),
    )  # fmt: skip


def _update(name: str, count: int, dtype: np.dtype) -> Timed:
    """The launches of a training step: coefficients made on the device, then the update."""
    formula = UPDATES[name]
    rule = UpdateRule(formula, formula.hyperparameters, 1e-3)

    def make(bench: Bench) -> tuple[Any, Callable[[], None]]:
        p, g = (bench.random(count, dtype) for _ in range(2))
        slots = tuple(bench.backend.zeros(count, dtype) for _ in formula.slots)
        updater = bench.backend.updater(bench.backend, rule, p, g, slots)
        return (p, g, slots, updater), bench.backend.plan(updater.emit)

    moved = (3 + 2 * len(formula.slots)) * count * dtype.itemsize
    return Timed(f"update/{name}", dtype.name, (count,), moved, make)


def _sum_of_squares(count: int, dtype: np.dtype) -> Timed:
    return _timed(
        "sum_of_squares", dtype, (count,), count * dtype.itemsize,
        lambda bench: {"x": bench.random(count, dtype), "out": bench.backend.empty(2, dtype)},
        lambda verbs, x, out: verbs.sum_of_squares(x, out),
    )  # fmt: skip


def _gather(shape: tuple[int, int], source: np.dtype, dtype: np.dtype) -> Timed:
    count = shape[0] * shape[1]

    def arrays(bench: Bench) -> dict[str, Any]:
        rows = np.random.default_rng(0).permutation(shape[0]).astype(np.int64)
        return {
            "x": bench.random(shape, source), "rows": bench.backend.asarray(rows),
            "out": bench.backend.empty(shape, dtype),
        }  # fmt: skip

    return _timed(
        f"gather_rows/from {source.name}", dtype, shape, count * (source.itemsize + dtype.itemsize),
        arrays, lambda verbs, x, rows, out: verbs.gather_rows(x, rows, out),
    )  # fmt: skip


# -- measuring ------------------------------------------------------------------------------------


def measure(bench: Bench, case: Timed, copy: Callable[[int], None]) -> dict[str, Any]:
    """One row of the table; `copy(number)` is the copy that the case is held against."""
    sets = [case.make(bench)]
    while len(sets) * case.bytes <= 3 * bench.l2 and len(sets) < 64:
        sets.append(case.make(bench))
    replays = [replay for _, replay in sets]

    def run(number: int) -> None:
        replays[number % len(replays)]()

    for number in range(max(WARM_UP, len(sets))):
        run(number)
    bench.wait()
    counts = {run: 1, copy: 1}
    for work in counts:
        once = max(bench.milliseconds(work, 2), 1e-4)
        counts[work] = max(len(sets), min(1000, int(ROUND_MS / once) + 1))
    times: dict[Any, list[float]] = {run: [], copy: []}
    for _ in range(ROUNDS):
        for work, found in times.items():
            found.append(bench.milliseconds(work, counts[work]))
    median = statistics.median(times[run])
    return {
        "case": case.name, "dtype": case.dtype, "shape": list(case.shape), "bytes": case.bytes,
        "ms": median, "ms_p20": _quantile(times[run], 0.2), "ms_p80": _quantile(times[run], 0.8),
        "gb_per_s": case.bytes / median / 1e6, "copy_ms": statistics.median(times[copy]),
        "sets": len(sets), "calls_per_round": counts[run],
    }  # fmt: skip


def _quantile(values: list[float], share: float) -> float:
    return float(np.quantile(values, share))


def time_all(out: Path, backend: Any, scale: float = 1.0) -> list[dict[str, Any]]:
    """Every case, written to timing.json after each."""
    bench = Bench(backend, scale)
    size = max(1 << 12, int(min(COPY_BYTES, bench.room // 4) * scale)) // 4
    source, target = bench.random(size, np.float32), backend.empty(size, np.float32)

    def copy(number: int) -> None:
        backend.copy(source, target)

    rows: list[dict[str, Any]] = []
    for case in cases(bench):
        try:
            row = measure(bench, case, copy)
            row["copy_gb_per_s"] = 2 * size * 4 / row["copy_ms"] / 1e6
            row["share_of_copy"] = row["gb_per_s"] / row["copy_gb_per_s"]
        except Exception as error:  # the other kernels are wanted all the same
            row = {"case": case.name, "dtype": case.dtype, "shape": list(case.shape)}
            row["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
        rows.append(row)
        bench.release()
        print(line(row), flush=True)
        write_json(
            out / "timing.json",
            {"l2_bytes": bench.l2, "copy_bytes": 2 * size * 4, "rounds": ROUNDS, "rows": rows},
        )
    return rows


def line(row: dict[str, Any]) -> str:
    name = f"{row['case']}/{row['dtype']}/{'x'.join(map(str, row['shape']))}"
    if "error" in row:
        return f"{name:<72} {row['error']}"
    return (
        f"{name:<72} {row['ms']:9.4f} ms  p20 {row['ms_p20']:.4f}  p80 {row['ms_p80']:.4f}  "
        f"{row['share_of_copy']:.2f} COPY"
    )


def main() -> int:
    rows = time_all(Path(sys.argv[1]), cuda_backend())
    wrong = [row for row in rows if "error" in row]
    print(f"{len(rows)} cases, {len(wrong)} without a time")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
