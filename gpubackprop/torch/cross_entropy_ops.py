"""Softmax cross entropy as custom operators of PyTorch, with their gradients.

`softmax_cross_entropy` is the loss (and the gradient, if a CPU keeps it), and
`softmax_cross_entropy_backward` the gradient for an upstream one. Both call the backend's
operation. Rare cases (second derivatives, gradients of probability targets) are composed of
PyTorch's own operators in `composed`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gpubackprop.backends import LossOptions
from gpubackprop.torch import bridge, composed, offered
from gpubackprop.torch.host_loss import host_loss
from gpubackprop.torch.loss_settings import SCHEMA, LossSettings


@torch.library.custom_op(
    "gpubackprop::softmax_cross_entropy",
    mutates_args=(),
    schema=f"(Tensor logits, Tensor targets, Tensor? weight, {SCHEMA}, bool keep_delta, "
    "bool want_lse) -> (Tensor, Tensor, Tensor, Tensor)",
)
def softmax_cross_entropy(
    logits: Tensor, targets: Tensor, weight: Tensor | None, *flat: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (loss, lse, delta, weight_sum) for logits (N, K).

    The targets are (N,) int32 or int64, or (N, K) float. `flat` has the fields of the settings,
    keep_delta and want_lse. loss is () or, for "none", (N,); lse is (N,) or (0,); delta is (N, K)
    for upstream 1, or (0, 0). weight_sum is the mean's divisor () where the backward pass on a GPU
    will want it, else (0,).
    """
    settings, (keep_delta, want_lse) = LossSettings(*flat[:-2]), flat[-2:]
    if bridge.of(logits) is bridge.HOST:
        loss, host_lse, host_delta = host_loss(
            logits, targets, weight, settings, keep_delta, want_lse
        )
        return (
            loss,
            loss.new_empty(0) if host_lse is None else host_lse,
            logits.new_empty((0, 0)) if host_delta is None else host_delta,
            loss.new_empty(0),
        )
    loss, lse, delta, weight_sum = _outputs(logits, targets, settings, keep_delta, want_lse)
    run_verb(
        logits, targets, _options(logits, targets, weight, settings), loss,
        lse if want_lse else None, delta if keep_delta else None,
        weight_sum=None if weight_sum.dim() else weight_sum,
    )  # fmt: skip
    return loss, lse, delta, weight_sum


@softmax_cross_entropy.register_fake
def _(logits, targets, weight, *flat):
    return _outputs(logits, targets, LossSettings(*flat[:-2]), *flat[-2:])


def _outputs(
    logits: Tensor, targets: Tensor, settings: LossSettings, keep_delta: bool, want_lse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    compute, rows = bridge.compute_dtype(logits.dtype), logits.shape[0]
    weighs = settings.reduction == "mean" and targets.dim() == 1 and bridge.of(logits).is_cuda
    return (
        logits.new_empty((rows,) if settings.reduction == "none" else (), dtype=compute),
        logits.new_empty((rows if want_lse else 0,), dtype=compute),
        logits.new_empty(logits.shape if keep_delta else (0, 0)),
        logits.new_empty(() if weighs else (0,), dtype=compute),
    )


def _options(
    logits: Tensor, targets: Tensor, weight: Tensor | None, settings: LossSettings
) -> LossOptions:
    if weight is not None:
        weight = weight.to(bridge.compute_dtype(logits.dtype)).contiguous()
    return settings.options(bridge.of(logits).array(weight), may_be_ignored=targets.dim() == 1)


def run_verb(
    logits: Tensor,
    targets: Tensor,
    options: LossOptions,
    loss: Tensor | None,
    lse: Tensor | None,
    delta: Tensor | None,
    upstream: Tensor | None = None,
    chunk: tuple[int, int] | None = None,
    weight_sum: Tensor | None = None,
    divisor: Tensor | None = None,
) -> None:
    """Call the backend's operation on tensors.

    The loss is () or (N,), as options.reduction says, or None; delta may be the logits; upstream is
    () or (N,) of the compute dtype. The mean's divisor goes to `weight_sum`, or is `divisor`, both
    () or None. `chunk` is (index, first_row) if `logits` is a slice of a larger
    batch, else None.
    """
    of = bridge.of(logits)
    if targets.dim() == 1:
        all_count = of.check_targets(targets, logits.shape[1], options.ignore_index)
        if all_count and options.ignore_index is not None:
            options = replace(options, ignore_index=None)
    kept = {"lse": lse, "delta": delta, "weight_sum": weight_sum}
    if options.reduction == "none" and loss is not None:
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
            of.array(divisor),
        )


@torch.library.custom_op(
    "gpubackprop::softmax_cross_entropy_backward",
    mutates_args=(),
    schema=f"(Tensor grad_loss, Tensor logits, Tensor targets, Tensor? weight, Tensor delta, "
    f"Tensor weight_sum, {SCHEMA}) -> Tensor",
)
def softmax_cross_entropy_backward(
    grad_loss: Tensor,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    delta: Tensor,
    weight_sum: Tensor,
    *flat: Any,
) -> Tensor:
    """Return the gradient (N, K) for grad_loss () or, for "none", (N,).

    It is the kept delta, scaled, or it is computed anew, on a GPU by one kernel that does not
    compute the loss again. `flat` has the fields of the settings.
    """
    settings = LossSettings(*flat)
    if delta.shape == logits.shape:
        by_row = settings.reduction == "none"
        grad = torch.mul(delta, grad_loss[:, None] if by_row else grad_loss)
        if targets.dim() == 1 and not grad_loss.isfinite().all():  # 0 times inf or NaN is NaN
            ignored = composed.ignored_rows(targets.long(), settings.ignore_index)
            grad.masked_fill_(ignored[:, None], 0.0)
        return grad
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    compute = bridge.compute_dtype(logits.dtype)
    loss = None
    if bridge.of(logits) is bridge.HOST:  # which computes it in any case
        loss = _outputs(logits, targets, settings, False, False)[0]
    run_verb(
        logits, targets, _options(logits, targets, weight, settings), loss, None, out,
        grad_loss.to(compute), divisor=None if weight_sum.dim() else weight_sum,
    )  # fmt: skip
    return out


@softmax_cross_entropy_backward.register_fake
def _(grad_loss, logits, targets, weight, delta, weight_sum, *flat):
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


# -- autograd -------------------------------------------------------------------------------------


class gpubackprop_softmax_cross_entropy(torch.autograd.Function):  # noqa: N801, its grad_fn shows it
    """`host_loss` with its gradient.

    An operator of PyTorch would cost more, by its dispatcher, than a small loss takes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        weight: Tensor | None,
        settings: LossSettings,
        keep_delta: bool,
        want_lse: bool,
    ) -> tuple[Tensor, Tensor | None]:
        loss, lse, delta = host_loss(logits, targets, weight, settings, keep_delta, want_lse)
        ctx.save_for_backward(logits, targets, weight, delta, None)
        ctx.set_materialize_grads(False)
        ctx.settings = settings
        return loss, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, grad_targets = _gradients(ctx, *grads)
        return grad, grad_targets, None, None, None, None


def loss_and_lse(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    settings: LossSettings,
    want_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Compute `softmax_cross_entropy` by the shortest way for its arguments."""
    of = bridge.of(logits)
    keep_delta = (
        of.keeps_delta
        and logits.requires_grad
        and torch.is_grad_enabled()
        and logits.dtype == bridge.compute_dtype(logits.dtype)  # 1/N would be lost in 16 bits
    )
    if of is not bridge.HOST or not _is_plain(logits, targets, weight):
        loss, lse, *_ = softmax_cross_entropy(
            logits, targets, weight, *settings, keep_delta, want_lse
        )
        return loss, lse
    if torch.is_grad_enabled() and (logits.requires_grad or targets.requires_grad):
        both: tuple[Tensor, Tensor | None] = gpubackprop_softmax_cross_entropy.apply(
            logits, targets, weight, settings, keep_delta, want_lse
        )
        return both
    return host_loss(logits, targets, weight, settings, keep_delta, want_lse)[:2]


def _is_plain(logits: Tensor, targets: Tensor, weight: Tensor | None) -> bool:
    """Return whether only autograd watches these tensors of the CPU.

    Others are a compiler, a mode, or a class with operators of its own.
    """
    return (
        not torch.compiler.is_compiling()
        and _EXACT.issuperset(map(type, (logits, targets, weight)))
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
    )


_EXACT = frozenset((*offered.EXACT, type(None)))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, weight, *flat, _, want_lse = inputs
    ctx.save_for_backward(logits, targets, weight, *output[2:])
    ctx.mark_non_differentiable(*output[2 if want_lse else 1 :])
    ctx.set_materialize_grads(False)
    ctx.settings = LossSettings(*flat)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    grad, grad_targets = _gradients(ctx, *grads[:2])
    return grad, grad_targets, *([None] * 7)


def _gradients(
    ctx: Any, grad_loss: Tensor | None, grad_lse: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of logits and probability targets."""
    logits, targets, weight, delta, weight_sum = ctx.saved_tensors
    if delta is None:
        delta = logits.new_empty((0, 0))
    if weight_sum is None:
        weight_sum = logits.new_empty(0)
    grad, grad_targets = None, None
    if grad_loss is not None and ctx.needs_input_grad[0]:
        if _delta_is_the_gradient(grad_loss, delta, logits):
            grad = delta
        else:
            grad = softmax_cross_entropy_backward(
                grad_loss, logits, targets, weight, delta, weight_sum, *ctx.settings
            )
    if grad_lse is not None and ctx.needs_input_grad[0]:
        softmax = torch.softmax(logits, 1, dtype=grad_lse.dtype)
        more = (grad_lse[:, None] * softmax).to(logits.dtype)
        grad = more if grad is None else grad + more
    if grad_loss is not None and ctx.needs_input_grad[1]:
        grad_targets = composed.gradient_of_targets(
            grad_loss, logits, targets, weight, ctx.settings
        )
    return grad, grad_targets


def _delta_is_the_gradient(grad_loss: Tensor, delta: Tensor, logits: Tensor) -> bool:
    """Return whether `delta` itself may be returned as the gradient.

    That is so in loss.backward() of a loss that stands last, in a graph that is freed, so that
    delta cannot be seen again. The function reads the number, hence it is for the CPU only.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or delta.shape != logits.shape:
        return False
    if type(grad_loss) is not Tensor or grad_loss.dim() or not grad_loss.is_cpu:
        return False
    if not torch._C._has_storage(grad_loss):  # is_grads_batched=True gives more than one number
        return False
    return keeps_graph is not None and not keeps_graph() and grad_loss.item() == 1.0


keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_loss, logits, targets, weight, _, _, *flat = inputs
    ctx.save_for_backward(grad_loss, logits, targets, weight)
    ctx.settings = LossSettings(*flat)


def _double_backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    grads = composed.gradients_of_gradient(v, ctx.settings, *ctx.saved_tensors)
    return *grads, *([None] * 7)


softmax_cross_entropy.register_autograd(_backward, setup_context=_setup)
softmax_cross_entropy_backward.register_autograd(_double_backward, setup_context=_setup_backward)
