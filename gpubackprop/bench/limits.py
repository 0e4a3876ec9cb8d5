"""The limits of a machine: how fast it copies, reads and multiplies, measured beside
each case.

A copy moves 1 GiB and more on a GPU (256 MiB on a CPU, beyond its caches), with all threads of the
run. Its time is scaled to the case's bytes. A case that only reads has a read as its limit; on a
GPU a kernel with 16-byte loads does it (`read.cu`). A small case on a GPU has a second limit of its
own size, because no copy of 10 us reaches the rate of one of a millisecond. Products are the case's
own, by the fastest installed library and in the best layout, without the elementwise work around
them. On a GPU their time excludes the launches, because a launch takes longer than a small product.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from gpubackprop.backends import devices
from gpubackprop.bench import operations
from gpubackprop.bench.problems import Unsupported
from gpubackprop.bench.providers import SAME_SIZE
from gpubackprop.bench.shapes import Case, products
from gpubackprop.bench.timers import BESIDE, CupyTimer, EventTimer, Run, Timer, Work

COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}
SQUARE = {"cpu": 2048, "cuda": 8192}  # side of the product that stands for the machine's peak


def make_small() -> None:
    """Take small sizes, to try the program out; the results then mean nothing."""
    COPY_BYTES.update(cpu=1 << 16, cuda=1 << 16)
    SQUARE.update(cpu=16, cuda=16)
    BESIDE.warm_seconds, BESIDE.busy_bytes, BESIDE.sweep_bytes = 0.0, 1 << 16, 1 << 12


def kind(device: str) -> str:
    return "cpu" if devices.is_host(device) else "cuda"


def timer(device: str, provider: str) -> Timer:
    return Timer() if devices.is_host(device) else CupyTimer(device)


def setup(case: Case, where: Timer, provider: str) -> Work:
    """Set up the limit of that case: its time if it had no other work to do."""
    problem = operations.get(case.op)
    if not problem.limit:
        raise Unsupported("no limit is measured for this operation")
    if problem.limit == "products":
        sizes = products(case)
        return Work(product_run(where, case.dtype, sizes), dict, launches=len(sizes))
    if provider == SAME_SIZE:
        run, moved = memory_run(where, problem.limit, same_size(case))
        return Work(run, dict, scale=problem.bytes(case) / moved, launches=1)
    run, moved = memory_run(where, problem.limit)
    return Work(run, dict, scale=problem.bytes(case) / moved)


def same_size(case: Case) -> int:
    """Return the bytes of an array whose copy or read moves as much as the case.

    It is 0 if the limit's own array is no larger, or if the limit is neither copy nor read.
    """
    problem = operations.get(case.op)
    ways = {"copy": 2, "read": 1}.get(problem.limit, 0)
    size = -(-problem.bytes(case) // (ways * 16)) * 16 if ways else 0
    return size if size < COPY_BYTES["cuda"] else 0


def memory_run(where: Timer, what: str, size: int = 0) -> tuple[Run, int]:
    """Return the call, and the bytes that it reads plus those that it writes."""
    size = size or COPY_BYTES[kind(where.device)]
    noise = np.random.default_rng(0).random(1 << 16, dtype=np.float32)
    if isinstance(where, CupyTimer):
        if what == "copy":
            return where.copier(size), 2 * size
        words = where.xp.asarray(np.resize(noise.view(np.uint32), size // 4))
        return where.reader(words), words.nbytes
    source = where.xp.asarray(np.resize(noise, size // 4))
    if what == "read":
        return _threaded(lambda part: np.add.reduce(part), source), source.nbytes
    target = where.xp.empty_like(source)
    return _threaded(lambda part, out: np.copyto(out, part), source, target), 2 * source.nbytes


def _threaded(function: Callable[..., Any], *arrays: np.ndarray) -> Run:
    """Run `function` on equal parts of the arrays, one thread for each part."""
    threads = int(os.environ.get("OMP_NUM_THREADS", 0)) or os.cpu_count() or 1
    parts = list(zip(*(np.array_split(array, threads) for array in arrays), strict=True))
    if threads == 1:
        return lambda: function(*arrays)
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(lambda part: function(*part), parts))


def product_run(where: Timer, dtype: str, shapes: list[tuple[int, int, int]]) -> Run:
    """Compute these products (rows, inner, columns) one after another, each in the fastest way."""
    if dtype == "bfloat16":
        raise Unsupported("no product of bfloat16 is at hand")
    calls = [_product(where, dtype, shape) for shape in shapes]

    def run() -> None:
        for call in calls:
            call()

    return run


def _product(where: Timer, dtype: str, shape: tuple[int, int, int]) -> Run:
    rows, inner, columns = shape
    xp, rng = where.xp, np.random.default_rng(0)
    x, y = (
        xp.asarray(np.resize(rng.standard_normal(1 << 16).astype(dtype), size))
        for size in ((rows, inner), (inner, columns))
    )
    out = xp.empty((rows, columns), dtype)

    def library() -> Any:
        return xp.matmul(x, y, out=out)

    ways = [library, *_layouts(where, x, y, out), *_cublaslt(where, x, y)]
    return min(ways, key=lambda way: _quick_time(where, way)) if len(ways) > 1 else library


def _layouts(where: Timer, x: Any, y: Any, out: Any) -> list[Run]:
    """Return the layouts to try: a CPU's BLAS has separate code for transposed operands."""
    if where.device != "cpu":
        return []
    x_columns, y_columns = (np.asfortranarray(array) for array in (x, y))
    return [
        lambda: np.matmul(x, y_columns, out=out),
        lambda: np.matmul(x_columns, y, out=out),
    ]


def _cublaslt(where: Timer, x: Any, y: Any) -> list[Run]:
    """Return cuBLASLt's product with its best algorithm, by nvmath-python if it is installed."""
    if where.device == "cpu":
        return []
    try:
        matmul = importlib.import_module("nvmath.linalg.advanced").Matmul(x, y)
        matmul.plan()
        matmul.autotune(iterations=3)
    except Exception:  # it is absent or has no algorithm for these sizes: use CuPy's product
        return []
    return [matmul.execute]


def _quick_time(where: Timer, run: Run) -> float:
    run()
    clock = where.queued_time if isinstance(where, EventTimer) else where.time
    return min(clock(run, 3)[0] for _ in range(3))


def machine(device: str) -> dict[str, float]:
    """Return the best rates: copy and read in bytes/s, product in flops/s (float32, square).

    A rate that fails is omitted. If all fail, the first error is raised.
    """
    where = timer(device, "")
    size = SQUARE[kind(device)]
    ways: dict[str, Callable[[], tuple[Run, int]]] = {
        "copy": lambda: memory_run(where, "copy"),
        "read": lambda: memory_run(where, "read"),
        "product": lambda: (product_run(where, "float32", [(size, size, size)]), 2 * size**3),
    }
    found: dict[str, float] = {}
    errors: list[Exception] = []
    for what, make in ways.items():
        try:
            run, amount = make()
            found[what] = amount / best_time(where, run)
            where.release()
        except Exception as error:  # the card's other rates are useful without this one
            errors.append(error)
    if not found:
        raise errors[0]
    return found


def best_time(where: Timer, run: Run, rounds: int = 5) -> float:
    run()
    where.warm(run)
    once = max(where.time(run, 1)[0], 1e-7)
    count = max(1, min(100, int(0.05 / once)))
    return min(where.time(run, count)[0] for _ in range(rounds))
