"""The contract of a backend: the operations of backpropagation, their shapes and their meaning.

Every operation writes into arrays that the caller gives. On a backend it runs at once; on a GPU it
is queued. On the recorder that ``plan(emit)`` passes to `emit` it becomes a part of the plan, and
runs each time that the plan runs.

Operations trust their arguments: `gpubackprop.ops` and `gpubackprop.network` check shapes, dtypes
and options. N is the number of rows of a batch, D the number of units, K that of classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

from gpubackprop.backends.loss import LossOptions
from gpubackprop.backends.memory import Array, Memory, RowCursor
from gpubackprop.backends.updater import Updater, UpdateRule
from gpubackprop.formulas import Activation, Dropout, PointwiseLoss, Update

__all__ = ["Array", "Backend"]


class Backend(Memory, Protocol):
    """The operations of one device (see the module's docstring), on its memory.

    Attributes
    ----------
    device : str
        "cpu", "cpu:numpy" or "cuda:N".
    reason : str
        A line that says why device="auto" took it; "" if it was named.
    tf32 : bool
        Whether products of float32 are in TF32: operands of 10 bits of fraction, float32 sums. A
        CPU rounds them as a card does.
    """

    device: str
    reason: str
    tf32: bool

    @abstractmethod
    def in_any_order(self) -> Self:
        """Return a backend of the same device and memory whose products need not be repeatable.

        On a GPU its plans may take algorithms that add in an order that varies from call to call,
        if they are faster. On a host it is this backend.
        """

    @abstractmethod
    def with_tf32(self) -> Self:
        """Return a backend of the same device and memory with products of float32 in TF32.

        Raises
        ------
        DeviceUnavailable
            The card is older than TF32.
        """

    @abstractmethod
    def automatic_precision(self) -> str:
        """Return "tf32" or "float32", as `gpubackprop.backends.precision.automatic` says."""

    @abstractmethod
    def plan(self, emit: Callable[[Self], None]) -> Callable[[], None]:
        """Record the operations that ``emit(recorder)`` calls.

        Parameters
        ----------
        emit : callable
            Called once, now. Arrays that it makes belong to the plan.

        Returns
        -------
        callable
            It runs the operations again on the present values of the arrays, and allocates nothing.
        """

    @abstractmethod
    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Issue ``function(*args)``, which the host runs; a plan runs it each time."""

    # -- rows -------------------------------------------------------------------------------------

    @abstractmethod
    def gather_rows(self, source: Array, rows: Array | None, out: Array) -> None:
        """Set out[i] = source[rows[i]], converted to the dtype of out.

        Parameters
        ----------
        source : (M, D) or (M,) array
            Where rows are taken from.
        rows : (N,) int64 array or None
            Read when the call runs, so that a plan gathers another batch each time. A number out of
            range gives the nearest row. None is out = source.
        out : (N, D) or (N,) array
            Receives the rows.
        """

    @abstractmethod
    def gather_batch(self, pairs: Sequence[tuple[Array, Array]], rows: Array | RowCursor) -> None:
        """Gather several arrays by the same row numbers; on a GPU, in one launch if it can.

        Parameters
        ----------
        pairs : sequence of (source, out)
            As for `gather_rows`. The sources have the same number of rows.
        rows : (N,) int64 array or RowCursor
            The row numbers, read when the call runs. A cursor is moved on by N on a GPU, and is
            given to one call of a plan.
        """

    @abstractmethod
    def standardize(self, raw: Array, mean: Array, scale: Array, out: Array) -> None:
        """Set out = (raw - mean) / scale, computed in float64 and rounded once.

        NaN and infinities pass. A GPU rounds 16 bits twice: by way of float32.

        Parameters
        ----------
        raw : (N, D) array
            Inputs.
        mean : (D,) float64 array
            Mean of each column.
        scale : (D,) float64 array
            Scale of each column.
        out : (N, D) array
            Receives the result.
        """

    @abstractmethod
    def divide(self, x: Array, divisor: float, out: Array) -> None:
        """Set out = x / divisor, elementwise."""

    # -- layers -----------------------------------------------------------------------------------

    @abstractmethod
    def matmul(self, x: Array, y: Array, out: Array, accumulate: bool = False) -> None:
        """Set out = x @ y. Every matrix product of a training step is computed by this operation.

        Parameters
        ----------
        x : (N, M) array
            C- or F-contiguous. Products of 16 bits are summed in float32.
        y : (M, D) array
            C- or F-contiguous, of the dtype of x.
        out : (N, D) array
            Of the same dtype, or float32 for 16 bits.
        accumulate : bool
            Whether to add the product to `out`, which then has no 16 bits.
        """

    @abstractmethod
    def affine_forward(
        self,
        x: Array,
        W: Array,
        b: Array,
        activation: Activation,
        a: Array,
        h: Array,
        dropout: Dropout | None = None,
    ) -> None:
        """Set a = x W^T + b and h = g(a), with dropout if `dropout` is given.

        Parameters
        ----------
        x : (N, D_in) array
            Inputs.
        W : (D_out, D_in) array
            Weights.
        b : (D_out,) array
            Biases.
        activation : Activation
            The function g, and what its slope is a function of.
        a : (N, D_out) array
            Receives the pre-activations. With dropout, `a` then holds the array to pass as `saved`
            to `activation_backward`: the pre-activation, or g(a) before dropout. The slope of a
            homogeneous activation (relu) needs only h.
        h : (N, D_out) array
            Receives the hidden units. It may be `a`, whose own values are then not kept.
        dropout : Dropout or None
            The layer's dropout.
        """

    @abstractmethod
    def affine_epilogue(
        self,
        a: Array,
        b: Array,
        activation: Activation,
        h: Array,
        dropout: Dropout | None = None,
    ) -> None:
        """Do what follows the product of a layer: a += b; h = g(a), with dropout if it is given.

        Parameters
        ----------
        a : (N, D_out) array
            As in `affine_forward`, with the product x W^T in it; on the host 32 or 64 bits.
        b : (D_out,) array
            Biases.
        activation : Activation
            The function g.
        h : (N, D_out) array
            As in `affine_forward`.
        dropout : Dropout or None
            The layer's dropout.
        """

    @abstractmethod
    def activation_forward(
        self, a: Array, activation: Activation, h: Array, dropout: Dropout | None = None
    ) -> None:
        """Set h = g(a), elementwise, with dropout if `dropout` is given.

        Parameters
        ----------
        a : (N, D) array
            Pre-activations. With dropout and h apart from a, `a` is left as by `affine_forward`.
        activation : Activation
            The function g.
        h : (N, D) array
            Receives the hidden units; it may be `a`.
        dropout : Dropout or None
            The layer's dropout.
        """

    @abstractmethod
    def activation_backward(
        self,
        grad_h: Array,
        saved: Array,
        activation: Activation,
        delta: Array,
        grad_b: Array | None = None,
        dropout: Dropout | None = None,
    ) -> None:
        """Set delta = grad_h * g'(a), dropped out as h was, and grad_b = sum_i delta[i].

        Parameters
        ----------
        grad_h : (N, D) array
            Gradient with respect to h.
        saved : (N, D) array
            The values h or a, as ``activation.saved`` says.
        activation : Activation
            The function g.
        delta : (N, D) array
            Receives the gradient; it may be `grad_h`.
        grad_b : (D,) array or None
            Receives the sum; None if it is not wanted.
        dropout : Dropout or None
            The layer's dropout.
        """

    @abstractmethod
    def affine_backward(
        self, delta: Array, h_prev: Array, W: Array, grad_W: Array, grad_h: Array | None
    ) -> None:
        """Set grad_W = delta^T h_prev and grad_h = delta W.

        Parameters
        ----------
        delta : (N, D_out) array
            Gradient with respect to the pre-activations.
        h_prev : (N, D_in) array
            The layer's input.
        W : (D_out, D_in) array
            Weights.
        grad_W : (D_out, D_in) array
            Receives the gradient of the weights.
        grad_h : (N, D_in) array or None
            Receives the gradient for the layer below; None skips that product.
        """

    @abstractmethod
    def one_hot_forward(self, codes: Array, W: Array, a: Array, *, add: bool) -> None:
        """Set a[i] = sum_g W[:, codes[i, g]], the product of one-hot inputs, without the inputs.

        Parameters
        ----------
        codes : (N, G) int32 array
            Of each group of inputs the number, among all inputs, of the one that is 1; -1 if none
            is.
        W : (D_out, D_in) array
            Weights, of 32 or 64 bits.
        a : (N, D_out) array
            Receives the sum.
        add : bool
            Whether it is added to what `a` holds.
        """

    @abstractmethod
    def one_hot_backward(
        self, delta: Array, codes: Array, groups: tuple[tuple[int, int], ...], grad_W: Array
    ) -> None:
        """Set grad_W[:, j] = sum of delta[i] over the rows whose code is j, in the rows' order.

        Parameters
        ----------
        delta : (N, D_out) array
            Gradient with respect to the pre-activations.
        codes : (N, G) int32 array
            As in `one_hot_forward`.
        groups : tuple of G pairs of int
            The first input of each group, and the one behind its last.
        grad_W : (D_out, D_in) array
            Receives the columns of the groups; others are left alone.
        """

    @abstractmethod
    def column_sum(self, delta: Array, out: Array) -> None:
        """Set out[j] = sum_i delta[i, j], in an order that the shapes alone decide.

        Parameters
        ----------
        delta : (N, D) array
            Terms; those of 16 bits are added in float32.
        out : (D,) array
            Receives the sums.
        """

    @abstractmethod
    def output(self, a: Array, kind: str, out: Array) -> None:
        """Set out = O(a), the network's output.

        Parameters
        ----------
        a : (N, K) array
            Pre-activations of the output units.
        kind : {"softmax", "linear", "logistic", "exp"}
            The output function O.
        out : (N, K) array
            Receives yhat; it may be `a`.
        """

    @abstractmethod
    def softmax(self, a: Array, out: Array, *, log: bool = False) -> None:
        """Set out = softmax(a), or its logarithm.

        Parameters
        ----------
        a : (N, K) array
            Logits.
        out : (N, K) array
            Of the dtype of a; it may be `a`.
        log : bool
            Whether to compute log softmax(a).
        """

    # -- losses -----------------------------------------------------------------------------------

    @abstractmethod
    def softmax_cross_entropy(
        self,
        logits: Array,
        targets: Array,
        options: LossOptions,
        result: dict[str, Array],
        sample_weight: Array | None = None,
        upstream: Array | float = 1.0,
        divisor: Array | None = None,
    ) -> None:
        """Compute loss and delta; the formulas are in `gpubackprop.ops.softmax_cross_entropy`.

        On a GPU, if a label is out of range, loss and delta of its row are NaN, and the next wait
        for the device raises TargetRangeError.

        Parameters
        ----------
        logits : (N, K) array
            Logits.
        targets : (N,) or (N, K) array
            Labels, on a GPU uint8, int32 or int64; or probabilities.
        options : LossOptions
            The options.
        result : dict of arrays
            The arrays to fill, of the compute dtype unless another one is named here: "loss" ();
            "row_loss" (N,); "scale" (N,), the working memory of this plan alone; "delta" (N, K) of
            the dtype of the logits, which it may be; "lse" (N,); "predicted" (N,) int64, the first
            of the row's largest logits, or -1 for a row with NaN; "correct" (N,) bool, whether that
            is the label; "correct_rows" () int64, the number of such rows; "weight_sum" (), the
            divisor of the mean, or 1, if the loss is reduced. All but the first three are optional.
            A GPU, and the host at once, outside a plan, also work without "scale", and without
            "row_loss" if the loss is reduced.
        sample_weight : (N,) array or None
            Factor of each row.
        upstream : float, or () or (N,) array
            Factor of delta.
        divisor : () array or None
            The mean's divisor, if an earlier call of these targets and weights left it in
            "weight_sum".
        """

    @abstractmethod
    def number_rows_from(self, first: int) -> None:
        """Number the rows of the next softmax losses from `first`, where errors name them."""

    @abstractmethod
    def mean_divisor(
        self,
        targets: Array,
        options: LossOptions,
        out: Array,
        sample_weight: Array | None = None,
    ) -> None:
        """Set out = the divisor of a mean over all rows, for losses of some of them.

        It is the sum over the rows of sample weight times class weight of the label, 0 for a row
        that is ignored; without labels and weights it is their number.

        Parameters
        ----------
        targets : (N,) or (N, K) array
            As for `softmax_cross_entropy`.
        options : LossOptions
            The options.
        out : () array
            Receives the divisor, in the compute dtype.
        sample_weight : (N,) array or None
            Factor of each row.
        """

    @abstractmethod
    def pointwise_loss(
        self,
        a: Array,
        targets: Array,
        formula: PointwiseLoss,
        options: LossOptions,
        result: dict[str, Array],
        sample_weight: Array | None = None,
        upstream: Array | float = 1.0,
    ) -> None:
        """Compute loss and delta of squared error, binary cross entropy, Poisson and the like.

        Parameters
        ----------
        a : (N, K) array
            Pre-activations of the output units.
        targets : (N, K) array
            Targets, on a GPU of the compute dtype.
        formula : PointwiseLoss
            Entry of `gpubackprop.formulas.POINTWISE_LOSSES`.
        options : LossOptions
            The options, of which only the reduction is used.
        result : dict of arrays
            As in `softmax_cross_entropy`, always with "scale" and "row_loss", without "lse" and
            "predicted"; "correct" (N,) bool, whether every unit is on its target's side of 1/2.
        sample_weight : (N,) array or None
            Factor of each row.
        upstream : float, or () or (N,) array
            Factor of delta.
        """

    @abstractmethod
    def accumulate(
        self,
        loss: Array,
        rows: int,
        correct: Array | None,
        penalty: tuple[Array, Array | float] | None,
        totals: Array,
    ) -> None:
        """Add one step to the running totals. Nothing is read back.

        Parameters
        ----------
        loss : () array
            Mean loss of the batch.
        rows : int
            Rows of the batch.
        correct : (rows,) bool array, () int64 array or None
            Which rows are predicted right, or how many of them.
        penalty : pair of () arrays, or None
            The sum of the squared weights, and l2: l2 / 2 times the sum is added.
        totals : (Total.SIZE,) float64 array
            The totals, indexed by `Total`.
        """

    # -- updates ----------------------------------------------------------------------------------

    @abstractmethod
    def add_scaled(self, x: Array, scale: Array, out: Array) -> None:
        """Set out += scale * x.

        Parameters
        ----------
        x : (P,) array
            Terms.
        scale : () array
            Factor, read when the call runs.
        out : (P,) array
            Receives the sum.
        """

    @abstractmethod
    def sum_of_squares(self, x: Array, out: Array) -> None:
        """Set out = sum x^2.

        Parameters
        ----------
        x : (P,) array
            Terms.
        out : () float64 array
            Receives the sum. A GPU also takes (2,) of the compute dtype, whose second element
            becomes 1 if an element of x is not finite, else 0.
        """

    @abstractmethod
    def update(
        self,
        parameters: Array,
        gradient: Array,
        slots: tuple[Array, ...],
        formula: Update,
        coefficients: dict[str, Any],
    ) -> None:
        """Do one step of an optimizer on flat buffers; `updater` gives one with all that it needs.

        Parameters
        ----------
        parameters : (P,) array
            Updated in place.
        gradient : (P,) array
            The gradient.
        slots : tuple of (P,) arrays
            As many as the formula has.
        formula : Update
            Entry of `gpubackprop.formulas.UPDATES`.
        coefficients : dict
            0-d arrays or numbers, read when the call runs: "c", the formula's tuple; "decay", the
            weight decay (coupled) or 1 - lr * weight decay (decoupled); "clip", a factor of the
            gradient; "l2", the pair (stop, factor), with which factor * p is added to the gradient
            of parameters[:stop]; "copy", the parameters in 16 bits, which are written too, to
            nearest, or stochastically if "random" is {seed, step}. All except "c" are optional.
        """

    @abstractmethod
    def round_to_storage(self, x: Array, out: Array, random: Array | None = None) -> None:
        """Set out = x in 16 bits, as `update` writes its copy.

        Parameters
        ----------
        x : (P,) array
            Numbers.
        out : (P,) array
            Receives them in 16 bits.
        random : (2,) uint64 array or None
            {seed, step}, to round stochastically; None rounds to nearest.
        """

    @abstractmethod
    def updater(
        self,
        rule: UpdateRule,
        parameters: Array,
        gradient: Array,
        slots: tuple[Array, ...],
        random: Array | None = None,
        half_copy: Array | None = None,
    ) -> Updater[Self]:
        """Return an optimizer on these buffers.

        Parameters
        ----------
        rule : UpdateRule
            Formula, hyperparameters and regularisation.
        parameters : (P,) array
            As in `update`.
        gradient : (P,) array
            As in `update`.
        slots : tuple of (P,) arrays
            As in `update`.
        random : (2,) uint64 array or None
            {seed, updates done}, which the updater counts; None without dropout and stochastic
            rounding.
        half_copy : (P,) array or None
            The parameters in 16 bits, written by each update.
        """
