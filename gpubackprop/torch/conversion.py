"""`convert`: these kernels compute a model of PyTorch, whose modules stay PyTorch's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from gpubackprop.torch import fused
from gpubackprop.torch.cross_entropy import CrossEntropyLoss
from gpubackprop.torch.layers import Linear, LinearAct


@dataclass
class Conversion:
    """The report of `convert`. A copy of it (deepcopy, pickle) goes with the copy of its module.

    Parameters
    ----------
    module : Module
        The module that was given.
    replaced : list of str
        What these kernels compute, by the modules' names: "0: Linear, 1: ReLU -> linear_act".
    left : list of str
        Modules with parameters, and losses, that PyTorch computes; each with the reason.
    exchanged : list of Module
        The modules that were given another class.

    Examples
    --------
    >>> report = convert(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    >>> report.replaced
    ['0: Linear, 1: ReLU -> linear_act']
    """

    module: nn.Module
    replaced: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    exchanged: list[nn.Module] = field(default_factory=list, repr=False)

    def __repr__(self) -> str:
        return f"Conversion of {type(self.module).__name__}: {self}"

    def __str__(self) -> str:
        lines = [f"replaced {len(self.replaced)}:", *(f"  {line}" for line in self.replaced)]
        lines += [f"left {len(self.left)}:", *(f"  {line}" for line in self.left)]
        return "\n".join(lines)

    def restore(self) -> nn.Module:
        """Make `module` what it was before: PyTorch computes all of it again.

        Parameters, hooks and modules that were exchanged meanwhile stay. If another call of
        `convert` changed the same modules, that is undone too.

        Returns
        -------
        Module
            The module.

        Raises
        ------
        RuntimeError
            Something else, e.g. `fully_shard`, has given a module another class since. Nothing is
            changed then.

        Examples
        --------
        >>> report = convert(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
        >>> type(report.restore()) is nn.Sequential
        True
        """
        exchanged = {id(m): m for m in (*self.exchanged, *self.module.modules())}
        ours = [m for m in exchanged.values() if isinstance(m, fused.Exchanged)]
        for module in ours:
            if type(module) is not fused.exchanged_class(type(module)._exchanged_from):
                raise RuntimeError(
                    f"a {type(module).__name__} got another class after `convert`, which restore() "
                    f"would lose; undo that first"
                )
        for module in ours:
            _give_class(module, type(module)._exchanged_from)
        return self.module


def convert(module: nn.Module) -> Conversion:
    """Let these kernels compute what they can of `module`, in place, and report the rest.

    In a `torch.nn.Sequential`, a Linear and the activation after it run in one pass, `linear_act`.
    `torch.nn.CrossEntropyLoss` is computed by `cross_entropy`, in PyTorch's dtypes. The modules
    stay the same objects with the same names: a Linear is a `torch.nn.Linear`, and whatever looks
    at children, hooks, parameters or state_dict finds what was there. In each call the Sequential
    looks at its children. If they have hooks, parametrizations, another class or tensors that are
    not offered, it calls them as PyTorch does. While a program is exported (torch.export,
    torch.jit.trace, torch.jit.script, ONNX), PyTorch computes everything.

    The only change is the class of each Sequential and CrossEntropyLoss, to a subclass of the same
    name. Copies and pickles are converted too. `Conversion.restore` is the inverse.

    For LeakyReLU, ELU and Softplus the value is kept for the backward pass, where PyTorch keeps the
    pre-activation. They run in one pass only before a module that does not change the value in
    place.

    Parameters
    ----------
    module : Module
        The model, of any class; its submodules are converted.

    Returns
    -------
    Conversion
        What was replaced and what was left.

    Examples
    --------
    >>> print(convert(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Conv1d(3, 1, 1))))
    replaced 1:
      0: Linear, 1: ReLU -> linear_act
    left 1:
      2: Conv1d (no counterpart)
    """
    uses = list(_named_modules(module))
    plan = _Plan()
    for path, child in uses:
        plan.look_at(path, child)
    report = Conversion(module, plan.replaced, plan.left(uses), [m for m, _ in plan.classes])
    before = [(m, type(m)) for m, _ in plan.classes]
    try:
        for exchanged, kind in plan.classes:
            _give_class(exchanged, kind)
    except BaseException:
        for exchanged, kind in before:
            _give_class(exchanged, kind)
        raise
    return report


def _give_class(module: nn.Module, kind: type[nn.Module]) -> None:
    object.__setattr__(module, "__class__", kind)


def _named_modules(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield all modules with their paths; a shared module is there once for each use."""
    yield path, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _named_modules(child, f"{path}.{name}" if path else name)


class _Plan:
    """The changes that `convert` will make. All is decided before anything is changed.

    Attributes
    ----------
    classes : list
        Modules, each with the class that it gets.
    replaced : list of str
        Lines of the report.
    """

    def __init__(self) -> None:
        self.classes: list[tuple[nn.Module, type[nn.Module]]] = []
        self.replaced: list[str] = []
        self._seen: set[int] = set()
        self._served: set[int] = set()  # modules that these kernels compute
        self._reasons: dict[int, str] = {}  # why PyTorch computes a module that is not `_served`

    def look_at(self, path: str, module: nn.Module) -> None:
        if id(module) in self._seen:
            return
        self._seen.add(id(module))
        if isinstance(module, nn.Sequential):
            self._look_at_sequence(f"{path}." if path else "", module)
        elif type(module) is nn.CrossEntropyLoss and "forward" not in module.__dict__:
            self.classes.append((module, fused.exchanged_class(nn.CrossEntropyLoss)))
            self._served.add(id(module))
            self.replaced.append(_line(path, module, "-> cross_entropy"))

    def _look_at_sequence(self, prefix: str, sequence: nn.Sequential) -> None:
        names = [name for name, child in sequence._modules.items() if child is not None]
        modules = [sequence._modules[name] for name in names]
        whole, pairs = _sequence_refusal(sequence), []
        for number, linear in enumerate(modules):
            if not isinstance(linear, nn.Linear):
                continue
            why = fused.refusal(modules, number) or whole or fused.parameters_refusal(linear)
            if why:
                self._reasons.setdefault(id(linear), why)
                continue
            self._served.add(id(linear))
            first, second = (f"{prefix}{names[n]}" for n in (number, number + 1))
            act = modules[number + 1]
            pairs.append(f"{first}: Linear, {second}: {type(act).__name__} -> linear_act")
        if pairs and not isinstance(sequence, fused.Exchanged):
            self.classes.append((sequence, fused.exchanged_class(type(sequence))))
            self.replaced += pairs

    def left(self, uses: list[tuple[str, nn.Module]]) -> list[str]:
        """List the modules that PyTorch computes, in the order of the modules, each once."""
        first: dict[int, tuple[str, nn.Module]] = {}
        for path, module in uses:
            first.setdefault(id(module), (path, module))
        return [
            _line(path, module, f"({self._reason(module)})")
            for path, module in first.values()
            if id(module) not in self._served and _concerns(module)
        ]

    def _reason(self, module: nn.Module) -> str:
        if type(module) in (nn.Linear, nn.CrossEntropyLoss):
            alone = "no activation follows it in a Sequential"
            own = "has a forward of its own"
            return own if "forward" in module.__dict__ else self._reasons.get(id(module), alone)
        if isinstance(module, (nn.Linear, nn.CrossEntropyLoss)):
            return "a subclass, whose forward may differ"
        return "no counterpart"


def _line(path: str, module: nn.Module, what: str) -> str:
    return f"{path}: {type(module).__name__} {what}" if path else f"{type(module).__name__} {what}"


# If a class has one of these, a class derived from it would behave differently.
_OF_THE_CLASS = {
    "__new__", "__init_subclass__", "__reduce__", "__reduce_ex__", "__copy__", "__deepcopy__",
}  # fmt: skip


def _sequence_refusal(sequence: nn.Sequential) -> str:
    """Say why a Sequential cannot get another class; "" if it can get one, or has got it."""
    kind = type(sequence)
    if isinstance(sequence, fused.Exchanged):
        return ""
    if not fused.is_plain(sequence):
        return "its Sequential has a forward of its own"
    for base in kind.__mro__[: kind.__mro__.index(nn.Sequential)]:
        if own := _OF_THE_CLASS & set(vars(base)):
            return f"its {kind.__name__} has {', '.join(sorted(own))} of its own"
    try:
        fused.exchanged_class(kind)
    except TypeError as error:
        return f"no class can be derived from its {kind.__name__}: {error}"
    return ""


def _concerns(module: nn.Module) -> bool:
    """Return whether a reader of the report would ask about the module."""
    ours = isinstance(module, (LinearAct, Linear, CrossEntropyLoss))
    loss = type(module).__module__ == "torch.nn.modules.loss"
    return not ours and (loss or bool(module._parameters))
