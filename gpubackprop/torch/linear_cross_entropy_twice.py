"""Cross entropy of an affine layer in two passes over the logits: in 16 bits, and on a GPU.

Of 16-bit tensors PyTorch wants 16-bit gradients. The sum of all chunks of rows would be a float32
matrix as large as W, twice as large as its gradient. On a GPU the kernels of the loss do not write
the label's element from the others, as it is done below. So the
forward pass computes, for chunks of rows, z = x W^T + b, and row losses and lse. The backward pass
computes from lse, for chunks of classes:

    delta = s_i (A exp(z - lse) / r - tau),  A = T + 2 z_loss lse,  r = sum_k exp(z_k - lse)
    grad_x += delta W;  grad_W[chunk] = delta^T x;  grad_b[chunk] = sum_i delta_i

Each row of grad_W is then one product, summed in float32 by the product itself. Without the
rounding of lse, r would be 1; that rounding would be an error of every element, so the forward pass
computes r. The logits are computed twice, which costs a fourth product. 16-bit operands are
multiplied to float32 results.

The two products round differently. If a label is certain, exp(z - lse) / r differs from 1 by some
|z| ulp, more than the gradient of its row. The label's element, y, is therefore written from the
forward pass's sum over the others:

    delta_y = s_i (A - tau_y - A q / r),  q = sum_{k != y} exp(z_k - lse)

where A - tau_y is exactly 0 without smoothing and z-loss.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gpubackprop.torch import bridge, composed
from gpubackprop.torch.cross_entropy_ops import run_verb
from gpubackprop.torch.loss_settings import LossSettings

# Numbers of chunks of the rows and of the classes. They are few, so that the products stay large,
# but enough to keep the memory below 1/8 of logits, their logarithms and their gradient.
ROW_CHUNKS, CLASS_CHUNKS = 8, 64


def working_memory(rows: int, features: int, classes: int, dtype: torch.dtype) -> int:
    """Return the most bytes of forward and backward pass, as the public function of that name."""
    wide, narrow = bridge.compute_dtype(dtype).itemsize, dtype.itemsize
    forward = -(-rows // ROW_CHUNKS) * classes * wide
    chunk = -(-classes // CLASS_CHUNKS)
    backward = rows * chunk * wide
    if narrow < wide:  # delta in 16 bits; in float32 x, grad_x, its terms, parts of W and grad_W
        backward += rows * chunk * narrow + (3 * rows + 2 * chunk) * features * wide
        forward += chunk * features * wide
    return max(forward, backward) + (16 * rows + 8 * classes) * wide


def forward(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    targets: Tensor,
    weight: Tensor | None,
    settings: LossSettings,
    keep_sums: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss, lse, (r, q)): lse (N,), and (2, N) or (2, 0)."""
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


def backward(
    grad_loss: Tensor,
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    targets: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    sums: Tensor,
    settings: LossSettings,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (grad_x, grad_W, grad_b)."""
    reduction, ignore_index, label_smoothing, z_loss = settings
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
    grad_W, grad_b = W.new_empty(W.shape), W.new_empty(classes)
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
