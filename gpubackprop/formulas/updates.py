"""Updates of the parameters from their gradient: one in-place block formula per optimizer.

An entry of ``UPDATES`` is all that the rest of the package knows of an optimizer's mathematics. The
CUDA struct of the same name in ``kernels/updates.cuh`` computes the same. A formula is called as
``apply(p, g, slots, c, work)`` with

* ``p``: parameters,
* ``g``: their gradient, which is read only,
* ``slots``: the optimizer's state arrays, in the order of ``Update.slots``,
* ``c``: the coefficients of this step as 0-d arrays, in the order that ``coefficients`` returns,
* ``work``: two more blocks, which the formula may overwrite.

All blocks have one shape and dtype. ``coefficients(h, lr, step)`` runs on the host in float64, once
per step: ``h`` are the hyperparameters, ``lr`` is the learning rate of this step, and ``step`` its
number, from 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from gpubackprop.formulas.registry import FINDERS, Entry, lookup

Array = np.ndarray
Blocks = tuple[np.ndarray, ...]
Hyperparameters = Mapping[str, float]


@dataclass(frozen=True)
class Update(Entry):
    """One optimizer's mathematics.

    Parameters
    ----------
    name : str
        Name in the registry, and of the CUDA struct.
    slots : tuple of str
        Names of the state arrays, each as large as the parameters.
    hyperparameters : mapping
        Their names and default values, without the learning rate.
    coefficients : callable
        ``coefficients(h, lr, step)`` returns the coefficients of a step; see the module's
        docstring.
    apply : callable
        In-place block formula ``apply(p, g, slots, c, work)``; see the module's docstring.
    decay : {"coupled", "decoupled"}
        How ``weight_decay`` enters. "coupled" adds weight_decay * p to the gradient (L2);
        "decoupled" first scales p by 1 - lr * weight_decay (Loshchilov & Hutter 2019).
    initial : str
        The hyperparameter that gives the slots' first value; "" if that is 0.

    Examples
    --------
    >>> rmsprop = update("rmsprop")
    >>> rmsprop.slots, dict(rmsprop.hyperparameters)
    (('square',), {'alpha': 0.99, 'eps': 1e-08})
    """

    name: str
    slots: tuple[str, ...]
    hyperparameters: Hyperparameters
    coefficients: Callable[[Hyperparameters, float, float], tuple[float, ...]]
    apply: Callable[[Array, Array, Blocks, Blocks, Blocks], None]
    decay: Literal["coupled", "decoupled"] = "coupled"
    initial: str = field(default="")

    def __repr__(self) -> str:
        return f"Update({self.name!r})"

    def __str__(self) -> str:
        return self.name


def _gradient_descent_coefficients(h: Hyperparameters, lr: float, step: float) -> tuple[float, ...]:
    return (lr,)


def gradient_descent(p: Array, g: Array, slots: Blocks, c: Blocks, work: Blocks) -> None:
    """p <- p - lr g (Cauchy 1847): the lecture's step."""
    np.multiply(g, c[0], work[0])
    np.subtract(p, work[0], p)


def _sgd_coefficients(h: Hyperparameters, lr: float, step: float) -> tuple[float, ...]:
    fresh = 1.0 if step == 1 else 1.0 - h["dampening"]
    return lr, h["momentum"], fresh


def sgd(p: Array, g: Array, slots: Blocks, c: Blocks, work: Blocks) -> None:
    """PyTorch's momentum: v <- mu v + (1 - dampening) g; p <- p - lr v (first step: v = g)."""
    (v,) = slots
    lr, momentum, fresh = c
    np.multiply(v, momentum, v)
    np.multiply(g, fresh, work[0])
    np.add(v, work[0], v)
    np.multiply(v, lr, work[0])
    np.subtract(p, work[0], p)


def sgd_nesterov(p: Array, g: Array, slots: Blocks, c: Blocks, work: Blocks) -> None:
    """PyTorch's Nesterov form: v <- mu v + g; p <- p - lr (g + mu v)."""
    (v,) = slots
    lr, momentum, fresh = c
    np.multiply(v, momentum, v)
    np.multiply(g, fresh, work[0])
    np.add(v, work[0], v)
    np.multiply(v, momentum, work[0])
    np.add(work[0], g, work[0])
    np.multiply(work[0], lr, work[0])
    np.subtract(p, work[0], p)


def _momentum_coefficients(h: Hyperparameters, lr: float, step: float) -> tuple[float, ...]:
    return lr, h["momentum"]


def momentum(p: Array, g: Array, slots: Blocks, c: Blocks, work: Blocks) -> None:
    """Classical momentum (Polyak 1964; scikit-learn): v <- mu v - lr g; p <- p + v."""
    (v,) = slots
    lr, mu = c
    np.multiply(v, mu, v)
    np.multiply(g, lr, work[0])
    np.subtract(v, work[0], v)
    np.add(p, v, p)


def nesterov(p: Array, g: Array, slots: Blocks, c: Blocks, work: Blocks) -> None:
    """Nesterov's momentum (Sutskever et al. 2013; scikit-learn): p <- p + mu v - lr g."""
    (v,) = slots
    lr, mu = c
    np.multiply(g, lr, work[0])
    np.multiply(v, mu, v)
    np.subtract(v, work[0], v)
    np.multiply(v, mu, work[1])
    np.subtract(work[1], work[0], work[1])
    np.add(p, work[1], p)


def _adam_moments(g: Array, slots: Blocks, c: Blocks, work: Array) -> None:
    """m <- beta1 m + (1 - beta1) g; v <- beta2 v + (1 - beta2) g^2."""
    m, v = slots[:2]
    np.multiply(m, c[0], m)
    np.multiply(g, c[1], work)
    np.add(m, work, m)
    np.multiply(v, c[2], v)
    np.multiply(g, g, work)
    np.multiply(work, c[3], work)
    np.add(v, work, v)


def _adam_coefficients(h: Hyperparameters, lr: float, step: float) -> tuple[float, ...]:
    beta1, beta2 = h["beta1"], h["beta2"]
    correction1 = -math.expm1(step * math.log(beta1)) if beta1 else 1.0  # 1 - beta1^step
    correction2 = -math.expm1(step * math.log(beta2)) if beta2 else 1.0
    root = math.sqrt(correction2)
    return beta1, 1 - beta1, beta2, 1 - beta2, lr * root / correction1, h["eps"] * root, h["eps"]


def adam(p: Array, g: Array, slots: Blocks, c: Blocks, work: Blocks) -> None:
    """Adam with eps added to the corrected root (Kingma & Ba 2015, algorithm 1; PyTorch).

    p <- p - lr mhat / (sqrt(vhat) + eps), computed as
    p - lr sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps sqrt(1 - beta2^t)).
    """
    _adam_moments(g, slots, c, work[0])
    np.sqrt(slots[1], work[0])
    np.add(work[0], c[5], work[0])
    np.divide(slots[0], work[0], work[0])
    np.multiply(work[0], c[4], work[0])
    np.subtract(p, work[0], p)


def adam_amsgrad(p: Array, g: Array, slots: Blocks, c: Blocks, work: Blocks) -> None:
    """Adam with the largest v so far instead of v (Reddi et al. 2018; PyTorch's amsgrad).

    w <- max(w, v); p <- p - lr mhat / (sqrt(w / (1 - beta2^t)) + eps), computed as in `adam`.
    """
    _adam_moments(g, slots, c, work[0])
    np.maximum(slots[2], slots[1], out=slots[2])
    np.sqrt(slots[2], work[0])
    np.add(work[0], c[5], work[0])
    np.divide(slots[0], work[0], work[0])
    np.multiply(work[0], c[4], work[0])
    np.subtract(p, work[0], p)


def adam_epsilon_hat(p: Array, g: Array, slots: Blocks, c: Blocks, work: Blocks) -> None:
    """Adam with eps added to the uncorrected root (Kingma & Ba 2015, section 2; scikit-learn).

    p <- p - lr sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps); the paper calls this eps
    "epsilon hat".
    """
    _adam_moments(g, slots, c, work[0])
    np.sqrt(slots[1], work[0])
    np.add(work[0], c[6], work[0])
    np.divide(slots[0], work[0], work[0])
    np.multiply(work[0], c[4], work[0])
    np.subtract(p, work[0], p)


def _rmsprop_coefficients(h: Hyperparameters, lr: float, step: float) -> tuple[float, ...]:
    return lr, h["alpha"], 1 - h["alpha"], h["eps"]


def rmsprop(p: Array, g: Array, slots: Blocks, c: Blocks, work: Blocks) -> None:
    """s <- alpha s + (1 - alpha) g^2; p <- p - lr g / (sqrt(s) + eps) (Tieleman & Hinton 2012)."""
    (s,) = slots
    lr, alpha, fresh, eps = c
    np.multiply(s, alpha, s)
    np.multiply(g, g, work[0])
    np.multiply(work[0], fresh, work[0])
    np.add(s, work[0], s)
    _scaled_step(p, g, s, (lr, eps), work[0])


def _scaled_step(p: Array, g: Array, s: Array, c: Blocks, work: Array) -> None:
    """p <- p - lr g / (sqrt(s) + eps)."""
    lr, eps = c
    np.sqrt(s, work)
    np.add(work, eps, work)
    np.divide(g, work, work)
    np.multiply(work, lr, work)
    np.subtract(p, work, p)


def _adagrad_coefficients(h: Hyperparameters, lr: float, step: float) -> tuple[float, ...]:
    return lr / (1 + (step - 1) * h["lr_decay"]), h["eps"]


def adagrad(p: Array, g: Array, slots: Blocks, c: Blocks, work: Blocks) -> None:
    """s <- s + g^2; p <- p - lr g / (sqrt(s) + eps) (Duchi et al. 2011)."""
    (s,) = slots
    np.multiply(g, g, work[0])
    np.add(s, work[0], s)
    _scaled_step(p, g, s, c, work[0])


def _lion_coefficients(h: Hyperparameters, lr: float, step: float) -> tuple[float, ...]:
    return lr, h["beta1"], 1 - h["beta1"], h["beta2"], 1 - h["beta2"]


def lion(p: Array, g: Array, slots: Blocks, c: Blocks, work: Blocks) -> None:
    """p <- p - lr sign(beta1 m + (1 - beta1) g); m <- beta2 m + (1 - beta2) g.

    Source: Chen et al. 2023.
    """
    (m,) = slots
    lr, beta1, fresh1, beta2, fresh2 = c
    np.multiply(m, beta1, work[0])
    np.multiply(g, fresh1, work[1])
    np.add(work[0], work[1], work[0])
    np.sign(work[0], work[0])
    np.multiply(work[0], lr, work[0])
    np.subtract(p, work[0], p)
    np.multiply(m, beta2, m)
    np.multiply(g, fresh2, work[1])
    np.add(m, work[1], m)


def _adamax_coefficients(h: Hyperparameters, lr: float, step: float) -> tuple[float, ...]:
    beta1 = h["beta1"]
    correction = -math.expm1(step * math.log(beta1)) if beta1 else 1.0  # 1 - beta1^step
    return beta1, 1 - beta1, h["beta2"], h["eps"], lr / correction


def adamax(p: Array, g: Array, slots: Blocks, c: Blocks, work: Blocks) -> None:
    """Adam scaled by the largest recent gradient (Kingma & Ba 2015, section 7; PyTorch).

    m <- beta1 m + (1 - beta1) g; u <- max(beta2 u, |g| + eps); p <- p - lr / (1 - beta1^t) m / u.
    As in PyTorch, eps keeps u from 0.
    """
    m, u = slots
    beta1, fresh, beta2, eps, lr = c
    np.multiply(m, beta1, m)
    np.multiply(g, fresh, work[0])
    np.add(m, work[0], m)
    np.multiply(u, beta2, u)
    np.abs(g, work[0])
    np.add(work[0], eps, work[0])
    np.maximum(u, work[0], out=u)
    np.divide(m, u, work[0])
    np.multiply(work[0], lr, work[0])
    np.subtract(p, work[0], p)


_SGD = {"momentum": 0.9, "dampening": 0.0}
_MOMENTUM = {"momentum": 0.9}
_ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
_ENTRIES = (
    Update("gradient_descent", (), {}, _gradient_descent_coefficients, gradient_descent),
    Update("sgd", ("velocity",), _SGD, _sgd_coefficients, sgd),
    Update("sgd_nesterov", ("velocity",), _SGD, _sgd_coefficients, sgd_nesterov),
    Update("momentum", ("velocity",), _MOMENTUM, _momentum_coefficients, momentum),
    Update("nesterov", ("velocity",), _MOMENTUM, _momentum_coefficients, nesterov),
    Update("adam", ("m", "v"), _ADAM, _adam_coefficients, adam),
    Update("adam_epsilon_hat", ("m", "v"), _ADAM, _adam_coefficients, adam_epsilon_hat),
    Update("adamw", ("m", "v"), _ADAM, _adam_coefficients, adam, "decoupled"),
    Update(
        "rmsprop", ("square",), {"alpha": 0.99, "eps": 1e-8}, _rmsprop_coefficients, rmsprop
    ),
    Update(
        "adagrad",
        ("sum",),
        {"lr_decay": 0.0, "eps": 1e-10, "initial_accumulator": 0.0},
        _adagrad_coefficients,
        adagrad,
        initial="initial_accumulator",
    ),
    Update(
        "lion", ("m",), {"beta1": 0.9, "beta2": 0.99}, _lion_coefficients, lion, "decoupled"
    ),
    Update("adamax", ("m", "u"), _ADAM, _adamax_coefficients, adamax),
    Update("adam_amsgrad", ("m", "v", "max_v"), _ADAM, _adam_coefficients, adam_amsgrad),
    Update(
        "adamw_amsgrad", ("m", "v", "max_v"), _ADAM, _adam_coefficients, adam_amsgrad, "decoupled"
    ),
)  # fmt: skip
UPDATES: dict[str, Update] = {entry.name: entry for entry in _ENTRIES}


def update(name: str) -> Update:
    """Return the update formula called `name`, as files write it.

    Parameters
    ----------
    name : str
        A name of the registry `UPDATES`.

    Returns
    -------
    Update
        The registry's entry.

    Raises
    ------
    OptionError
        The name is unknown.

    Examples
    --------
    >>> update("adam").slots
    ('m', 'v')
    """
    return lookup(UPDATES, name, "update")


FINDERS[Update] = update
