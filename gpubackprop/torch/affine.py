"""An affine map of 16-bit tensors whose bias is added in float32, for the transforms of torch.func.

    a = x W^T + b;  grad_x = delta W,  grad_W = delta^T x,  grad_b = sum_i delta_i

PyTorch's own `linear` rounds the product before it adds the bias there. The operands are saved as
they are, not their float32 copies: what a program does to a parameter before the backward pass
has the effect that it has in PyTorch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class _Affine(torch.autograd.Function):
    """x (N, D_in), W (D_out, D_in), b (D_out,); or each with an axis of networks in front."""

    @staticmethod
    def forward(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
        return _product(x, W) + b.float().unsqueeze(-2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        x, W, _ = ctx.saved_tensors
        delta = delta.to(x.dtype)
        needs_x, needs_W, needs_b = ctx.needs_input_grad
        return (
            delta @ W if needs_x else None,
            delta.mT @ x if needs_W else None,
            delta.sum(-2) if needs_b else None,
        )

    @staticmethod
    def jvp(ctx: Any, v_x: Tensor, v_W: Tensor, v_b: Tensor) -> Tensor:
        x, W, _ = ctx.saved_tensors
        return _product(v_x, W) + _product(x, v_W) + v_b.float().unsqueeze(-2)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *operands: Tensor) -> tuple[Tensor, int]:
        """One product for all, if only x is mapped: its gradients are summed before rounding."""
        pairs = tuple(zip(operands, in_dims, strict=True))
        x, W, b = (t if dim is None else t.movedim(dim, 0) for t, dim in pairs)
        if in_dims[1] is None and in_dims[2] is None and x.dim() == 3:
            out = _Affine.apply(x.reshape(-1, x.shape[-1]), W, b)
            return out.reshape(*x.shape[:-1], len(b)), 0
        x, W, b = (
            t.expand(info.batch_size, *t.shape) if dim is None else t
            for t, (_, dim) in zip((x, W, b), pairs, strict=True)
        )
        if x.dim() > 3:  # a map of a map: networks of both are one axis
            *outer, rows, _ = x.shape
            x, W, b = (t.flatten(0, 1) for t in (x, W, b))
            return _Affine.apply(x, W, b).reshape(*outer, rows, W.shape[-2]), 0
        return _Affine.apply(x, W, b), 0


def _product(x: Tensor, W: Tensor) -> Tensor:
    return x.float() @ W.float().mT


def affine(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """Return x W^T + b in float32 for 16-bit x (..., D_in), W (D_out, D_in) and b (D_out,) or None.

    `torch.func`'s transforms (vmap, grad, jvp) and forward-mode differentiation take it. Dynamo
    compiles no such function under vmap; the graph that it makes gets float32 copies.
    """
    b = W.new_zeros(len(W)) if b is None else b
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    a = (_Affine.forward if torch.compiler.is_compiling() else _Affine.apply)(rows, W, b)
    return a.reshape(*x.shape[:-1], len(W))
