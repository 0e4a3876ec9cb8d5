"""Softmax cross entropy of CPU tensors on the NumPy backend.

To show NumPy the memory of three tensors costs as much as a small loss. Therefore a small batch is
copied into tensors whose memory NumPy already knows and on which a plan works, and its results are
copied out. A larger batch is read, and its gradient written, in the tensors' own memory.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gpubackprop.backends.numpy.blocks import maximum_reduce
from gpubackprop.backends.numpy.eager import Store
from gpubackprop.torch import bridge
from gpubackprop.torch.host_bridge import check_host_labels, compute_dtype, numpy_view
from gpubackprop.torch.loss_settings import LossSettings

Outputs = tuple[Tensor, Tensor | None, Tensor | None]
COPIED_BYTES = 1 << 16  # beyond so many bytes of logits, two copies cost more than they save


class CopiedLoss:
    """The loss of one kind of small batch, on memory of its own.

    Parameters
    ----------
    logits : (N, K) tensor
        Logits of the first call; later ones have the same shape and dtype.
    targets : (N,) or (N, K) tensor
        Targets of the first call; likewise.
    settings : LossSettings
        As for `host_loss`.
    keep_delta : bool
        As for `host_loss`.
    want_lse : bool
        As for `host_loss`.
    """

    def __init__(
        self,
        logits: Tensor,
        targets: Tensor,
        settings: LossSettings,
        keep_delta: bool,
        want_lse: bool,
    ) -> None:
        rows, compute = len(logits), compute_dtype(logits.dtype)
        with torch.inference_mode(False):  # a tensor made in it could not be written outside it
            self.logits = _empty(logits.shape, logits.dtype)
            self.targets = _empty(targets.shape, targets.dtype)
            loss, row_loss = _empty((), compute), _empty((rows,), compute)
            self.lse = _empty((rows,), compute) if want_lse else None
            self.delta = _empty(logits.shape, logits.dtype) if keep_delta else None
        self.loss = row_loss if settings.reduction == "none" else loss
        self.settings = settings
        self._labels = numpy_view(self.targets) if targets.dim() == 1 else None
        if self._labels is not None:  # as unsigned integers, negative labels are large
            self._unsigned = self._labels.view(f"u{self._labels.itemsize}")
        kept = {"loss": loss, "row_loss": row_loss, "lse": self.lse, "delta": self.delta}
        self._result = {name: numpy_view(t) for name, t in kept.items() if t is not None}
        self._plans: dict[bool, Callable[[], None]] = {}

    def __call__(self, logits: Tensor, targets: Tensor) -> Outputs:
        self.logits.copy_(logits)
        self.targets.copy_(targets)
        ignores = self._ignores()
        (self._plans.get(ignores) or self._plan(ignores))()
        return (
            self.loss.clone(),
            None if self.lse is None else self.lse.clone(),
            None if self.delta is None else self.delta.clone(),
        )

    def _ignores(self) -> bool:
        """Return whether some rows may be ignored; raise LabelError if a label is out of range."""
        if self._labels is None:
            return False
        classes, ignored = self.logits.shape[1], self.settings.ignore_index
        if not 0 <= ignored < classes and int(maximum_reduce(self._unsigned)) < classes:
            return False
        return not check_host_labels(self._labels, classes, ignored)

    def _plan(self, ignores: bool) -> Callable[[], None]:
        """Return the plan for labels some of which may be ignored, or for labels without such."""
        options = self.settings.options(None, may_be_ignored=ignores)
        scale = np.empty(len(self.logits), self._result["loss"].dtype)  # each plan has its own
        z, t = numpy_view(self.logits), numpy_view(self.targets)
        result = self._result | {"scale": scale}
        plan = self._plans[ignores] = bridge.HOST.host_backend.plan(
            lambda backend: backend.softmax_cross_entropy(z, t, options, result)
        )
        return plan


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cpu")


_COPIED = Store()


def host_loss(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    settings: LossSettings,
    keep_delta: bool,
    want_lse: bool,
) -> Outputs:
    """Return the loss of logits (N, K) of the CPU; lse and delta (N, K) if they are wanted."""
    if weight is not None or not 0 < logits.nbytes <= COPIED_BYTES:
        return _loss_in_place(logits, targets, weight, settings, keep_delta, want_lse)
    key = (
        logits.shape, logits.dtype, targets.dim(), targets.dtype, settings, keep_delta, want_lse
    )  # fmt: skip
    loss = _COPIED.pop(key, None)
    if loss is None:
        loss = CopiedLoss(logits, targets, settings, keep_delta, want_lse)
    outputs: Outputs = loss(logits, targets)
    _COPIED.keep(key, loss)
    return outputs


def _loss_in_place(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    settings: LossSettings,
    keep_delta: bool,
    want_lse: bool,
) -> Outputs:
    """Compute `host_loss` on the tensors' own memory."""
    z, t, compute = numpy_view(logits), numpy_view(targets), compute_dtype(logits.dtype)
    ignores = t.ndim == 1 and not check_host_labels(t, z.shape[1], settings.ignore_index)
    weights = None if weight is None else numpy_view(weight.to(compute))
    options = settings.options(weights, may_be_ignored=ignores)
    row_loss = lse = delta = None
    result = {"loss": np.empty((), np.float64 if compute == torch.float64 else np.float32)}
    if settings.reduction == "none":
        row_loss = logits.new_empty(z.shape[:1], dtype=compute)
        result["row_loss"] = numpy_view(row_loss)
    if want_lse:
        lse = logits.new_empty(z.shape[:1], dtype=compute)
        result["lse"] = numpy_view(lse)
    if keep_delta:
        delta = logits.new_empty(z.shape)
        result["delta"] = numpy_view(delta)
    bridge.HOST.host_backend.softmax_cross_entropy(z, t, options, result)
    if row_loss is None:
        loss = result["loss"].item()
        row_loss = torch.scalar_tensor(loss, dtype=compute, device=logits.device)
    return row_loss, lse, delta
