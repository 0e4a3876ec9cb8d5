"""The CUDA backend's operations on NumPy arrays: its own code, on the stand-in for CuPy.

Plans, records and launches are the backend's; the arrays' memory stands for the device's. `run`
decides what a launch does: it is executed (`Operations()`), collected for a sanitizer
(``Operations(run=collect(launches))``) or counted (`tests/test_kernel_traffic.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np

from gpubackprop.backends.cupy import CupyBackend, losses, updates
from gpubackprop.backends.cupy.arguments import layout_named
from gpubackprop.backends.cupy.memory import WorkingMemory
from gpubackprop.backends.cupy_launch import TABLE_CHUNK, DeviceProperties, Launch
from gpubackprop.backends.loss import LossOptions
from gpubackprop.backends.softmax_plan import plan_softmax
from gpubackprop.dtypes import BY_SUFFIX, INTEGERS
from gpubackprop.formulas import ACTIVATIONS, UPDATES, Dropout, pointwise_loss
from tests.emulator import cupy_stub, sanitizers
from tests.emulator.cupy_stub import Launched, Run
from tests.emulator.module import ByValue, Module

Array = np.ndarray
DTYPES = {suffix: row.numpy() for suffix, row in BY_SUFFIX.items()} | {
    suffix: np.dtype(name) for name, suffix in INTEGERS.items()
}
SMALL = DeviceProperties(multiprocessors=2)  # several blocks already for small arrays


@cache
def module(source: str, mode: str = "values") -> Module:
    """Return a whole file, since these tests launch most of its entries."""
    return Module(source, mode)


def run_now(launched: Launched, **options: int) -> None:
    module(launched.source)(
        launched.entry, launched.grid, launched.block, launched.arguments, shared=launched.shared,
        **options,
    )  # fmt: skip


def record(entry: str, **values: Any) -> ByValue:
    """Return the arguments of an entry for `Module`; unnamed pointers are null, unnamed numbers 0."""
    layout = layout_named(entry)
    every = {name: None if kind.endswith("*") else 0 for name, kind in layout.kinds.items()}
    filled = layout.record(every | values, lambda _, name, array: int(array.ctypes.data))
    return ByValue(np.array(filled), filled.arrays)


def collect(launches: list[sanitizers.Launch]) -> Run:
    """Return a `run` that keeps launches for `run_sanitized`."""

    def keep(launched: Launched) -> None:
        launches.append(
            sanitizers.Launch(
                launched.source, launched.entry, launched.grid, launched.block, launched.arguments,
                launched.shared, dict(launched.defines),
            )
        )  # fmt: skip

    return keep


@cache
def _backend(device: DeviceProperties) -> CupyBackend:
    """Return a backend; the stand-in must be installed."""
    backend = CupyBackend(0)
    backend.launcher.properties = device
    return backend


def on_device(value: Any) -> Any:
    """Return an array as one of the device, a result as one of such arrays; all else as it is."""
    if isinstance(value, dict):
        return {name: on_device(array) for name, array in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(map(on_device, value))
    if isinstance(value, Dropout):
        return replace(value, state=on_device(value.state))
    return cupy_stub.ndarray(value, 0) if isinstance(value, Array) else value


def _number(upstream: Any) -> Any:
    """Return an array of one number without a dimension, as the backend wants it."""
    return upstream.reshape(()) if isinstance(upstream, Array) and upstream.size == 1 else upstream


class Operations:
    """One method for each kernel, or for the two of a sum; every output is given.

    Parameters
    ----------
    run : callable
        Does the work of a launch.
    device : DeviceProperties
        The card for which launches are planned.
    """

    def __init__(self, run: Run = run_now, device: DeviceProperties = SMALL) -> None:
        self.run, self.device = run, device

    @contextmanager
    def _installed(self, bad_label: Array | None = None) -> Iterator[CupyBackend]:
        with cupy_stub.installed(lazy=False), cupy_stub.launches_go_to(self.run):
            backend = _backend(self.device)
            backend.memory = WorkingMemory(backend.cupy, 0)
            backend.launcher._with_all_shared.clear()  # one entry runs on many cards: ask anew
            if bad_label is not None:
                backend.memory.bad_label = on_device(bad_label)
            yield backend

    def affine_epilogue(
        self,
        product: Array,
        bias: Array | None,
        a: Array | None,
        h: Array,
        name: str,
        k: float = 0.0,
        dropout: Dropout | None = None,
    ) -> None:
        product_, h_ = on_device((product, h))
        with self._installed() as backend:
            backend._epilogue(
                product_, on_device(bias), replace(ACTIVATIONS[name], parameter=k),
                product_ if a is product else on_device(a), product_ if h is product else h_,
                on_device(dropout),
            )  # fmt: skip

    def activation_backward(
        self, grad_h: Array, saved: Array, delta: Array, name: str, k: float = 0.0,
        grad_b: Array | None = None, dropout: Dropout | None = None,
    ) -> None:  # fmt: skip
        activation = replace(ACTIVATIONS[name], parameter=k)
        with self._installed() as backend:
            backend.activation_backward(
                *on_device((grad_h, saved)), activation, *on_device((delta, grad_b, dropout))
            )

    def column_sum(
        self, x: Array, out: Array, divisor: Array | float = 1.0, empty_is_zero: bool = False
    ) -> None:
        with self._installed() as backend:
            backend.sum_columns(*on_device((x, out, divisor)), empty_is_zero)

    def pointwise_loss(
        self, a: Array, targets: Array, name: str, result: dict[str, Array],
        sample_weight: Array | None = None, upstream: Array | float = 1.0,
        divisor: Array | float = 1.0, **options: Any,
    ) -> None:  # fmt: skip
        """Run the loss with the `options` of `LossOptions`."""
        with self._installed() as backend:
            losses.launch_pointwise(
                backend, *on_device((a, targets, result)), pointwise_loss(name),
                LossOptions(**options), sample_weight=on_device(sample_weight),
                upstream=on_device(_number(upstream)), divisor=on_device(divisor),
            )  # fmt: skip

    def softmax_cross_entropy(
        self, logits: Array, targets: Array | None, result: dict[str, Array], *,
        sample_weight: Array | None = None, upstream: Array | float = 1.0,
        divisor: Array | float = 1.0, log: bool = False, general: bool = False,
        cluster: int | None = None, class_weight: Array | None = None, weigh: int = losses.KNOWN,
        **options: Any,
    ) -> tuple[Launch, ...]:  # fmt: skip
        """Run the loss with the `options` of `LossOptions`; return the launches as they were planned.

        `general` and `cluster` overrule the choice of the form.
        """
        made: list[Launch] = []

        def chosen(*args: Any, general: bool = general, **rest: Any) -> tuple[Launch, ...]:
            made.extend(plan_softmax(*args, general=general or forced, cluster=cluster, **rest))
            return tuple(made)

        forced, labels = general, targets is not None and targets.ndim == 1
        with (
            self._installed(result.get("bad_label")) as backend,
            patch.object(losses, "plan_softmax", chosen),
        ):
            there = on_device(targets)
            losses.launch_softmax(
                backend, on_device(logits), there if labels else None, None if labels else there,
                on_device(result), LossOptions(class_weight=class_weight, **options), log=log,
                sample_weight=on_device(sample_weight), upstream=on_device(_number(upstream)),
                divisor=on_device(_number(divisor)), class_weight=on_device(class_weight), weigh=weigh,
            )  # fmt: skip
        return tuple(made)

    def row_weights(
        self, labels: Array | None, total: Array, rows: int, sample_weight: Array | None = None,
        class_weight: Array | None = None, ignore_index: int | None = None, factor: float = 1.0,
        classes: int = 0,
    ) -> None:  # fmt: skip
        options = LossOptions(ignore_index=ignore_index)
        with self._installed() as backend:
            losses.row_weights(
                backend, *on_device((labels, total)), rows, options,
                *on_device((sample_weight, class_weight)), factor, classes,
            )  # fmt: skip

    def gather_rows(self, source: Array, rows: Array | None, out: Array) -> None:
        with self._installed() as backend:
            backend.gather_rows(*on_device((source, rows, out)))

    def gather_batch(self, pairs: list[tuple[Array, Array]], rows: Array) -> None:
        with self._installed() as backend:
            backend.gather_batch(*on_device((pairs, rows)))

    def one_hot_forward(self, codes: Array, W: Array, a: Array, *, add: bool = False) -> None:
        with self._installed() as backend:
            backend.one_hot_forward(*on_device((codes, W, a)), add=add)

    def one_hot_backward(
        self, delta: Array, codes: Array, groups: tuple[tuple[int, int], ...], grad_W: Array
    ) -> None:
        with self._installed() as backend:
            backend.one_hot_backward(*on_device((delta, codes)), groups, on_device(grad_W))

    def accumulate(
        self, loss: Array, rows: int, correct: Array | None,
        penalty: tuple[Array, Array | float] | None, totals: Array,
    ) -> None:  # fmt: skip
        with self._installed() as backend:
            backend.accumulate(on_device(loss), rows, *on_device((correct, penalty, totals)))

    def sum_of_squares(
        self, x: Array, out: Array, p: Array | None = None, unscale: Array | float = 1.0,
        l2: Array | float = 0.0, penalized: int = 0,
    ) -> None:  # fmt: skip
        with self._installed() as backend:
            updates.squares(backend, *on_device((x, out, p, l2, penalized, unscale)))

    def prepare_update(
        self, name: str, settings: Array, state: Array, norm: Array | None, c: Array, scaling: Array,
        random: Array | None = None,
    ) -> None:  # fmt: skip
        arrays = on_device((settings, state, norm, c, scaling, random))
        with self._installed() as backend:
            updates.prepare_update(backend, UPDATES[name], *arrays)

    def update(
        self, name: str, p: Array, g: Array, slots: tuple[Array, ...], c: Array,
        copy: Array | None = None, random: Array | None = None, penalized: int = 0,
    ) -> None:  # fmt: skip
        prepared = {"prepared": c, "copy": copy, "random": random}
        with self._installed() as backend:
            updates.update(
                backend, *on_device((p, g, slots)), UPDATES[name],
                on_device(prepared) | {"penalized": penalized},
            )  # fmt: skip

    def update_table(
        self, name: str, tensors: list[dict[str, Any]], settings: Array,
        scale: Array | None = None, found_inf: Array | None = None,
    ) -> None:  # fmt: skip
        """Run the update; `tensors` are p, g, slots, step (float32 of one element), group."""
        table, owner = pointer_table(tensors)
        dtype = tensors[0]["p"].dtype
        c = np.full((len(tensors), updates.COEFFICIENTS), np.nan, updates.compute_dtype(dtype))
        with self._installed() as backend:
            updates.update_table(
                backend, UPDATES[name], dtype,
                *on_device((table, settings, c, owner, scale, found_inf)),
            )  # fmt: skip


def pointer_table(tensors: list[dict[str, Any]]) -> tuple[sanitizers.PointerTable, Array]:
    """Return the table of kernels/update_table.cu, and the tensor of each chunk."""
    words, arrays = np.zeros((len(tensors), 9), np.uint64), []
    owner: list[int] = []
    for number, (row, tensor) in enumerate(zip(words, tensors, strict=True)):
        p, g, slots, step = (tensor[key] for key in ("p", "g", "slots", "step"))
        pack = 2 if p.dtype == np.float64 else 4
        head = p.ctypes.data // p.itemsize % pack
        addresses = [array.ctypes.data for array in (p, g, *slots)] + [0] * (3 - len(slots))
        row[:] = [*addresses, step.ctypes.data, len(p), len(owner), tensor["group"]]
        owner += [number] * -(-(head + len(p)) // TABLE_CHUNK)
        arrays += [p, g, *slots, step]
    table = words.view(sanitizers.PointerTable)
    table.arrays = tuple(arrays)
    return table, np.array(owner, np.int32)
