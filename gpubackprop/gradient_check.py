"""Analytic gradients against central differences in float64.

The five-point difference is (8 (f(+h) - f(-h)) - (f(+2h) - f(-2h))) / 12h. Its truncation error is
of order h^4, so h = 1e-3 leaves about ten digits of a tame function. A deep network's fifth
derivative can be huge: h is then quartered until two estimates agree. If a step would cross a kink
(relu at 0) it is shortened too; a coordinate that sits on a kink is skipped and counted.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from gpubackprop.errors import OptionError
from gpubackprop.formulas import ACTIVATIONS, POINTWISE_LOSSES, Activation
from gpubackprop.gradients import Gradients
from gpubackprop.losses import LOSSES, Loss, SoftmaxCrossEntropy, SquaredError
from gpubackprop.network import MLP
from gpubackprop.ops import checks
from gpubackprop.ops.layers import activation_backward

Array = np.ndarray
TOLERANCE = 1e-7  # worst relative error that passes
STEP, QUARTERINGS = 1e-3, 5
AGREEMENT = 1e-10  # if two estimates agree to this relative error, h is small enough
# Differences of a loss of size |L| resolve gradients down to about 1e-13 |L| / STEP. A relative
# error therefore has at least this share of the loss as its denominator.
FLOOR = 1e-5


@dataclass(frozen=True)
class GradientCheck:
    """Result of `gradient_check`.

    Attributes
    ----------
    errors : dict
        The worst relative error of each quantity, "W[0]", "b[0]", "hidden[0]", "pre_activation[0]",
        ...: the largest difference divided by the largest value of that quantity.
    checked : int
        Number of coordinates that were compared.
    skipped : int
        Number of coordinates that were skipped because they sit on a kink.
    """

    errors: dict[str, float]
    checked: int
    skipped: int

    def __repr__(self) -> str:
        where = max(self.errors, key=lambda name: self.errors[name], default="")
        worst = f"worst {self.worst:.2g} at {where}, " if self.errors else ""
        said = "passed" if self.passed else "failed"
        counts = f"{self.checked} checked, {self.skipped} skipped"
        return f"GradientCheck({said}, {worst}{counts})"

    @property
    def worst(self) -> float:
        """The largest of the errors."""
        return max(self.errors.values())

    @property
    def passed(self) -> bool:
        """Whether `worst` is at most 1e-7, and something was checked."""
        return self.checked > 0 and self.worst <= TOLERANCE


def gradient_check(
    network: MLP,
    x: Any,
    targets: Any,
    loss: str | Loss | None = None,
    *,
    sample_weight: Any = None,
    coordinates: int = 25,
    seed: int = 0,
) -> GradientCheck:
    """Compare every gradient of `network.gradients` with central differences, in float64.

    Parameters
    ----------
    network : MLP
        A network of any dtype; a float64 copy of it is checked. The gradients are computed on its
        device, the differences on the CPU.
    x : (N, D_0) array
        Inputs.
    targets : (N,) or (N, K) array-like
        As in `MLP.gradients`.
    loss : str, Loss or None
        As in `MLP.gradients`; with reduction "none" there is no single gradient.
    sample_weight : (N,) array or None
        Factor of each row.
    coordinates : int
        Number of entries drawn from each quantity; all, if it has fewer.
    seed : int
        Seed of the draw.

    Returns
    -------
    GradientCheck
        The relative errors; its `passed` says whether all are at most 1e-7.

    Raises
    ------
    OptionError
        The reduction of the loss is "none".

    References
    ----------
    Y. Bengio, "Practical recommendations for gradient-based training of deep architectures", 2012,
    section 4.2. M. Abramowitz and I. Stegun, "Handbook of Mathematical Functions", 1964, 25.3.6.

    Examples
    --------
    >>> network = MLP([3, 4, 2], "tanh", seed=0)
    >>> gradient_check(network, np.eye(3), np.array([0, 1, 1])).passed
    True
    """
    twin = MLP(
        network.widths,
        network.activations,
        output=network.output,
        initializer="zeros",
        dtype="float64",
    )
    for mine, theirs in zip([*twin.W, *twin.b], [*network.W, *network.b], strict=True):
        mine[...] = network.backend.to_host(theirs)
    chosen = twin.check_loss(loss)
    if chosen.options.reduction == "none":
        raise OptionError('gradient_check wants one loss: reduction "mean" or "sum"')
    x = np.ascontiguousarray(twin.check_inputs(x), np.float64)
    checked_targets = chosen.check_targets(targets, len(x), twin.widths[-1], twin.dtype)
    analytic = _gradients(twin, network.device, x, targets, chosen, sample_weight)
    probe = _Probe(twin, x, checked_targets, chosen, sample_weight)
    rng = np.random.default_rng(seed)
    errors, checked, skipped = {}, 0, 0
    for name, gradient, values, evaluate in probe.quantities(analytic):
        picks = rng.permutation(gradient.size)[:coordinates]
        _, signs = evaluate()
        found = [_difference(evaluate, signs, values, int(pick)) for pick in picks]
        kept = [(gradient.flat[p], n) for p, n in zip(picks, found, strict=True) if n is not None]
        checked, skipped = checked + len(kept), skipped + len(picks) - len(kept)
        if kept:
            pairs = np.array(kept)
            floor = FLOOR * max(1.0, abs(float(analytic.loss)))
            scale = max(float(np.abs(pairs).max()), floor)
            errors[name] = float(np.abs(pairs[:, 0] - pairs[:, 1]).max() / scale)
    return GradientCheck(errors, checked, skipped)


def _gradients(network: MLP, device: str, *batch: Any) -> Gradients:
    """Return ``network.gradients(*batch)``, computed on `device`, on the host."""
    if device == "cpu":
        return network.gradients(*batch)
    twin = network.copy(device)
    g, to_host = twin.gradients(*batch), twin.backend.to_host
    hidden, pre_activation, W, b = (
        [to_host(array) for array in arrays] for arrays in (g.hidden, g.pre_activation, g.W, g.b)
    )  # the check makes a forward pass of its own
    return Gradients(to_host(g.loss), to_host(g.output), hidden, pre_activation, W, b)


Evaluate = Callable[[], tuple[float, Array]]  # the loss, and the side of each kink


class _Probe:
    """The loss as a function of a parameter, or of a hidden unit of a given layer."""

    def __init__(
        self, network: MLP, x: Array, targets: Array, loss: Loss, sample_weight: Any
    ) -> None:
        self.network, self.targets, self.loss = network, targets, loss
        self.weights = checks.sample_weights(sample_weight, "gradient_check", len(x))
        self.x = x
        self.a, self.h = [], [x]
        for layer, act in enumerate(network.layer_activations):
            self.a.append(self.h[-1] @ network.W[layer].T + network.b[layer])
            self.h.append(_value(act, self.a[-1]))

    def quantities(self, g: Gradients) -> Iterator[tuple[str, Array, Array, Evaluate]]:
        """Yield (name, analytic gradient, the array to which it belongs, a function for the loss).

        The function computes the loss from the array's present values.
        """
        network = self.network
        for layer in range(network.n_layers):
            yield f"W[{layer}]", g.W[layer], network.W[layer], partial(self._from_h, 0)
            yield f"b[{layer}]", g.b[layer], network.b[layer], partial(self._from_h, 0)
            yield (
                f"pre_activation[{layer}]",
                g.pre_activation[layer],
                self.a[layer],
                partial(self._from_a, layer),
            )
        for layer, hidden in enumerate(g.hidden):
            yield (
                f"hidden[{layer}]",
                hidden,
                self.h[layer + 1],
                partial(self._from_h, layer + 1),
            )

    def _from_h(self, layer: int) -> tuple[float, Array]:
        """Compute the forward pass from h_layer on (h_0 = x)."""
        network = self.network
        a = self.h[layer] @ network.W[layer].T + network.b[layer]
        return self._tail(layer, a)

    def _from_a(self, layer: int) -> tuple[float, Array]:
        return self._tail(layer, self.a[layer])

    def _tail(self, layer: int, a: Array) -> tuple[float, Array]:
        network, signs = self.network, [np.zeros(0)]
        for act, W, b in zip(
            network.activations[layer:], network.W[layer + 1 :], network.b[layer + 1 :], strict=True
        ):
            if act.kinks:
                signs.append(np.sign(a).ravel())
            a = _value(act, a) @ W.T + b
        formula = getattr(self.loss, "formula", None)
        if formula is not None and formula.kinks:
            signs.append(np.sign(np.abs(a - self.targets) - formula.parameter).ravel())
        result = self.loss.buffers(network.backend, len(a), np.float64)
        self.loss.emit(network.backend, a, self.targets, result, self.weights)
        return float(result["loss"]), np.concatenate(signs)


def _value(act: Activation, a: Array) -> Array:
    """Return g(a), without the checks of `gpubackprop.ops`, which would be made too often."""
    out, *work = (np.empty_like(a) for _ in range(4))
    act.value(a, out, tuple(work), act.parameter)
    return out


def _difference(evaluate: Evaluate, signs: Array, values: Array, index: int) -> float | None:
    """Return the five-point derivative with respect to values.flat[index]; None on a kink.

    `signs` say on which side of each kink the unchanged values are.
    """
    kept = values.flat[index]
    step = STEP * max(1.0, abs(kept))
    best, best_gap, previous = None, np.inf, None
    for _ in range(QUARTERINGS):
        losses, crossed = [], False
        for factor in (1, -1, 2, -2):
            values.flat[index] = kept + factor * step
            value, moved = evaluate()
            losses.append(value)
            crossed |= not np.array_equal(signs, moved)
        values.flat[index] = kept
        if not crossed:
            estimate = (8 * (losses[0] - losses[1]) - (losses[2] - losses[3])) / (12 * step)
            gap = np.inf if previous is None else abs(estimate - previous)
            if best is None or gap < best_gap:
                best, best_gap = estimate, gap
            if gap <= AGREEMENT * max(abs(estimate), FLOOR):
                break
            previous = estimate
        step /= 4
    return best


# -- the whole of the library ---------------------------------------------------------------------


def check_all(
    seed: int = 0, device: str = "cpu", labels: Container[str] | None = None
) -> Iterator[tuple[str, float, bool]]:
    """Yield (label, worst relative error, passed) for every activation, loss and option.

    The networks are random, 5-7-6-4 on 9 rows, and for every activation also the lecture's deep and
    thin network: 30 layers of one unit. `labels`, of `all_labels`, are those to check, all if None.
    """
    rng = np.random.default_rng(seed)
    for label, network, loss, weights in _cases(rng):
        if labels is not None and label not in labels:
            continue
        network = network if device == "cpu" else network.copy(device)
        yield _run(label, network, loss, rng, weights)


def all_labels() -> list[str]:
    """Return the names of everything that `check_all` checks."""
    return [label for label, *_ in _cases(np.random.default_rng(0))]


def _cases(rng: np.random.Generator) -> Iterator[tuple[str, MLP, Loss, Array | None]]:
    """Yield (label, network, loss, sample weights or None)."""
    for name in ACTIVATIONS:
        yield f"activation {name}", _network(name, "softmax", rng), SoftmaxCrossEntropy(), None
    for loss in _all_losses():
        yield f"loss {_label(loss)}", _network("tanh", loss.output, rng), loss, None
        label = f"loss {_label(loss)}, sample weights"
        yield label, _network("tanh", loss.output, rng), loss, rng.random(9)
    for name in ACTIVATIONS:
        yield f"30 layers of one unit, {name}", _deep_and_thin(name, rng), SquaredError(), None


def _all_losses() -> Iterator[Loss]:
    weights = [0.5, 2.0, 0.0, 1.5]
    for reduction in ("mean", "sum"):
        yield SoftmaxCrossEntropy(reduction=reduction)
        yield SoftmaxCrossEntropy(reduction=reduction, class_weight=weights)
        yield SoftmaxCrossEntropy(reduction=reduction, label_smoothing=0.2)
        yield SoftmaxCrossEntropy(reduction=reduction, z_loss=0.1)
        yield SoftmaxCrossEntropy(reduction=reduction, ignore_index=1)
        yield SoftmaxCrossEntropy(
            reduction=reduction,
            class_weight=weights,
            label_smoothing=0.2,
            z_loss=0.1,
            ignore_index=1,
        )
    for name in POINTWISE_LOSSES:
        for reduction in ("mean", "elementwise_mean", "sum"):
            yield LOSSES[name](reduction=reduction)  # type: ignore[call-arg]


def _label(loss: Loss) -> str:
    defaults = type(loss)().config()
    changed = [
        key if key == "class_weight" else f"{key}={value}"
        for key, value in loss.config().items()
        if value != defaults[key]
    ]
    return " ".join([loss.name, *changed])


def _network(activation: str, output: str, rng: np.random.Generator) -> MLP:
    network = MLP([5, 7, 6, 4], activation, output=output, seed=rng, dtype="float64")
    for b in network.b:
        b[...] = rng.normal(0, 0.3, b.shape)
    return network


def _deep_and_thin(activation_name: str, rng: np.random.Generator) -> MLP:
    """30 layers of one unit in which no gradient vanishes.

    Each weight is near 1 / slope of the layer below at x = 0.5, and each bias puts the unit at a
    point between 0.2 and 0.8, so that the product of the 30 derivatives stays near 1.
    """
    network = MLP([1] * 31, activation_name, output="linear", seed=rng, dtype="float64")
    h, slope = np.array([[0.5]]), np.ones((1, 1))
    for W, b, act in zip(network.W, network.b, network.layer_activations, strict=True):
        a = rng.uniform(0.2, 0.8, (1, 1))
        W[...] = rng.uniform(0.9, 1.1) / slope
        b[...] = (a - W * h)[0]
        h = _value(act, a)
        slope = activation_backward(np.ones((1, 1)), h if act.saved == "h" else a, act)
    return network


def _run(
    label: str, network: MLP, loss: Loss, rng: np.random.Generator, weights: Array | None
) -> tuple[str, float, bool]:
    deep = network.n_layers == 30
    rows, units = 3 if deep else 9, network.widths[-1]
    x = rng.uniform(0.4, 0.6, (3, 1)) if deep else rng.uniform(0.1, 1.0, (9, network.widths[0]))
    targets: Array = rng.random((rows, units))
    if loss.output == "softmax":
        targets = rng.integers(0, units, rows)
        targets[0] = 1  # the ignored label occurs
    result = gradient_check(network, x, targets, loss, sample_weight=weights, coordinates=6)
    return label, result.worst, result.passed


class _CallableModule(types.ModuleType):
    """A module that can be called like the function `gradient_check`.

    Once this module was imported by its name, `gpubackprop.gradient_check` is the module and not
    the function that the package offers there.
    """

    __call__ = staticmethod(gradient_check)


sys.modules[__name__].__class__ = _CallableModule
