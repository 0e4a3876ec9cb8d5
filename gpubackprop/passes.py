"""A training step, as the lecture writes it: forward, loss, backward, update.

Rows are samples. For layers l = 1 ... L, with h_0 = x:

    forward     a_l = h_{l-1} W_l^T + b_l,   h_l = g_l(a_l);   a_L are the logits
    loss        L(a_L, targets),   delta_L = dL/da_L
    backward    grad_W_l = delta_l^T h_{l-1},   grad_b_l = sum_i delta_l[i]
                grad_h_{l-1} = delta_l W_l,   delta_{l-1} = grad_h_{l-1} * g_{l-1}'(a_{l-1})
    update      W_l, b_l by the optimizer's formula

A large output layer and its loss are computed in chunks of rows (`in_chunks`), so that a_L and
delta_L are never whole.

The five functions below are these lines. `MLP.gradients`, the steps of `gpubackprop.training` and
the estimators call them with a backend, which computes at once, or with a recorder, which keeps the
calls for a plan. In the code layers count from 0: h[l] enters layer l, which makes a[l], h[l + 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gpubackprop.backends import Backend, Updater
from gpubackprop.backends.linear_cross_entropy import LinearGradients, emit_linear_cross_entropy
from gpubackprop.coded_layer import emit_coded_backward, emit_coded_forward
from gpubackprop.data.coded import CodedInputs
from gpubackprop.formulas import ACTIVATIONS, Activation, Dropout
from gpubackprop.losses import Loss, SoftmaxCrossEntropy

Array = Any  # an array of the backend's device
Layers = tuple[Sequence[Array], Sequence[Array]]  # (W, b) or (grad_W, grad_b) of all layers
Final = Callable[[Backend, int], None]  # see `emit_step`
BIASES = -1
IDENTITY = ACTIVATIONS["identity"]
# More bytes of logits are computed in chunks. They fit no second-level cache (50 MB on an H200), so
# that each of the passes over them would move them through memory.
LARGE_LOGITS = 64 << 20


def in_chunks(loss: Loss, rows: int, widths: Sequence[int], dtype: Any) -> bool:
    """Return whether the output layer of a step and its loss are computed in chunks of rows.

    Parameters
    ----------
    loss : Loss
        Softmax cross entropy may be; a loss that is computed in another way may not.
    rows : int
        Rows N of a batch.
    widths : sequence of int
        Of all layers, inputs included.
    dtype : dtype
        The network's compute dtype.
    """
    plain = type(loss).emit is SoftmaxCrossEntropy.emit
    return plain and len(widths) > 2 and rows * widths[-1] * dtype.itemsize > LARGE_LOGITS


def emit_forward(backend: Backend, x: Array, parameters: Layers, units: Units) -> None:
    """Compute the units of all layers from x (N, D_0); the logits a_L are units.a[-1].

    x is a matrix, or `CodedInputs`, of which the first layer reads columns of W.
    """
    (W, b), a, h = parameters, units.a, [x, *units.h, units.a[-1]]
    for layer, g in enumerate(units.activations[: len(a)]):
        rest = W[layer], b[layer], g, a[layer], h[layer + 1], units.dropout[layer]
        if isinstance(h[layer], CodedInputs):
            emit_coded_forward(backend, h[layer], *rest)
        else:
            backend.affine_forward(h[layer], *rest)


def emit_loss(backend: Backend, loss: Loss, batch: Batch, parameters: Layers) -> None:
    """Compute the loss of a batch, and delta_L if batch.result has an array for it."""
    emit_forward(backend, batch.x, parameters, batch.units)
    if batch.units.chunked:
        _emit_output(backend, loss, batch, parameters, None)
        return
    logits = batch.units.a[-1]
    if batch.logits is not None:  # a copy, since delta_L may overwrite the logits
        backend.activation_forward(logits, IDENTITY, batch.logits)
    loss.emit(backend, logits, batch.targets, batch.result, batch.weights, batch.upstream)


def _emit_output(
    backend: Backend, loss: Loss, batch: Batch, parameters: Layers, gradient: Layers | None
) -> None:
    """Compute the output layer, its loss and its gradients in chunks of rows."""
    (W, b), units, into = parameters, batch.units, None
    if gradient is not None:
        into = LinearGradients(units.grad_h[-1], gradient[0][-1], gradient[1][-1])
    emit_linear_cross_entropy(
        backend, units.h[-1], W[-1], b[-1], batch.targets, loss.options, batch.result, into,
        batch.weights, batch.upstream,
    )  # fmt: skip


def emit_backward(
    backend: Backend,
    x: Array,
    W: Sequence[Array],
    units: PassUnits,
    gradient: Layers,
    final: Final | None = None,
) -> None:
    """Compute the gradients of all parameters from delta_L, which the loss has written.

    If the output layer was computed in chunks, its gradients are there already. `final` is as for
    `emit_step`.
    """
    (grad_W, grad_b), h, grad_h = gradient, [x, *units.h], [None, *units.grad_h]
    delta, last = units.delta, len(W) - 1
    if final and units.chunked:
        final(backend, last)
    for layer in reversed(range(last if units.chunked else len(W))):
        if layer == last:
            backend.column_sum(delta[last], grad_b[last])
        else:
            backend.activation_backward(
                grad_h[layer + 1], units.saved[layer], units.activations[layer], delta[layer],
                grad_b[layer], units.dropout[layer],
            )  # fmt: skip
        if final and layer == 0:
            final(backend, BIASES)
        if isinstance(h[layer], CodedInputs):
            emit_coded_backward(backend, delta[layer], h[layer], grad_W[layer])
        else:
            below = None if final else grad_h[layer]
            backend.affine_backward(delta[layer], h[layer], W[layer], grad_W[layer], below)
        if final:
            final(backend, layer)
            if layer > 0:
                backend.matmul(delta[layer], W[layer], grad_h[layer])


def emit_gradients(
    backend: Backend,
    loss: Loss,
    batch: Batch,
    parameters: Layers,
    gradient: Layers,
    final: Final | None = None,
) -> None:
    """Compute the loss of a batch and the gradients of all parameters.

    `final` is as for `emit_step`.
    """
    if batch.units.chunked:
        emit_forward(backend, batch.x, parameters, batch.units)
        _emit_output(backend, loss, batch, parameters, gradient)
    else:
        emit_loss(backend, loss, batch, parameters)
    emit_backward(backend, batch.x, parameters[0], batch.units, gradient, final)


def emit_step(
    backend: Backend,
    loss: Loss,
    batch: Batch,
    parameters: Layers,
    gradient: Layers,
    updater: Updater,
    together: Callable[[Backend], None] | None = None,
    final: Final | None = None,
) -> None:
    """Do one step of training: the gradients of a batch, then the update of all parameters.

    ``together(backend)`` comes between the two. With several ranks it adds up their gradients.
    ``final(backend, layer)`` comes as soon as no later call writes the gradient of that layer's
    weights; for the layer `BIASES`, that of all biases and the batch's loss.
    """
    emit_gradients(backend, loss, batch, parameters, gradient, final)
    if together is not None:
        together(backend)
    updater.emit(backend)


class Architecture(Protocol):
    """The attributes of a network that `PassUnits` reads; an `MLP` has them."""

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
    """The units of a forward pass alone, over some rows.

    h_l overwrites a_l, and the layers take turns in two pieces of memory.

    Parameters
    ----------
    backend : Backend
        The backend that allocates.
    rows : int
        Number of rows N of x.
    widths : sequence of int
        Number of units of each layer, without the inputs.
    activations : sequence of Activation
        One for each hidden layer.
    dtype : dtype
        Of all units.
    logits : (N, K) array or None
        Memory for the logits; None allocates it.
    chunked : bool
        Whether the output layer is computed in chunks of rows, and has no memory here.

    Attributes
    ----------
    a : list of (N, D_l) arrays
        Pre-activations of the L layers, without the last if that is computed in chunks.
    h : list of (N, D_l) arrays
        Hidden units, of L - 1 layers.
    activations : list of Activation
        One for each of the L layers. The last is the identity: the output function belongs to the
        loss.
    dropout : list of Dropout or None
        One for each of the L layers.
    """

    def __init__(
        self,
        backend: Backend,
        rows: int,
        widths: Sequence[int],
        activations: Sequence[Activation],
        dtype: Any,
        logits: Array | None = None,
        *,
        chunked: bool = False,
    ) -> None:
        *hidden, last = widths
        if logits is None and not chunked:
            logits = backend.empty((rows, last), dtype)
        self.chunked = chunked
        self.activations: list[Activation] = [*activations, IDENTITY]
        self.dropout: list[Dropout | None] = [None] * len(widths)
        self.h: list[Array] = _taking_turns(backend, rows, hidden, dtype)
        self.a: list[Array] = [*self.h, *([] if chunked else [logits])]

    def first_rows(self, rows: int) -> Any:
        """Return the same memory as the units of fewer rows, for a short last batch."""
        cut = object.__new__(type(self))
        cut.activations, cut.dropout, cut.chunked = self.activations, self.dropout, self.chunked
        seen: dict[int, Array] = {}
        for name in vars(self).keys() - {"activations", "dropout", "chunked"}:
            arrays = getattr(self, name)
            setattr(cut, name, [seen.setdefault(id(array), array[:rows]) for array in arrays])
        return cut


class PassUnits(Units):
    """The units of a forward and a backward pass over some rows, and their gradients.

    Parameters
    ----------
    network : Architecture
        The network that is passed through.
    rows : int
        Number of rows N of x.
    separate : bool
        True gives every quantity its own memory, for `MLP.gradients`. False is for training: h
        overwrites a if the slope can be computed from h, delta overwrites grad_h and, at the
        output, the logits, and the grad_h of alternate layers share memory.
    random : (2,) uint64 array or None
        {seed, step} on the device, for a pass with dropout.
    chunked : bool
        As for `Units`; then `a` and `delta` have no last one.

    Attributes
    ----------
    a : list of L arrays (N, D_l)
        As for `Units`.
    h : list of L - 1 arrays (N, D_l)
        As for `Units`.
    activations : list of L Activation
        As for `Units`.
    dropout : list of L Dropout or None
        As for `Units`.
    saved : list of (N, D_l) arrays
        For each hidden layer what its slope is computed from: a or h.
    grad_h : list of (N, D_l) arrays
        dL/dh_l of the hidden layers.
    delta : list of (N, D_l) arrays
        dL/da_l of all layers.
    """

    def __init__(
        self,
        network: Architecture,
        rows: int,
        *,
        separate: bool,
        random: Array | None = None,
        chunked: bool = False,
    ) -> None:
        backend, dtype, widths = network.backend, network.precision, network.widths[1:]
        hidden, self.chunked = widths[:-1], chunked
        self.activations = [*network.activations, IDENTITY]
        self.dropout = [
            Dropout(rate, layer, random) if rate and random is not None else None
            for layer, rate in enumerate([*network.dropout, 0.0])
        ]
        kept = hidden if chunked else widths
        self.a = [backend.empty((rows, width), dtype) for width in kept]
        self.h, self.saved = [], []
        for a, act, dropout in zip(
            self.a[: len(hidden)], network.activations, self.dropout, strict=False
        ):
            # The slope can be computed from dropped-out h only if a factor does not change it.
            one = act.saved == "h" and (dropout is None or act.homogeneous)
            h = a if one and not separate else backend.empty(a.shape, dtype)
            self.h.append(h)
            self.saved.append(h if one else a)
        if separate:
            self.grad_h = [backend.empty((rows, width), dtype) for width in hidden]
            self.delta = [backend.empty((rows, width), dtype) for width in kept]
        else:
            self.grad_h = _taking_turns(backend, rows, hidden, dtype)
            self.delta = [*self.grad_h, *self.a[len(hidden) :]]


def _taking_turns(backend: Backend, rows: int, widths: Sequence[int], dtype: Any) -> list[Array]:
    """Return an array (rows, width) for each width; neighbours do not share memory."""
    largest = rows * max(widths, default=0)
    pair = [backend.empty(largest, dtype) for _ in widths[:2]]
    return [pair[i % 2][: rows * width].reshape(rows, width) for i, width in enumerate(widths)]


@dataclass
class Batch:
    """One batch: the arrays that a pass reads, and those that it writes.

    Attributes
    ----------
    x : (N, D_0) array or CodedInputs
        Inputs.
    targets : (N,) or (N, K) array
        As `Loss.check_targets` returns them.
    weights : (N,) array or None
        A weight for each row.
    units : Units
        `PassUnits` for a backward pass.
    result : dict of arrays
        The arrays that `Loss.emit` fills.
    upstream : float or 0-d array
        Factor on delta_L. An array is read when the pass runs.
    logits : (N, K) array or None
        Receives a copy of the logits, which delta_L may overwrite.
    """

    x: Array
    targets: Array
    weights: Array | None
    units: Any
    result: dict[str, Array] = field(default_factory=dict)
    upstream: Any = 1.0
    logits: Array | None = None
