"""The CUDA backend: the operations of `gpubackprop.backends.base.Backend` on CuPy arrays.

An operation returns before the GPU has done the work, which is queued on the caller's current CuPy
stream of the backend's device. A plan compiles the kernels that it needs when it is made. Only
`to_host`, `all_finite` and `check_labels` wait for the device.

CuPy is imported when a `CupyBackend` is made, never when this module is. Not measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

import numpy as np

from gpubackprop.backends import devices
from gpubackprop.backends.cupy import losses, spread, updates
from gpubackprop.backends.cupy.kept_calls import (
    MOST_BYTES,
    NEVER,
    OBSTACLE,
    ONCE,
    KeptCall,
    KeptCalls,
    key_of,
    patches_of,
)
from gpubackprop.backends.cupy.layers import LayerOperations, same_shape
from gpubackprop.backends.cupy.library import explained
from gpubackprop.backends.cupy.one_hot import OneHotOperations
from gpubackprop.backends.cupy.products import CublasLtProducts, CupyProducts, Products
from gpubackprop.backends.cupy.products import default as default_products
from gpubackprop.backends.cupy.recorded_calls import Plan
from gpubackprop.backends.cupy.resident import ResidentNetwork
from gpubackprop.backends.cupy.updates import CupyUpdater
from gpubackprop.backends.loss import LossOptions
from gpubackprop.backends.memory import Array
from gpubackprop.backends.precision import automatic, has_tf32
from gpubackprop.backends.updater import UpdateRule
from gpubackprop.errors import DeviceUnavailable
from gpubackprop.formulas import PointwiseLoss, Update

__all__ = ["CublasLtProducts", "CupyBackend", "CupyProducts", "Products", "Replay"]


class Replay:
    """The result of `CupyBackend.plan`; a call of it issues the recorded calls again.

    Attributes
    ----------
    uncaptured : str
        See `gpubackprop.backends.cupy.recorded_calls.Plan`.
    launches : int
        Kernels, products and copies of a call.
    """

    def __init__(self, backend: CupyBackend, plan: Plan, labels: bool) -> None:
        self._backend, self._plan, self._labels = backend, plan, labels
        self.uncaptured, self.launches = plan.uncaptured, plan.launches

    def __call__(self) -> None:
        backend = self._backend
        backend._labels[0] |= self._labels
        cupy = backend.cupy
        with explained(cupy, "a step on the GPU"), cupy.cuda.Device(backend.index):
            self._plan()

    def __del__(self) -> None:
        cupy = self._backend.cupy
        with (
            suppress(Exception),
            cupy.cuda.Device(self._backend.index),
        ):  # the process may be ending
            self._plan.close()


class CupyBackend(LayerOperations, OneHotOperations):
    """The operations of backpropagation on CuPy arrays of one device; see `Backend`.

    Parameters
    ----------
    index : int
        Number of the CUDA device.
    products : Products or None
        Multiplies matrices; None is `CublasLtProducts`, or `CupyProducts` where that is missing.

    Raises
    ------
    DeviceUnavailable
        CuPy, the driver or the device is missing.
    """

    reason, tf32 = "", False

    def __init__(self, index: int = 0, products: Products | None = None) -> None:
        super().__init__(index)
        self.products = products or default_products(self.cupy, index)
        self._kept = KeptCalls()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.index})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Make copies and pickles as new backends of the same device."""
        return unpickled, (self.device, self.reason, *((True,) if self.tf32 else ()))

    def in_any_order(self) -> CupyBackend:
        twin = self.with_memory(self.memory)
        twin.products = self.products.in_any_order()
        return twin

    def with_tf32(self) -> CupyBackend:
        if not has_tf32(self._capability()):
            raise DeviceUnavailable(
                f"{self.device} has no TF32: its compute capability is {self._capability() / 10}, "
                f"and TF32 came with 8.0. Take precision='auto' or 'float32', or device='cpu', "
                f"which rounds as TF32 does"
            )
        twin = self.with_memory(self.memory)
        twin.products, twin.tf32 = self.products.in_tf32(), True
        return twin

    def automatic_precision(self) -> str:
        return automatic(self._capability())

    def _capability(self) -> int:
        return int(self.cupy.cuda.Device(self.index).compute_capability)

    def plan(self, emit: Callable[[CupyBackend], None]) -> Replay:
        """Record a CUDA graph if all of it can be captured: products through CuPy cannot."""
        recorder = self._recorder()
        emit(recorder)
        return self._replay(recorder)

    def _replay(self, recorder: CupyBackend) -> Replay:
        assert recorder._recorded is not None
        recorder._recorded.complete(self.launcher)
        with self.cupy.cuda.Device(self.index):
            plan = Plan(self.cupy, recorder._recorded)
        return Replay(self, plan, recorder._labels[0])

    # -- losses -----------------------------------------------------------------------------------

    def _loss(
        self,
        name: Hashable,
        emit: Callable[[CupyBackend], None],
        options: LossOptions,
        upstream: Array | float,
        arrays: dict[str, Array | None],
    ) -> None:
        """Issue the loss that ``emit(backend)`` issues, by launches kept of one alike."""
        if self._recorded is not None:
            emit(self)
            return
        there = {role: array for role, array in arrays.items() if array is not None}
        number = float(upstream) if isinstance(upstream, (int, float, np.number)) else None
        if number is None:
            there["upstream"] = upstream
        key = key_of(name, options, number, there, self.cupy, self.index)
        kept = NEVER if key is None or self._is_capturing() else self._kept.find(key)
        if kept == ONCE:
            kept = self._keep(emit, there)
            self._kept.keep(key, kept)
        if not isinstance(kept, KeptCall) or not kept(there):
            emit(self)

    def _is_capturing(self) -> bool:
        """A graph would go on with working memory that later calls use, too."""
        with self.cupy.cuda.Device(self.index):
            return bool(self.cupy.cuda.get_current_stream().is_capturing())

    def _keep(
        self, emit: Callable[[CupyBackend], None], arrays: dict[str, Array]
    ) -> KeptCall | str:
        recorder = self._recorder()
        emit(recorder)
        assert recorder._recorded is not None
        patches = patches_of(recorder._recorded, arrays)
        if patches is None or recorder.memory.scratch_bytes > MOST_BYTES:
            return NEVER
        recorder._recorded.obstacle = OBSTACLE
        return KeptCall(self._replay(recorder), patches)

    def softmax(self, a: Array, out: Array, *, log: bool = False) -> None:
        same_shape(a, out)
        losses.softmax(self, a, out, log=log)

    def softmax_cross_entropy(
        self,
        logits: Array,
        targets: Array,
        options: LossOptions,
        result: dict[str, Array],
        sample_weight: Array | None = None,
        upstream: Array | float = 1.0,
        divisor: Array | None = None,
    ) -> None:
        def emit(backend: CupyBackend) -> None:
            losses.softmax_cross_entropy(
                backend, logits, targets, options, result, sample_weight, upstream, divisor
            )

        arrays = {"logits": logits, "targets": targets, "sample_weight": sample_weight}
        arrays |= {"divisor": divisor, **result}
        self._loss(("softmax", self.memory.flag_address), emit, options, upstream, arrays)

    def number_rows_from(self, first: int) -> None:
        self.memory.first_row = first

    def mean_divisor(
        self,
        targets: Array,
        options: LossOptions,
        out: Array,
        sample_weight: Array | None = None,
    ) -> None:
        losses.mean_divisor(self, targets, options, out, sample_weight)

    def pointwise_loss(
        self,
        a: Array,
        targets: Array,
        formula: PointwiseLoss,
        options: LossOptions,
        result: dict[str, Array],
        sample_weight: Array | None = None,
        upstream: Array | float = 1.0,
    ) -> None:
        def emit(backend: CupyBackend) -> None:
            losses.pointwise_loss(
                backend, a, targets, formula, options, result, sample_weight, upstream
            )

        arrays = {"a": a, "targets": targets, "sample_weight": sample_weight, **result}
        self._loss((formula.name, formula.parameter), emit, options, upstream, arrays)

    def accumulate(
        self,
        loss: Array,
        rows: int,
        correct: Array | None,
        penalty: tuple[Array, Array | float] | None,
        totals: Array,
    ) -> None:
        weights2, l2 = penalty or (None, 0.0)
        by_row = correct is not None and correct.ndim > 0
        fields = {
            "loss": loss, "correct_rows": None if by_row else correct, "weights2": weights2,
            "l2": l2, "rows": rows, "totals": totals,
        }  # fmt: skip
        if by_row or not updates.joins_totals(self, fields):
            fields["correct"] = correct if by_row else None
            self.launch("accumulate", (1,), loss.dtype, lambda _: fields)

    def spread_gradients(
        self,
        network: ResidentNetwork,
        arrays: dict[str, Array | None],
        mean: dict[str, float],
    ) -> None:
        """Issue forward, loss and backward of a batch whose rows are spread over the card.

        The arguments are those of `gpubackprop.backends.cupy.spread.spread_gradients`.
        """
        spread.spread_gradients(self, network, arrays, mean)

    # -- updates ----------------------------------------------------------------------------------

    def add_scaled(self, x: Array, scale: Array, out: Array) -> None:
        self.elementwise("add_scaled", x, scale, out, out)

    def sum_of_squares(self, x: Array, out: Array) -> None:
        updates.sum_of_squares(self, x, out)

    def update(
        self,
        parameters: Array,
        gradient: Array,
        slots: tuple[Array, ...],
        formula: Update,
        coefficients: dict[str, Any],
    ) -> None:
        """Do `Backend.update`; `coefficients` may also be without numbers that the host reads.

        They are then "prepared", the vector that `CupyUpdater` fills on the device, and
        "penalized", the number of parameters with an L2 penalty.
        """
        updates.update(self, parameters, gradient, slots, formula, coefficients)

    def round_to_storage(self, x: Array, out: Array, random: Array | None = None) -> None:
        updates.round_to_storage(self, x, out, random)

    def updater(
        self,
        rule: UpdateRule,
        parameters: Array,
        gradient: Array,
        slots: tuple[Array, ...],
        random: Array | None = None,
        half_copy: Array | None = None,
    ) -> CupyUpdater:
        return CupyUpdater(self, rule, parameters, gradient, slots, random, half_copy)


def unpickled(device: str, reason: str, tf32: bool = False) -> CupyBackend:
    """Return the backend of a pickle that was made with one for `device`.

    Raises
    ------
    DeviceUnavailable
        That device is not there.
    """
    try:
        backend = CupyBackend(int(devices.choose(device)[0].removeprefix("cuda:")))
    except DeviceUnavailable as error:
        raise DeviceUnavailable(
            f"what is unpickled here was pickled on {device}, and is unpickled to the same device "
            f'({error}) To read it elsewhere, pickle network.copy("cpu"), or use Model.save and '
            f"Model.load"
        ) from error
    backend.reason = reason
    return backend.with_tf32() if tf32 else backend
