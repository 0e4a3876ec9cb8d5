"""The functions and classes that `patch` puts in the place of PyTorch's.

They use these kernels, and PyTorch's own function if something is not offered here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)
from torch import Tensor

from gpubackprop.errors import OptionError
from gpubackprop.torch import drop_in, fused, optimizers
from gpubackprop.torch.drop_in import NOT_OFFERED
from gpubackprop.torch.layers import linear_act


class Patched(list[str]):
    """The list of names that `patch` replaced.

    Attributes
    ----------
    left : list of str
        What PyTorch computed nevertheless, with the first error of each kind.
    originals : dict
        PyTorch's functions, by the names that were replaced.
    """

    def __init__(self) -> None:
        super().__init__()
        self.left: list[str] = []
        self.originals: dict[str, Callable[..., Any]] = {}

    def leave(self, place: str, error: Exception) -> None:
        start = f"{place}: left to PyTorch ({type(error).__name__}: "
        if not any(line.startswith(start) for line in self.left):
            self.left.append(f"{start}{error})")

    def __repr__(self) -> str:
        return f"Patched: {self}"

    def __str__(self) -> str:
        lines = [f"replaced {len(self)}:", *(f"  {line}" for line in self)]
        lines += [f"left {len(self.left)}:", *(f"  {line}" for line in self.left)]
        return "\n".join(lines)


report = Patched()  # the report of the contexts that are open, or of the last ones


def _or_original(
    place: str, ours: Callable[..., Any], original: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    try:
        return ours(*args, **kwargs)
    except NOT_OFFERED as error:
        if not torch.compiler.is_compiling():
            report.leave(place, error)
    return original(*args, **kwargs)


def _stand_in(name: str, ours: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(ours)
    def function(*args: Any, **kwargs: Any) -> Any:
        original = drop_in.original(name)
        return _or_original(f"torch.nn.functional.{name}", ours, original, *args, **kwargs)

    drop_in.KNOWN.add(function)
    # torch.jit.script compiles PyTorch's own function instead.
    vars(function)["__prepare_scriptable__"] = lambda: drop_in.ORIGINALS[name]
    return function


cross_entropy = _stand_in("cross_entropy", drop_in.cross_entropy)
linear_cross_entropy = _stand_in("linear_cross_entropy", drop_in.linear_cross_entropy)


def linear_forward(self: torch.nn.Linear, input: Tensor) -> Tensor:
    """Take the place of `forward` of `torch.nn.Linear`."""
    if torch.jit.is_scripting():
        return F.linear(input, self.weight, self.bias)
    else:  # TorchScript does not compile this branch
        place = "torch.nn.Linear.forward"
        return _or_original(place, _linear, _LINEAR_FORWARD, self, input)


_LINEAR_FORWARD = torch.nn.Linear.forward
fused.FORWARDS[torch.nn.Linear].add(linear_forward)


def _linear(self: torch.nn.Linear, input: Any) -> Tensor:
    bias = () if self.bias is None else (self.bias,)
    drop_in.refuse(input, self.weight, *bias)
    return linear_act(input, self.weight, self.bias, "identity")


class _AlsoOriginal(type):
    """The class of a stand-in: PyTorch's class, its subclasses and instances count as its own."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls.__dict__.get("_original", ())) or super().__instancecheck__(
            instance
        )

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.__dict__.get("_original", ())) or super().__subclasscheck__(
            subclass
        )


class _StandIn(optimizers._TableOptimizer):
    """An optimizer that changes to PyTorch's own `step`, for good, if something is not offered."""

    _original: type[torch.optim.Optimizer]
    _left = False

    def __getstate__(self) -> dict[str, Any]:
        """Return the state as PyTorch does.

        A copy of an optimizer that has changed to PyTorch's step keeps that step, since its state
        is PyTorch's.
        """
        return super().__getstate__() | ({"_left": True} if self._left else {})

    def _leave(self, error: Exception) -> None:
        if not self._left:
            self._state_of_pytorch()
        self._left = True
        report.leave(f"torch.optim.{self._original.__name__}", error)

    def _refuse(self, groups: list[dict[str, Any]]) -> None:
        try:
            super()._refuse(groups)
        except OptionError as error:
            self._leave(error)

    def _update(self) -> None:
        self._refuse(self.param_groups)
        batches, settings = {}, [] if self._left else self._all_settings()
        if not self._left:
            try:
                batches = self._batches()
            except NOT_OFFERED as error:
                self._leave(error)
        if self._left:
            self._step_of_pytorch()
        else:
            self._launch(batches, settings)

    @torch.inference_mode(False)
    def _state_of_pytorch(self) -> None:
        """Give the state of 16-bit parameters their dtype, as PyTorch does."""
        for p, state in self.state.items():
            for key, value in state.items():
                if key != "step" and isinstance(value, Tensor) and p.itemsize == 2:
                    state[key] = value.to(p.dtype)

    def _step_of_pytorch(self) -> None:
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if scale is not None:
            optimizers.unscale([p for group in self.param_groups for p in group["params"]], scale)
            self.grad_scale = None
        if found_inf is not None:
            self.found_inf = None
            if float(found_inf):
                return
        step: Any = self._original.step
        # The hooks run around this step already, so PyTorch's step is called without them.
        (step.__wrapped__ if getattr(step, "hooked", False) else step)(self)

    def _adopt(self, loaded: dict[str, Any]) -> None:
        self._refuse(self.param_groups)
        if not self._left:
            super()._adopt(loaded)


class SGD(_StandIn, optimizers.SGD, metaclass=_AlsoOriginal):
    """`gpubackprop.torch.SGD`, or PyTorch's."""

    _original = torch.optim.SGD


class Adam(_StandIn, optimizers.Adam, metaclass=_AlsoOriginal):
    """`gpubackprop.torch.Adam`, or PyTorch's."""

    _original = torch.optim.Adam


class AdamW(_StandIn, optimizers.AdamW, metaclass=_AlsoOriginal):
    """`gpubackprop.torch.AdamW`, or PyTorch's."""

    _original = torch.optim.AdamW


# Place, name and replacement. nn.CrossEntropyLoss calls functional.cross_entropy.
PLACES: tuple[tuple[Any, str, Any], ...] = (
    (torch.nn.functional, "cross_entropy", cross_entropy),
    (torch.nn.functional, "linear_cross_entropy", linear_cross_entropy),
    (torch.nn.Linear, "forward", linear_forward),
    (torch.optim, "SGD", SGD),
    (torch.optim, "Adam", Adam),
    (torch.optim, "AdamW", AdamW),
)
