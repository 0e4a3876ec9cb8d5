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
from itertools import pairwise
from typing import Any, Self

import numpy as np

from gpubackprop import backends
from gpubackprop.data.coded import CodedInputs
from gpubackprop.data.frames import as_inputs, as_weights
from gpubackprop.data.labels import training_targets
from gpubackprop.dtypes import is_number
from gpubackprop.errors import DtypeError, OptionError, ShapeError
from gpubackprop.formulas import OUTPUTS, Activation, lookup
from gpubackprop.gradients import ForwardValues, Gradients
from gpubackprop.initializers import INITIALIZERS, gain_of
from gpubackprop.layout import ParameterLayout
from gpubackprop.layout.architecture import (
    check_activations,
    check_dropout,
    check_dtype,
    check_precision,
    check_widths,
)
from gpubackprop.layout.fixed import Fixed, NotHeld, assignable
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
from gpubackprop.torch_modules import TorchModules
from gpubackprop.trace import Trace, trace

Array = np.ndarray
_ANOTHER = (
    "build another network, MLP(**(network.config() | {...})), and give it the parameters: "
    "other.W, other.b = network.W, network.b"
)


class MLP(TorchModules, HeldParameters):
    """A feed-forward network of L layers of any widths.

    A copy (`copy`, `copy.copy`, `copy.deepcopy`) and a pickle have parameters of their own. A
    pickle is unpickled to the device of the network.

    Parameters
    ----------
    widths : sequence of int
        The numbers (D_0, D_1, ..., D_L) of inputs, hidden units of each layer, and output units;
        each is at least 1.
    activation : str, Activation, or sequence
        A registry name or an `Activation` for every hidden layer, or one for each of the L - 1.
    output : {"softmax", "linear", "logistic", "exp"}
        The output function O. It belongs to the loss; training works on a_L.
    initializer : str
        One of "glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "torch", "sklearn" and
        "zeros".
    seed : int, Generator or None
        The same seed gives the same weights.
    dtype : {"float32", "float64"}
        Dtype of the parameters, their gradients and the losses.
    device : str
        One of "cpu", "cpu:numpy" (the CPU without compiled kernels), "cuda", "cuda:N" and "auto",
        which takes a GPU if all of CUDA works, else the CPU.
    dropout : float, or sequence of float
        Rate p in [0, 1) of every hidden layer, or one for each. While training, a hidden unit is 0
        with probability p and h / (1 - p) otherwise (inverted dropout). `predict`, `logits` and
        `gradients` use no dropout.
    precision : {"bfloat16", "float16", "tf32", "auto"} or None
        None computes in `dtype`. In 16 bits the parameters stay float32 and matrix products use a
        16-bit copy of them: x, activations and deltas are stored in 16 bits, and computed and
        summed in float32. float16 holds 6e-8 to 65504, so `Trainer` scales the loss. "tf32" is
        float32 throughout, but products round their operands to 10 bits of fraction. A CPU emulates
        that by rounding them itself, slower than float32; a card needs compute capability 8.0.
        "auto" is "tf32" on such a card, for float32 parameters, and else None. CUPY_TF32=1 in the
        environment makes each float32 product on a card TF32, as in CuPy.

    Attributes
    ----------
    device : str
        "cpu", "cpu:numpy" or "cuda:N"; `backend.reason` says why "auto" took it. All arrays below
        and all results are on this device: NumPy or CuPy arrays.
    parameters : (layout.size,) array
        Flat buffer of all weights, then all biases. The gaps between them hold 0 and have no
        effect.
    W : list of (D_l, D_{l-1}) arrays
        Weights of each layer, views into `parameters`; write into them freely.
        ``network.W[0] = array``, ``network.b = arrays`` and ``network.parameters = array`` copy the
        values into that memory. To keep the present values, keep a copy:
        ``network.parameters.copy()``.
    b : list of (D_l,) arrays
        Biases of each layer, likewise.
    activations : tuple of Activation
        One for each hidden layer. An assignment takes effect from the next epoch of a training on.
    dropout : tuple of float
        One rate for each hidden layer, likewise. The rest of the architecture cannot be changed.

    Raises
    ------
    ShapeError
        The widths, or the number of activations or rates, are wrong.
    DtypeError
        `dtype` or `precision` is none of those above.
    OptionError
        A name is unknown or a rate is out of range.
    DeviceUnavailable
        The device was asked for by name and is not there, or has no TF32 and that was asked for.

    Examples
    --------
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
        backend = backends.get(device)
        self.precision, self.backend = check_precision(precision, self.dtype, backend)
        self.layout = ParameterLayout(self.widths, self.precision)
        self.allocate()
        self.initialize(initializer, seed)

    widths = Fixed[tuple[int, ...]](_ANOTHER)
    output = Fixed[str](_ANOTHER)
    dtype = Fixed[np.dtype[Any]](_ANOTHER)
    precision = Fixed[np.dtype[Any]](_ANOTHER)
    layout = Fixed[ParameterLayout](_ANOTHER)
    activation = NotHeld("assign activations, one name or one for each hidden layer")
    initializer = NotHeld("call initialize(initializer, seed)")
    seed = NotHeld("call initialize(initializer, seed)")

    @assignable
    def activations(self, spec: Any) -> tuple[Activation, ...]:
        """The activation of each hidden layer."""
        return check_activations(spec, len(self.widths) - 2)

    @assignable
    def dropout(self, spec: float | Sequence[float]) -> tuple[float, ...]:
        """The dropout rate of each hidden layer."""
        return check_dropout(spec, len(self.widths) - 2)

    def initialize(self, initializer: str, seed: int | np.random.Generator | None) -> None:
        """Draw all weights and biases anew, layer by layer, weights before biases.

        Parameters
        ----------
        initializer : str
            A name of `gpubackprop.initializers.INITIALIZERS`.
        seed : int, Generator or None
            The same seed gives the same weights.

        Raises
        ------
        OptionError
            The initializer is unknown, or the seed is invalid.
        """
        fill = lookup(INITIALIZERS, initializer, "initializer")
        try:
            rng = np.random.default_rng(seed)
        except (TypeError, ValueError) as error:
            raise OptionError(f"seed is {seed!r}: {error}") from None
        host = self.backend.to_host(self.parameters)  # on the CPU, the parameters themselves
        following = [*self.activations, IDENTITY]
        if initializer == "sklearn" and self.activations:  # scikit-learn has one factor for all
            following[-1] = self.activations[-1]
        for W, b, act in zip(*self.layout.views(host), following, strict=True):
            fill(rng, W, b, gain_of(act, initializer))
        self.backend.from_host(host, self.parameters)

    @property
    def mixed_precision(self) -> bool:
        """Whether products take 16 bits."""
        return self.precision != self.dtype

    @property
    def tf32(self) -> bool:
        """Whether products of float32 are in TF32."""
        return self.backend.tf32

    @property
    def products(self) -> str:
        """The precision of the products: "tf32", or the name of their dtype."""
        return "tf32" if self.tf32 else self.precision.name

    def working_parameters(self) -> Layers:
        """Return (W, b) as the products take them.

        These are the parameters, or their 16-bit copy, which is rounded now into memory that the
        next call overwrites.

        Returns
        -------
        W : sequence of (D_l, D_{l-1}) arrays
            Weights of each layer.
        b : sequence of (D_l,) arrays
            Biases of each layer.
        """
        if not self.mixed_precision:
            return self.W, self.b
        if self._half_copy is None:
            self._half_copy = self.backend.empty(self.layout.size, self.precision)
        self.backend.round_to_storage(self.parameters, self._half_copy)
        return self.layout.views(self._half_copy)

    @property
    def n_layers(self) -> int:
        """Number of layers L."""
        return len(self.W)

    @property
    def layer_activations(self) -> tuple[Activation, ...]:
        """One activation per layer; the output layer has the identity, as O is in the loss."""
        return (*self.activations, IDENTITY)

    def default_loss(self) -> Loss:
        """Return the loss that belongs to the output function.

        Returns
        -------
        Loss
            A new loss with default options.
        """
        return default_loss(output=self.output)

    def check_loss(self, spec: str | Loss | None) -> Loss:
        """Return the loss to train with, checked against output function and number of units.

        Parameters
        ----------
        spec : str, Loss or None
            A loss or its name; None is the loss that belongs to the output function.

        Returns
        -------
        Loss
            The loss.

        Raises
        ------
        OptionError
            The loss belongs to another output function or number of units.
        """
        chosen = self.default_loss() if spec is None else loss(spec)
        if chosen.output != self.output:
            raise OptionError(
                f"loss {chosen.name} belongs to output {chosen.output!r} but this network has "
                f"output {self.output!r}; build it with MLP(..., output={chosen.output!r})"
            )
        chosen.check_units(self.widths[-1])
        return chosen

    def check_inputs(self, x: Any, name: str = "x") -> Any:
        """Return `x` as (N, D_0) of any real dtype.

        Parameters
        ----------
        x : (N, D_0) array, data frame or CodedInputs
            A data frame's columns are taken as they come; see `gpubackprop.data.frames.as_inputs`.
            Products of 16 bits and in TF32 take one-hot groups as a matrix.
        name : str
            What errors call it.

        Returns
        -------
        (N, D_0) array
            An array of the network's device, or a NumPy array.

        Raises
        ------
        ShapeError
            `x` has another shape.
        DtypeError
            `x` does not hold real numbers.
        """
        if isinstance(x, CodedInputs):
            if x.shape[1] == self.widths[0]:
                return x.toarray() if self.mixed_precision or self.tf32 else x
        elif self.backend.is_device_array(x):
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
        """Return targets as the loss's `emit` takes them, on the network's device.

        Targets that are on a GPU already are not checked here, because that would mean to wait for
        it: if a label is out of range, loss and gradient of its row are NaN, and the next wait
        raises the error.

        Parameters
        ----------
        chosen : Loss
            The loss.
        targets : (N,) or (N, K) array-like
            Targets of the loss.
        rows : int
            Number of rows N.

        Returns
        -------
        (N,) or (N, K) array
            Class indices, or numbers.

        Raises
        ------
        ShapeError
            The targets do not fit the rows or the output units.
        DtypeError
            The targets have a dtype that the loss does not take.
        TargetRangeError
            A label is out of range.
        """
        device = self.backend.is_device_array(targets)
        if not device:
            targets = training_targets(targets)
            targets = chosen.check_targets(targets, rows, self.widths[-1], self.dtype)
        by_label = targets.ndim == 1 and chosen.output == "softmax"
        placed = self.backend.place(targets, np.int64 if by_label else self.dtype)
        return placed.reshape(rows, 1) if device and placed.ndim == 1 and not by_label else placed

    def check_weights(self, chosen: Loss, weights: Any, rows: int, op: str) -> Array | None:
        """Return the weights of the rows as float32 can hold them; on a GPU they are as given.

        Parameters
        ----------
        chosen : Loss
            The loss. If it divides by the sum of the weights, only their ratios count.
        weights : (N,) array-like, column or None
            Non-negative factor of each row.
        rows : int
            Number of rows N.
        op : str
            Who wants them, for errors.

        Returns
        -------
        (N,) array or None
            The weights.

        Raises
        ------
        ShapeError
            There is not one weight for each row.
        OptionError
            A weight is negative, NaN or infinite.
        """
        if weights is None:
            return None
        if not self.backend.is_device_array(weights):
            weights = as_weights(weights)
        weights = checks.sample_weights(weights, op, rows)
        return checks.near_one(weights, chosen.options.reduction)

    def logits(self, x: Any) -> Array:
        """Compute a_L for each row of x, before the output function.

        Parameters
        ----------
        x : (N, D_0) array or data frame
            Inputs.

        Returns
        -------
        (N, K) array
            Pre-activations of the output units.
        """
        return self._logits(x, self.working_parameters())

    def _logits(self, x: Any, parameters: Layers) -> Array:
        backend = self.backend
        x = self._inputs(self.check_inputs(x))
        units = Units(backend, len(x), self.widths[1:], self.activations, self.precision)
        emit_forward(backend, x, parameters, units)
        return self._wide(units.a[-1])

    def _wide(self, logits: Array) -> Array:
        """Return logits in the network's dtype."""
        if not self.mixed_precision:
            return logits
        wide = self.backend.empty(logits.shape, self.dtype)
        self.backend.gather_rows(logits, None, wide)
        return wide

    def _inputs(self, x: Array) -> Array:
        """Return checked inputs as the first product takes them."""
        if isinstance(x, CodedInputs):
            codes = self.backend.asarray(x.codes, np.int32)
            return x.with_arrays(self.backend.inputs(x.dense, self.dtype), codes)
        if not self.mixed_precision:
            return self.backend.inputs(x, self.dtype)
        x = self.backend.place_inputs(x, self.dtype)
        out = self.backend.empty(x.shape, self.precision)
        self.backend.gather_rows(x, None, out)
        return out

    def predict(self, x: Any, *, batch_rows: int = 4096) -> Array:
        """Compute yhat = O(a_L), batch by batch, so that x may be a memory map.

        Class indices are ``network.predict(x).argmax(1)``.

        Parameters
        ----------
        x : (N, D_0) array or data frame
            Inputs.
        batch_rows : int
            Rows that are computed at a time.

        Returns
        -------
        (N, K) array
            Predictions, on the network's device.

        Raises
        ------
        ShapeError
            `x` has another shape.
        DtypeError
            `x` does not hold real numbers.
        """
        x = self.check_inputs(x)
        batch_rows = int(checks.number(batch_rows, "batch_rows", 1, whole=True))
        result = self.backend.empty((len(x), self.widths[-1]), self.dtype)
        parameters = self.working_parameters()
        for start in range(0, len(x), batch_rows):
            logits = self._logits(x[start : start + batch_rows], parameters)
            self.backend.output(logits, self.output, result[start : start + batch_rows])
        return result

    def forward(self, x: Any) -> ForwardValues:
        """Compute the units of every layer, and keep them all.

        Parameters
        ----------
        x : (N, D_0) array or data frame
            Inputs.

        Returns
        -------
        ForwardValues
            Units of all layers. With `precision` all but yhat are in 16 bits.

        Raises
        ------
        ShapeError
            `x` has another shape.
        DtypeError
            `x` does not hold real numbers.
        """
        x = self.backend.asarray(self._inputs(self.check_inputs(x)))
        units = PassUnits(self, len(x), separate=True)
        emit_forward(self.backend, x, self.working_parameters(), units)
        return self._values(x, units)

    def _values(self, x: Array, units: PassUnits) -> ForwardValues:
        logits = self._wide(units.a[-1])
        yhat = self.backend.empty(logits.shape, self.dtype)
        self.backend.output(logits, self.output, yhat)
        return ForwardValues(x, units.a, units.h, yhat)

    def trace(self, x: Any, target: Any = None, loss: str | Loss | None = None) -> Trace:
        """Show one sample with every intermediate matrix: forward, and with a target backward.

        Parameters
        ----------
        x : (D_0,) or (1, D_0) array
            The sample.
        target : int, float or (K,) array, or None
            Its target, as in `gradients`; None shows the forward pass alone.
        loss : Loss, str or None
            As in `gradients`.

        Returns
        -------
        Trace
            Prints itself, in programs by ``print``.

        Raises
        ------
        ShapeError
            `x` is not one sample, or the target does not fit the output units.
        OptionError
            The loss belongs to another output function.
        """
        return trace(self, x, target, loss)

    def gradients(
        self, x: Any, targets: Any, loss: str | Loss | None = None, sample_weight: Any = None
    ) -> Gradients:
        """Compute the loss and its gradients with respect to units, weights and biases.

        Parameters
        ----------
        x : (N, D_0) array or data frame
            Inputs.
        targets : array-like
            As the loss wants them, e.g. (N,) class indices.
        loss : Loss, str or None
            A loss or its name; None is the loss that belongs to the output function.
        sample_weight : (N,) array or None
            Non-negative factor of each row.

        Returns
        -------
        Gradients
            The gradients, and the values of the forward pass. Every array but x has memory of its
            own. With `precision` they are in 16 bits, except the loss, yhat and the gradients of W
            and b.

        Raises
        ------
        ShapeError
            The arrays do not fit the network.
        DtypeError
            An array has no numeric dtype.
        OptionError
            The loss belongs to another output function, or a weight is out of range.
        TargetRangeError
            A label is out of range.

        References
        ----------
        D. E. Rumelhart, G. E. Hinton and R. J. Williams, "Learning representations by
        back-propagating errors", 1986.
        """
        chosen = self.check_loss(loss)
        x = self._inputs(self.check_inputs(x))
        x = x if isinstance(x, CodedInputs) else self.backend.asarray(x)
        targets = self.check_targets(chosen, targets, len(x))
        weights = self.check_weights(chosen, sample_weight, len(x), "gradients")
        weights = self.backend.place(weights, self.dtype)
        units = PassUnits(self, len(x), separate=True)
        result = chosen.buffers(self.backend, len(x), self.dtype) | {"delta": units.delta[-1]}
        gradient = self.layout.views(self.backend.zeros(self.layout.size, self.dtype))
        batch = Batch(x, targets, weights, units, result)
        emit_gradients(self.backend, chosen, batch, self.working_parameters(), gradient)
        value = result["row_loss"] if chosen.options.reduction == "none" else result["loss"][()]
        forward = self._values(x, units)
        return Gradients(value, units.delta[-1], units.grad_h, units.delta, *gradient, forward)

    def copy(self, device: str | None = None) -> Self:
        """Return a network of the same class and architecture with a copy of the parameters.

        A subclass's own attributes are copied as `copy.copy` copies them.

        Parameters
        ----------
        device : str or None
            Where the copy lies; None is the device of this network.

        Returns
        -------
        MLP
            The copy.
        """
        twin = object.__new__(type(self))
        backend = backends.get(device or self.device)
        backend = backend.with_tf32() if self.tf32 else backend
        twin.__setstate__(self.__getstate__() | {"_backend": backend})
        return twin

    def config(self) -> dict[str, Any]:
        """Return the architecture; ``MLP(**config)`` builds it again.

        Returns
        -------
        dict
            JSON values.
        """
        values = {
            "widths": list(self.widths),
            "activation": [str(act) for act in self.activations],
            "output": self.output,
            "dtype": self.dtype.name,
        }
        if any(self.dropout):
            values["dropout"] = list(self.dropout)
        if self.mixed_precision or self.tf32:
            values["precision"] = self.products
        return values

    def __repr__(self) -> str:
        names = [str(act) for act in self.activations]
        where = "" if self.device == "cpu" else f", device={self.device!r}"
        shown: Any = names[0] if len(set(names)) == 1 else names
        more = f", dropout={list(self.dropout)}" if any(self.dropout) else ""
        more += f", precision={self.products!r}" if self.mixed_precision or self.tf32 else ""
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
        precision = f", products in {self.products}" if self.products != self.dtype.name else ""
        kind = f"{self.dtype.name}{precision}, on {self.device}"
        return display.html_table(
            f"MLP with {self.layout.count:,} parameters, {kind}", headers, rows
        )
