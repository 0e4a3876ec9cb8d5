"""A Sequential that runs Linear and activation in one pass, and whose modules stay PyTorch's.

`convert` gives a Sequential another class and does not touch its children. Other tools may change
the children afterwards (adapters, pruning, parametrizations, quantization, hooks, export,
exchanged modules). Therefore each call looks at them: whatever is not exactly a Linear followed by
an activation is called as PyTorch calls it.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from gpubackprop.formulas import activation
from gpubackprop.torch import bridge, offered
from gpubackprop.torch.activations import MODULES, name_of
from gpubackprop.torch.layers import AUTOCAST_DTYPES, linear_act

_LINEAR, _CALL = F.linear, nn.Module.__call__
# Forward functions that compute what PyTorch's do; `patch` adds its own.
FORWARDS: dict[type, set[Any]] = {kind: {kind.forward} for kind in (nn.Linear, *MODULES)}
# Modules whose output may be their input, as a view or, in eval mode, itself.
_HANDS_ON = (
    nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
    nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
# Modules that only read their input, unless they have a true `inplace`, and give a new output.
_READS = (
    nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d,
    nn.BatchNorm2d, nn.BatchNorm3d, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Softmax, nn.LogSoftmax,
    *MODULES,
)  # fmt: skip


class Exchanged:
    """A base of the classes that `convert` gives to modules; `_exchanged_from` is the former class.

    The class has the former class's name, and copies and pickles name the former class: they are
    exchanged too, in the process that makes them.
    """

    _exchanged_from: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = object.__reduce_ex__(self, protocol)
        _, _, *rest = reduced
        return blank, (type(self)._exchanged_from,), *rest


def blank(original: type[nn.Module]) -> nn.Module:
    kind: Any = exchanged_class(original)
    made: nn.Module = kind.__new__(kind)
    return made


class _Fused(Exchanged, nn.Sequential):
    """`forward` of a Sequential that runs each Linear and the activation after it in one pass."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            for module in self:
                input = module(input)
            return input
        else:  # TorchScript does not compile this branch
            return _run(self, input)


def exchanged_class(original: type[nn.Module]) -> type[nn.Module]:
    """Return the class that takes the place of `original`: a Sequential, or one of `EXCHANGES`.

    It raises TypeError if no class can be derived from `original`.
    """
    if original not in EXCHANGES:
        EXCHANGES[original] = named_like(original, _Fused, original)
    return EXCHANGES[original]


EXCHANGES: dict[type[nn.Module], type[nn.Module]] = {}


def named_like(original: type[nn.Module], *bases: type) -> type[nn.Module]:
    """Return a class of `bases` under the name of `original`, for programs that go by names."""
    names = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    return types.new_class(
        original.__name__, bases, exec_body=lambda own: own.update(names, _exchanged_from=original)
    )


def is_plain(sequence: nn.Module) -> bool:
    """Return whether it computes what `nn.Sequential` does: its children, one after the other."""
    forwards = nn.Sequential.forward, _Fused.forward
    return type(sequence).forward in forwards and "forward" not in sequence.__dict__


def _run(sequence: Any, input: Any) -> Any:
    if offered.refusal_now() or _watched():
        return nn.Sequential.forward(sequence, input)
    modules, number = list(sequence), 0
    while number < len(modules):
        linear = modules[number]
        if not refusal(modules, number) and _takes(linear, input, modules[number + 1]):
            name = name_of(modules[number + 1])
            input = linear_act(input, linear.weight, linear.bias, name or "identity")
            number += 2
        else:
            input = linear(input)
            number += 1
    return input


def _watched() -> bool:
    """Return whether hooks watch all modules, or a program has replaced what they call."""
    if torch.compiler.is_compiling():
        return bool(_has_any_global_hook())
    replaced = F.linear is not _LINEAR or nn.Module.__call__ is not _CALL
    return replaced or bool(_has_any_global_hook())


def refusal(modules: Sequence[nn.Module], number: int) -> str:
    """Say why the module `number` and the next one are not run in one pass; "" if they are."""
    linear = modules[number]
    if type(linear) is not nn.Linear:
        return "a subclass, whose forward may differ"
    act = modules[number + 1] if number + 1 < len(modules) else None
    if act is None or type(act) not in MODULES:
        return "no activation follows it in a Sequential"
    name = name_of(act)
    if name is None:
        return f"{act} is not offered"
    for module in (linear, act):
        if not _untouched(module):
            return "has hooks" if module is linear else f"the {type(act).__name__} has hooks"
    if _keeps_what_pytorch_does_not(act, name) and _may_change(modules[number + 2 :]):
        return f"what comes after the {type(act).__name__} may change its value in place"
    return ""


def _untouched(module: nn.Module) -> bool:
    """Return whether a call does what the class says and nothing more."""
    hooks = (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        or module._backward_pre_hooks
    )  # fmt: skip
    own = module.__dict__
    if hooks or "forward" in own or own.get("_compiled_call_impl") is not None:
        return False
    return type(module).forward in FORWARDS[type(module)]


def _keeps_what_pytorch_does_not(act: nn.Module, name: str) -> bool:
    """Return whether the value is kept for the backward pass, where PyTorch keeps a.

    A program may change the value in place.
    """
    keeps_a = isinstance(act, (nn.LeakyReLU, nn.ELU, nn.Softplus))
    return keeps_a and not getattr(act, "inplace", False) and activation(name).saved == "h"


def _may_change(modules: Sequence[nn.Module]) -> bool:
    """Return whether the value that goes into `modules` may be changed in place.

    The first module that computes something may do so, or the program, if the value leaves them.
    """
    for module in _leaves(modules):
        if type(module) in _HANDS_ON and not getattr(module, "inplace", False):
            if _hooked(module):
                return True
            continue
        reads = type(module) in _READS and not getattr(module, "inplace", False)
        return not reads or _hooked(module)
    return True


def _leaves(modules: Sequence[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        if isinstance(module, nn.Sequential) and is_plain(module) and not _hooked(module):
            yield from _leaves(list(module))
        else:
            yield module


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def _takes(linear: nn.Linear, input: Any, act: nn.Module) -> bool:
    """Return whether `linear_act` computes the same as the two modules.

    If not, the modules compute it, or raise PyTorch's own error.
    """
    tensors = [input, linear.weight, *([] if linear.bias is None else [linear.bias])]
    if any(offered.refusal(tensor) for tensor in tensors):
        return False
    weight, bias, dtypes = linear.weight, linear.bias, {tensor.dtype for tensor in tensors}
    if any(tensor.device != weight.device for tensor in tensors) or weight.dim() != 2:
        return False
    if not input.dim() or input.shape[-1] != weight.shape[1]:
        return False
    if bias is not None and bias.shape != weight.shape[:1]:
        return False
    if torch.is_autocast_enabled(weight.device.type) and dtypes <= set(AUTOCAST_DTYPES):
        return not isinstance(act, nn.Softplus)  # under autocast PyTorch computes it in float32
    return len(dtypes) == 1 and weight.dtype in bridge.FLOATS


def parameters_refusal(linear: nn.Module) -> str:
    """Say why its parameters will not be read, whatever the input; "" if they may be."""
    for name, tensor in linear._parameters.items():
        if isinstance(tensor, Tensor) and tensor.device.type != "meta":
            why = offered.refusal(tensor)
            if not why and tensor.dtype not in bridge.FLOATS:
                why = f"it is of {tensor.dtype}"
            if why:
                return f"{name}: {why}"
    return ""
