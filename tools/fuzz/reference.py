"""Network, trainer and model written in PyTorch, as a reference that is not fast.

Each layer has one tensor of weights and one of biases. Autograd computes the gradients, and
torch.optim the updates.

Initial parameters come from the network under test: its draws are not tested here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import gpubackprop
from gpubackprop.errors import ShapeError

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "logistic": torch.sigmoid}


class Roundings:
    """Other last bits, as another order of the sums gives them; none if `units` is 0."""

    units = 0.0
    rng = np.random.default_rng(0)

    @classmethod
    def of(cls, size: torch.Tensor) -> torch.Tensor:
        """Draw up to `units` units for each element of `size`, the sum of the terms' magnitudes."""
        drawn = torch.as_tensor(cls.rng.uniform(-1, 1, tuple(size.shape)))
        return (drawn * cls.units * torch.finfo(size.dtype).eps).to(size.dtype) * size


class Product(torch.autograd.Function):
    """x @ W.T, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, W)
        return _product(x, W.T)

    @staticmethod
    def backward(ctx: Any, delta: torch.Tensor) -> Any:
        x, W = ctx.saved_tensors
        return _product(delta, W), _product(delta.T, x)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a @ b + Roundings.of(a.abs() @ b.abs())


class Logits(torch.autograd.Function):
    """The logits of a softmax. Their gradient is p - y; if it is small, p's rounding spoils it."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logits)
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, delta: torch.Tensor) -> Any:
        p = torch.softmax(ctx.saved_tensors[0], 1)
        return delta + Roundings.of(p / len(p))


class Arrays:
    """The arrays of all layers: NumPy views of the tensors' memory; assignments copy."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._tensors = tensors

    def __len__(self) -> int:
        return len(self._tensors)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (tensor.detach().numpy() for tensor in self._tensors)

    def __getitem__(self, layer: Any) -> Any:
        return list(self)[layer]

    def __setitem__(self, layer: Any, values: Any) -> None:
        places, values = list(self)[layer], values if isinstance(layer, slice) else [values]
        places = places if isinstance(places, list) else [places]
        fresh = [np.array(value, place.dtype) for place, value in zip(places, values, strict=True)]
        if any(new.shape != place.shape for new, place in zip(fresh, places, strict=True)):
            raise ShapeError("shapes differ")
        for place, new in zip(places, fresh, strict=True):
            place[...] = new


class Everything:
    """Weights and biases as one object."""

    def __init__(self, network: MLP) -> None:
        self.arrays = [*network.W, *network.b]

    def __setitem__(self, key: Any, value: Any) -> None:
        for array in self.arrays:
            array[key] = value

    def __imul__(self, factor: float) -> Everything:
        for array in self.arrays:
            array *= factor
        return self


class MLP:
    """The part of `gpubackprop.MLP` that the programs use."""

    def __init__(self, widths: Any, activation: str = "relu", **options: Any) -> None:
        drawn = gpubackprop.MLP(widths, activation, **options)
        tensors = [torch.from_numpy(np.array(array)) for array in (*drawn.W, *drawn.b)]
        self.tensors = [tensor.requires_grad_() for tensor in tensors]
        self.activation, self.output, self.dtype = activation, drawn.output, drawn.dtype

    @property
    def W(self) -> Any:
        return Arrays(self.tensors[: len(self.tensors) // 2])

    @W.setter
    def W(self, values: Any) -> None:
        self.W[:] = values

    @property
    def b(self) -> Any:
        return Arrays(self.tensors[len(self.tensors) // 2 :])

    @b.setter
    def b(self, values: Any) -> None:
        self.b[:] = values

    @property
    def parameters(self) -> Any:
        return Everything(self)

    @parameters.setter
    def parameters(self, values: Any) -> None:
        if not isinstance(values, Everything):
            raise ShapeError("no parameters")
        copies = [np.array(array) for array in values.arrays]
        if [copy.shape for copy in copies] != [array.shape for array in Everything(self).arrays]:
            raise ShapeError("shapes differ")
        self.W, self.b = copies[: len(self.W)], copies[len(self.W) :]

    def _logits(self, x: Any) -> torch.Tensor:
        h = torch.as_tensor(np.array(x, self.dtype))
        half = len(self.tensors) // 2
        for layer, (W, b) in enumerate(zip(self.tensors[:half], self.tensors[half:], strict=True)):
            a = (Product.apply(h, W) if Roundings.units else h @ W.T) + b
            h = ACTIVATIONS[self.activation](a) if layer < half - 1 else a
        return h

    def logits(self, x: Any) -> np.ndarray:
        return self._logits(x).detach().numpy()

    def predict(self, x: Any) -> np.ndarray:
        logits = self._logits(x).detach()
        return (torch.softmax(logits, 1) if self.output == "softmax" else logits).numpy()

    def loss(self, x: Any, y: Any) -> torch.Tensor:
        logits = self._logits(x)
        if self.output == "softmax":
            logits = Logits.apply(logits) if Roundings.units else logits
            return torch.nn.functional.cross_entropy(logits, torch.as_tensor(y))
        targets = torch.as_tensor(np.array(y, self.dtype)).reshape(logits.shape)
        return (logits - targets).square().sum(1).mean() / 2

    def gradients(self, x: Any, y: Any) -> tuple[Any, ...]:
        loss = self.loss(x, y)
        grads = torch.autograd.grad(loss, self.tensors)
        arrays = [grad.numpy() for grad in grads]
        return loss.detach().numpy()[()], arrays[: len(self.W)], arrays[len(self.W) :]

    def copy(self) -> MLP:
        return copy.deepcopy(self)

    __copy__ = copy


def optimizer(name: str, tensors: list[torch.Tensor]) -> torch.optim.Optimizer:
    if name == "adam":
        return torch.optim.Adam(tensors, lr=0.05)
    if name == "adamw":
        return torch.optim.AdamW(tensors, lr=0.05, weight_decay=0.1)
    return torch.optim.SGD(tensors, lr=0.05, momentum=0.9 if name == "sgd" else 0.0)


class Trainer:
    """`gpubackprop.Trainer` without shuffling."""

    def __init__(
        self, network: MLP, optimizer_name: str, *, batch_size: int, l2: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:  # fmt: skip
        self.network, self.batch_size, self.l2, self.clip_norm = network, batch_size, l2, clip_norm
        self.optimizer = optimizer(optimizer_name, network.tensors)
        self.losses: list[float] = []

    def fit(self, x: Any, y: Any, *, epochs: int, rows: Any = None) -> None:
        if rows is not None:
            x, y = np.asarray(x)[rows], np.asarray(y)[rows]
        for _ in range(epochs):
            total = 0.0
            for start in range(0, len(x), self.batch_size):
                part = slice(start, start + self.batch_size)
                total += self._step(x[part], y[part]) * len(x[part])
            self.losses.append(total / len(x))

    def _step(self, x: Any, y: Any) -> float:
        self.optimizer.zero_grad()
        weights = self.network.tensors[: len(self.network.W)]
        loss = self.network.loss(x, y) + self.l2 / 2 * sum(W.square().sum() for W in weights)
        loss.backward()
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.network.tensors, self.clip_norm)
        self.optimizer.step()
        return float(loss.detach())
