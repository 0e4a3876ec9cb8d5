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
from gpubackprop.backends.cupy import elementwise, losses, updates
from gpubackprop.backends.cupy.issuer import Issuer
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
from gpubackprop.backends.cupy.launcher import Launcher, dense, row_stride
from gpubackprop.backends.cupy.library import check_device, explained, import_cupy
from gpubackprop.backends.cupy.memory import DeviceMemory, WorkingMemory
from gpubackprop.backends.cupy.recorded_calls import CupyProducts, Plan, Products, RecordedCalls
from gpubackprop.backends.cupy.updates import CupyUpdater
from gpubackprop.backends.cupy_launch import Launch, suffix_of
from gpubackprop.backends.loss import LossOptions
from gpubackprop.backends.updater import UpdateRule
from gpubackprop.dtypes import compute_dtype
from gpubackprop.errors import DeviceUnavailable, ShapeError
from gpubackprop.formulas import ACTIVATIONS, Activation, Dropout, PointwiseLoss, Update

__all__ = ["CupyBackend", "CupyProducts", "Products"]

Array = Any  # cupy.ndarray
OUTPUT_ACTIVATIONS = {"logistic": ACTIVATIONS["logistic"], "linear": ACTIVATIONS["identity"]}


class Replay:
    """What `CupyBackend.plan` returns: call it to issue the calls again.

    Attributes
    ----------
    uncaptured : see `gpubackprop.backends.cupy.recorded_calls.Plan`.
    """

    def __init__(self, backend: CupyBackend, plan: Plan, labels: bool) -> None:
        self._backend, self._plan, self._labels = backend, plan, labels
        self.uncaptured = plan.uncaptured

    def __call__(self) -> None:
        backend = self._backend
        backend._labels[0] |= self._labels
        cupy = backend.cupy
        with explained(cupy, "a step on the GPU"), cupy.cuda.Device(backend.index):
            self._plan()

    def __del__(self) -> None:
        cupy = self._backend.cupy
        with suppress(Exception), cupy.cuda.Device(self._backend.index):  # the process may end
            self._plan.close()


class CupyBackend(DeviceMemory, Issuer):
    """The operations of backpropagation on CuPy arrays of one device; see `Backend`.

    Parameters
    ----------
    index : number of the CUDA device.
    products : what multiplies matrices; None: `CupyProducts`.

    Raises
    ------
    DeviceUnavailable : CuPy, the driver or the device is missing.
    """

    reason = ""

    def __init__(self, index: int = 0, products: Products | None = None) -> None:
        self.cupy, self.index, self.device = import_cupy(), index, f"cuda:{index}"
        check_device(self.cupy, index)
        self.products = products or CupyProducts(self.cupy)
        self.memory = WorkingMemory(self.cupy, index)
        self.launcher = Launcher(self.cupy, index)
        self._recorded: RecordedCalls | None = None
        self._kept = KeptCalls()
        self._labels = [False]  # shared with recorders: labels went unchecked since the last wait

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.index})"

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy or a pickle is another one of the same device, where that is there."""
        return unpickled, (self.device, self.reason)

    def with_memory(self, memory: WorkingMemory) -> CupyBackend:
        """This backend with another `memory`, for a recording or a capture."""
        twin = object.__new__(CupyBackend)
        twin.__dict__ |= self.__dict__
        twin.memory = memory
        return twin

    def plan(self, emit: Callable[[CupyBackend], None]) -> Replay:
        """A CUDA graph where all of it can be captured, which products through CuPy cannot."""
        recorder = self._recorder()
        emit(recorder)
        return self._replay(recorder)

    def _recorder(self) -> CupyBackend:
        """This backend, whose operations are recorded, with working memory that is kept."""
        recorder = self.with_memory(WorkingMemory(self.cupy, self.index, keeps_scratch=True))
        recorder._recorded = RecordedCalls()
        recorder.memory.bad_label = self.memory.bad_label
        recorder._labels = [False]
        return recorder

    def _replay(self, recorder: CupyBackend) -> Replay:
        assert recorder._recorded is not None
        recorder._recorded.complete(self.launcher)
        with self.cupy.cuda.Device(self.index):
            plan = Plan(self.cupy, recorder._recorded)
        return Replay(self, plan, recorder._labels[0])

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
        number = None
        if self.is_device_array(upstream):
            there["upstream"] = upstream
        else:
            number = float(upstream)
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

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        if self._recorded is not None:
            self._recorded.obstacle = self._recorded.obstacle or "a function of the host"
        self._issue(function, *args)

    def _issue(self, function: Callable[..., Any], *args: Any) -> None:
        if self._recorded is not None:
            self._recorded(function, *args)
            return
        name = getattr(function, "__name__", "a call")
        with explained(self.cupy, name), self.cupy.cuda.Device(self.index):
            function(*args)

    def launch(
        self,
        kernel: str,
        shape: tuple[int, ...],
        dtype: Any,
        arguments: Callable[[Launch], dict[str, Any]],
        *,
        formula: str = "",
        contiguous: bool = True,
    ) -> None:
        launch = self.launcher.plan(kernel, shape, dtype, formula=formula, contiguous=contiguous)
        if not launch.empty:
            self.issue(launch, arguments(launch))

    def elementwise(self, name: str, *args: Any) -> None:
        self._issue(elementwise.kernel(self.cupy, name), *args)

    def issue(self, launch: Launch, arguments: dict[str, Any]) -> None:
        call = self.launcher.bind(launch, arguments)
        if self._recorded is not None:
            self._recorded.launch(launch, *call)
        else:
            self._issue(self.launcher.entry(launch), *call)

    # -- rows -------------------------------------------------------------------------------------

    def on_device(self, host: np.ndarray | None, dtype: Any) -> Array | None:
        return None if host is None else self.memory.asarray(host, dtype)

    def converted(self, array: Array | None, dtype: Any, name: str) -> Array | None:
        if array is None or array.dtype == dtype:
            return array
        out = self.memory.scratch(name, array.shape, dtype)
        self.gather_rows(array, None, out)
        return out

    def gather_rows(self, source: Array, rows: Array | None, out: Array) -> None:
        if source.shape[1:] != out.shape[1:] or (rows is not None and rows.shape != out.shape[:1]):
            raise ShapeError(f"no gather from {source.shape} to {out.shape}")
        if rows is None and source.shape != out.shape:
            raise ShapeError(f"no conversion of {source.shape} to {out.shape}")
        if source.ndim < 2:
            source, out = source.reshape(source.size, 1), out.reshape(out.size, 1)
        count, columns = out.shape
        self.launch(
            "gather_rows", out.shape, out.dtype,
            lambda launch: {
                "source": source, "rows": rows, "out": out, "count": count, "cols": columns,
                "source_rows": source.shape[0], "stride_source": row_stride(source),
                "stride_out": row_stride(out),
            },
            formula=str(source.dtype),
        )  # fmt: skip

    def standardize(self, raw: Array, mean: Array, scale: Array, out: Array) -> None:
        sixteen_bit = out.dtype.itemsize == 2  # CuPy's own kernels do not all take bfloat16
        wide = self.memory.scratch("standardized", out.shape, np.float32) if sixteen_bit else out
        self.elementwise("standardize", raw, mean, scale, wide)
        if sixteen_bit:
            self.gather_rows(wide, None, out)

    def divide(self, x: Array, divisor: float, out: Array) -> None:
        self.elementwise("divide", x, np.float64(divisor), out)

    # -- layers -----------------------------------------------------------------------------------

    def matmul(self, x: Array, y: Array, out: Array) -> None:
        if (x.shape[0], y.shape[1]) != out.shape or x.shape[1] != y.shape[0]:
            raise ShapeError(f"no product of {x.shape} and {y.shape} to {out.shape}")
        if self._recorded is not None:
            self._recorded.obstacle = self._recorded.obstacle or self.products.obstacle
        self._issue(self.products, x, y, out)

    def affine_forward(
        self,
        x: Array,
        W: Array,
        b: Array,
        activation: Activation,
        a: Array,
        h: Array,
        dropout: Dropout | None = None,
    ) -> None:
        product = a
        if a.dtype.itemsize == 2:  # rounded once, with its bias
            product = self.memory.scratch("product", a.shape, np.float32)
        self.matmul(x, W.T, product)
        self._epilogue(product, b, activation, None if h is a else a, h, dropout)

    def affine_epilogue(
        self,
        a: Array,
        b: Array,
        activation: Activation,
        h: Array,
        dropout: Dropout | None = None,
    ) -> None:
        if b.shape != a.shape[1:]:
            raise ShapeError(f"b has shape {b.shape} but a has {a.shape}")
        self._epilogue(a, b, activation, None if h is a else a, h, dropout)

    def activation_forward(
        self, a: Array, activation: Activation, h: Array, dropout: Dropout | None = None
    ) -> None:
        keep = dropout is not None and activation.saved == "h" and not activation.homogeneous
        self._epilogue(a, None, activation, a if keep and h is not a else None, h, dropout)

    def _epilogue(
        self,
        product: Array,
        b: Array | None,
        activation: Activation,
        a: Array | None,
        h: Array,
        dropout: Dropout | None,
    ) -> None:
        _same_shape(product, h)
        rows, columns = product.shape
        storage = suffix_of(h.dtype)
        if h.dtype.itemsize == 2 and product.dtype == np.float32:
            storage += "_f32"
        self.launch(
            "affine_epilogue" + _variant(dropout), product.shape, storage,
            lambda launch: {
                "product": product, "bias": b, "a": a, "h": h, "rows": rows, "cols": columns,
                "join": launch.join, "stride_product": row_stride(product),
                "stride_a": row_stride(a), "stride_h": row_stride(h),
                "parameter": activation.parameter, **_dropout_arguments(dropout),
            },
            formula=activation.name, contiguous=dense(product, a, h),
        )  # fmt: skip

    def activation_backward(
        self,
        grad_h: Array,
        saved: Array,
        activation: Activation,
        delta: Array,
        grad_b: Array | None = None,
        dropout: Dropout | None = None,
    ) -> None:
        _same_shape(grad_h, saved, delta)
        rows, columns = delta.shape
        partial: list[Array] = []

        def arguments(launch: Launch) -> dict[str, Any]:
            partial.append(None if grad_b is None else self._partial(launch.partial, delta.dtype))
            return {
                "grad_h": grad_h, "saved": saved, "delta": delta, "partial": partial[0],
                "rows": rows, "cols": columns, "join": launch.join,
                "stride_grad": row_stride(grad_h), "stride_saved": row_stride(saved),
                "stride_delta": row_stride(delta), "parameter": activation.parameter,
                **_dropout_arguments(dropout),
            }  # fmt: skip

        self.launch(
            "activation_backward" + _variant(dropout), delta.shape, delta.dtype, arguments,
            formula=activation.name, contiguous=dense(grad_h, saved, delta),
        )  # fmt: skip
        if grad_b is not None:
            self._finish(partial[0] if partial else None, grad_b)

    def affine_backward(
        self, delta: Array, h_prev: Array, W: Array, grad_W: Array, grad_h: Array | None
    ) -> None:
        self.matmul(delta.T, h_prev, grad_W)
        if grad_h is not None:
            self.matmul(delta, W, grad_h)

    def column_sum(self, delta: Array, out: Array) -> None:
        """out[j] = sum_i delta[i, j], in an order that the shapes alone decide."""
        self.sum_columns(delta, out)

    def sum_columns(
        self, x: Array, out: Array, divisor: Array | float = 1.0, empty_is_zero: bool = False
    ) -> None:
        rows, columns = x.shape
        partial: list[Array] = []

        def arguments(launch: Launch) -> dict[str, Any]:
            partial.append(self._partial(launch.partial, x.dtype))
            return {
                "x": x, "partial": partial[0], "rows": rows, "cols": columns, "join": launch.join,
                "stride": row_stride(x),
            }  # fmt: skip

        self.launch("column_sum", x.shape, x.dtype, arguments, contiguous=dense(x))
        self._finish(partial[0] if partial else None, out, divisor, empty_is_zero)

    def _partial(self, shape: tuple[int, int] | None, dtype: Any) -> Array:
        return self.memory.scratch("partial", shape or (0, 0), compute_dtype(dtype))

    def _finish(
        self,
        partial: Array | None,
        out: Array,
        divisor: Array | float = 1.0,
        empty_is_zero: bool = False,
    ) -> None:
        columns = out.shape[0]
        rows = 0 if partial is None else partial.shape[0]
        if partial is not None and partial.shape[1] != columns:
            raise ShapeError(f"out has shape {out.shape} but there are {partial.shape[1]} columns")
        self.launch(
            "column_sum_finish", (rows, columns), out.dtype,
            lambda launch: {
                "partial": partial, "out": out, "rows": rows, "cols": columns, "divisor": divisor,
                "empty_is_zero": empty_is_zero,
            },
        )  # fmt: skip

    def output(self, a: Array, kind: str, out: Array) -> None:
        _same_shape(a, out)
        if not a.size:
            return
        if kind == "softmax":
            self.softmax(a, out)
        elif kind == "exp":
            self.elementwise("exponential", a, out)
        elif kind == "logistic" or out is not a:
            self.activation_forward(a, OUTPUT_ACTIVATIONS[kind], out)

    def softmax(self, a: Array, out: Array, *, log: bool = False) -> None:
        _same_shape(a, out)
        losses.softmax(self, a, out, log=log)

    # -- losses -----------------------------------------------------------------------------------

    def softmax_cross_entropy(
        self,
        logits: Array,
        targets: Array,
        options: LossOptions,
        result: dict[str, Array],
        sample_weight: Array | None = None,
        upstream: Array | float = 1.0,
    ) -> None:
        def emit(backend: CupyBackend) -> None:
            losses.softmax_cross_entropy(
                backend, logits, targets, options, result, sample_weight, upstream
            )

        arrays = {"logits": logits, "targets": targets, "sample_weight": sample_weight, **result}
        self._loss("softmax", emit, options, upstream, arrays)

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
        self.launch(
            "accumulate", (1,), loss.dtype,
            lambda launch: {
                "loss": loss, "correct": correct, "weights2": weights2, "l2": l2, "rows": rows,
                "totals": totals,
            },
        )  # fmt: skip

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
        """`coefficients` also without numbers that the host reads: "prepared", the vector that
        `CupyUpdater` fills on the device, and "penalized", how many parameters its L2 concerns."""
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


def unpickled(device: str, reason: str) -> CupyBackend:
    """The backend of a pickle that was made with one for `device`.

    Raises
    ------
    DeviceUnavailable : that device is not there.
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
    return backend


def _variant(dropout: Dropout | None) -> str:
    """Of an entry's name."""
    return "" if dropout is None else "_dropout"


def _dropout_arguments(dropout: Dropout | None) -> dict[str, Any]:
    """The fields that entries with dropout read."""
    names = "dropout_state", "dropout_threshold", "dropout_scale", "dropout_layer"
    if dropout is None:
        return dict(zip(names, (None, 0, 1.0, 0), strict=True))
    numbers = dropout.state, dropout.threshold, dropout.scale, dropout.layer
    return dict(zip(names, numbers, strict=True))


def _same_shape(*arrays: Array) -> None:
    shapes = [array.shape for array in arrays]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise ShapeError(f"matrices of one shape are wanted, got {', '.join(map(str, shapes))}")
