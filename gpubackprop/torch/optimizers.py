"""SGD, Adam and AdamW of PyTorch; one launch updates all parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpubackprop.errors import OptionError
from gpubackprop.torch import bridge
from gpubackprop.torch.operands import (
    Entry,
    count_dtype,
    gradient_of,
    memory_of,
    order_of,
    same_order,
    step_count,
    storage_of,
)
from gpubackprop.torch.update_table import Settings, UpdateTable, update_on_host

# device, storage dtype, rule, and the number of the update among those of the same memory
Batch = tuple[torch.device, torch.dtype, str, int]


def _collects_as_pytorch(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether `_init_group` is PyTorch's.

    PyTorch's step calls it for each group, and subclasses change gradients or state in it. The
    owner is asked and not the function, which torch.compile exchanges in PyTorch's own classes.
    """
    owner = next(kind for kind in type(optimizer).__mro__ if "_init_group" in vars(kind))
    return owner.__module__.startswith("torch.optim") and "_init_group" not in vars(optimizer)


class _TableOptimizer(torch.optim.Optimizer):
    """`step` by tables. Each class below derives from this and from PyTorch's own class.

    PyTorch's class gives the constructor, groups, hooks and state_dict.

    CUDA tensors: one launch (and a small one for the coefficients) updates all tensors of a device
    and dtype. The step can always be captured: step counts, learning rate and table are in device
    memory. CPU tensors: NumPy updates them one by one. `foreach` and `capturable` are accepted and
    change nothing. With `fused=True` a GradScaler leaves the scale to the step, as in PyTorch; the
    gradients are then unscaled after it, in one more pass. Otherwise the scaler unscales them and
    may skip the step.

    Each step checks what it uses. Gradients and state that have another order in memory or another
    dtype than the parameter take part through a copy. `torch.compile` calls the step as it is,
    between two graphs.
    """

    def _slot_types(self, group: dict[str, Any]) -> tuple[torch.dtype, ...] | None:
        """Return the types that slots may have besides the parameter's; None means all types."""
        return (torch.bfloat16,) if group.get("fused") else ()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as PyTorch does.

        Parameters
        ----------
        param_group : dict
            "params", and the options in which the group differs.

        Raises
        ------
        OptionError
            The group is differentiable, or the class has an `_init_group` of its own; neither is
            offered.
        """
        super().add_param_group(param_group)
        self._refuse(self.param_groups[-1:])

    def _refuse(self, groups: list[dict[str, Any]]) -> None:
        if any(group.get("differentiable") for group in groups):
            raise OptionError(
                "differentiable=True is not offered; use the optimizer of torch.optim"
            )
        if not _collects_as_pytorch(self):
            raise OptionError(
                f"{type(self).__name__} has an _init_group of its own, which this step would not "
                "call; derive the class from the optimizer of torch.optim"
            )

    def _rule(self, group: dict[str, Any]) -> str:
        raise NotImplementedError

    def _settings(self, group: dict[str, Any]) -> Settings:
        raise NotImplementedError

    def _state_of(
        self, p: Tensor, g: Tensor, group: dict[str, Any]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the slots and the step count of a parameter; make those that are missing."""
        raise NotImplementedError

    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters once.

        Parameters
        ----------
        closure : callable or None
            Evaluates the model anew and returns the loss, as in PyTorch.

        Returns
        -------
        object
            What `closure` returned, or None.

        Raises
        ------
        LabelError
            A loss on a GPU met a label out of range in an earlier step.
        StateError
            State does not fit its parameter; nothing has been updated.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update()
        return loss

    def _update(self) -> None:
        self._refuse(self.param_groups)
        settings = self._all_settings()
        self._launch(self._batches(), settings)

    def _all_settings(self) -> list[Settings]:
        """Return the settings of each group, before state is made: a group may lack one."""
        return [self._settings(group) for group in self.param_groups]

    def _launch(self, batches: dict[Batch, list[Entry]], settings: list[Settings]) -> None:
        for number in {entry.group for entries in batches.values() for entry in entries}:
            settings[number].check()
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        for key, entries in batches.items():
            device, storage, rule, _ = key
            of = bridge.of(entries[0].p)
            if isinstance(of, bridge.CudaBridge):
                of.raise_bad_label(device.index or 0)
                tables: dict[Batch, UpdateTable] = self.__dict__.setdefault("_tables", {})
                table = tables.setdefault(key, UpdateTable(rule, storage, of))
                table.update(entries, settings, scale, found_inf)
            else:
                update_on_host(rule, storage, entries, settings, scale, found_inf)
        if scale is not None:
            unscale([p for group in self.param_groups for p in group["params"]], scale)

    def _batches(self) -> dict[Batch, list[Entry]]:
        """Group the parameters that have a gradient by what one launch can take.

        State is made only after all parameters were found to be offered.

        A parameter may be listed twice, or share its memory or its step count with another one.
        Then the updates run in the order of the list, one launch after the other.
        """
        ready = [
            (number, p, gradient_of(p))
            for number, group in enumerate(self.param_groups)
            for p in group["params"]
            if p.grad is not None
        ]
        rules = [self._rule(group) for group in self.param_groups]
        slot_types = [self._slot_types(group) for group in self.param_groups]
        batches: dict[Batch, list[Entry]] = {}
        met: dict[int, int] = {}
        for number, p, g in ready:
            slots, step = self._state_of(p, g, self.param_groups[number])
            entry = Entry(memory_of(p), g, tuple(map(memory_of, slots)), memory_of(step), number)
            storage = storage_of(entry, slot_types[number])
            places = entry.p.data_ptr(), entry.step.data_ptr()
            turn = max(met.get(place, 0) for place in places)
            met |= dict.fromkeys(filter(None, places), turn + 1)
            batches.setdefault((p.device, storage, rules[number], turn), []).append(entry)
        return batches

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state_dict, as PyTorch does.

        Slots of 16-bit parameters become float32, slots take the order of the parameter's memory,
        and step counts go to the parameter's device.

        Parameters
        ----------
        state_dict : dict
            What `state_dict` of this class or of PyTorch's returned.
        """
        given: list[dict[str, Any]] = []  # the state_dict as the pre-hooks have changed it

        def adopt(_: torch.optim.Optimizer) -> None:
            self._adopt(given[-1])

        # These two run between the user's hooks: after all pre-hooks, before all post-hooks.
        before = self.register_load_state_dict_pre_hook(lambda _, loaded: given.append(loaded))
        after = self.register_load_state_dict_post_hook(adopt, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _adopt(self, loaded: dict[str, Any]) -> None:
        """Take slots and step counts from `loaded`; PyTorch has rounded its copy to p's dtype."""
        numbers = [n for group in loaded["param_groups"] for n in group["params"]]
        parameters = [(p, group) for group in self.param_groups for p in group["params"]]
        for number, (p, group) in zip(numbers, parameters, strict=True):
            for key, value in loaded["state"].get(number, {}).items():
                if p.dtype not in bridge.FLOATS:
                    continue
                if key == "step":
                    self.state[p][key] = _loaded_count(p, value, group.get("fused"))
                elif isinstance(value, Tensor):
                    self.state[p][key] = _loaded(p, value)


def unscale(parameters: list[Tensor], scale: Tensor) -> None:
    """Divide the gradients by the scale, in place, as GradScaler.unscale_ leaves them."""
    gradients: dict[torch.device, list[Tensor]] = {}
    for p in parameters:
        if (g := p.grad) is not None:
            gradients.setdefault(g.device, []).append(g._values() if g.is_sparse else g)
    inverse = scale.double().reciprocal().float().reshape(())
    for device, tensors in gradients.items():
        torch._foreach_mul_(tensors, inverse.to(device))


def _loaded_count(p: Tensor, value: Any, fused: bool | None) -> Tensor:
    """Return a step count as a tensor in float32, or in float64 if PyTorch keeps it in that."""
    wide = isinstance(value, Tensor) and value.dtype == torch.float64 and not fused
    count = step_count(value, p, fused)
    return count if wide or not isinstance(value, Tensor) else count.to(torch.float32)


def _loaded(p: Tensor, value: Tensor) -> Tensor:
    slot = value.to(p.device, bridge.compute_dtype(p.dtype))
    if slot.layout != torch.strided:  # momentum of sparse gradients; `storage_of` refuses it
        return slot
    if slot.shape != p.shape or same_order(slot, order_of(p)):
        return slot
    return _slot(p, p.dtype).copy_(slot)


# What a step in inference mode makes, a later step outside of it can write too.
@torch.inference_mode(False)
def _slot(p: Tensor, dtype: torch.dtype) -> Tensor:
    dtype = bridge.compute_dtype(dtype)
    return torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)


@torch.inference_mode(False)
def _count(p: Tensor, dtype: torch.dtype, value: float = 0.0) -> Tensor:
    return torch.full((), value, dtype=dtype, device=p.device)


@torch.inference_mode(False)
def _moved(count: Tensor, device: torch.device) -> Tensor:
    return count.to(device)


class SGD(_TableOptimizer, torch.optim.SGD):
    """`torch.optim.SGD`: its arguments except differentiable, its state_dict and values.

    Without momentum p <- p - lr g. With momentum v <- mu v + (1 - dampening) g (first step: v = g)
    and p <- p - lr v, or p - lr (g + mu v) with nesterov. g includes weight_decay * p.

    State: "momentum_buffer", shaped as p; float32 for 16-bit parameters.

    Parameters
    ----------
    params : iterable
        Tensors, named tensors or groups, as in PyTorch.
    lr : float or 0-d tensor
        Learning rate.
    momentum : float
        Factor mu of the velocity.
    dampening : float
        Damping of the gradient in the velocity.
    weight_decay : float
        Factor of the parameter that is added to its gradient.
    nesterov : bool
        Whether the step looks ahead.
    maximize : bool
        Whether to ascend.
    foreach : bool or None
        Accepted; it changes nothing.
    differentiable : bool
        Must be False.
    fused : bool or None
        Whether a GradScaler leaves the scale to the step.

    Raises
    ------
    OptionError
        `differentiable` is true.

    References
    ----------
    `torch.optim.SGD`; I. Sutskever et al., "On the importance of initialization and momentum in
    deep learning", 2013.

    Examples
    --------
    >>> p = torch.nn.Parameter(torch.ones(2))
    >>> p.grad = torch.tensor([1.0, 2.0])
    >>> SGD([p], lr=0.5).step()
    >>> p.data
    tensor([0.5000, 0.0000])
    """

    def _slot_types(self, group: dict[str, Any]) -> tuple[torch.dtype, ...] | None:
        return None

    def _rule(self, group: dict[str, Any]) -> str:
        if not group["momentum"]:
            return "gradient_descent"
        return "sgd_nesterov" if group["nesterov"] else "sgd"

    def _settings(self, group: dict[str, Any]) -> Settings:
        h = {"momentum": float(group["momentum"]), "dampening": float(group["dampening"])}
        return Settings(group["lr"], float(group["weight_decay"]), group["maximize"], h)

    def _all_settings(self) -> list[Settings]:
        """Check the rates too: PyTorch's SGD makes buffers after its step, Adam before."""
        settings = super()._all_settings()
        for of_group, group in zip(settings, self.param_groups, strict=True):
            if isinstance(of_group.lr, Tensor) and any(p.grad is not None for p in group["params"]):
                of_group.check()
        return settings

    def _state_of(
        self, p: Tensor, g: Tensor, group: dict[str, Any]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        steps: dict[Tensor, Tensor] = self.__dict__.setdefault("_steps", {})
        if p in steps and steps[p].device != p.device:
            steps[p] = _moved(steps[p], p.device)
        if not group["momentum"]:
            if p not in steps:
                steps[p] = _count(p, torch.float32)
            return (), steps[p]
        state = self.state[p]
        if state.get("momentum_buffer") is None:
            # PyTorch's first buffer is a copy of g + weight_decay * p
            wide = torch.promote_types(p.dtype, g.dtype) if group["weight_decay"] else g.dtype
            state["momentum_buffer"] = _slot(p, wide)
            steps[p] = _count(p, torch.float32)
        if p not in steps:  # the buffer comes from a loaded state
            steps[p] = _count(p, torch.float32, 1.0)
        return (state["momentum_buffer"],), steps[p]

    def _adopt(self, loaded: dict[str, Any]) -> None:
        super()._adopt(loaded)
        self.__dict__.pop("_steps", None)


class Adam(_TableOptimizer, torch.optim.Adam):
    """`torch.optim.Adam`: its arguments except differentiable, its state_dict and values.

    m <- beta1 m + (1 - beta1) g; v <- beta2 v + (1 - beta2) g^2; p <- p - lr mhat / (sqrt(vhat) +
    eps), where mhat = m / (1 - beta1^t) and vhat = v / (1 - beta2^t). g includes weight_decay * p.
    With amsgrad, vhat is made of the largest v so far.

    State: "step" (), of PyTorch's dtype, on the device of p; "exp_avg", "exp_avg_sq" and with
    amsgrad "max_exp_avg_sq", shaped as p; float32 for 16-bit parameters.

    Parameters
    ----------
    params : iterable
        Tensors, named tensors or groups, as in PyTorch.
    lr : float or 0-d tensor
        Learning rate.
    betas : pair of float
        Decay rates of m and v.
    eps : float
        Added to the root.
    weight_decay : float
        Factor of the parameter that is added to its gradient.
    amsgrad : bool
        Whether the largest v so far takes the place of v.
    foreach : bool or None
        Accepted; it changes nothing.
    maximize : bool
        Whether to ascend.
    capturable : bool
        Accepted; a step on a GPU can always be captured.
    differentiable : bool
        Must be False.
    fused : bool or None
        Whether a GradScaler leaves the scale to the step.
    decoupled_weight_decay : bool
        Whether the weight decay is that of `AdamW`.

    Raises
    ------
    OptionError
        `differentiable` is true.

    References
    ----------
    D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1. S. J.
    Reddi, S. Kale and S. Kumar, "On the convergence of Adam and beyond", 2018 (amsgrad).

    Examples
    --------
    >>> p = torch.nn.Parameter(torch.ones(2))
    >>> p.grad = torch.tensor([1.0, -2.0])
    >>> Adam([p], lr=0.5).step()
    >>> p.data
    tensor([0.5000, 1.5000])
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the state as PyTorch does; put step counts that are numbers on p's device."""
        for group in state.get("param_groups", ()):
            for p in group["params"]:
                own = state.get("state", {}).get(p, {})
                if "step" in own:
                    own["step"] = step_count(own["step"], p, group.get("fused"))
        super().__setstate__(state)

    def _rule(self, group: dict[str, Any]) -> str:
        rule = "adamw" if group["decoupled_weight_decay"] else "adam"
        return f"{rule}_amsgrad" if group["amsgrad"] else rule

    def _settings(self, group: dict[str, Any]) -> Settings:
        beta1, beta2 = (float(beta) for beta in group["betas"])
        h = {"beta1": beta1, "beta2": beta2, "eps": float(group["eps"])}
        return Settings(group["lr"], float(group["weight_decay"]), group["maximize"], h)

    def _state_of(
        self, p: Tensor, g: Tensor, group: dict[str, Any]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        state, fused = self.state[p], group.get("fused")
        names = ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * bool(group["amsgrad"])
        if not state:
            state["step"] = _count(p, count_dtype(fused))
            state |= {name: _slot(p, p.dtype) for name in names}
        state["step"] = step_count(state["step"], p, fused)
        return tuple(state[name] for name in names), state["step"]


class AdamW(Adam, torch.optim.AdamW):
    """`torch.optim.AdamW`: `Adam` after p <- (1 - lr * weight_decay) p.

    Parameters
    ----------
    params : iterable
        Tensors, named tensors or groups, as in PyTorch.
    lr : float or 0-d tensor
        Learning rate.
    betas : pair of float
        Decay rates of m and v.
    eps : float
        Added to the root.
    weight_decay : float
        Decoupled weight decay.
    amsgrad : bool
        Whether the largest v so far takes the place of v.
    maximize : bool
        Whether to ascend.
    foreach : bool or None
        Accepted; it changes nothing.
    capturable : bool
        Accepted; a step on a GPU can always be captured.
    differentiable : bool
        Must be False.
    fused : bool or None
        Whether a GradScaler leaves the scale to the step.

    Raises
    ------
    OptionError
        `differentiable` is true.

    References
    ----------
    I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", 2019.

    Examples
    --------
    >>> p = torch.nn.Parameter(torch.ones(2))
    >>> p.grad = torch.tensor([1.0, -2.0])
    >>> AdamW([p], lr=0.5, weight_decay=0.1).step()
    >>> p.data
    tensor([0.4500, 1.4500])
    """
