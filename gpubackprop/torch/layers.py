"""Affine layers: bias, activation and bias gradient are fused."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)
from torch import Tensor

from gpubackprop.formulas import Activation, activation
from gpubackprop.torch import bridge
from gpubackprop.torch.activations import FORMULAS
from gpubackprop.torch.affine import affine
from gpubackprop.torch.errors import DtypeError, OptionError, ShapeError, check_tensors
from gpubackprop.torch.layer_ops import linear_act as _linear_act
from gpubackprop.torch.offered import exporting


@torch.fx.wrap  # it becomes one node of a traced graph, as nn.Linear does
def linear_act(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, activation_name: str = "relu"
) -> Tensor:
    """Compute h = g(input weight^T + bias); bias and activation take one pass over the product.

    The backward pass computes delta = dL/dh * g' and the bias gradient in one pass too.

    Parameters
    ----------
    input : (..., D_in) tensor
        Dtype float64, float32, float16 or bfloat16. All tensors have one dtype; under autocast they
        are converted, as by PyTorch's linear.
    weight : (D_out, D_in) tensor
        Weights.
    bias : (D_out,) tensor or None
        Biases.
    activation_name : str
        Entry of the activation registry, e.g. "identity", "gelu", "leaky_relu(0.2)".

    Returns
    -------
    (..., D_out) tensor
        The hidden units h, in the dtype of the input.

    Raises
    ------
    ShapeError
        The shapes do not fit each other.
    DtypeError
        The tensors are not of one float dtype.
    OptionError
        The activation is unknown.
    DeviceUnavailable
        The tensors lie on several devices, or neither on the CPU nor on a CUDA device.

    Examples
    --------
    >>> linear_act(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([-5.0]))
    tensor([[0.]])
    """
    formula = activation(activation_name)
    check_tensors(
        "linear_act", input=input, weight=weight, **({} if bias is None else {"bias": bias})
    )
    _check(input, weight, bias)
    input, weight, bias = autocast(input, weight, bias)
    check_types("weight", input, weight, bias)
    if bridge.transformed() or exporting():
        return _composed(formula, input, weight, bias)
    # Autograd saves a leaf by reference to its `.data`, which `module.to` replaces; a view is safe.
    h, _ = _linear_act(input, weight.view_as(weight), bias, str(formula))
    return h


def _composed(formula: Activation, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute the same in PyTorch's operators.

    Under a transform they would add the bias to the product after it was rounded to 16 bits. There
    the bias is added in float32 and the sum is rounded once.
    """
    if bias is None or input.itemsize != 2 or exporting():
        a = F.linear(input, weight, bias)
    else:
        a = affine(input, weight, bias).to(input.dtype)
    return FORMULAS[formula.name](a, formula.parameter)


AUTOCAST_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # autocast converts these


def autocast(
    input: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the operands of a layer in the dtype that autocast asks for.

    float64 and integers stay, as in PyTorch.
    """
    kind = input.device.type
    dtypes = [tensor.dtype for tensor in (input, weight, bias) if tensor is not None]
    if not torch.is_autocast_enabled(kind) or any(dtype not in AUTOCAST_DTYPES for dtype in dtypes):
        return input, weight, bias
    low = torch.get_autocast_dtype(kind)
    return input.to(low), weight.to(low), None if bias is None else bias.to(low)


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
    """Raise DtypeError if a layer's operands are not of one float dtype; its weight is `name`."""
    dtypes = {tensor.dtype for tensor in (input, weight, bias) if tensor is not None}
    if len(dtypes) > 1 or input.dtype not in bridge.FLOATS:
        raise DtypeError(
            f"input, {name} and bias have dtypes {sorted(map(str, dtypes))} but must be of one "
            f"float type; convert with .to({name}.dtype)"
        )


class LinearAct(torch.nn.Module):
    """An affine layer and its activation, `linear_act`, with the parameters of `torch.nn.Linear`.

    It does not derive from `torch.nn.Linear`: tools that take such a layer for an affine map
    (adapters, quantization, fusing) would lose the activation.

    Parameters
    ----------
    in_features : int
        Number of inputs D_in.
    out_features : int
        Number of outputs D_out.
    activation : str
        Entry of the activation registry, e.g. "relu", "gelu", "leaky_relu(0.2)".
    bias : bool
        Whether the layer has biases.
    device : device or None
        Where the parameters lie, as for `torch.nn.Linear`.
    dtype : dtype or None
        Dtype of the parameters, as for `torch.nn.Linear`.

    Raises
    ------
    OptionError
        The activation is unknown.

    Examples
    --------
    >>> layer = LinearAct(784, 512, "gelu")
    >>> layer(torch.zeros(3, 784)).shape
    torch.Size([3, 512])
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str = "relu",
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        affine = torch.nn.Linear(in_features, out_features, bias, device, dtype)
        self.in_features, self.out_features = in_features, out_features
        self.register_parameter("weight", affine.weight)
        self.register_parameter("bias", affine.bias)
        self.activation = _canonical(activation)

    def reset_parameters(self) -> None:
        """Draw the parameters anew, as `torch.nn.Linear` does."""
        torch.nn.Linear.reset_parameters(self)

    def forward(self, input: Tensor) -> Tensor:
        """Compute the layer's outputs.

        Parameters
        ----------
        input : (..., in_features) tensor
            Inputs.

        Returns
        -------
        (..., out_features) tensor
            Outputs.
        """
        return linear_act(input, self.weight, self.bias, self.activation)

    def __prepare_scriptable__(self) -> torch.nn.Module:
        """Refuse torch.jit.script, whose own error names no reason."""
        raise OptionError(
            "torch.jit.script does not compile LinearAct; use torch.export or torch.jit.trace, or "
            "torch.nn.Linear and an activation in a torch.nn.Sequential that is given to convert"
        )

    def extra_repr(self) -> str:
        """Return the layer's sizes and activation, for its repr.

        Returns
        -------
        str
            The text between the parentheses.
        """
        affine = torch.nn.Linear.extra_repr(self)
        return f"{affine}, activation={self.activation!r}"


class Linear(torch.nn.Linear):
    """`torch.nn.Linear`, whose bias gradient is summed in a fixed order.

    Parameters
    ----------
    in_features : int
        Number of inputs D_in.
    out_features : int
        Number of outputs D_out.
    bias : bool
        Whether the layer has biases.
    device : device or None
        Where the parameters lie.
    dtype : dtype or None
        Dtype of the parameters.

    Examples
    --------
    >>> layer = Linear(3, 2)
    >>> layer(torch.zeros(5, 3)).shape, isinstance(layer, torch.nn.Linear)
    (torch.Size([5, 2]), True)
    """

    def forward(self, input: Tensor) -> Tensor:
        """Compute the layer's outputs.

        Parameters
        ----------
        input : (..., in_features) tensor
            Inputs.

        Returns
        -------
        (..., out_features) tensor
            Outputs.
        """
        if torch.jit.is_scripting():
            return F.linear(input, self.weight, self.bias)
        else:  # TorchScript does not compile this branch
            return linear_act(input, self.weight, self.bias, "identity")


def _canonical(name: str) -> str:
    """Return `name` as the registry writes it; raise OptionError for an unknown one."""
    return str(activation(name))
