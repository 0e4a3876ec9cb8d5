"""`convert`: modules of PyTorch exchanged for those of this package, over the same Parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

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
    left : modules with parameters or losses that stayed, with the reason.
    """

    module: nn.Module
    replaced: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"replaced {len(self.replaced)}:", *(f"  {line}" for line in self.replaced)]
        lines += [f"left {len(self.left)}:", *(f"  {line}" for line in self.left)]
        return "\n".join(lines)


def convert(module: nn.Module) -> Conversion:
    """Exchange what can be exchanged in `module`, in place, and report what was left.

    `torch.nn.Linear` becomes `Linear`; followed by an activation in a Sequential it becomes
    `LinearAct`, and the activation an Identity, so that names and state_dict stay;
    `torch.nn.CrossEntropyLoss` becomes `CrossEntropyLoss`. The Parameters are the same objects: an
    optimizer made before keeps working. Subclasses and modules with hooks are left.

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


def _has_hooks(module: nn.Module) -> bool:
    """Somebody watches what goes in or out."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks) or "forward" in module.__dict__


def _counterpart(module: nn.Module) -> nn.Module | None:
    """The module that takes its place, or None."""
    if _has_hooks(module):
        return None
    if type(module) is nn.Linear:
        return Linear.over(module)
    if type(module) is nn.CrossEntropyLoss:
        new = CrossEntropyLoss(
            module.weight, None, module.ignore_index, None, module.reduction, module.label_smoothing
        )
        return new.train(module.training)
    return None


def _fuse(sequence: nn.Sequential, prefix: str, uses: Counter[int], report: Conversion) -> None:
    """Linear and activation, one after the other, become LinearAct and Identity; not where the
    Sequential has a forward of its own, which may call them otherwise."""
    if type(sequence).forward is not nn.Sequential.forward or "forward" in sequence.__dict__:
        return
    names = list(sequence._modules)
    for first, second in pairwise(names):
        linear, act = sequence._modules[first], sequence._modules[second]
        if type(linear) is not nn.Linear or act is None:
            continue
        activation = name_of(act)
        watched = _has_hooks(linear) or _has_hooks(act) or uses[id(linear)] > 1
        if activation is None or watched:
            continue
        setattr(sequence, first, LinearAct.over(linear, activation))
        setattr(sequence, second, nn.Identity())
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
        return "has hooks" if _has_hooks(module) else "a subclass, whose forward may differ"
    return "no counterpart"
