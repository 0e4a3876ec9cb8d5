"""Affine layers with bias, activation and bias gradient fused."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)
from torch import Tensor

from gpubackprop.errors import DtypeError, ShapeError
from gpubackprop.formulas import activation
from gpubackprop.torch import bridge
from gpubackprop.torch.activations import FORMULAS
from gpubackprop.torch.layer_ops import linear_act as _linear_act


@torch.fx.wrap  # one node of a traced graph, as nn.Linear is
def linear_act(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, activation_name: str = "relu"
) -> Tensor:
    """h = g(input weight^T + bias), bias and activation in one pass over the product.

    The backward pass computes delta = dL/dh * g' and the bias gradient in one pass too.

    Parameters
    ----------
    input : (..., D_in); weight : (D_out, D_in); bias : (D_out,) or None: float64, float32, float16
        or bfloat16, all of one dtype (under autocast they are converted, as by PyTorch's linear).
    activation_name : entry of the activation registry, e.g. "identity", "gelu", "leaky_relu(0.2)".

    Returns
    -------
    (..., D_out), dtype of the input.

    Raises
    ------
    ShapeError, DtypeError, OptionError, DeviceUnavailable

    >>> linear_act(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([-5.0]))
    tensor([[0.]])
    """
    formula = activation(activation_name)
    _check(input, weight, bias)
    input, weight, bias = autocast(input, weight, bias)
    check_types("weight", input, weight, bias)
    if bridge.transformed():
        value, _ = FORMULAS[formula.name]
        return value(F.linear(input, weight, bias), formula.parameter)
    flat = input.reshape(input.shape[:-1].numel(), input.shape[-1])
    h, _ = _linear_act(flat, weight, bias, str(formula))
    return h.reshape(*input.shape[:-1], weight.shape[0])


def autocast(
    input: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operands of a layer in the type that autocast asks for; float64 and integers stay, as in
    PyTorch."""
    kind, narrowed = input.device.type, (torch.float32, torch.float16, torch.bfloat16)
    dtypes = [tensor.dtype for tensor in (input, weight, bias) if tensor is not None]
    if not torch.is_autocast_enabled(kind) or any(dtype not in narrowed for dtype in dtypes):
        return input, weight, bias
    narrow = torch.get_autocast_dtype(kind)
    return input.to(narrow), weight.to(narrow), None if bias is None else bias.to(narrow)


def _check(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    bridge.same_device("input", input, weight=weight, bias=bias)
    if weight.dim() != 2 or not input.dim() or input.shape[-1] != weight.shape[1]:
        raise ShapeError(
            f"input has shape {tuple(input.shape)} but a weight of {tuple(weight.shape)} wants "
            f"(..., {weight.shape[-1]}) and must be (D_out, D_in)"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"bias has shape {tuple(bias.shape)}, wanted ({weight.shape[0]},)")


def check_types(name: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """DtypeError where a layer's operands, its weight being `name`, are not of one float type."""
    dtypes = {tensor.dtype for tensor in (input, weight, bias) if tensor is not None}
    if len(dtypes) > 1 or input.dtype not in bridge.FLOATS:
        raise DtypeError(
            f"input, {name} and bias have dtypes {sorted(map(str, dtypes))} but must be of one "
            f"float type; convert with .to({name}.dtype)"
        )


class LinearAct(torch.nn.Linear):
    """An affine layer and its activation, `linear_act`, with the parameters of `torch.nn.Linear`.

    Parameters
    ----------
    in_features, out_features, bias, device, dtype : as `torch.nn.Linear`.
    activation : entry of the activation registry, e.g. "relu", "gelu", "leaky_relu(0.2)".

    >>> layer = LinearAct(784, 512, "gelu")
    >>> layer(torch.zeros(3, 784)).shape
    torch.Size([3, 512])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str = "relu",
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.activation = _canonical(activation)

    @classmethod
    def over(cls, linear: torch.nn.Linear, activation: str = "identity") -> LinearAct:
        """A layer over the very Parameters of `linear`."""
        layer = cls.__new__(cls)
        torch.nn.Module.__init__(layer)
        layer.in_features, layer.out_features = linear.in_features, linear.out_features
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.activation = _canonical(activation)
        return layer.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return linear_act(input, self.weight, self.bias, self.activation)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation!r}"


class Linear(LinearAct):
    """`torch.nn.Linear`, whose bias gradient is summed in a fixed order.

    Parameters: as `torch.nn.Linear`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, "identity", bias, device, dtype)

    def extra_repr(self) -> str:
        return torch.nn.Linear.extra_repr(self)


def _canonical(name: str) -> str:
    """`name` as the registry writes it; OptionError for an unknown one."""
    return str(activation(name))
