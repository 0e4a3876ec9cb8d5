"""Optimizers: an update formula with its hyperparameters.

The mathematics is in `gpubackprop.formulas.updates`. Where two placements of a constant are in use,
both exist and are named: PyTorch's momentum (`SGD`: the velocity sums gradients) and the classical
one (`Momentum`: the velocity sums steps; scikit-learn); Adam with PyTorch's or scikit-learn's eps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpubackprop.errors import OptionError, ReadOnlyError
from gpubackprop.formulas import UPDATES, Update, lookup
from gpubackprop.ops.checks import choice, number
from gpubackprop.ops.display import call


class Hyperparameters(dict[str, float]):
    """A dictionary that cannot be changed: a GPU has its own copy of a planned step's."""

    def _refuse(self, *args: Any, **options: Any) -> Any:
        raise ReadOnlyError(
            "the hyperparameters of an optimizer cannot be changed; make another one, such as "
            "Adam(lr=0.01, beta1=0.8), which may be assigned to trainer.optimizer"
        )

    __setitem__ = __delitem__ = __ior__ = update = pop = popitem = clear = setdefault = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)


@dataclass(frozen=True)
class Optimizer:
    """An update formula, its learning rate, hyperparameters and weight decay.

    Attributes
    ----------
    formula : entry of the update registry.
    lr : base learning rate, multiplied by the schedule's factor.
    hyperparameters : the formula's, all of them; read only, as all of an optimizer.
    weight_decay : coupled (added to the gradient) or decoupled (AdamW, Lion): formula.decay.
    """

    formula: Update
    lr: float
    hyperparameters: Mapping[str, float] = field(default_factory=dict)
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "hyperparameters", Hyperparameters(self.hyperparameters))

    def __repr__(self) -> str:
        """The call that makes it."""
        factory, options = _FACTORIES.get(self.formula.name, (self.formula.name, {}))
        options = {"lr": self.lr, **self.hyperparameters, **options}
        if self.weight_decay or self.formula.decay == "decoupled":
            options["weight_decay"] = self.weight_decay
            factory = "SGD" if factory == "GradientDescent" else factory
        return call(factory, **options)

    def coefficients(self, lr: float, step: int) -> tuple[float, ...]:
        """The formula's coefficients at learning rate `lr` in step number `step` (from 1)."""
        return self.formula.coefficients(self.hyperparameters, lr, step)

    def decay_coefficient(self, lr: float) -> float | None:
        """What `NumpyBackend.update` takes as "decay", None without weight decay."""
        if not self.weight_decay:
            return None
        coupled = self.formula.decay == "coupled"
        return self.weight_decay if coupled else 1.0 - lr * self.weight_decay

    def config(self) -> dict[str, Any]:
        """Name, learning rate and hyperparameters as JSON values."""
        return {
            "name": self.formula.name,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            **self.hyperparameters,
        }


# What makes an optimizer of each formula, beside its hyperparameters.
_FACTORIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gradient_descent": ("GradientDescent", {}),
    "sgd": ("SGD", {}),
    "sgd_nesterov": ("SGD", {"nesterov": True}),
    "momentum": ("Momentum", {}),
    "nesterov": ("Momentum", {"nesterov": True}),
    "adam": ("Adam", {}),
    "adam_epsilon_hat": ("Adam", {"eps_placement": "sklearn"}),
    "adamw": ("AdamW", {}),
    "rmsprop": ("RMSprop", {}),
    "adagrad": ("Adagrad", {}),
    "lion": ("Lion", {}),
    "adamax": ("Adamax", {}),
    "adam_amsgrad": ("Adam", {"amsgrad": True}),
    "adamw_amsgrad": ("AdamW", {"amsgrad": True}),
}
_BELOW_ONE = 1.0 - 1e-12  # decay rates may not reach 1
_RANGES = {
    "momentum": (0.0, _BELOW_ONE),
    "dampening": (0.0, 1.0),
    "beta1": (0.0, _BELOW_ONE),
    "beta2": (0.0, _BELOW_ONE),
    "alpha": (0.0, _BELOW_ONE),
    "eps": (1e-30, 1.0),  # eps sqrt(1 - beta2^t) must not round to 0 in float32: 0 / 0 where g = 0
    "lr_decay": (0.0, float("inf")),
    "initial_accumulator": (0.0, float("inf")),
}


def _build(name: str, lr: float, weight_decay: float, **hyperparameters: float) -> Optimizer:
    formula = UPDATES[name]
    checked = {
        key: number(hyperparameters.get(key, default), f"{name}'s {key}", *_RANGES[key])
        for key, default in formula.hyperparameters.items()
    }
    return Optimizer(
        formula, number(lr, "lr", 0.0), checked, number(weight_decay, "weight_decay", 0.0)
    )


def GradientDescent(lr: float = 0.1) -> Optimizer:
    """theta <- theta - lr * gradient: the lecture's algorithm."""
    return _build("gradient_descent", lr, 0.0)


def SGD(
    lr: float = 0.01,
    *,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> Optimizer:
    """PyTorch's SGD: v <- momentum v + (1 - dampening) g; theta <- theta - lr v."""
    if nesterov and (momentum == 0 or dampening):
        raise OptionError("nesterov=True wants momentum > 0 and dampening = 0")
    if not momentum:
        return _build("gradient_descent", lr, weight_decay)
    name = "sgd_nesterov" if nesterov else "sgd"
    return _build(name, lr, weight_decay, momentum=momentum, dampening=dampening)


def Momentum(
    lr: float = 0.01, *, momentum: float = 0.9, nesterov: bool = False, weight_decay: float = 0.0
) -> Optimizer:
    """Classical momentum (scikit-learn's SGD): v <- momentum v - lr g; theta <- theta + v."""
    return _build("nesterov" if nesterov else "momentum", lr, weight_decay, momentum=momentum)


def Adam(
    lr: float = 1e-3,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    eps_placement: str = "torch",
    weight_decay: float = 0.0,
    amsgrad: bool = False,
) -> Optimizer:
    """Adam; `eps_placement`: "torch", sqrt(vhat) + eps, or "sklearn", sqrt(v) + eps uncorrected.

    amsgrad: the largest v so far in the place of v (Reddi et al. 2018), with eps as in PyTorch.
    """
    choice(eps_placement, "eps_placement", ("torch", "sklearn"))
    if amsgrad and eps_placement != "torch":
        raise OptionError('amsgrad=True wants eps_placement="torch"')
    name = "adam" if eps_placement == "torch" else "adam_epsilon_hat"
    name += "_amsgrad" * bool(amsgrad)
    return _build(name, lr, weight_decay, beta1=beta1, beta2=beta2, eps=eps)


def AdamW(
    lr: float = 1e-3,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    amsgrad: bool = False,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019; PyTorch's AdamW)."""
    name = "adamw_amsgrad" if amsgrad else "adamw"
    return _build(name, lr, weight_decay, beta1=beta1, beta2=beta2, eps=eps)


def RMSprop(
    lr: float = 0.01, *, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0.0
) -> Optimizer:
    """RMSprop as PyTorch computes it, neither centred nor with momentum."""
    return _build("rmsprop", lr, weight_decay, alpha=alpha, eps=eps)


def Adagrad(
    lr: float = 0.01,
    *,
    lr_decay: float = 0.0,
    eps: float = 1e-10,
    initial_accumulator: float = 0.0,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adagrad as PyTorch computes it."""
    return _build(
        "adagrad",
        lr,
        weight_decay,
        lr_decay=lr_decay,
        eps=eps,
        initial_accumulator=initial_accumulator,
    )


def Lion(
    lr: float = 1e-4, *, beta1: float = 0.9, beta2: float = 0.99, weight_decay: float = 0.0
) -> Optimizer:
    """Lion (Chen et al. 2023), decoupled weight decay."""
    return _build("lion", lr, weight_decay, beta1=beta1, beta2=beta2)


def Adamax(
    lr: float = 2e-3,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adam by the largest gradient of late (Kingma & Ba 2015, section 7), as PyTorch computes it.

    >>> Adamax(0.01).hyperparameters["beta2"]
    0.999
    """
    return _build("adamax", lr, weight_decay, beta1=beta1, beta2=beta2, eps=eps)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "gradient_descent": GradientDescent,
    "sgd": SGD,
    "momentum": Momentum,
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSprop,
    "adagrad": Adagrad,
    "lion": Lion,
    "adamax": Adamax,
}


def optimizer(spec: str | Optimizer, **options: Any) -> Optimizer:
    """The optimizer that `spec` names, with `options`; an `Optimizer` is returned as it is.

    >>> optimizer("adam", lr=0.01).hyperparameters["beta2"]
    0.999
    """
    if isinstance(spec, Optimizer):
        return spec
    factory = lookup(OPTIMIZERS, spec, "optimizer")
    try:
        return factory(**options)
    except TypeError as error:
        raise OptionError(f"optimizer {spec!r}: {error}") from None
