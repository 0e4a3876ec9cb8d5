"""An affine map of 16-bit tensors whose bias is added in float32, for the transforms of torch.func.

    a = x W^T + b;  grad_x = delta W,  grad_W = delta^T x,  grad_b = sum_i delta_i

PyTorch's own `linear` rounds the product before it adds the bias there. The operands are saved as
they are, not their float32 copies: what a program does to a parameter before the backward pass
has the effect that it has in PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)
from torch import Tensor


class _Affine(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
        return F.linear(x.float(), W.float(), b.float())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        x, W, b = ctx.saved_tensors
        delta = delta.to(x.dtype)
        needs_x, needs_W, needs_b = ctx.needs_input_grad
        rows = delta.reshape(-1, delta.shape[-1])
        return (
            delta @ W if needs_x else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if needs_W else None,
            rows.sum(0).to(b.dtype) if needs_b else None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        x, W, b = (tensor.float() for tensor in ctx.saved_tensors)
        v_x, v_W, v_b = (None if v is None else v.float() for v in tangents)
        out = torch.zeros_like(b) if v_b is None else v_b
        if v_x is not None:
            out = out + F.linear(v_x, W)
        return (out if v_W is None else out + F.linear(x, v_W)).expand(*x.shape[:-1], len(b))


def affine(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """Return x W^T + b in float32 for 16-bit x (..., D_in), W (D_out, D_in) and b (D_out,) or None.

    `torch.func`'s transforms (vmap, grad, jvp) and forward-mode differentiation take it. Dynamo
    compiles no such function under vmap; the graph that it makes gets float32 copies.
    """
    b = W.new_zeros(len(W)) if b is None else b
    if torch.compiler.is_compiling():
        return _Affine.forward(x, W, b)
    return _Affine.apply(x, W, b)
