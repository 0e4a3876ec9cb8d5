"""SGD, Adam and AdamW of PyTorch, all parameters updated in one launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpubackprop.errors import OptionError
from gpubackprop.torch import bridge
from gpubackprop.torch.update_table import (
    Entry,
    Settings,
    UpdateTable,
    gradient_like,
    update_on_host,
)

Batch = tuple[torch.device, torch.dtype, str]


class _TableOptimizer(torch.optim.Optimizer):
    """`step` by tables. A class below is this and PyTorch's own, whose constructor, groups, hooks
    and state_dict it keeps.

    CUDA tensors: one launch (and a small one for the coefficients) for all tensors of a device and
    dtype, capturable always: step counts, learning rate and table are in device memory. CPU
    tensors: NumPy. `foreach`, `fused` and `capturable` are accepted and change nothing. Where a
    GradScaler leaves the scale to the step, gradients are unscaled after it in one more pass.
    """

    _step_supports_amp_scaling = True  # GradScaler leaves unscaling and skipping to `step`

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As PyTorch's; OptionError for amsgrad and differentiable."""
        super().add_param_group(param_group)
        self._refuse(self.param_groups[-1:])

    def _refuse(self, groups: list[dict[str, Any]]) -> None:
        for group in groups:
            for option in ("amsgrad", "differentiable"):
                if group.get(option):
                    raise OptionError(
                        f"{option}=True is not offered; use the optimizer of torch.optim"
                    )

    def _rule(self, group: dict[str, Any]) -> str:
        raise NotImplementedError

    def _settings(self, group: dict[str, Any]) -> Settings:
        raise NotImplementedError

    def _state_of(self, p: Tensor, group: dict[str, Any]) -> tuple[tuple[Tensor, ...], Tensor]:
        """The slots and the step count of a parameter, made where they are missing."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure` evaluates the model anew and returns the loss, as in PyTorch.

        Raises LabelError where a loss on a GPU met a label out of range in a step before.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update()
        return loss

    def _update(self) -> None:
        self._refuse(self.param_groups)
        self._launch(self._batches())

    def _launch(self, batches: dict[Batch, list[Entry]]) -> None:
        settings = [self._settings(group) for group in self.param_groups]
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        for key, entries in batches.items():
            device, _, rule = key
            of = bridge.of(entries[0].p)
            if isinstance(of, bridge.CudaBridge):
                of.raise_bad_label(device.index or 0)
                tables: dict[Batch, UpdateTable] = self.__dict__.setdefault("_tables", {})
                table = tables.setdefault(key, UpdateTable(rule, of))
                table.update(entries, settings, scale, found_inf)
            else:
                update_on_host(rule, entries, settings, scale, found_inf)
            if scale is not None:
                unscale([entry.p for entry in entries], scale)

    def _batches(self) -> dict[Batch, list[Entry]]:
        """The parameters that have a gradient, by what one launch can take. State is made after
        all of them were found to be offered."""
        ready = [
            (number, p, gradient_like(p))
            for number, group in enumerate(self.param_groups)
            for p in group["params"]
            if p.grad is not None
        ]
        rules = [self._rule(group) for group in self.param_groups]
        batches: dict[Batch, list[Entry]] = {}
        for number, p, g in ready:
            slots, step = self._state_of(p, self.param_groups[number])
            if p.numel():
                batch = batches.setdefault((p.device, p.dtype, rules[number]), [])
                batch.append(Entry(p, g, slots, step, number))
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
        parameters = [p for group in self.param_groups for p in group["params"]]
        for number, p in zip(numbers, parameters, strict=True):
            for key, value in loaded["state"].get(number, {}).items():
                if isinstance(value, Tensor) and p.dtype in bridge.FLOATS:
                    self.state[p][key] = _loaded(p, key, value)


def unscale(parameters: list[Tensor], scale: Tensor) -> None:
    """Their gradients divided by the scale, in place, as GradScaler.unscale_ leaves them."""
    gradients = [g._values() if g.is_sparse else g for p in parameters if (g := p.grad) is not None]
    inverse = scale.double().reciprocal().float()
    torch._foreach_mul_(gradients, inverse.reshape(()))


def _loaded(p: Tensor, key: str, value: Tensor) -> Tensor:
    if key == "step":
        return value.to(p.device, torch.float32)
    slot = value.to(p.device, bridge.compute_dtype(p.dtype))
    same = slot.stride() == p.stride() or slot.shape != p.shape
    return slot if same else _slot(p).copy_(slot)


def _slot(p: Tensor) -> Tensor:
    dtype = bridge.compute_dtype(p.dtype)
    return torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)


def _zero(p: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.float32, device=p.device)


class SGD(_TableOptimizer, torch.optim.SGD):
    """`torch.optim.SGD`: its arguments, state_dict and values.

    Without momentum p <- p - lr g; with it v <- mu v + (1 - dampening) g, v = g in the first step,
    and p <- p - lr v, or p - lr (g + mu v) with nesterov. g includes weight_decay * p.

    State: "momentum_buffer", shaped as p; float32 for 16-bit parameters.
    """

    def _rule(self, group: dict[str, Any]) -> str:
        if not group["momentum"]:
            return "gradient_descent"
        return "sgd_nesterov" if group["nesterov"] else "sgd"

    def _settings(self, group: dict[str, Any]) -> Settings:
        h = {"momentum": group["momentum"], "dampening": group["dampening"]}
        return Settings(group["lr"], float(group["weight_decay"]), group["maximize"], h)

    def _state_of(self, p: Tensor, group: dict[str, Any]) -> tuple[tuple[Tensor, ...], Tensor]:
        steps: dict[Tensor, Tensor] = self.__dict__.setdefault("_steps", {})
        if not group["momentum"]:
            return (), steps.setdefault(p, _zero(p))
        state = self.state[p]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"], steps[p] = _slot(p), _zero(p)
        if p not in steps:  # the buffer was loaded
            steps[p] = _zero(p) + 1
        return (state["momentum_buffer"],), steps[p]

    def _adopt(self, loaded: dict[str, Any]) -> None:
        super()._adopt(loaded)
        self.__dict__.pop("_steps", None)


class Adam(_TableOptimizer, torch.optim.Adam):
    """`torch.optim.Adam`: its arguments but amsgrad and differentiable, its state_dict and values.

    m <- beta1 m + (1 - beta1) g; v <- beta2 v + (1 - beta2) g^2;
    p <- p - lr mhat / (sqrt(vhat) + eps). g includes weight_decay * p.

    State: "step" float32 (), on the device of p; "exp_avg", "exp_avg_sq", shaped as p; float32 for
    16-bit parameters.

    Source: Kingma & Ba 2015, algorithm 1.
    """

    def _rule(self, group: dict[str, Any]) -> str:
        return "adamw" if group["decoupled_weight_decay"] else "adam"

    def _settings(self, group: dict[str, Any]) -> Settings:
        beta1, beta2 = (float(beta) for beta in group["betas"])
        h = {"beta1": beta1, "beta2": beta2, "eps": group["eps"]}
        return Settings(group["lr"], group["weight_decay"], group["maximize"], h)

    def _state_of(self, p: Tensor, group: dict[str, Any]) -> tuple[tuple[Tensor, ...], Tensor]:
        state = self.state[p]
        if not state:
            state |= {"step": _zero(p), "exp_avg": _slot(p), "exp_avg_sq": _slot(p)}
        return (state["exp_avg"], state["exp_avg_sq"]), state["step"]


class AdamW(Adam, torch.optim.AdamW):
    """`torch.optim.AdamW`: `Adam` with p <- (1 - lr * weight_decay) p before the step.

    Source: Loshchilov & Hutter 2019.
    """
