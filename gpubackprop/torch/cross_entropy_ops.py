"""Softmax cross entropy as custom operators of PyTorch, with their gradients.

`softmax_cross_entropy` is the loss (and the gradient, where a CPU keeps it),
`softmax_cross_entropy_backward` the gradient for an upstream one: both are the backend's verb. What
is asked for rarely (second derivatives, gradients of probability targets) is composed of PyTorch's
own operators in `composed`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gpubackprop.backends import LossOptions
from gpubackprop.torch import bridge, composed

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
    """The backend's verb on tensors; loss () or (N,) as options.reduction says, delta may be the
    logits, upstream () or (N,) of the compute dtype. `chunk`: its number and first row, where the
    rows are but a part of those that the caller knows."""
    of, rows = bridge.of(logits), logits.shape[0]
    if targets.dim() == 1:
        of.check_targets(targets, logits.shape[1], options.ignore_index or 0)
    scratch = logits.new_empty((2, rows), dtype=bridge.compute_dtype(logits.dtype))
    kept = {"scale": scratch[0], "row_loss": scratch[1], "loss": loss, "lse": lse, "delta": delta}
    if options.reduction == "none":
        kept |= {"row_loss": loss, "loss": scratch.new_empty(())}
    targets = targets.contiguous() if targets.dim() == 1 else of.rows(targets)
    with of.verbs(logits) as verbs:
        if chunk is not None:
            of.report_rows_from(verbs, logits, *chunk)
        result = {name: of.array(t) for name, t in kept.items() if t is not None}
        verbs.softmax_cross_entropy(
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
    if type(grad_loss) is not Tensor or grad_loss.dim() or grad_loss.device.type != "cpu":
        return False
    if not torch._C._has_storage(grad_loss):  # of is_grads_batched=True: more than one number
        return False
    keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return keeps_graph is not None and not keeps_graph() and grad_loss.item() == 1.0


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_loss, logits, targets, weight, _, *options = inputs
    ctx.save_for_backward(grad_loss, logits, targets, weight)
    ctx.options = options


def _double_backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    grads = composed.gradients_of_gradient(v, *ctx.saved_tensors, *ctx.options)
    return *grads, *([None] * 6)


softmax_cross_entropy.register_autograd(_backward, setup_context=_setup)
softmax_cross_entropy_backward.register_autograd(_double_backward, setup_context=_setup_backward)
