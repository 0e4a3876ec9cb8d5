"""What a backend is: the operations of backpropagation, their shapes and their meaning.

Every operation writes into arrays that the caller gives. Called on a backend it runs at once, on a
GPU it is queued. Called on the recorder that ``plan(emit)`` hands to `emit` it becomes part of the
plan, and runs each time the plan does.

Operations trust their arguments: shapes, dtypes and options are checked in `gpubackprop.ops` and in
`gpubackprop.network`. N is the number of rows of a batch, D the number of units, K that of classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, Self

from gpubackprop.backends.loss import LossOptions
from gpubackprop.backends.memory import Array, Memory
from gpubackprop.backends.updater import Updater, UpdateRule
from gpubackprop.formulas import Activation, Dropout, PointwiseLoss, Update

__all__ = ["Array", "Backend"]


class Backend(Memory, Protocol):
    """The operations of one device (see the module's docstring), on its memory.

    Attributes
    ----------
    device : "cpu" or "cuda:N".
    reason : why device="auto" took it, a line; "" where it was named.
    """

    device: str
    reason: str

    @abstractmethod
    def plan(self, emit: Callable[[Self], None]) -> Callable[[], None]:
        """Record the operations that ``emit(recorder)`` calls.

        Parameters
        ----------
        emit : called once, now; arrays that it makes belong to the plan.

        Returns
        -------
        A function that runs them again, on what the arrays then hold, and allocates nothing.
        """

    @abstractmethod
    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Issue ``function(*args)``, which the host runs: in a plan, each time that runs."""

    # -- rows -------------------------------------------------------------------------------------

    @abstractmethod
    def gather_rows(self, source: Array, rows: Array | None, out: Array) -> None:
        """out[i] = source[rows[i]], converted to the dtype of out.

        Parameters
        ----------
        source : (M, D) or (M,).
        rows : (N,) int64, read when the call runs, so that a plan gathers another batch each time;
            a number out of range gives the nearest row. None: out = source.
        out : (N, D) or (N,).
        """

    @abstractmethod
    def standardize(self, raw: Array, mean: Array, scale: Array, out: Array) -> None:
        """out = (raw - mean) / scale in float64, rounded once (on a GPU 16 bits twice: by way of
        float32). NaN and infinities pass.

        Parameters
        ----------
        raw, out : (N, D).
        mean, scale : (D,) float64.
        """

    @abstractmethod
    def divide(self, x: Array, divisor: float, out: Array) -> None:
        """out = x / divisor, elementwise."""

    # -- layers -----------------------------------------------------------------------------------

    @abstractmethod
    def matmul(self, x: Array, y: Array, out: Array) -> None:
        """out = x @ y. Every matrix product of a training step comes through here.

        Parameters
        ----------
        x, y : (N, M) and (M, D), C- or F-contiguous. Products of 16 bits are summed in float32.
        out : (N, D) of their dtype, or float32 for 16 bits.
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
        """a = x W^T + b; h = g(a), dropped out where `dropout` is given.

        Parameters
        ----------
        x : (N, D_in).
        W : (D_out, D_in).
        b : (D_out,).
        activation : g, and what its slope is a function of.
        a : (N, D_out). With dropout it is left holding the array to pass as `saved` to
            `activation_backward`: the pre-activation, or g(a) before dropout. The slope of a
            homogeneous activation (relu) needs only h.
        h : (N, D_out); may be `a`, whose own values are then not kept.
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
        """What follows the product of a layer: a += b; h = g(a), dropped out.

        Parameters
        ----------
        a, b, h, dropout : as in `affine_forward`; on the host 32 or 64 bits.
        """

    @abstractmethod
    def activation_forward(
        self, a: Array, activation: Activation, h: Array, dropout: Dropout | None = None
    ) -> None:
        """h = g(a), elementwise, dropped out where `dropout` is given.

        Parameters
        ----------
        a, h : (N, D); h may be `a`. With dropout and h apart, `a` is left as by `affine_forward`.
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
        """delta = grad_h * g'(a), dropped out as h was; grad_b = sum_i delta[i].

        Parameters
        ----------
        grad_h : (N, D), the gradient with respect to h.
        saved : (N, D): h or a, as ``activation.saved`` says.
        delta : (N, D); may be `grad_h`.
        grad_b : (D,), or None where the sum is not wanted.
        """

    @abstractmethod
    def affine_backward(
        self, delta: Array, h_prev: Array, W: Array, grad_W: Array, grad_h: Array | None
    ) -> None:
        """grad_W = delta^T h_prev; grad_h = delta W.

        Parameters
        ----------
        delta : (N, D_out).
        h_prev : (N, D_in), the layer's input.
        W, grad_W : (D_out, D_in).
        grad_h : (N, D_in), for the layer below; None leaves that product out.
        """

    @abstractmethod
    def column_sum(self, delta: Array, out: Array) -> None:
        """out[j] = sum_i delta[i, j], in an order that the shapes alone decide.

        Parameters
        ----------
        delta : (N, D). 16-bit terms are added in float32.
        out : (D,).
        """

    @abstractmethod
    def output(self, a: Array, kind: str, out: Array) -> None:
        """yhat = O(a).

        Parameters
        ----------
        a, out : (N, K); out may be `a`.
        kind : O, one of "softmax", "linear", "logistic", "exp".
        """

    @abstractmethod
    def softmax(self, a: Array, out: Array, *, log: bool = False) -> None:
        """out = softmax(a), or its logarithm.

        Parameters
        ----------
        a, out : (N, K) of one dtype; out may be `a`.
        log : True for log softmax(a).
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
    ) -> None:
        """Loss and delta; the formulas are in `gpubackprop.ops.softmax_cross_entropy`.

        Parameters
        ----------
        logits : (N, K).
        targets : (N,) labels, on a GPU uint8, int32 or int64; or (N, K) probabilities.
        result : the arrays to fill, of the compute dtype unless it is said here:
            "loss" (); "row_loss" (N,); "scale" (N,), the working memory of this plan alone;
            "delta" (N, K) of the dtype of the logits, which it may be; "lse" (N,);
            "predicted" (N,) int64: the first of the row's largest logits, -1 for a row with NaN;
            "correct" (N,) bool: that is the label. All but the first three may be left out. The
            host at once, outside a plan, also does without "scale", and without "row_loss" where
            the loss is reduced.
        sample_weight : (N,), or None.
        upstream : what delta is multiplied by: a number, a 0-d array or (N,).

        On a GPU a label out of range makes loss and delta of its row NaN, and the next wait for the
        device raises TargetRangeError.
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
        """Loss and delta of squared error, binary cross entropy, Poisson and their like.

        Parameters
        ----------
        a : (N, K), the pre-activations of the output units.
        targets : (N, K), on a GPU of the compute dtype.
        formula : entry of `gpubackprop.formulas.POINTWISE_LOSSES`.
        result : as in `softmax_cross_entropy`, "scale" and "row_loss" always, without "lse" and
            "predicted"; "correct" (N,) bool: every unit is on its target's side of 1/2.
        sample_weight, upstream : as in `softmax_cross_entropy`.
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
        loss : (), the mean of the batch.
        rows : of the batch.
        correct : (rows,) bool, or None.
        penalty : the sum of the squared weights () and l2: l2 / 2 times the sum is added.
        totals : (Total.SIZE,) float64, indexed by `Total`.
        """

    # -- updates ----------------------------------------------------------------------------------

    @abstractmethod
    def add_scaled(self, x: Array, scale: Array, out: Array) -> None:
        """out += scale * x.

        Parameters
        ----------
        x, out : flat, of one size.
        scale : (), read when the call runs.
        """

    @abstractmethod
    def sum_of_squares(self, x: Array, out: Array) -> None:
        """out = sum x^2.

        Parameters
        ----------
        x : flat.
        out : () float64. A GPU also takes (2,) of the compute dtype, whose second element is then
            1 where an element of x is not finite, else 0.
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
        """One step of an optimizer on flat buffers; `updater` has one with all that belongs to it.

        Parameters
        ----------
        parameters, gradient : (P,).
        slots : as many (P,) as the formula has.
        formula : entry of `gpubackprop.formulas.UPDATES`.
        coefficients : 0-d arrays or numbers, read when the call runs: "c", the formula's tuple;
            "decay", the weight decay (coupled) or 1 - lr * weight decay (decoupled); "clip", a
            factor of the gradient; "l2", (stop, factor): factor * p is added to the gradient of
            parameters[:stop]; "copy", the parameters in 16 bits, written too: to nearest, or
            stochastically where "random" is {seed, step}. All but "c" may be left out or None.
        """

    @abstractmethod
    def round_to_storage(self, x: Array, out: Array, random: Array | None = None) -> None:
        """out = x in 16 bits, as `update` writes its copy.

        Parameters
        ----------
        x, out : (P,).
        random : {seed, step}, (2,) uint64, to round stochastically; None for to nearest.
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
        """An optimizer on these buffers.

        Parameters
        ----------
        rule : formula, hyperparameters and regularisation.
        parameters, gradient, slots : as in `update`.
        random : (2,) uint64 {seed, updates done}, which the updater counts; None without dropout
            and stochastic rounding.
        half_copy : (P,), the parameters in 16 bits, written by each update; or None.
        """
