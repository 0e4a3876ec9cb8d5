"""Launch every kernel with awkward shapes, for compute-sanitizer.

Sizes are odd, rows have gaps, and arrays start off a 16-byte boundary. Every formula runs in
float32 and in the two 16-bit types.

    compute-sanitizer --tool memcheck python -m tools.gpu.every_kernel OUT.json
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from gpubackprop import MLP, Trainer
from gpubackprop.backends import spread_plan
from gpubackprop.backends.cupy import resident as launching
from gpubackprop.backends.cupy import updates
from gpubackprop.backends.cupy.arguments import ARGUMENTS, kernel_of
from gpubackprop.backends.cupy.launcher import Launcher
from gpubackprop.backends.cupy_launch import least_architecture
from gpubackprop.backends.loss import Total
from gpubackprop.backends.precision import has_tf32
from gpubackprop.backends.resident_cost import CLUSTERS
from gpubackprop.backends.resident_plan import plan_resident
from gpubackprop.bench import operations, parity
from gpubackprop.bench.cases import compared
from gpubackprop.bench.shapes import Case
from gpubackprop.dtypes import STORAGES
from gpubackprop.formulas import UPDATES
from gpubackprop.training import resident
from tools.gpu.common import cuda_backend, write_json


def launch_all(backend: Any) -> tuple[set[str], set[str]]:
    """Launch all cases; return the names of the kernels and of the entries."""
    kernels: set[str] = set()
    entries: set[str] = set()
    bind = Launcher.bind

    def counting(self: Any, launch: Any, values: Any) -> Any:
        kernels.add(kernel_of(launch.entry, launch.defines))
        entries.add(launch.entry)
        return bind(self, launch, values)

    with patch.object(Launcher, "bind", counting):
        for name in [name for name in parity.dtypes() if name != "float64"]:
            for case in compared(short=True):
                if not STORAGES[name].sixteen_bit or operations.get(case.op).sixteen_bit:
                    _run(backend, replace(case, dtype=name))
        _update_table(backend)
        _one_hot(backend)
        _resident(backend)
        _spread(backend)
        _totals(backend)
        for _ in parity.training_results(backend.device, short=True):
            pass
    backend.to_host(backend.zeros(1, np.float32))  # waits, so errors of the launches show here
    return kernels, entries


def _run(backend: Any, case: Case) -> None:
    """Run the case as it is, and with its matrices inside wider ones."""
    inputs = operations.get(case.op).host_block(case)
    parity.run(backend, case, inputs)
    if case.op in ("activation_forward", "activation_backward", "column_sum"):
        parity.run(backend, case, inputs, place=_shifted)


def _update_table(backend: Any) -> None:
    """Run one step of Adam on two tensors through a table of pointers, which no case uses."""
    arrays = [[backend.zeros(n, np.float32) for _ in range(5)] for n in (3, 4099)]
    words = np.zeros((2, 9), np.uint64)
    for row, group in zip(words, arrays, strict=True):
        p, g, m, v, step = (array.data.ptr for array in group)
        row[:7] = [p, g, m, v, 0, step, group[0].size]
    words[1, 7] = 1  # the first tensor has one chunk
    settings = backend.asarray(np.array([[0.1, 0.0, 1.0, 0.9, 0.999, 1e-8, 0.0, 0.0]]))
    work = backend.empty((2, updates.COEFFICIENTS), np.float32)
    table = backend.asarray(words)
    owner = backend.asarray(np.array([0, 1, 1], np.int32))
    updates.update_table(
        backend, UPDATES["adam"], np.float32, table, settings, work, owner, None, None
    )


def _one_hot(backend: Any) -> None:
    """Run both operations on two groups of inputs with a gap; some rows have no input that is 1."""
    groups, rows, units = ((1, 40), (43, 47)), 71, 37
    codes = np.stack([np.arange(rows) % (stop - p + 1) + p for p, stop in groups], 1)
    codes[codes == [stop for _, stop in groups]] = -1
    placed = backend.asarray(codes.astype(np.int32))
    for dtype in (np.float32, np.float64):
        W, grad_W = (backend.zeros((units, 47), dtype) for _ in range(2))
        a = backend.zeros((rows, units), dtype)
        for add in (False, True):
            backend.one_hot_forward(placed, W, a, add=add)
        backend.one_hot_backward(a, placed, groups, grad_W)


def _precisions(backend: Any) -> tuple[str | None, ...]:
    """Return the precisions of products that resident training has on this card."""
    major, minor = backend.launcher.properties.capability
    return (None, "tf32") if has_tf32(10 * major + minor) else (None,)


def _resident(backend: Any) -> None:
    """Train a small network in every number of blocks that the card has."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(45, 5)).astype(np.float32), rng.integers(0, 3, 45)
    there = CLUSTERS if backend.launcher.properties.capability >= (9, 0) else (1,)
    for blocks, precision in product(there, _precisions(backend)):
        network = MLP(
            [5, 19, 3], "gelu", seed=0, device=backend.device, dropout=0.3, precision=precision
        )
        trainer = Trainer(network, batch_size=21, progress=False, clip_norm=0.1, l2=0.01)
        with (
            patch.object(resident, "plan_resident", partial(plan_resident, blocks=blocks)),
            patch.object(launching, "in_company", lambda plans, *_: list(plans)),
        ):
            trainer.fit(x, labels, epochs=1)


def _spread(backend: Any) -> None:
    """Train one step whose rows are spread over the card: the least rows that are."""
    rows = spread_plan.LEAST_SHARES * spread_plan.SHARE_ROWS
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(rows, 3)).astype(np.float32), rng.integers(0, 2, rows)
    card = replace(backend.launcher.properties, multiprocessors=132)
    plan = spread_plan.plan_spread

    def of_a_large_card(widths: Any, activations: Any, batch: int, _: Any, **more: Any) -> Any:
        return plan(widths, activations, batch, card, **more)

    for precision in _precisions(backend):
        network = MLP(
            [3, 8, 8, 8, 2], "gelu", seed=0, device=backend.device, dropout=0.3,
            precision=precision,
        )  # fmt: skip
        trainer = Trainer(network, batch_size=rows, progress=False, clip_norm=0.1, l2=0.01)
        with patch.object(resident, "plan_spread", of_a_large_card):
            trainer.fit(x, labels, epochs=1)


def _totals(backend: Any) -> None:
    """Add to totals by themselves; behind an update its first kernel does it."""
    for dtype in (np.float32, np.float64):
        loss, totals = backend.zeros((), dtype), backend.zeros(Total.SIZE, np.float64)
        backend.accumulate(loss, 3, backend.zeros(3, bool), None, totals)


def _shifted(backend: Any, array: np.ndarray) -> Any:
    """Return a view that starts one element in; a matrix also gets gaps between its rows."""
    if array.ndim == 0:
        return backend.asarray(array)
    wide = np.zeros((*array.shape[:-1], array.shape[-1] + 3), array.dtype)
    wide[..., 1:-2] = array
    return backend.asarray(wide)[..., 1:-2]


def main() -> int:
    kernels, entries = launch_all(cuda_backend())
    major, minor = cuda_backend().launcher.properties.capability
    left_out = sorted(
        kernel for kernel in set(ARGUMENTS) - kernels
        if 10 * major + minor >= least_architecture(kernel)
    )  # fmt: skip
    write_json(
        Path(sys.argv[1]),
        {"kernels": sorted(kernels), "entries": sorted(entries), "not_launched": left_out},
    )
    print(f"{len(entries)} entries of {len(kernels)} kernels; not launched: {left_out or 'none'}")
    return 1 if left_out else 0


if __name__ == "__main__":
    sys.exit(main())
