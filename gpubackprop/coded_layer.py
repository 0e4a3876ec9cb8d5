"""The first layer of `gpubackprop.passes` on coded inputs: columns of W instead of a product.

With one-hot groups g, of which code_ig is the input that is 1 in row i, and the other inputs x:

    a_i = W' x_i + sum_g W[:, code_ig],   grad_W[:, j] = sum of delta_i over the rows of code j

The zeros of the groups are neither stored nor multiplied. W' are the columns of W of the other
inputs, which are copied for each pass, as matrix products want neighbouring rows.
"""

from __future__ import annotations

from typing import Any

from gpubackprop.backends import Backend
from gpubackprop.data.coded import CodedInputs
from gpubackprop.formulas import Activation, Dropout

Array = Any  # an array of the backend's device


def emit_coded_forward(
    backend: Backend,
    x: CodedInputs,
    W: Array,
    b: Array,
    activation: Activation,
    a: Array,
    h: Array,
    dropout: Dropout | None,
) -> None:
    """Do what `Backend.affine_forward` does, for 32 or 64 bits."""
    others = x.columns.others
    if others:
        part = backend.empty((len(W), others), W.dtype)
        for source, place in x.columns.runs:
            backend.gather_rows(W[:, source], None, part[:, place])
        backend.matmul(x.dense, part.T, a)
    backend.one_hot_forward(x.codes, W, a, add=others > 0)
    backend.affine_epilogue(a, b, activation, h, dropout)


def emit_coded_backward(backend: Backend, delta: Array, x: CodedInputs, grad_W: Array) -> None:
    """Do what `Backend.affine_backward` does without a gradient for the layer below."""
    others = x.columns.others
    if others:
        part = backend.empty((len(grad_W), others), grad_W.dtype)
        backend.matmul(delta.T, x.dense, part)
        for source, place in x.columns.runs:
            backend.gather_rows(part[:, place], None, grad_W[:, source])
    backend.one_hot_backward(delta, x.codes, x.columns.groups, grad_W)
