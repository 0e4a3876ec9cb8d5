"""A training step, as the lecture writes it: forward, loss, backward, update.

Rows are samples. For layers l = 1 ... L, with h_0 = x:

    forward     a_l = h_{l-1} W_l^T + b_l,   h_l = g_l(a_l);   a_L are the logits
    loss        L(a_L, targets),   delta_L = dL/da_L
    backward    grad_W_l = delta_l^T h_{l-1},   grad_b_l = sum_i delta_l[i]
                grad_h_{l-1} = delta_l W_l,   delta_{l-1} = grad_h_{l-1} * g_{l-1}'(a_{l-1})
    update      W_l, b_l by the optimizer's formula

The five functions below are these lines. `MLP.gradients`, the steps of `gpubackprop.training` and
the estimators issue them on a backend: at once, or to be recorded in a plan. In the code layers
count from 0, so h[l] enters layer l, which makes a[l] and h[l + 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gpubackprop.backends import Backend
from gpubackprop.formulas import ACTIVATIONS, Activation, Dropout
from gpubackprop.losses import Loss

Array = Any  # of the backend's device
Layers = tuple[Sequence[Array], Sequence[Array]]  # (W, b), or (grad_W, grad_b): one of each layer
IDENTITY = ACTIVATIONS["identity"]


def emit_forward(backend: Backend, x: Array, parameters: Layers, units: Units) -> None:
    """From x (N, D_0) to the units of all layers; the logits a_L are units.a[-1]."""
    (W, b), a, h = parameters, units.a, [x, *units.h, units.a[-1]]
    for layer, g in enumerate(units.activations):
        backend.affine_forward(
            h[layer], W[layer], b[layer], g, a[layer], h[layer + 1], units.dropout[layer]
        )


def emit_loss(backend: Backend, loss: Loss, batch: Batch, parameters: Layers) -> None:
    """Forward pass and loss of a batch; delta_L where batch.result has an array for it."""
    emit_forward(backend, batch.x, parameters, batch.units)
    logits = batch.units.a[-1]
    if batch.logits is not None:  # delta_L may be written over the others
        backend.activation_forward(logits, IDENTITY, batch.logits)
    loss.emit(backend, logits, batch.targets, batch.result, batch.weights, batch.upstream)


def emit_backward(
    backend: Backend, x: Array, W: Sequence[Array], units: PassUnits, gradient: Layers
) -> None:
    """From delta_L, which the loss has written, to the gradients of all parameters."""
    (grad_W, grad_b), h, grad_h = gradient, [x, *units.h], [None, *units.grad_h]
    delta, last = units.delta, len(W) - 1
    backend.column_sum(delta[last], grad_b[last])
    backend.affine_backward(delta[last], h[last], W[last], grad_W[last], grad_h[last])
    for layer in reversed(range(last)):
        backend.activation_backward(
            grad_h[layer + 1], units.saved[layer], units.activations[layer], delta[layer],
            grad_b[layer], units.dropout[layer],
        )  # fmt: skip
        backend.affine_backward(delta[layer], h[layer], W[layer], grad_W[layer], grad_h[layer])


def emit_gradients(
    backend: Backend, loss: Loss, batch: Batch, parameters: Layers, gradient: Layers
) -> None:
    """Forward pass, loss and backward pass of a batch."""
    emit_loss(backend, loss, batch, parameters)
    emit_backward(backend, batch.x, parameters[0], batch.units, gradient)


def emit_step(
    backend: Backend, loss: Loss, batch: Batch, parameters: Layers, gradient: Layers, updater: Any
) -> None:
    """One step of training: all gradients of a batch, and the update that they make."""
    emit_gradients(backend, loss, batch, parameters, gradient)
    updater.emit(backend)


class Architecture(Protocol):
    """What the units are made for: an `MLP`, or what has these attributes of one."""

    @property
    def backend(self) -> Backend: ...
    @property
    def widths(self) -> Sequence[int]: ...
    @property
    def activations(self) -> Sequence[Activation]: ...
    @property
    def dropout(self) -> Sequence[float]: ...
    @property
    def precision(self) -> Any: ...


class Units:
    """The units of a forward pass over `rows` rows: h_l is written over a_l, and the layers take
    turns in two pieces of memory.

    Parameters
    ----------
    backend : has the memory. rows : of x. widths : of all layers' units, without the inputs.
    activations : of the hidden layers. dtype : of the units.
    logits : (rows, widths[-1]) for the last layer, or None for memory of its own.

    Attributes
    ----------
    a, h : pre-activations of the L layers, hidden units of L - 1. activations : of the L layers;
        the last is the identity, since the output function belongs to the loss.
    dropout : a `Dropout`, or None, for each layer.
    """

    def __init__(
        self,
        backend: Backend,
        rows: int,
        widths: Sequence[int],
        activations: Sequence[Activation],
        dtype: Any,
        logits: Array | None = None,
    ) -> None:
        *hidden, last = widths
        if logits is None:
            logits = backend.empty((rows, last), dtype)
        self.activations: list[Activation] = [*activations, IDENTITY]
        self.dropout: list[Dropout | None] = [None] * len(widths)
        self.h: list[Array] = _taking_turns(backend, rows, hidden, dtype)
        self.a: list[Array] = [*self.h, logits]

    def first_rows(self, rows: int) -> Any:
        """The same memory seen as the units of fewer rows (contiguous), for a short last batch."""
        cut = object.__new__(type(self))
        cut.activations, cut.dropout = self.activations, self.dropout
        seen: dict[int, Array] = {}
        for name in vars(self).keys() - {"activations", "dropout"}:
            arrays = getattr(self, name)
            setattr(cut, name, [seen.setdefault(id(array), array[:rows]) for array in arrays])
        return cut


class PassUnits(Units):
    """The units of one forward and backward pass over `rows` rows, and their gradients.

    Parameters
    ----------
    network : `Architecture`. rows : of x.
    separate : every quantity has its own memory (`MLP.gradients`). False, for training: h
        overwrites a where the slope allows it, delta overwrites grad_h and, at the output, the
        logits, and the grad_h of alternate layers share memory.
    random : (2,) uint64 {seed, step} on the device, for a pass with dropout; None for one without.

    Attributes
    ----------
    saved : of the hidden layers, what the slope is a function of: a or h.
    grad_h : dL/dh_l of the hidden layers. delta : dL/da_l of all layers.
    """

    def __init__(
        self, network: Architecture, rows: int, *, separate: bool, random: Array | None = None
    ) -> None:
        backend, dtype, widths = network.backend, network.precision, network.widths[1:]
        hidden = widths[:-1]
        self.activations = [*network.activations, IDENTITY]
        self.dropout = [
            Dropout(rate, layer, random) if rate and random is not None else None
            for layer, rate in enumerate([*network.dropout, 0.0])
        ]
        self.a = [backend.empty((rows, width), dtype) for width in widths]
        self.h, self.saved = [], []
        for a, act, dropout in zip(self.a[:-1], network.activations, self.dropout, strict=False):
            # h that was dropped out does for the slope only where a factor does not change that.
            one = act.saved == "h" and (dropout is None or act.homogeneous)
            h = a if one and not separate else backend.empty(a.shape, dtype)
            self.h.append(h)
            self.saved.append(h if one else a)
        if separate:
            self.grad_h = [backend.empty((rows, width), dtype) for width in hidden]
            self.delta = [backend.empty((rows, width), dtype) for width in widths]
        else:
            self.grad_h = _taking_turns(backend, rows, hidden, dtype)
            self.delta = [*self.grad_h, self.a[-1]]


def _taking_turns(backend: Backend, rows: int, widths: Sequence[int], dtype: Any) -> list[Array]:
    """Arrays (rows, width), of which two neighbours have memory of their own."""
    largest = rows * max(widths, default=0)
    pair = [backend.empty(largest, dtype) for _ in widths[:2]]
    return [pair[i % 2][: rows * width].reshape(rows, width) for i, width in enumerate(widths)]


@dataclass
class Batch:
    """One batch: what a pass reads, and the arrays that it writes.

    Attributes
    ----------
    x : (N, D_0). targets : as the loss takes them. weights : (N,) of the rows, or None.
    units : `Units`, or `PassUnits` for a backward pass. result : the arrays that `Loss.emit` fills.
    upstream : what delta_L is multiplied by, a number or a 0-d array that is read in the pass.
    logits : (N, K), where they are kept beside delta_L, which may take their place; or None.
    """

    x: Array
    targets: Array
    weights: Array | None
    units: Any
    result: dict[str, Array] = field(default_factory=dict)
    upstream: Any = 1.0
    logits: Array | None = None
