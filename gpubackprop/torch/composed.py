"""Softmax cross entropy composed of PyTorch's operators, for cases that are rare.

With tau the targets after smoothing and class weights, T = sum_k tau_k, p = softmax(z), g_i the
upstream gradient and s_i the row's factor in the reduction:

    loss_i = T lse - sum_k tau_k z_k + z_loss lse^2
    dz_ik  = g_i s_i (A p_k - tau_k),  A = T + 2 z_loss lse

Let v be the gradient with respect to dz, and u = sum_k v_k p_k. The gradients of <v, dz> are

    for g_i   s_i (A u - sum_k v_k tau_k)
    for z_ik  g_i s_i (A (v_k - u) p_k + 2 z_loss u p_k)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpubackprop.torch.bridge import compute_dtype
from gpubackprop.torch.loss_settings import LossSettings


def _comparable(targets: Tensor) -> Tensor:
    """Return class indices as int64: to a uint8, -100 is 156, and as an index a uint8 is a mask."""
    return targets if targets.is_floating_point() else targets.long()


def ignored_rows(targets: Tensor, ignore_index: int) -> Tensor:
    """Return which rows are ignored, (N,) bool."""
    if targets.is_floating_point():
        return torch.zeros_like(targets[..., 0], dtype=torch.bool)
    return targets == ignore_index


def _at_label(targets: Tensor, z: Tensor) -> Tensor:
    """Return which logits are at their row's label, (N, K) bool."""
    return targets[..., None] == torch.arange(z.shape[-1], device=z.device)


def dense_targets(z: Tensor, targets: Tensor, weight: Tensor | None, smoothing: float) -> Tensor:
    """Return tau (N, K), in the dtype of z."""
    if targets.is_floating_point():
        dense = targets.to(z.dtype)
    else:
        dense = _at_label(targets, z).to(z.dtype)
    tau = dense * (1 - smoothing) + smoothing / z.shape[-1]
    return tau if weight is None else tau * weight


def shares(
    targets: Tensor,
    classes: int,
    dtype: torch.dtype,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """Return (s_i (N,), divisor ()).

    s_i is 0 for ignored rows and NaN for labels out of range. For "mean" it is divided by the
    divisor, the sum of the class weights of the rows that count. A divisor of 0 becomes NaN, like
    PyTorch's mean over nothing. For other reductions the divisor is 1.
    """
    if targets.is_floating_point():
        share = counted = torch.ones_like(targets[..., 0], dtype=dtype)
    else:
        bad = (targets < 0) | (targets >= classes)
        share = torch.where(bad, math.nan, torch.ones_like(targets, dtype=dtype))
        share = counted = torch.where(ignored_rows(targets, ignore_index), 0.0, share)
        if weight is not None:
            counted = share * weight[torch.where(bad, 0, targets)]
    if reduction != "mean":
        return share, torch.ones_like(share.sum(-1))
    divisor = counted.sum(-1)
    over_nothing = torch.where(divisor == 0, math.nan, divisor)  # with smoothing, 0 would give inf
    return share / over_nothing[..., None], over_nothing


def loss(
    logits: Tensor, targets: Tensor, weight: Tensor | None, settings: LossSettings
) -> tuple[Tensor, Tensor]:
    """Return (loss, lse); `torch.vmap` maps this function."""
    reduction, ignore_index, label_smoothing, z_loss = settings
    targets = _comparable(targets)
    z = logits.to(compute_dtype(logits.dtype))
    lse = torch.logsumexp(z, -1)
    ignored = ignored_rows(targets, ignore_index)
    z = torch.where(ignored[..., None], 0.0, z)
    tau = dense_targets(z, targets, weight, label_smoothing)
    terms = tau * torch.log_softmax(z, -1)
    if not label_smoothing and not targets.is_floating_point():
        terms = torch.where(_at_label(targets, z), terms, 0.0)  # others may be -inf: 0 * inf is NaN
    square = torch.where(ignored, 0.0, lse) ** 2
    share, _ = shares(targets, z.shape[-1], z.dtype, weight, reduction, ignore_index)
    row_loss = share * (z_loss * square - terms.sum(-1))
    return (row_loss if reduction == "none" else row_loss.sum(-1)), lse


def gradient_of_targets(
    grad_loss: Tensor,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    settings: LossSettings,
) -> Tensor:
    """Return -g_i s_i (1 - smoothing) w_k log p_ik, the gradient for probability targets."""
    z = logits.to(compute_dtype(logits.dtype))
    share, _ = shares(targets, z.shape[-1], z.dtype, weight, settings.reduction, -1)
    by_class = -torch.log_softmax(z, 1) * (1 - settings.label_smoothing)
    by_class = by_class if weight is None else by_class * weight
    return ((grad_loss * share)[:, None] * by_class).to(targets.dtype)


def gradients_of_gradient(
    v: Tensor,
    settings: LossSettings,
    grad_loss: Tensor,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of <v, dz> with respect to g, z and probability targets."""
    reduction, ignore_index, smoothing, z_loss = settings
    compute, targets = compute_dtype(logits.dtype), _comparable(targets)
    ignored = ignored_rows(targets, ignore_index)[:, None]
    z, v = torch.where(ignored, 0.0, logits.to(compute)), v.to(compute)
    p, lse = torch.softmax(z, 1), torch.logsumexp(z, 1)
    tau = dense_targets(z, targets, weight, smoothing)
    slope = tau.sum(1) + 2 * z_loss * lse
    share, _ = shares(targets, z.shape[-1], z.dtype, weight, reduction, ignore_index)
    scale = torch.where(ignored, 0.0, (grad_loss * share)[:, None])  # even if the share is NaN
    # v counts from the likeliest class on, since v - u of a class that is nearly certain cancels
    base = v.take_along_dim(p.argmax(1, keepdim=True), 1)
    v = v - base
    u = (v * p).sum(1, keepdim=True)
    rest = (2 * z_loss * lse)[:, None] * base  # of A base - sum_k base tau_k, as sum_k p_k = 1
    grad_grad = share * (slope[:, None] * u - (v * tau).sum(1, keepdim=True) + rest)[:, 0]
    curve = slope[:, None] * (v - u) * p + 2 * z_loss * (base + u) * p
    grad_targets = None
    if targets.is_floating_point():
        by_class = (u - v) * (1 - smoothing)
        by_class = by_class if weight is None else by_class * weight
        grad_targets = (scale * by_class).to(targets.dtype)
    return (
        (grad_grad if reduction == "none" else grad_grad.sum()).to(grad_loss.dtype),
        (scale * curve).to(logits.dtype),
        grad_targets,
    )
