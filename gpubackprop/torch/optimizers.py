"""SGD, Adam and AdamW of PyTorch, all parameters updated in one launch."""

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

# device, storage dtype and rule; which of several updates of the same memory
Batch = tuple[torch.device, torch.dtype, str, int]


class _TableOptimizer(torch.optim.Optimizer):
    """`step` by tables. A class below is this and PyTorch's own, whose constructor, groups, hooks
    and state_dict it keeps.

    CUDA tensors: one launch (and a small one for the coefficients) for all tensors of a device and
    dtype, capturable always: step counts, learning rate and table are in device memory. CPU
    tensors: NumPy. `foreach` and `capturable` are accepted and change nothing. With `fused=True` a
    GradScaler leaves the scale to the step, as in PyTorch: gradients are unscaled after it in one
    more pass. Otherwise the scaler unscales them and skips the step.

    What a step uses is checked in each step: gradients and state may have another order in memory
    or another dtype than the parameter, and then take part through a copy. `torch.compile` calls
    the step as it is, between two graphs.
    """

    def _slot_types(self, group: dict[str, Any]) -> tuple[torch.dtype, ...] | None:
        """The types of slots that PyTorch takes besides the parameter's; None: all."""
        return (torch.bfloat16,) if group.get("fused") else ()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As PyTorch's; OptionError for differentiable."""
        super().add_param_group(param_group)
        self._refuse(self.param_groups[-1:])

    def _refuse(self, groups: list[dict[str, Any]]) -> None:
        if any(group.get("differentiable") for group in groups):
            raise OptionError(
                "differentiable=True is not offered; use the optimizer of torch.optim"
            )

    def _rule(self, group: dict[str, Any]) -> str:
        raise NotImplementedError

    def _settings(self, group: dict[str, Any]) -> Settings:
        raise NotImplementedError

    def _state_of(
        self, p: Tensor, g: Tensor, group: dict[str, Any]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """The slots and the step count of a parameter, made where they are missing."""
        raise NotImplementedError

    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure` evaluates the model anew and returns the loss, as in PyTorch.

        Raises
        ------
        LabelError : a loss on a GPU met a label out of range in a step before.
        StateError : state does not fit its parameter; nothing has been updated.
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
        """Of each group; before state is made, since a group may lack something."""
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
        """The parameters that have a gradient, by what one launch can take. State is made after
        all of them were found to be offered.

        A parameter that is listed twice, or shares its memory or its step count with another, is
        updated in the order of the list: one launch after the other.
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
        """As PyTorch's; but slots become float32 for 16-bit parameters and take the order of the
        parameter's memory, and step counts go to its device."""
        given: list[dict[str, Any]] = []  # what the pre-hooks made of state_dict

        def adopt(_: torch.optim.Optimizer) -> None:
            self._adopt(given[-1])

        # between the user's hooks: after all of before, before all of after
        before = self.register_load_state_dict_pre_hook(lambda _, loaded: given.append(loaded))
        after = self.register_load_state_dict_post_hook(adopt, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _adopt(self, loaded: dict[str, Any]) -> None:
        """Slots and step counts from `loaded`: PyTorch has rounded its own copy to p's dtype."""
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
    """Their gradients divided by the scale, in place, as GradScaler.unscale_ leaves them."""
    gradients: dict[torch.device, list[Tensor]] = {}
    for p in parameters:
        if (g := p.grad) is not None:
            gradients.setdefault(g.device, []).append(g._values() if g.is_sparse else g)
    inverse = scale.double().reciprocal().float().reshape(())
    for device, tensors in gradients.items():
        torch._foreach_mul_(tensors, inverse.to(device))


def _loaded_count(p: Tensor, value: Any, fused: bool | None) -> Tensor:
    """A tensor in float32, or in float64 as PyTorch keeps it."""
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
    """`torch.optim.SGD`: its arguments but differentiable, its state_dict and values.

    Without momentum p <- p - lr g; with it v <- mu v + (1 - dampening) g, v = g in the first step,
    and p <- p - lr v, or p - lr (g + mu v) with nesterov. g includes weight_decay * p.

    State: "momentum_buffer", shaped as p; float32 for 16-bit parameters.
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
            state["momentum_buffer"] = _slot(p, torch.promote_types(p.dtype, g.dtype))
            steps[p] = _count(p, torch.float32)
        if p not in steps:  # the buffer was loaded
            steps[p] = _count(p, torch.float32, 1.0)
        return (state["momentum_buffer"],), steps[p]

    def _adopt(self, loaded: dict[str, Any]) -> None:
        super()._adopt(loaded)
        self.__dict__.pop("_steps", None)


class Adam(_TableOptimizer, torch.optim.Adam):
    """`torch.optim.Adam`: its arguments but differentiable, its state_dict and values.

    m <- beta1 m + (1 - beta1) g; v <- beta2 v + (1 - beta2) g^2;
    p <- p - lr mhat / (sqrt(vhat) + eps). g includes weight_decay * p. With amsgrad vhat is made of
    the largest v so far.

    State: "step" (), of PyTorch's type, on the device of p; "exp_avg", "exp_avg_sq" and with
    amsgrad "max_exp_avg_sq", shaped as p; float32 for 16-bit parameters.

    Sources: Kingma & Ba 2015, algorithm 1; Reddi et al. 2018.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As PyTorch's; step counts that are numbers go to the parameter's device."""
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
    """`torch.optim.AdamW`: `Adam` with p <- (1 - lr * weight_decay) p before the step.

    Source: Loshchilov & Hutter 2019.
    """
