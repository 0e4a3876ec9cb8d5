"""The feed-forward network: parameters, forward pass, and the lecture's backward pass.

Rows are samples. For layers l = 1 ... L:

    a_l = h_{l-1} W_l^T + b_l,   h_l = g_l(a_l),   yhat = O(a_L)
    delta_L = dL/da_L,   grad_h_l = delta_{l+1} W_{l+1},   delta_l = grad_h_l * g_l'(a_l)
    grad_W_l = delta_l^T h_{l-1},   grad_b_l = sum_i delta_l[i]

Each product is computed once: L forward, L for the weights, L - 1 for the hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np

from gpubackprop import backends
from gpubackprop.data.frames import as_inputs, as_weights
from gpubackprop.data.labels import training_targets
from gpubackprop.dtypes import is_number
from gpubackprop.errors import DtypeError, OptionError, ShapeError
from gpubackprop.formulas import OUTPUTS, Activation, lookup
from gpubackprop.initializers import INITIALIZERS, gain_of
from gpubackprop.layout import ParameterLayout
from gpubackprop.layout.architecture import (
    check_activations,
    check_dropout,
    check_dtype,
    check_precision,
    check_widths,
)
from gpubackprop.layout.fixed import Fixed
from gpubackprop.layout.held import HeldParameters
from gpubackprop.losses import Loss, default_loss, loss
from gpubackprop.ops import checks, display
from gpubackprop.passes import (
    IDENTITY,
    Batch,
    Layers,
    PassUnits,
    Units,
    emit_forward,
    emit_gradients,
)

Array = np.ndarray
_ANOTHER = (
    "build another network, MLP(**(network.config() | {...})), and give it the parameters: "
    "other.W, other.b = network.W, network.b"
)


@dataclass(frozen=True)
class Gradients:
    """All gradients of the loss, each a whole matrix; index l - 1 holds layer l.

    Attributes
    ----------
    loss : scalar, or (N,) for reduction "none".
    output : (N, K) delta_L = dL/da_L, with respect to the output units' pre-activations.
    hidden : L - 1 arrays (N, D_l), dL/dh_l.
    pre_activation : L arrays (N, D_l), dL/da_l; the last is `output`.
    W : L arrays (D_l, D_{l-1}). b : L arrays (D_l,).
    """

    loss: Any
    output: Array
    hidden: list[Array]
    pre_activation: list[Array]
    W: list[Array]
    b: list[Array]

    def _cells(self) -> tuple[list[str], list[list[Any]]]:
        headers = ["layer", "W", "|W|", "b", "|b|", "hidden", "|hidden|", "|pre-activation|"]
        hidden = [[str(tuple(h.shape)), display.norm(h)] for h in self.hidden] + [[None, None]]
        rows = [
            [
                layer, str(tuple(W.shape)), display.norm(W), str(tuple(b.shape)), display.norm(b),
                *h, display.norm(a),
            ]
            for layer, (W, b, h, a) in enumerate(
                zip(self.W, self.b, hidden, self.pre_activation, strict=True), 1
            )
        ]  # fmt: skip
        return headers, rows

    def _summary(self) -> str:
        loss = self.loss
        shown = f"of each of {len(loss)} rows" if np.ndim(loss) else display.figure(loss)
        kinds = dict.fromkeys(str(array.dtype) for array in (self.output, self.W[0]))
        kind = ", W and b ".join(kinds)
        return f"Gradients of {len(self.W)} layers, {len(self.output)} rows, {kind}, loss {shown}"

    def __repr__(self) -> str:
        """Shapes and norms."""
        return f"{self._summary()}\n{display.text_table(*self._cells())}"

    def _repr_html_(self) -> str:
        return display.html_table(self._summary(), *self._cells())


class MLP(HeldParameters):
    """A network of L layers of any widths.

    Parameters
    ----------
    widths : (D_0, D_1, ..., D_L): inputs, hidden units of each layer, output units; each >= 1.
    activation : registry name or `Activation` of every hidden layer, or one for each of the L - 1.
    output : "softmax", "linear", "logistic" or "exp"; lives inside the loss, training works on a_L.
    initializer : "glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "torch", "sklearn",
        "zeros".
    seed : int or `numpy.random.Generator`; the same seed gives the same weights.
    dtype : "float32" or "float64", of the parameters, their gradients and the losses.
    precision : None for `dtype`; "bfloat16" or "float16" for float32 parameters of which products
        take a copy in 16 bits: x, activations and deltas are stored in 16 bits, computed and summed
        in float32. float16 holds 6e-8 to 65504: `Trainer` then scales the loss.
    device : "cpu", "cuda", "cuda:N", or "auto": a GPU where all of CUDA works, else the CPU.
    dropout : rate p in [0, 1) of every hidden layer, or one for each: while training, a hidden unit
        is 0 with probability p and h / (1 - p) otherwise (inverted dropout). `predict`, `logits`
        and `gradients` are without.

    Attributes
    ----------
    device : "cpu" or "cuda:N"; `backend.reason` says why "auto" took it. All arrays below, and all
        results, lie there: NumPy or CuPy arrays.
    parameters : (layout.size,) flat buffer of all weights, then all biases; what lies between them
        is 0 and of no effect.
    W, b : for each layer a view into it, (D_l, D_{l-1}) and (D_l,); write into them freely.
        ``network.W[0] = array``, ``network.b = arrays`` and ``network.parameters = array`` copy
        the values into that memory (ShapeError, DtypeError where they do not fit). To keep what
        they are now, keep a copy: ``network.parameters.copy()``.
    activations, dropout : one for each hidden layer; an assignment holds from the next epoch of a
        training on. The rest of the architecture cannot be changed (ReadOnlyError).

    A copy (`copy`, `copy.copy`, `copy.deepcopy`) and a pickle have parameters of their own. A
    pickle is unpickled to the device that the network lies on.

    >>> network = MLP([4, 8, 3], activation="tanh", seed=0)
    >>> network
    MLP([4, 8, 3], activation='tanh', output='softmax', dtype='float32')
    >>> network.predict(np.zeros((2, 4))).shape
    (2, 3)
    """

    def __init__(
        self,
        widths: Sequence[int],
        activation: str | Activation | Sequence[str | Activation] = "relu",
        *,
        output: str = "softmax",
        initializer: str = "glorot_uniform",
        seed: int | np.random.Generator | None = 0,
        dtype: str = "float32",
        device: str = "cpu",
        dropout: float | Sequence[float] = 0.0,
        precision: str | None = None,
    ) -> None:
        self.widths = check_widths(widths)
        self.activations = activation
        self.dropout = dropout
        lookup(OUTPUTS, output, "output")
        self.output = output
        self.dtype = check_dtype(dtype)
        self.precision = check_precision(precision, self.dtype)
        self.backend = backends.get(device)
        self.layout = ParameterLayout(self.widths, self.precision)
        self.allocate()
        self.initialize(initializer, seed)

    widths = Fixed[tuple[int, ...]](_ANOTHER)
    output = Fixed[str](_ANOTHER)
    dtype = Fixed[np.dtype[Any]](_ANOTHER)
    precision = Fixed[np.dtype[Any]](_ANOTHER)
    layout = Fixed[ParameterLayout](_ANOTHER)

    @property
    def activations(self) -> tuple[Activation, ...]:
        return self._activations

    @activations.setter
    def activations(self, spec: str | Activation | Sequence[str | Activation]) -> None:
        self._activations = check_activations(spec, len(self.widths) - 2)

    @property
    def dropout(self) -> tuple[float, ...]:
        return self._dropout

    @dropout.setter
    def dropout(self, spec: float | Sequence[float]) -> None:
        self._dropout = check_dropout(spec, len(self.widths) - 2)

    def initialize(self, initializer: str, seed: int | np.random.Generator | None) -> None:
        """Draw all weights and biases anew, layer by layer, weights before biases."""
        fill = lookup(INITIALIZERS, initializer, "initializer")
        try:
            rng = np.random.default_rng(seed)
        except (TypeError, ValueError) as error:
            raise OptionError(f"seed is {seed!r}: {error}") from None
        host = self.backend.to_host(self.parameters)  # on the CPU, the parameters themselves
        following = [*self.activations, IDENTITY]
        if initializer == "sklearn" and self.activations:  # its factor is the hidden layers'
            following[-1] = self.activations[-1]
        for W, b, act in zip(*self.layout.views(host), following, strict=True):
            fill(rng, W, b, gain_of(act, initializer))
        self.backend.from_host(host, self.parameters)

    @property
    def mixed_precision(self) -> bool:
        """Whether products take 16 bits."""
        return self.precision != self.dtype

    def working_parameters(self) -> Layers:
        """(W, b) as the products take them: the parameters, or their copy rounded to 16 bits now,
        in memory that the next call writes anew."""
        if not self.mixed_precision:
            return self.W, self.b
        if self._half_copy is None:
            self._half_copy = self.backend.empty(self.layout.size, self.precision)
        self.backend.round_to_storage(self.parameters, self._half_copy)
        return self.layout.views(self._half_copy)

    @property
    def n_layers(self) -> int:
        return len(self.W)

    @property
    def layer_activations(self) -> tuple[Activation, ...]:
        """One activation per layer; the output layer's is the identity, O belongs to the loss."""
        return (*self.activations, IDENTITY)

    def default_loss(self) -> Loss:
        return default_loss(output=self.output)

    def check_loss(self, spec: str | Loss | None) -> Loss:
        """The loss to train with, checked against output function and number of units."""
        chosen = self.default_loss() if spec is None else loss(spec)
        if chosen.output != self.output:
            raise OptionError(
                f"loss {chosen.name} belongs to output {chosen.output!r} but this network has "
                f"output {self.output!r}; build it with MLP(..., output={chosen.output!r})"
            )
        chosen.check_units(self.widths[-1])
        return chosen

    def check_inputs(self, x: Any, name: str = "x") -> Array:
        """`x` as (N, D_0) of any real dtype: an array of the network's device, or a NumPy array.

        A data frame's columns are taken as they come; see `gpubackprop.data.frames.as_inputs`.
        """
        if self.backend.is_device_array(x):
            x = self.backend.asarray(x)
        else:
            x = as_inputs(x, name).array
        if not is_number(x.dtype):
            raise DtypeError(
                f"{name} has dtype {x.dtype} but the network wants real numbers; "
                f"convert it with np.asarray({name}, dtype=np.float32)"
            )
        if x.ndim != 2 or x.shape[1] != self.widths[0]:
            hint = ""
            if x.ndim == 1:
                hint = "; for one sample pass x[None, :], or frame.iloc[[i]] of a data frame"
            elif x.ndim > 2 and math.prod(x.shape[1:]) == self.widths[0]:
                hint = "; flatten each sample with x.reshape(len(x), -1)"
            raise ShapeError(
                f"{name} has shape {x.shape} but the network wants (N, {self.widths[0]}){hint}"
            )
        return x

    def check_targets(self, chosen: Loss, targets: Any, rows: int) -> Array:
        """Targets as the loss's `emit` takes them, on the network's device.

        Those that lie on a GPU already are not looked at, which would mean to wait for it: a label
        out of range makes loss and gradient of its row NaN, and the next wait raises the error.
        """
        device = self.backend.is_device_array(targets)
        if not device:
            targets = training_targets(targets)
            targets = chosen.check_targets(targets, rows, self.widths[-1], self.dtype)
        by_label = targets.ndim == 1 and chosen.output == "softmax"
        placed = self.backend.place(targets, np.int64 if by_label else self.dtype)
        return placed.reshape(rows, 1) if device and placed.ndim == 1 and not by_label else placed

    def logits(self, x: Any) -> Array:
        """a_L for each row of x: (N, D_0) -> (N, K), before the output function."""
        return self._logits(x, self.working_parameters())

    def _logits(self, x: Any, parameters: Layers) -> Array:
        backend = self.backend
        x = self._inputs(self.check_inputs(x))
        units = Units(backend, len(x), self.widths[1:], self.activations, self.precision)
        emit_forward(backend, x, parameters, units)
        if not self.mixed_precision:
            return units.a[-1]
        wide = backend.empty(units.a[-1].shape, self.dtype)
        backend.gather_rows(units.a[-1], None, wide)
        return wide

    def _inputs(self, x: Array) -> Array:
        """Checked inputs as the first product takes them."""
        if not self.mixed_precision:
            return self.backend.inputs(x, self.dtype)
        x = self.backend.place_inputs(x, self.dtype)
        out = self.backend.empty(x.shape, self.precision)
        self.backend.gather_rows(x, None, out)
        return out

    def predict(self, x: Any, *, batch_rows: int = 4096) -> Array:
        """yhat = O(a_L): (N, D_0) -> (N, K), in batches, so that x may be a memory map.

        Class indices are ``network.predict(x).argmax(1)``.
        """
        x = self.check_inputs(x)
        batch_rows = int(checks.number(batch_rows, "batch_rows", 1))
        result = self.backend.empty((len(x), self.widths[-1]), self.dtype)
        parameters = self.working_parameters()
        for start in range(0, len(x), batch_rows):
            logits = self._logits(x[start : start + batch_rows], parameters)
            self.backend.output(logits, self.output, result[start : start + batch_rows])
        return result

    def gradients(
        self, x: Any, targets: Any, loss: str | Loss | None = None, sample_weight: Any = None
    ) -> Gradients:
        """Loss and the gradients with respect to output units, hidden units, weights and biases.

        Parameters
        ----------
        x : (N, D_0). targets : as the loss wants them, e.g. (N,) class indices.
        loss : a `Loss`, its name, or None for the one that belongs to the output function.
        sample_weight : (N,) non-negative, or None.

        Returns
        -------
        Gradients, every array its own memory; in 16 bits where `precision` is, but for the loss and
        the gradients of W and b.
        """
        chosen = self.check_loss(loss)
        x = self.backend.asarray(self._inputs(self.check_inputs(x)))
        targets = self.check_targets(chosen, targets, len(x))
        if not self.backend.is_device_array(sample_weight):
            sample_weight = as_weights(sample_weight)
        weights = checks.sample_weights(sample_weight, "gradients", len(x))
        weights = checks.near_one(weights, chosen.options.reduction)
        weights = self.backend.place(weights, self.dtype)
        units = PassUnits(self, len(x), separate=True)
        result = chosen.buffers(self.backend, len(x), self.dtype) | {"delta": units.delta[-1]}
        gradient = self.layout.views(self.backend.zeros(self.layout.size, self.dtype))
        batch = Batch(x, targets, weights, units, result)
        emit_gradients(self.backend, chosen, batch, self.working_parameters(), gradient)
        value = result["row_loss"] if chosen.options.reduction == "none" else result["loss"][()]
        return Gradients(value, units.delta[-1], units.grad_h, units.delta, *gradient)

    def copy(self, device: str | None = None) -> Self:
        """A network of the same class and architecture with a copy of the parameters, on the same
        device if `device` is None. A subclass's own attributes are copied as `copy.copy` does."""
        twin = object.__new__(type(self))
        backend = backends.get(device or self.device)
        twin.__setstate__(self.__getstate__() | {"_backend": backend})
        return twin

    def config(self) -> dict[str, Any]:
        """The architecture as JSON values; ``MLP(**config)`` builds it again."""
        values = {
            "widths": list(self.widths),
            "activation": [str(act) for act in self.activations],
            "output": self.output,
            "dtype": self.dtype.name,
        }
        if any(self.dropout):
            values["dropout"] = list(self.dropout)
        if self.mixed_precision:
            values["precision"] = self.precision.name
        return values

    def __repr__(self) -> str:
        names = [str(act) for act in self.activations]
        where = "" if self.device == "cpu" else f", device={self.device!r}"
        shown: Any = names[0] if len(set(names)) == 1 else names
        more = f", dropout={list(self.dropout)}" if any(self.dropout) else ""
        more += f", precision={self.precision.name!r}" if self.mixed_precision else ""
        return (
            f"MLP({list(self.widths)}, activation={shown!r}, output={self.output!r}, "
            f"dtype={self.dtype.name!r}{more}{where})"
        )

    def _repr_html_(self) -> str:
        headers = ["layer", "inputs", "units", "activation", "dropout", "parameters"]
        shown = [*map(str, self.activations), f"output: {self.output}"]
        rates, pairs = [*self.dropout, 0.0], pairwise(self.widths)
        rows = [
            [layer, d, k, name, rate or None, k * d + k]
            for layer, ((d, k), name, rate) in enumerate(zip(pairs, shown, rates, strict=True), 1)
        ]
        precision = f", products in {self.precision.name}" if self.mixed_precision else ""
        kind = f"{self.dtype.name}{precision}, on {self.device}"
        return display.html_table(
            f"MLP with {self.layout.count:,} parameters, {kind}", headers, rows
        )
