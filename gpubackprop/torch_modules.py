"""Networks from PyTorch's modules and back: `MLP.from_torch` and `MLP.to_torch`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any, NamedTuple, Self

import numpy as np

from gpubackprop._optional import require
from gpubackprop.errors import OptionError
from gpubackprop.formulas import ACTIVATIONS, Activation
from gpubackprop.ops.checks import no_own_methods

Array = np.ndarray
# Modules of `gpubackprop.torch`, which lies above, by their names.
_OURS = "gpubackprop.torch.layers"


# -- activations ----------------------------------------------------------------------------------


def module_names(nn: Any) -> dict[type, list[Activation]]:
    """Return the entries of the registry that each module of `torch.nn` computes."""
    found: dict[type, list[Activation]] = {}
    for entry in ACTIVATIONS.values():
        if entry.torch:
            found.setdefault(getattr(nn, entry.torch), []).append(entry)
    return found


def name_of(module: Any, names: dict[type, list[Activation]]) -> str | None:
    """Return the activation that a module of PyTorch computes, e.g. "leaky_relu(0.2)".

    None is returned for a module that is no activation, for a subclass, which may compute something
    else, and for an option that the registry does not have.
    """
    for entry in names.get(type(module), ()):
        if any(not _same(getattr(module, key), value) for key, value in entry.torch_options):
            continue
        if not entry.parameter_name:
            return entry.name
        parameter = _number(getattr(module, entry.parameter_name))
        if 0 <= parameter < math.inf:
            return f"{entry.name}({parameter!r})"
    return None


def _same(found: Any, wanted: Any) -> bool:
    return bool(_number(found) == wanted if isinstance(wanted, float) else found == wanted)


def _number(value: Any) -> float:
    """Return a number of Python or NumPy as float; NaN for anything else, such as a tensor."""
    return float(value) if isinstance(value, Real) else math.nan


# -- from a module --------------------------------------------------------------------------------


class Parts(NamedTuple):
    """What a module computes: the layers' parameters, and what stands after each."""

    weights: list[Array]
    biases: list[Array]
    activations: list[str]
    dropout: list[float]
    output: str


class _Reader:
    """Reads a module's children one by one, or raises at the first that has no counterpart."""

    def __init__(self, torch: Any) -> None:
        self.torch, self.names = torch, module_names(torch.nn)
        self.weights: list[Array] = []
        self.biases: list[Array] = []
        self.activations: list[str | None] = []  # None is that there was none yet
        self.dropout: list[float | None] = []
        self.output = ""

    def read(self, path: str, module: Any) -> None:
        nn, kind = self.torch.nn, type(module)
        if self.output:
            raise _refusal(path, module, f"after the output function {self.output}")
        if "forward" in vars(module):
            raise _refusal(path, module, "with a forward of its own")
        if _hooked(module):  # prune and the older weight_norm: weight is as of the last call
            raise OptionError(
                f"{path or 'the module'} is {module}, with hooks that change what it computes; "
                "remove them, or make them permanent (torch.nn.utils.prune.remove, "
                "remove_weight_norm)"
            )
        if kind is nn.Linear or (kind.__module__, kind.__name__) == (_OURS, "Linear"):
            self._linear(module)
        elif (kind.__module__, kind.__name__) == (_OURS, "LinearAct"):
            self._linear(module)
            self.activations[-1] = module.activation
        elif kind is nn.Dropout:
            self._dropout(path, module)
        elif kind is nn.Softmax:
            self._softmax(path, module)
        elif (
            kind is nn.Flatten
            and not self.weights
            and (module.start_dim, module.end_dim) == (1, -1)
        ):
            pass  # rows of numbers are flat
        elif kind is not nn.Identity:
            self._activation(path, module)

    def _linear(self, module: Any) -> None:
        weight = _array(module.weight)
        bias = np.zeros(len(weight), weight.dtype) if module.bias is None else _array(module.bias)
        self.weights.append(weight)
        self.biases.append(bias)
        self.activations.append(None)
        self.dropout.append(None)

    def _dropout(self, path: str, module: Any) -> None:
        if not module.p:
            return
        if not self.weights or self.dropout[-1] is not None:
            raise _refusal(path, module, "before which stand no hidden units")
        self.dropout[-1] = float(module.p)

    def _activation(self, path: str, module: Any) -> None:
        name = name_of(module, self.names)
        if name is None:
            raise _refusal(path, module, "which has no counterpart")
        self._require_linear(path, module)
        self.activations[-1] = name

    def _softmax(self, path: str, module: Any) -> None:
        if module.dim not in (-1, 1):
            raise _refusal(path, module, "which is not over the columns")
        self._require_linear(path, module)
        self.output = "softmax"

    def _require_linear(self, path: str, module: Any) -> None:
        if not self.weights or self.activations[-1] is not None or self.dropout[-1] is not None:
            raise _refusal(path, module, "which does not follow a Linear")

    def parts(self) -> Parts:
        """Return what was read; a Sigmoid at the end is the output function."""
        if not self.weights:
            raise OptionError("the module has no Linear; a network wants at least one")
        output = self.output or "linear"
        last = self.activations.pop()
        if last is not None:
            if last != "logistic":
                raise OptionError(
                    f"the module ends with the activation {last}; a network ends with a Linear, or "
                    "with Softmax or Sigmoid behind it"
                )
            output = "logistic"
        if self.dropout.pop() is not None:
            raise OptionError("the module drops output units; a network drops only hidden ones")
        names = [name or "identity" for name in self.activations]
        rates = [rate or 0.0 for rate in self.dropout]
        return Parts(self.weights, self.biases, names, rates, output)


def _refusal(path: str, module: Any, why: str) -> OptionError:
    return OptionError(
        f"{path or 'the module'} is {module}, {why}; known are Linear, Dropout, Flatten, Identity, "
        f"{', '.join(sorted({entry.torch for entry in ACTIVATIONS.values() if entry.torch}))} in a "
        "Sequential, and Softmax or Sigmoid at its end"
    )


def _array(tensor: Any) -> Array:
    """Return a parameter on the host, in float32 or float64."""
    tensor = tensor.detach().cpu()
    wide: Array = (tensor if tensor.itemsize in (4, 8) else tensor.float()).numpy()
    return wide.copy()


def _children(module: Any, nn: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the modules of a Sequential in order, with their names; those of nested ones too."""
    kind = getattr(type(module), "_exchanged_from", type(module))  # of `gpubackprop.torch.convert`
    plain = isinstance(module, nn.Sequential) and kind.forward is nn.Sequential.forward
    if not plain or "forward" in vars(module) or _hooked(module):
        yield path, module
        return
    for name, child in module._modules.items():  # named_children leaves out what is there twice
        if child is not None:
            yield from _children(child, nn, f"{path}.{name}" if path else name)


def _hooked(module: Any) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def read_module(module: Any) -> Parts:
    """Return what a Sequential, or a Linear, computes; OptionError names what is not known."""
    torch = require("torch", "torch", "make a network of a PyTorch module")
    if not isinstance(module, torch.nn.Module):
        raise OptionError(f"module is a {type(module).__name__} but must be a torch.nn.Module")
    reader = _Reader(torch)
    for path, child in _children(module, torch.nn):
        reader.read(path, child)
    return reader.parts()


# -- to a module ----------------------------------------------------------------------------------


def write_module(
    weights: Sequence[Array],
    biases: Sequence[Array],
    activations: Sequence[Activation],
    dropout: Sequence[float],
    output: str,
) -> Any:
    """Return a torch.nn.Sequential of these layers, in eval mode, with copies of the arrays."""
    torch = require("torch", "torch", "make a PyTorch module of a network")
    nn, modules = torch.nn, []
    for layer, (W, b) in enumerate(zip(weights, biases, strict=True)):
        linear = nn.utils.skip_init(nn.Linear, W.shape[1], W.shape[0])
        linear.weight = nn.Parameter(torch.from_numpy(np.array(W)))
        linear.bias = nn.Parameter(torch.from_numpy(np.array(b)))
        modules.append(linear)
        if layer < len(activations):
            modules += _module(nn, activations[layer])
            modules += [nn.Dropout(dropout[layer])] if dropout[layer] else []
    if output == "softmax":
        modules.append(nn.Softmax(dim=-1))
    elif output == "logistic":
        modules.append(nn.Sigmoid())
    elif output != "linear":
        raise OptionError(
            f"PyTorch has no module for the output function {output!r}; pass logits=True and apply "
            "it to the result"
        )
    return nn.Sequential(*modules).eval()


def _module(nn: Any, act: Activation) -> list[Any]:
    if not act.torch:
        raise OptionError(f"the activation {act.name!r} has no module in torch.nn")
    options = dict(act.torch_options)
    if act.parameter_name:
        options[act.parameter_name] = act.parameter
    return [] if act.name == "identity" else [getattr(nn, act.torch)(**options)]


class TorchModules:
    """The conversions of `MLP`, a base of it."""

    @classmethod
    def from_torch(
        cls, module: Any, *, output: str | None = None, device: str = "cpu", **options: Any
    ) -> Self:
        """Make a network of a PyTorch module, with a copy of its parameters.

        Parameters
        ----------
        module : torch.nn.Sequential or torch.nn.Linear
            Linear layers, activations, and Dropout of hidden units; also what
            `gpubackprop.torch.convert` has changed. A Linear without bias gets one that is 0. A
            training of the network changes all parameters; a warning names those that are frozen
            beside others in the module.
        output : {"softmax", "linear", "logistic", "exp"} or None
            The output function. None is "softmax" or "logistic" if the module ends with Softmax or
            Sigmoid, else "linear". A module that was trained with CrossEntropyLoss ends with a
            Linear: its output function is "softmax".
        device : str
            Where the network lies, as for `MLP`.
        **options : Any
            Further options of `MLP`, such as `precision`.

        Returns
        -------
        MLP
            The network, in float64 if a parameter is, else in float32.

        Raises
        ------
        OptionError
            A module has no counterpart (it is named), or `output` contradicts the module's end.
        MissingDependencyError
            PyTorch is not installed.

        Examples
        --------
        >>> from torch import nn
        >>> from gpubackprop import MLP
        >>> MLP.from_torch(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)))
        MLP([4, 8, 3], activation='gelu', output='linear', dtype='float32')
        """
        parts = read_module(module)
        frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
        if frozen and len(frozen) < len(list(module.parameters())):
            warnings.warn(
                f"{', '.join(frozen)} of the module require no gradient, but a training of the "
                "network changes all parameters",
                stacklevel=2,
            )
        if parts.output != "linear" and output not in (None, parts.output):
            raise OptionError(
                f"output={output!r} was asked for but the module ends with {parts.output}; leave "
                "output out"
            )
        widths = [parts.weights[0].shape[1], *(len(W) for W in parts.weights)]
        dtype = np.result_type(*parts.weights, *parts.biases).name
        network: Any = cls(
            widths, parts.activations, output=output or parts.output, initializer="zeros",
            dtype=dtype, device=device, dropout=parts.dropout, **options,
        )  # type: ignore[call-arg]  # fmt: skip
        network.W, network.b = parts.weights, parts.biases
        return network

    def to_torch(self, *, logits: bool = False) -> Any:
        """Make a PyTorch module of the network, with a copy of its parameters.

        Parameters
        ----------
        logits : bool
            Whether to leave the output function out, as `torch.nn.CrossEntropyLoss` and
            `BCEWithLogitsLoss` want it.

        Returns
        -------
        torch.nn.Sequential
            Linear, activation and Dropout of each hidden layer, a Linear, and Softmax or Sigmoid.
            It lies on the CPU and is in eval mode: dropout begins with ``module.train()``.

        Raises
        ------
        OptionError
            PyTorch has no module for an activation, or for the output function; or the network is
            of a class with a `predict` or `logits` of its own.
        MissingDependencyError
            PyTorch is not installed.

        Examples
        --------
        >>> from gpubackprop import MLP
        >>> MLP([4, 8, 3]).to_torch(logits=True)
        Sequential(
          (0): Linear(in_features=4, out_features=8, bias=True)
          (1): ReLU()
          (2): Linear(in_features=8, out_features=3, bias=True)
        )
        """
        network: Any = self
        no_own_methods(network, ("predict", "logits"), "the module would not have")
        W, b = ([network.backend.to_host(a) for a in arrays] for arrays in (network.W, network.b))
        output = "linear" if logits else network.output
        return write_module(W, b, network.activations, network.dropout, output)
