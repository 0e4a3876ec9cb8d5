"""Softmax cross entropy as custom operators of PyTorch, with their gradients.

`softmax_cross_entropy` is the loss (and the gradient, where a CPU keeps it),
`softmax_cross_entropy_backward` the gradient for an upstream one: both are the backend's operation.
What is asked for rarely (second derivatives, gradients of probability targets) is composed of
PyTorch's own operators in `composed`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpubackprop.backends import LossOptions
from gpubackprop.ops.softmax_cross_entropy import plain_options
from gpubackprop.torch import bridge, composed, offered
from gpubackprop.torch.host_bridge import check_host_labels, numpy_view

_OPTIONS = "str reduction, int ignore_index, float label_smoothing, float z_loss"


@torch.library.custom_op(
    "gpubackprop::softmax_cross_entropy",
    mutates_args=(),
    schema=f"(Tensor logits, Tensor targets, Tensor? weight, {_OPTIONS}, bool keep_delta, "
    "bool want_lse) -> (Tensor, Tensor, Tensor)",
)
def softmax_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    keep_delta: bool,
    want_lse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, lse, delta) of logits (N, K); targets (N,) int32 or int64, or (N, K) float.

    loss: () or, for "none", (N,); lse: (N,) or (0,); delta: (N, K) or (0, 0), for upstream 1.
    """
    return _loss(
        logits, targets, weight, reduction, ignore_index, label_smoothing, z_loss, keep_delta,
        want_lse,
    )  # fmt: skip


def _loss(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    keep_delta: bool,
    want_lse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the operator above gives."""
    if bridge.of(logits) is bridge.HOST:
        loss, host_lse, host_delta = host_loss(
            logits, targets, weight,
            (reduction, ignore_index, label_smoothing, z_loss, keep_delta, want_lse),
        )  # fmt: skip
        nothing = logits.new_empty((0, 0))
        return (
            loss,
            loss.new_empty(0) if host_lse is None else host_lse,
            nothing if host_delta is None else host_delta,
        )
    loss, lse, delta = _outputs(logits, reduction, keep_delta, want_lse)
    options = _options(logits, targets, weight, reduction, ignore_index, label_smoothing, z_loss)
    run_verb(
        logits, targets, options, loss, lse if want_lse else None, delta if keep_delta else None
    )
    return loss, lse, delta


@softmax_cross_entropy.register_fake
def _(
    logits, targets, weight, reduction, ignore_index, label_smoothing, z_loss, keep_delta, want_lse
):
    return _outputs(logits, reduction, keep_delta, want_lse)


def _outputs(
    logits: Tensor, reduction: str, keep_delta: bool, want_lse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    compute, rows = bridge.compute_dtype(logits.dtype), logits.shape[0]
    return (
        logits.new_empty((rows,) if reduction == "none" else (), dtype=compute),
        logits.new_empty((rows if want_lse else 0,), dtype=compute),
        logits.new_empty(logits.shape if keep_delta else (0, 0)),
    )


def _options(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> LossOptions:
    by_label = targets.dim() == 1
    if weight is not None:
        weight = weight.to(bridge.compute_dtype(logits.dtype)).contiguous()
    return LossOptions(
        bridge.of(logits).array(weight),
        ignore_index if by_label else None,
        label_smoothing,
        z_loss,
        reduction=reduction,
    )


def run_verb(
    logits: Tensor,
    targets: Tensor,
    options: LossOptions,
    loss: Tensor,
    lse: Tensor | None,
    delta: Tensor | None,
    upstream: Tensor | None = None,
    chunk: tuple[int, int] | None = None,
) -> None:
    """The backend's operation on tensors; loss () or (N,) as options.reduction says, delta may be
    the logits, upstream () or (N,) of the compute dtype. `chunk`: its number and first row, where
    the rows are but a part of those that the caller knows."""
    of = bridge.of(logits)
    if targets.dim() == 1:
        all_count = of.check_targets(targets, logits.shape[1], options.ignore_index)
        if all_count and options.ignore_index is not None:
            options = replace(options, ignore_index=None)
    kept = of.row_buffers(logits) | {"lse": lse, "delta": delta}
    if options.reduction == "none":
        kept |= {"row_loss": loss, "loss": loss.new_empty(())}
    else:
        kept["loss"] = loss
    targets = targets.contiguous() if targets.dim() == 1 else of.rows(targets)
    with of.backend_of(logits) as backend:
        if chunk is not None:
            of.report_rows_from(backend, logits, *chunk)
        result = {name: of.array(t) for name, t in kept.items() if t is not None}
        backend.softmax_cross_entropy(
            of.array(of.rows(logits)),
            of.array(targets),
            options,
            result,
            None,
            1.0 if upstream is None else of.array(upstream.contiguous()),
        )


@torch.library.custom_op(
    "gpubackprop::softmax_cross_entropy_backward",
    mutates_args=(),
    schema=f"(Tensor grad_loss, Tensor logits, Tensor targets, Tensor? weight, Tensor delta, "
    f"{_OPTIONS}) -> Tensor",
)
def softmax_cross_entropy_backward(
    grad_loss: Tensor,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    delta: Tensor,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> Tensor:
    """The gradient (N, K) for grad_loss () or, for "none", (N,): the kept delta scaled, or anew."""
    if delta.shape == logits.shape:
        grad = torch.mul(delta, grad_loss[:, None] if reduction == "none" else grad_loss)
        if targets.dim() == 1 and not grad_loss.isfinite().all():  # 0 times NaN
            grad.masked_fill_(composed.ignored_rows(targets.long(), ignore_index)[:, None], 0.0)
        return grad
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    options = _options(logits, targets, weight, reduction, ignore_index, label_smoothing, z_loss)
    unused, _, _ = _outputs(logits, reduction, False, False)
    run_verb(logits, targets, options, unused, None, out, grad_loss.to(unused.dtype))
    return out


@softmax_cross_entropy_backward.register_fake
def _(grad_loss, logits, targets, weight, delta, reduction, ignore_index, label_smoothing, z_loss):
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


# -- autograd -------------------------------------------------------------------------------------


Settings = tuple[str, int, float, float, bool, bool]  # what follows `weight` in the operator


def host_loss(
    logits: Tensor, targets: Tensor, weight: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`softmax_cross_entropy` on the NumPy backend; lse and delta where they are asked for."""
    reduction, ignore_index, label_smoothing, z_loss, keep_delta, want_lse = settings
    z, t = numpy_view(logits), numpy_view(targets)
    dtype = logits.dtype if logits.dtype in COMPUTE else torch.float32
    ignored: int | None = None
    if t.ndim == 1 and not check_host_labels(t, z.shape[1], ignore_index):
        ignored = ignore_index
    if weight is None:
        options = plain_options(ignored, label_smoothing, z_loss, 0.0, reduction, "nan")
    else:
        weights = numpy_view(weight.to(dtype))
        options = LossOptions(weights, ignored, label_smoothing, z_loss, reduction=reduction)
    row_loss = lse = delta = None
    result = {"loss": np.empty((), COMPUTE[dtype])}
    if reduction == "none":
        row_loss = logits.new_empty(z.shape[:1], dtype=dtype)
        result["row_loss"] = numpy_view(row_loss)
    if want_lse:
        lse = logits.new_empty(z.shape[:1], dtype=dtype)
        result["lse"] = numpy_view(lse)
    if keep_delta:
        delta = logits.new_empty(z.shape)
        result["delta"] = numpy_view(delta)
    bridge.HOST.host_backend.softmax_cross_entropy(z, t, options, result)
    if row_loss is not None:
        return row_loss, lse, delta
    return torch.scalar_tensor(result["loss"].item(), dtype=dtype, device=logits.device), lse, delta


COMPUTE: dict[torch.dtype, np.dtype[Any]] = {
    torch.float64: np.dtype(np.float64),
    torch.float32: np.dtype(np.float32),
}


class gpubackprop_softmax_cross_entropy(torch.autograd.Function):  # noqa: N801, its grad_fn shows it
    """`host_loss` with its gradient. The dispatcher's way to an operator costs more than a small
    loss, and PyTorch looks at every argument: so `settings` is one."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, weight: Tensor | None, settings: Settings
    ) -> tuple[Tensor, Tensor | None]:
        loss, lse, delta = host_loss(logits, targets, weight, settings)
        ctx.save_for_backward(logits, targets, weight, delta)
        ctx.set_materialize_grads(False)
        ctx.options = settings[:4]
        return loss, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, grad_targets, *_ = _backward(ctx, grads[0], grads[1], None)
        return grad, grad_targets, None, None


def loss_and_lse(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    options: tuple[str, int, float, float],
    want_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """`softmax_cross_entropy` by the shortest way for its arguments."""
    of = bridge.of(logits)
    keep_delta = (
        of.keeps_delta
        and logits.requires_grad
        and torch.is_grad_enabled()
        and logits.dtype in COMPUTE  # 1/N would be lost in 16 bits
    )
    settings = (*options, keep_delta, want_lse)
    if of is not bridge.HOST or not _is_plain(logits, targets, weight):
        loss, lse, _ = softmax_cross_entropy(logits, targets, weight, *settings)
        return loss, lse
    if torch.is_grad_enabled() and (logits.requires_grad or targets.requires_grad):
        both: tuple[Tensor, Tensor | None] = gpubackprop_softmax_cross_entropy.apply(
            logits, targets, weight, settings
        )
        return both
    return host_loss(logits, targets, weight, settings)[:2]


def _is_plain(logits: Tensor, targets: Tensor, weight: Tensor | None) -> bool:
    """Whether nobody but autograd watches what is done with these tensors of the CPU: no
    compiler, no mode, no class with operators of its own."""
    return (
        not torch.compiler.is_compiling()
        and _EXACT.issuperset(map(type, (logits, targets, weight)))
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
    )


_EXACT = frozenset((*offered.EXACT, type(None)))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, weight, *options, _, want_lse = inputs
    ctx.save_for_backward(logits, targets, weight, output[2])
    ctx.mark_non_differentiable(*output[2 if want_lse else 1 :])
    ctx.set_materialize_grads(False)
    ctx.options = options


def _backward(
    ctx: Any, grad_loss: Tensor | None, grad_lse: Tensor | None, grad_delta: None
) -> tuple[Tensor | None, ...]:
    logits, targets, weight, delta = ctx.saved_tensors
    if delta is None:
        delta = logits.new_empty((0, 0))
    reduction, _, label_smoothing, _ = ctx.options
    grad, grad_targets = None, None
    if grad_loss is not None and ctx.needs_input_grad[0]:
        if _delta_is_the_gradient(grad_loss, delta, logits):
            grad = delta
        else:
            grad = softmax_cross_entropy_backward(
                grad_loss, logits, targets, weight, delta, *ctx.options
            )
    if grad_lse is not None and ctx.needs_input_grad[0]:
        softmax = torch.softmax(logits, 1, dtype=grad_lse.dtype)
        more = (grad_lse[:, None] * softmax).to(logits.dtype)
        grad = more if grad is None else grad + more
    if grad_loss is not None and ctx.needs_input_grad[1]:
        grad_targets = composed.gradient_of_targets(
            grad_loss, logits, targets, weight, reduction, label_smoothing
        )
    return grad, grad_targets, *([None] * 7)


def _delta_is_the_gradient(grad_loss: Tensor, delta: Tensor, logits: Tensor) -> bool:
    """Whether `delta` itself may be handed on: loss.backward() of a loss that stands last, in a
    graph that is freed, so that nobody can see it again. Looks at the number, hence CPU only."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or delta.shape != logits.shape:
        return False
    if type(grad_loss) is not Tensor or grad_loss.dim() or not grad_loss.is_cpu:
        return False
    if not torch._C._has_storage(grad_loss):  # of is_grads_batched=True: more than one number
        return False
    return _keeps_graph is not None and not _keeps_graph() and grad_loss.item() == 1.0


_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_loss, logits, targets, weight, _, *options = inputs
    ctx.save_for_backward(grad_loss, logits, targets, weight)
    ctx.options = options


def _double_backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    grads = composed.gradients_of_gradient(v, *ctx.saved_tensors, *ctx.options)
    return *grads, *([None] * 6)


softmax_cross_entropy.register_autograd(_backward, setup_context=_setup)
softmax_cross_entropy_backward.register_autograd(_double_backward, setup_context=_setup_backward)
