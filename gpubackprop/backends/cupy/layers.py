"""The layer operations of the CUDA backend: products, activations with dropout, outputs."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from gpubackprop.backends.cupy.epilogues import Epilogues, mode
from gpubackprop.backends.cupy.issuer import Issuer
from gpubackprop.backends.cupy.launcher import dense, row_stride
from gpubackprop.backends.cupy.library import explained
from gpubackprop.backends.cupy_launch import Launch, suffix_of
from gpubackprop.backends.memory import Array
from gpubackprop.errors import ShapeError
from gpubackprop.formulas import ACTIVATIONS, Activation, Dropout
from gpubackprop.formulas.dropout import NO_DROPOUT

OUTPUT_ACTIVATIONS = {"logistic": ACTIVATIONS["logistic"], "linear": ACTIVATIONS["identity"]}


class LayerOperations(Issuer):
    """The layer operations of `CupyBackend`."""

    _epilogues: Epilogues | None = None  # of the recorder of a plan, if products have some

    def _recorder(self) -> Self:
        recorder = super()._recorder()
        wanted = self.products.epilogues and mode() != "never"
        recorder._epilogues = Epilogues() if wanted else None
        return recorder

    def matmul(self, x: Array, y: Array, out: Array, accumulate: bool = False) -> None:
        if (x.shape[0], y.shape[1]) != out.shape or x.shape[1] != y.shape[0]:
            raise ShapeError(f"no product of {x.shape} and {y.shape} to {out.shape}")
        more = (True,) if accumulate else ()  # other `Products` may not know it
        if self._recorded is None:
            self._issue(self.products, x, y, out, *more)
            return
        with explained(self.cupy, "a matrix product"), self.cupy.cuda.Device(self.index):
            (function, args), obstacle = self.products.planned(x, y, out, self.memory, *more)
        self._recorded.obstacle = self._recorded.obstacle or obstacle
        begin = self._place
        self._recorded(function, *args)
        if self._epilogues is not None and not accumulate:
            self._epilogues.note_gradient(self, begin, x, y, out)

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
        noted = self._epilogues if h is a and dropout is None else None
        if noted is not None and noted.forward(self, x, W, b, activation, h):
            return
        product = a
        if a.dtype.itemsize == 2:  # the sum of product and bias is rounded once
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
        same_shape(product, h)
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
                "parameter": activation.parameter,
                **(dropout.kernel_fields if dropout else NO_DROPOUT),
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
        same_shape(grad_h, saved, delta)
        noted, begin = self._epilogues, self._place
        if noted is None or dropout is not None:
            taken = False
        else:
            taken = noted.slope(self, grad_h, saved, activation, delta, grad_b)
        if not taken:
            self._activation_backward(grad_h, saved, activation, delta, grad_b, dropout)
        if taken or noted is None or grad_b is None:
            return

        def again(backend: Issuer, to: dict[str, Array]) -> None:
            backend.activation_backward(
                to["grad_h"], to["saved"], activation, to["delta"], to.get("grad_b"), dropout
            )

        arrays = {"grad_h": grad_h, "saved": saved, "delta": delta, "grad_b": grad_b}
        what = activation.name + _variant(dropout)
        noted.note_sums(self, what, begin, arrays, again)

    def _activation_backward(
        self,
        grad_h: Array,
        saved: Array,
        activation: Activation,
        delta: Array,
        grad_b: Array | None,
        dropout: Dropout | None,
    ) -> None:
        rows, columns = delta.shape
        partial: list[Array] = []

        def arguments(launch: Launch) -> dict[str, Any]:
            partial.append(None if grad_b is None else self._partial(launch.partial, delta.dtype))
            return {
                "grad_h": grad_h, "saved": saved, "delta": delta, "partial": partial[0],
                "rows": rows, "cols": columns, "join": launch.join,
                "stride_grad": row_stride(grad_h), "stride_saved": row_stride(saved),
                "stride_delta": row_stride(delta), "parameter": activation.parameter,
                **(dropout.kernel_fields if dropout else NO_DROPOUT),
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
        noted = self._epilogues
        if noted is None or not noted.weight_gradient(self, delta, h_prev, grad_W):
            self.matmul(delta.T, h_prev, grad_W)
        if grad_h is not None:
            self.matmul(delta, W, grad_h)

    def column_sum(self, delta: Array, out: Array) -> None:
        begin = self._place
        super().column_sum(delta, out)
        if self._epilogues is not None:
            self._epilogues.note_column_sum(self, begin, delta, out)

    def output(self, a: Array, kind: str, out: Array) -> None:
        same_shape(a, out)
        if not a.size:
            return
        if kind == "softmax":
            self.softmax(a, out)
        elif kind == "exp":
            self.elementwise("exponential", a, out)
        elif kind == "logistic" or out is not a:
            self.activation_forward(a, OUTPUT_ACTIVATIONS[kind], out)


def _variant(dropout: Dropout | None) -> str:
    """Return the variant part of an entry's name."""
    return "" if dropout is None else "_dropout"


def same_shape(*arrays: Array) -> None:
    shapes = [array.shape for array in arrays]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise ShapeError(f"matrices of one shape are wanted, got {', '.join(map(str, shapes))}")
