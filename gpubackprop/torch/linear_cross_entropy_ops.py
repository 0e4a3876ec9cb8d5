"""Cross entropy of an affine layer as custom operators of PyTorch: the logits never exist.

The forward pass computes, for chunks of rows, z = x W^T + b, and row losses and lse by the
backend's operation. The backward pass computes from lse, for chunks of classes:

    delta = s_i (A exp(z - lse) / r - tau),  A = T + 2 z_loss lse,  r = sum_k exp(z_k - lse)
    grad_x += delta W;  grad_W[chunk] = delta^T x;  grad_b[chunk] = sum_i delta_i

Each row of grad_W is then one product, summed in float32 by the product itself. Chunks of rows
would need the sum of all chunks in float32, as large as W. Without the rounding of lse, r would be
1; that rounding would be an error of every element, so the forward pass computes r. The logits are
computed twice, which costs a fourth product. 16-bit operands are multiplied to float32 results.

The two products round differently. If a label is certain, exp(z - lse) / r differs from 1 by some
|z| ulp, more than the gradient of its row. The label's element, y, is therefore written from the
forward pass's sum over the others:

    delta_y = s_i (A - tau_y - A q / r),  q = sum_{k != y} exp(z_k - lse)

where A - tau_y is exactly 0 without smoothing and z-loss.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from gpubackprop.torch import bridge, composed
from gpubackprop.torch.cross_entropy_ops import run_verb
from gpubackprop.torch.loss_settings import SCHEMA, LossSettings

# Numbers of chunks of the rows and of the classes. They are few, so that the products stay large,
# but enough to keep the memory below 1/8 of logits, their logarithms and their gradient.
ROW_CHUNKS, CLASS_CHUNKS = 8, 64


def working_memory(rows: int, features: int, classes: int, dtype: torch.dtype) -> int:
    """Return the most bytes that forward and backward pass take beyond inputs and gradients.

    >>> theirs = 3 * 4096 * 128256 * 2  # log-softmax, its gradient, that of the logits, bfloat16
    >>> round(working_memory(4096, 4096, 128256, torch.bfloat16) / theirs, 3)
    0.102
    """
    wide, narrow = bridge.compute_dtype(dtype).itemsize, dtype.itemsize
    forward = -(-rows // ROW_CHUNKS) * classes * wide
    chunk = -(-classes // CLASS_CHUNKS)
    backward = rows * chunk * wide
    if narrow < wide:  # delta in 16 bits; in float32 x, grad_x, its terms, parts of W and grad_W
        backward += rows * chunk * narrow + (3 * rows + 2 * chunk) * features * wide
        forward += chunk * features * wide
    return max(forward, backward) + (16 * rows + 8 * classes) * wide


def _in_given_types(body: Callable[..., Any]) -> Callable[..., Any]:
    """Run `body` without autocast, which would round operands that were widened."""

    @functools.wraps(body)
    def run(first: Tensor, *others: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return body(first, *others)

    return run


@torch.library.custom_op(
    "gpubackprop::linear_cross_entropy",
    mutates_args=(),
    schema=f"(Tensor x, Tensor W, Tensor? b, Tensor targets, Tensor? weight, {SCHEMA}, "
    "bool keep_sums) -> (Tensor, Tensor, Tensor)",
)
@_in_given_types
def linear_cross_entropy(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    targets: Tensor,
    weight: Tensor | None,
    *flat: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss, lse, (r, q)) for x (N, D), W (C, D), b (C,), targets (N,) int64.

    lse is (N,), the sums (r, q) are (2, N) or (2, 0). `flat` has the fields of the settings, and
    whether to keep the sums.
    """
    settings, keep_sums = LossSettings(*flat[:-1]), flat[-1]
    rows, classes, compute = x.shape[0], W.shape[0], bridge.compute_dtype(x.dtype)
    row_loss, lse = x.new_empty((rows,), dtype=compute), x.new_empty((rows,), dtype=compute)
    sums = x.new_empty((2, rows if keep_sums else 0), dtype=compute)
    of, weight = bridge.of(x), _wide(weight, compute)
    of.check_targets(targets, classes, settings.ignore_index)
    by_row = settings._replace(reduction="none")
    options = by_row.options(of.array(weight), may_be_ignored=True)
    for number, part in enumerate(_chunks(rows, ROW_CHUNKS)):
        z = _logits(x[part], W, b)
        run_verb(
            z, targets[part], options, row_loss[part], lse[part], None,
            chunk=(number, part.start),
        )  # fmt: skip
        if keep_sums:
            label = targets[part, None].clamp(0, classes - 1)
            of_label = z.sub_(lse[part, None]).exp_().gather(1, label)[:, 0]
            torch.sum(z.scatter_(1, label, 0.0), 1, out=sums[1, part])
            # r is made of q, so that their errors cancel in q / r.
            torch.add(sums[1, part], of_label, out=sums[0, part])
        del z  # free it before the next one is made
    if settings.reduction == "none":
        return row_loss, lse, sums
    reduction, ignore_index, _, _ = settings
    _, divisor = composed.shares(targets, classes, compute, weight, reduction, ignore_index)
    return row_loss.sum() / divisor, lse, sums


@linear_cross_entropy.register_fake
def _(x, W, b, targets, weight, *flat):
    settings, keep_sums = LossSettings(*flat[:-1]), flat[-1]
    compute, rows = bridge.compute_dtype(x.dtype), x.shape[0]
    loss = x.new_empty((rows,) if settings.reduction == "none" else (), dtype=compute)
    sums = x.new_empty((2, rows if keep_sums else 0), dtype=compute)
    return loss, x.new_empty((rows,), dtype=compute), sums


def _chunks(length: int, count: int) -> Iterator[slice]:
    size = max(1, -(-length // count))
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def _wide(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype).contiguous()


def _logits(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """Return x W^T + b in the compute dtype; W is widened in parts."""
    compute = bridge.compute_dtype(x.dtype)
    if x.dtype == compute or x.device.type == "cuda":
        z = _product(x, W.t())
    else:
        z = torch.empty((len(x), len(W)), dtype=compute, device=x.device)
        for part in _chunks(len(W), CLASS_CHUNKS):
            z[:, part] = _product(x, W[part].t())
    return z if b is None else z.add_(b)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b in the compute dtype of a.

    On a GPU 16-bit operands are multiplied as they are, with float32 sums and results; on a CPU
    they are widened first.
    """
    compute = bridge.compute_dtype(a.dtype)
    if a.dtype == compute:
        return torch.mm(a, b)
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=compute)
    return torch.mm(a.to(compute), b.to(compute))


@torch.library.custom_op(
    "gpubackprop::linear_cross_entropy_backward",
    mutates_args=(),
    schema="(Tensor grad_loss, Tensor x, Tensor W, Tensor? b, Tensor targets, Tensor? weight, "
    f"Tensor lse, Tensor sums, {SCHEMA}) -> (Tensor, Tensor, Tensor)",
)
@_in_given_types
def linear_cross_entropy_backward(
    grad_loss: Tensor,
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    targets: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    sums: Tensor,
    *flat: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (grad_x, grad_W, grad_b) for grad_loss () or, for "none", (N,).

    `flat` has the fields of the settings.
    """
    reduction, ignore_index, label_smoothing, z_loss = LossSettings(*flat)
    classes, compute, exact = W.shape[0], lse.dtype, torch.float64  # row values are in `exact`
    weight = _wide(weight, exact)
    share, _ = composed.shares(targets, classes, exact, weight, reduction, ignore_index)
    scale, labels = grad_loss.to(exact) * share, targets.clamp(0, classes - 1)
    at_label = scale * (1 - label_smoothing)
    uniform = x.new_full((classes,), label_smoothing / classes, dtype=exact)
    if weight is not None:
        at_label, uniform = at_label * weight[labels], uniform * weight
    total = uniform.sum() + 2 * z_loss * lse.to(exact) if z_loss else uniform.sum()
    factor = at_label + scale * total
    delta_label = scale * (total - uniform[labels]) - factor * (sums[1].to(exact) / sums[0])
    factor = factor / sums[0]
    factor, delta_label, scale, uniform = (
        t.to(compute) for t in (factor, delta_label, scale, uniform)
    )
    grad_x = torch.zeros(x.shape, dtype=compute, device=x.device)
    grad_W, grad_b = torch.empty_like(W), W.new_empty(classes)
    x_ = x if x.device.type == "cuda" else x.to(compute)
    for part in _chunks(classes, CLASS_CHUNKS):
        W_ = W[part].to(x_.dtype)
        z = _product(x_, W_.t())
        if b is not None:
            z += b[part]
        z.sub_(lse[:, None]).exp_().mul_(factor[:, None])
        if label_smoothing:
            z.addr_(scale, uniform[part], alpha=-1)
        place = (labels - part.start).clamp(0, z.shape[1] - 1)[:, None]
        here = (labels >= part.start) & (labels < part.stop)
        z.scatter_(1, place, torch.where(here[:, None], delta_label[:, None], z.gather(1, place)))
        z.masked_fill_(composed.ignored_rows(targets, ignore_index)[:, None], 0.0)
        grad_b[part] = z.sum(0)
        delta = z.to(x_.dtype)
        grad_x += _product(delta, W_)
        grad_W[part] = _product(delta.t(), x_)
        del z, delta, W_  # free them before the next ones are made
    return grad_x.to(x.dtype), grad_W, grad_b


@linear_cross_entropy_backward.register_fake
def _(grad_loss, x, W, b, *others):
    return torch.empty_like(x), torch.empty_like(W), W.new_empty(W.shape[0])


# -- autograd -------------------------------------------------------------------------------------


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.settings = LossSettings(*inputs[5:-1])
    ctx.save_for_backward(*inputs[:5], *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 10
    grads = linear_cross_entropy_backward(grad_loss, *ctx.saved_tensors, *ctx.settings)
    needed = zip(grads, ctx.needs_input_grad[:3], strict=True)
    return *(grad if needs else None for grad, needs in needed), *([None] * 7)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_loss, x, W, b, targets, weight, _, _, *flat = inputs
    ctx.settings = LossSettings(*flat)
    ctx.save_for_backward(grad_loss, x, W, b, targets, weight)


def _double_backward(ctx: Any, *v: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate by PyTorch's operators, with logits, which second derivatives need."""
    grad_loss, x, W, b, targets, weight = ctx.saved_tensors

    def gradients(grad: Tensor, *inputs: Tensor) -> Any:
        def loss(x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
            z = torch.nn.functional.linear(x, W, b)
            return composed.loss(z, targets, weight, ctx.settings)[0]

        return torch.func.vjp(loss, *inputs)[1](grad)

    inputs = (x, W) if b is None else (x, W, b)
    _, pullback = torch.func.vjp(gradients, grad_loss, *inputs)
    grads = pullback(v[: len(inputs)])
    return *grads, *([None] * (12 - len(grads)))


linear_cross_entropy.register_autograd(_backward, setup_context=_setup)
linear_cross_entropy_backward.register_autograd(_double_backward, setup_context=_setup_backward)
