"""`convert`: modules of PyTorch exchanged for those of this package, over the same Parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from torch import nn

from gpubackprop.torch.activations import name_of
from gpubackprop.torch.cross_entropy import CrossEntropyLoss
from gpubackprop.torch.layers import Linear, LinearAct


@dataclass
class Conversion:
    """What `convert` did.

    Attributes
    ----------
    module : the converted module; the one given, except where that itself was exchanged.
    replaced : what was exchanged, by the module's name: "0: Linear and 1: ReLU -> LinearAct".
    left : modules with parameters or losses that stayed, and activations that were not fused for
        what comes after them, with the reason.
    """

    module: nn.Module
    replaced: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Conversion of {type(self.module).__name__}: {self}"

    def __str__(self) -> str:
        lines = [f"replaced {len(self.replaced)}:", *(f"  {line}" for line in self.replaced)]
        lines += [f"left {len(self.left)}:", *(f"  {line}" for line in self.left)]
        return "\n".join(lines)


def convert(module: nn.Module) -> Conversion:
    """Exchange what can be exchanged in `module`, in place, and report what was left.

    `torch.nn.Linear` becomes `Linear`; followed by an activation in a Sequential it becomes
    `LinearAct`, and the activation an Identity, so that names and state_dict stay;
    `torch.nn.CrossEntropyLoss` becomes `CrossEntropyLoss`. The Parameters are the same objects: an
    optimizer made before keeps working; attributes go along. Subclasses and modules with hooks,
    buffers or modules of their own are left.

    In a Sequential the module of a fused Linear returns h and not a: who calls it alone, past the
    Sequential, sees that. h of LeakyReLU, ELU and Softplus is kept for the backward pass, where
    PyTorch keeps a: they are not fused before a module that works in place; where the program
    itself changes such an h in place, PyTorch raises in the backward pass.

    >>> print(convert(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Conv1d(3, 1, 1))))
    replaced 1:
      0: Linear, 1: ReLU -> LinearAct
    left 1:
      2: Conv1d (no counterpart)
    """
    report = Conversion(module)
    uses = Counter(id(child) for _, _, child in _children(module))
    if isinstance(module, nn.Sequential):
        _fuse(module, "", uses, report)
    new = _counterpart(module)
    if new is not None:
        report.module = new
        report.replaced.append(f"{type(module).__name__} -> {type(new).__name__}")
        return report
    if _concerns(module):
        report.left.append(f"{type(module).__name__} ({_reason(module)})")
    made: dict[int, nn.Module] = {}  # a module that is used twice stays one module
    for parent, path, child in list(_children(module)):
        name = path.rpartition(".")[2]
        if id(child) in made:
            setattr(parent, name, made[id(child)])
            continue
        if parent._modules.get(name) is not child:
            continue  # fused away
        if isinstance(child, nn.Sequential):
            _fuse(child, f"{path}.", uses, report)
        new = _counterpart(child)
        if new is not None:
            made[id(child)] = new
            setattr(parent, name, new)
            report.replaced.append(f"{path}: {type(child).__name__} -> {type(new).__name__}")
        elif _concerns(child):
            report.left.append(f"{path}: {type(child).__name__} ({_reason(child)})")
    return report


def _children(module: nn.Module, prefix: str = "") -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, path, child) of all modules below, each use of a shared module."""
    for name, child in module._modules.items():
        if child is not None:
            yield module, f"{prefix}{name}", child
            yield from _children(child, f"{prefix}{name}.")


_USUAL = set(vars(nn.Module()))
_HELD = {nn.Linear: {"weight", "bias"}, nn.CrossEntropyLoss: {"weight"}}
_RESERVED = {"activation", "z_loss"}  # what the exchanged modules have themselves


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What somebody has set beyond the attributes of the class."""
    usual = _USUAL | set(getattr(module, "__constants__", ()))
    return {name: value for name, value in vars(module).items() if name not in usual}


def _own(module: nn.Module) -> str:
    """What it has that an exchange would lose, for the report; "" for nothing."""
    hooks = (value for name, value in vars(module).items() if name.endswith("_hooks"))
    if any(hooks) or "forward" in vars(module):
        return "has hooks"
    held = [*module._parameters, *module._buffers, *module._modules]
    own = [name for name in held if name not in _HELD.get(type(module), ())]
    for name, value in _attributes(module).items():
        if callable(value) or name in _RESERVED:
            own.append(name)
    return f"has something of its own: {', '.join(own)}" if own else ""


def _carry(old: nn.Module, new: nn.Module) -> nn.Module:
    """`new` with mode and attributes of `old`."""
    new.__dict__.update(_attributes(old))
    return new.train(old.training)


def _over(linear: nn.Linear, activation: str | None = None) -> nn.Module:
    layer = Linear.over(linear) if activation is None else LinearAct.over(linear, activation)
    layer.__dict__.pop("bias", None)
    layer.register_parameter("bias", linear.bias)
    return _carry(linear, layer)


def _counterpart(module: nn.Module) -> nn.Module | None:
    """The module that takes its place, or None."""
    if _own(module):
        return None
    if type(module) is nn.Linear:
        return _over(module)
    if type(module) is nn.CrossEntropyLoss:
        new = CrossEntropyLoss(
            module.weight, None, module.ignore_index, None, module.reduction, module.label_smoothing
        )
        return _carry(module, new)
    return None


def _works_in_place(modules: list[nn.Module | None]) -> bool:
    """Whether the first of `modules` to compute something overwrites its input."""
    for module in modules:
        while isinstance(module, nn.Sequential) and len(module):
            module = module[0]
        if not isinstance(module, (nn.Identity, nn.Flatten, nn.Unflatten)):
            return bool(getattr(module, "inplace", False))
    return False


def _fuse(sequence: nn.Sequential, prefix: str, uses: Counter[int], report: Conversion) -> None:
    """Linear and activation, one after the other, become LinearAct and Identity; not where the
    Sequential has a forward of its own, which may call them otherwise."""
    if type(sequence).forward is not nn.Sequential.forward or "forward" in sequence.__dict__:
        return
    names = list(sequence._modules)
    for after, (first, second) in enumerate(pairwise(names), 2):
        linear, act = sequence._modules[first], sequence._modules[second]
        if type(linear) is not nn.Linear or act is None:
            continue
        activation = name_of(act)
        if activation is None or _own(linear) or _own(act) or uses[id(linear)] > 1:
            continue
        keeps_h = isinstance(act, (nn.LeakyReLU, nn.ELU, nn.Softplus))  # PyTorch keeps a
        if keeps_h and _works_in_place([sequence._modules[name] for name in names[after:]]):
            reason = "not fused: what comes after it works in place"
            report.left.append(f"{prefix}{second}: {type(act).__name__} ({reason})")
            continue
        setattr(sequence, first, _over(linear, activation))
        setattr(sequence, second, _carry(act, nn.Identity()))
        report.replaced.append(
            f"{prefix}{first}: Linear, {prefix}{second}: {type(act).__name__} -> LinearAct"
        )


def _concerns(module: nn.Module) -> bool:
    """Whether a reader of the report would ask what became of it."""
    ours = isinstance(module, (LinearAct, CrossEntropyLoss))
    loss = type(module).__module__ == "torch.nn.modules.loss"
    return not ours and (loss or bool(module._parameters))


def _reason(module: nn.Module) -> str:
    if isinstance(module, (nn.Linear, nn.CrossEntropyLoss)):
        own = _own(module)
        known = type(module) in _HELD or own == "has hooks"
        return own if known else "a subclass, whose forward may differ"
    return "no counterpart"
