"""Optimizers: an update formula with its hyperparameters.

The mathematics is in `gpubackprop.formulas.updates`. Two placements of a constant are in use for
some optimizers, and both are here under names of their own: PyTorch's momentum (`SGD`: the velocity
sums gradients) and the classical one (`Momentum`: the velocity sums steps; scikit-learn); Adam with
PyTorch's or scikit-learn's eps.

In the formulas, g is the gradient, theta the parameters, and t the number of the step, from 1.
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
    """A dictionary that cannot be changed, because a GPU has a copy of a planned step's values.

    Examples
    --------
    >>> Adam().hyperparameters["beta1"]
    0.9
    >>> Adam().hyperparameters["beta1"] = 0.8  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    gpubackprop.errors.ReadOnlyError: the hyperparameters of an optimizer cannot be changed; ...
    """

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
    """An update formula with its learning rate, hyperparameters and weight decay; all read only.

    Parameters
    ----------
    formula : Update
        Entry of the update registry.
    lr : float
        Base learning rate. The schedule's factor multiplies it.
    hyperparameters : mapping
        All hyperparameters of the formula.
    weight_decay : float
        Coupled (added to the gradient) or decoupled (AdamW, Lion), as ``formula.decay`` says.

    Examples
    --------
    >>> sgd = SGD(lr=0.1, momentum=0.9)
    >>> sgd.formula.name, sgd.lr, sgd.weight_decay
    ('sgd', 0.1, 0.0)
    """

    formula: Update
    lr: float
    hyperparameters: Mapping[str, float] = field(default_factory=dict)
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "hyperparameters", Hyperparameters(self.hyperparameters))

    def __repr__(self) -> str:
        """Return the call that makes it."""
        factory, options = _FACTORIES.get(self.formula.name, (self.formula.name, {}))
        options = {"lr": self.lr, **self.hyperparameters, **options}
        if self.weight_decay or self.formula.decay == "decoupled":
            options["weight_decay"] = self.weight_decay
            factory = "SGD" if factory == "GradientDescent" else factory
        return call(factory, **options)

    def coefficients(self, lr: float, step: int) -> tuple[float, ...]:
        """Return the formula's coefficients for one step.

        Parameters
        ----------
        lr : float
            Learning rate of the step.
        step : int
            Number of the step, from 1.

        Returns
        -------
        tuple of float
            In the order in which the formula takes them.
        """
        return self.formula.coefficients(self.hyperparameters, lr, step)

    def decay_coefficient(self, lr: float) -> float | None:
        """Return what the backends' `update` takes as "decay".

        Parameters
        ----------
        lr : float
            Learning rate of the step.

        Returns
        -------
        float or None
            The factor of the parameters that is added to the gradient (coupled), or the factor that
            scales the parameters (decoupled); None without weight decay.
        """
        if not self.weight_decay:
            return None
        coupled = self.formula.decay == "coupled"
        return self.weight_decay if coupled else 1.0 - lr * self.weight_decay

    def config(self) -> dict[str, Any]:
        """Return name, learning rate and hyperparameters as JSON values.

        Returns
        -------
        dict
            "name", "lr", "weight_decay", and each hyperparameter by its name.
        """
        return {
            "name": self.formula.name,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            **self.hyperparameters,
        }


# The factory of each formula's optimizers, and the arguments that it wants beside hyperparameters.
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
    """Gradient descent, the lecture's algorithm: theta <- theta - lr g.

    Parameters
    ----------
    lr : float
        Learning rate.

    Returns
    -------
    Optimizer
        An optimizer without state.

    Raises
    ------
    OptionError
        The learning rate is negative or not finite.

    References
    ----------
    D. E. Rumelhart, G. E. Hinton and R. J. Williams, "Learning representations by back-propagating
    errors", 1986, equation 8.

    Examples
    --------
    >>> GradientDescent(lr=0.5)
    GradientDescent(lr=0.5)
    """
    return _build("gradient_descent", lr, 0.0)


def SGD(
    lr: float = 0.01,
    *,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Gradient descent with momentum as PyTorch computes it: the velocity sums gradients.

    v <- momentum v + (1 - dampening) g (first step: v = g); theta <- theta - lr v. With `nesterov`,
    theta <- theta - lr (g + momentum v).

    Parameters
    ----------
    lr : float
        Learning rate.
    momentum : float
        In [0, 1); 0 is plain gradient descent, which has no state.
    dampening : float
        In [0, 1].
    nesterov : bool
        Whether the step looks ahead; this wants momentum > 0 and dampening = 0.
    weight_decay : float
        Coupled: weight_decay * theta is added to g.

    Returns
    -------
    Optimizer
        One state array, "velocity", unless momentum is 0.

    Raises
    ------
    OptionError
        A value is out of range, or `nesterov` lacks what it wants.

    References
    ----------
    I. Sutskever, J. Martens, G. Dahl and G. Hinton, "On the importance of initialization and
    momentum in deep learning", 2013, in the form of `torch.optim.SGD`.

    Examples
    --------
    >>> SGD(lr=0.1, momentum=0.9, nesterov=True).formula.name
    'sgd_nesterov'
    """
    if nesterov and (momentum == 0 or dampening):
        raise OptionError("nesterov=True wants momentum > 0 and dampening = 0")
    if not momentum:
        return _build("gradient_descent", lr, weight_decay)
    name = "sgd_nesterov" if nesterov else "sgd"
    return _build(name, lr, weight_decay, momentum=momentum, dampening=dampening)


def Momentum(
    lr: float = 0.01, *, momentum: float = 0.9, nesterov: bool = False, weight_decay: float = 0.0
) -> Optimizer:
    """Classical momentum (scikit-learn's SGD): the velocity sums steps.

    v <- momentum v - lr g; theta <- theta + v. With `nesterov`, theta <- theta + momentum v - lr g.

    Parameters
    ----------
    lr : float
        Learning rate.
    momentum : float
        In [0, 1).
    nesterov : bool
        Whether the step looks ahead.
    weight_decay : float
        Coupled: weight_decay * theta is added to g.

    Returns
    -------
    Optimizer
        One state array, "velocity".

    Raises
    ------
    OptionError
        A value is out of range.

    References
    ----------
    B. T. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964. I.
    Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013
    (Nesterov's form).

    Examples
    --------
    >>> Momentum(lr=0.1).hyperparameters["momentum"]
    0.9
    """
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
    """Adam: steps scaled by running means of the gradient and of its square.

    m <- beta1 m + (1 - beta1) g; v <- beta2 v + (1 - beta2) g^2;
    theta <- theta - lr mhat / (sqrt(vhat) + eps), where mhat = m / (1 - beta1^t) and
    vhat = v / (1 - beta2^t).

    Parameters
    ----------
    lr : float
        Learning rate.
    beta1 : float
        Decay rate of m, in [0, 1).
    beta2 : float
        Decay rate of v, in [0, 1).
    eps : float
        In [1e-30, 1].
    eps_placement : {"torch", "sklearn"}
        Whether eps is added to sqrt(vhat), as above, or to sqrt(v), as scikit-learn does.
    weight_decay : float
        Coupled: weight_decay * theta is added to g.
    amsgrad : bool
        Whether the largest v so far takes the place of v; wants ``eps_placement="torch"``.

    Returns
    -------
    Optimizer
        Two state arrays, "m" and "v"; with `amsgrad` also "max_v".

    Raises
    ------
    OptionError
        A value is out of range, or `amsgrad` comes with another placement of eps.

    References
    ----------
    D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization", 2015. S. J. Reddi, S. Kale
    and S. Kumar, "On the convergence of Adam and beyond", 2018 (amsgrad).

    Examples
    --------
    >>> Adam(lr=0.01, eps_placement="sklearn").formula.name
    'adam_epsilon_hat'
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
    """Adam with decoupled weight decay, as PyTorch's AdamW.

    theta is first scaled by 1 - lr * weight_decay; the step of `Adam` follows.

    Parameters
    ----------
    lr : float
        Learning rate.
    beta1 : float
        Decay rate of m, in [0, 1).
    beta2 : float
        Decay rate of v, in [0, 1).
    eps : float
        In [1e-30, 1].
    weight_decay : float
        Decoupled.
    amsgrad : bool
        Whether the largest v so far takes the place of v.

    Returns
    -------
    Optimizer
        Two state arrays, "m" and "v"; with `amsgrad` also "max_v".

    Raises
    ------
    OptionError
        A value is out of range.

    References
    ----------
    I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", 2019.

    Examples
    --------
    >>> AdamW(lr=0.01).weight_decay
    0.01
    """
    name = "adamw_amsgrad" if amsgrad else "adamw"
    return _build(name, lr, weight_decay, beta1=beta1, beta2=beta2, eps=eps)


def RMSprop(
    lr: float = 0.01, *, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0.0
) -> Optimizer:
    """RMSprop as PyTorch computes it, without centring and without momentum.

    s <- alpha s + (1 - alpha) g^2; theta <- theta - lr g / (sqrt(s) + eps).

    Parameters
    ----------
    lr : float
        Learning rate.
    alpha : float
        Decay rate of s, in [0, 1).
    eps : float
        In [1e-30, 1].
    weight_decay : float
        Coupled: weight_decay * theta is added to g.

    Returns
    -------
    Optimizer
        One state array, "square".

    Raises
    ------
    OptionError
        A value is out of range.

    References
    ----------
    T. Tieleman and G. Hinton, "Lecture 6.5 - rmsprop", COURSERA: Neural networks for machine
    learning, 2012.

    Examples
    --------
    >>> RMSprop().hyperparameters["alpha"]
    0.99
    """
    return _build("rmsprop", lr, weight_decay, alpha=alpha, eps=eps)


def Adagrad(
    lr: float = 0.01,
    *,
    lr_decay: float = 0.0,
    eps: float = 1e-10,
    initial_accumulator: float = 0.0,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adagrad as PyTorch computes it: steps scaled by the sum of all squared gradients.

    s <- s + g^2; theta <- theta - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps).

    Parameters
    ----------
    lr : float
        Learning rate.
    lr_decay : float
        At least 0.
    eps : float
        In [1e-30, 1].
    initial_accumulator : float
        First value of s, at least 0.
    weight_decay : float
        Coupled: weight_decay * theta is added to g.

    Returns
    -------
    Optimizer
        One state array, "sum".

    Raises
    ------
    OptionError
        A value is out of range.

    References
    ----------
    J. Duchi, E. Hazan and Y. Singer, "Adaptive subgradient methods for online learning and
    stochastic optimization", 2011.

    Examples
    --------
    >>> Adagrad(initial_accumulator=0.1).formula.slots
    ('sum',)
    """
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
    """Lion: the sign of an averaged gradient, with decoupled weight decay.

    theta <- theta - lr sign(beta1 m + (1 - beta1) g), after theta was scaled by
    1 - lr * weight_decay; then m <- beta2 m + (1 - beta2) g.

    Parameters
    ----------
    lr : float
        Learning rate.
    beta1 : float
        Weight of m in the step, in [0, 1).
    beta2 : float
        Decay rate of m, in [0, 1).
    weight_decay : float
        Decoupled.

    Returns
    -------
    Optimizer
        One state array, "m".

    Raises
    ------
    OptionError
        A value is out of range.

    References
    ----------
    X. Chen et al., "Symbolic discovery of optimization algorithms", 2023.

    Examples
    --------
    >>> Lion().formula.decay
    'decoupled'
    """
    return _build("lion", lr, weight_decay, beta1=beta1, beta2=beta2)


def Adamax(
    lr: float = 2e-3,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adamax: Adam scaled by the largest recent gradient, as PyTorch computes it.

    m <- beta1 m + (1 - beta1) g; u <- max(beta2 u, abs(g) + eps);
    theta <- theta - lr / (1 - beta1^t) m / u.

    Parameters
    ----------
    lr : float
        Learning rate.
    beta1 : float
        Decay rate of m, in [0, 1).
    beta2 : float
        Decay rate of u, in [0, 1).
    eps : float
        In [1e-30, 1].
    weight_decay : float
        Coupled: weight_decay * theta is added to g.

    Returns
    -------
    Optimizer
        Two state arrays, "m" and "u".

    Raises
    ------
    OptionError
        A value is out of range.

    References
    ----------
    D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization", 2015, section 7.

    Examples
    --------
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
    """Return the optimizer that `spec` names, with `options`.

    Parameters
    ----------
    spec : str or Optimizer
        A name of `OPTIMIZERS`, or an `Optimizer`, which is returned as it is.
    **options : object
        Arguments of the factory, such as ``lr``.

    Returns
    -------
    Optimizer
        The optimizer.

    Raises
    ------
    OptionError
        The name is unknown, or the optimizer does not have an option or its value.

    Examples
    --------
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
