"""One step of an optimizer on many tensors: a table of pointers on a GPU, a loop on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpubackprop.backends.cupy.updates import COEFFICIENTS, update_table
from gpubackprop.backends.cupy_launch import TABLE_CHUNK
from gpubackprop.errors import DtypeError, OptionError, ShapeError
from gpubackprop.formulas import UPDATES
from gpubackprop.torch import bridge

WORDS, SETTINGS = 8, 8  # columns of kernels/update_table.cu


@dataclass(frozen=True)
class Settings:
    """What a parameter group says. A `lr` that is a tensor of the device is read when
    the step runs."""

    lr: float | Tensor
    weight_decay: float
    maximize: bool
    hyperparameters: dict[str, float]

    def row(self, device: torch.device) -> list[float]:
        """A row of the kernel's `settings`; lr 0 where it is a tensor of the device."""
        lr = 0.0 if on_device(self.lr, device) else float(self.lr)
        row = [
            lr,
            self.weight_decay,
            -1.0 if self.maximize else 1.0,
            *self.hyperparameters.values(),
        ]
        return row + [0.0] * (SETTINGS - len(row))


@dataclass
class Entry:
    """A parameter with what its update needs; all dense, of one shape and order.

    Attributes
    ----------
    p, g : parameter and gradient. slots : the optimizer's state, of the compute dtype.
    step : float32, (), on the device of p. group : which settings.
    """

    p: Tensor
    g: Tensor
    slots: tuple[Tensor, ...]
    step: Tensor
    group: int


def flat(tensor: Tensor) -> Tensor:
    """All elements of a dense tensor in the order of memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a range of memory, in whatever order of the dimensions."""
    expected = 1
    pairs = sorted(zip(tensor.stride(), tensor.shape, strict=True))
    for stride, size in pairs:
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def gradient_like(p: Tensor) -> Tensor:
    """p.grad in the order of p's memory: itself, or a copy."""
    g = p.grad
    assert g is not None
    bridge.of(p)
    if g.is_sparse or p.is_complex():
        raise DtypeError("sparse gradients and complex parameters are not offered; use torch.optim")
    if p.dtype not in bridge.FLOATS or g.dtype != p.dtype:
        raise DtypeError(
            f"a parameter of {p.dtype} has a gradient of {g.dtype}; wanted one float type"
        )
    if not is_dense(p):
        raise ShapeError(
            f"a parameter of shape {tuple(p.shape)} and strides {p.stride()} has gaps between its "
            f"elements; make it a tensor of its own with .contiguous()"
        )
    if g.stride() == p.stride() or (p.is_contiguous() and g.is_contiguous()):
        return g
    return torch.empty_like(p, memory_format=torch.preserve_format).copy_(g)


def update_on_host(
    rule: str, entries: list[Entry], groups: list[Settings], scale: Any, found_inf: Any
) -> None:
    """The NumPy twin of `UpdateTable.update`: the backend's verb, tensor by tensor."""
    if found_inf is not None and float(found_inf):
        return
    dtype = bridge.compute_dtype(entries[0].p.dtype)
    unscale = 1.0 if scale is None else 1.0 / float(scale)
    known: dict[tuple[int, int], dict[str, Any]] = {}
    with bridge.HOST.verbs(entries[0].p) as verbs:
        for entry in entries:
            entry.step += 1
            key = entry.group, int(entry.step)
            if key not in known:
                known[key] = _host_coefficients(rule, groups[key[0]], key[1], unscale, dtype)
            p, g = (bridge.numpy_view(flat(t).to(dtype)) for t in (entry.p, entry.g))
            slots = tuple(bridge.numpy_view(flat(slot)) for slot in entry.slots)
            verbs.update(p, g, slots, UPDATES[rule], known[key])
            if dtype != entry.p.dtype:
                flat(entry.p).copy_(torch.from_numpy(p))
    _written(entries)


def _written(entries: list[Entry]) -> None:
    """Autograd learns what was written past it: a graph that needs an older value raises."""
    torch.autograd.graph.increment_version(
        [tensor for entry in entries for tensor in (entry.p, *entry.slots, entry.step)]
    )


def _host_coefficients(
    rule: str, settings: Settings, step: int, unscale: float, dtype: torch.dtype
) -> dict[str, Any]:
    """What `NumpyBackend.update` wants to know of a step."""
    number = np.float64 if dtype == torch.float64 else np.float32
    formula, lr = UPDATES[rule], float(settings.lr)
    own = formula.coefficients(settings.hyperparameters, lr, step)
    coefficients: dict[str, Any] = {"c": tuple(map(number, own))}
    factor = -unscale if settings.maximize else unscale
    if factor != 1.0:
        coefficients["clip"] = number(factor)
    if settings.weight_decay:
        decay = settings.weight_decay
        coefficients["decay"] = number(1.0 - lr * decay if formula.decay == "decoupled" else decay)
    return coefficients


class UpdateTable:
    """The table of one optimizer for the tensors of one device, dtype and rule.

    It is uploaded where an address or a setting has changed. What a captured CUDA graph reads is
    kept as long as this object.
    """

    def __init__(self, rule: str, of: bridge.CudaBridge) -> None:
        self.rule, self.of = rule, of
        self._rows = self._settings = np.empty((0, WORDS))
        self._tensors: dict[str, Tensor] = {}
        self._captured: list[dict[str, Tensor]] = []

    def update(
        self, entries: list[Entry], groups: list[Settings], scale: Any, found_inf: Any
    ) -> None:
        """One step: two launches, whatever the number of tensors."""
        like = entries[0].p
        rows, chunks = table_rows(entries)
        settings = np.array([group.row(like.device) for group in groups])
        if rows.shape != self._rows.shape or (rows != self._rows).any():
            compute = bridge.compute_dtype(like.dtype)
            room = torch.empty((len(rows), COEFFICIENTS), dtype=compute, device=like.device)
            table = self.of.upload(torch.from_numpy(rows), like)
            self._tensors |= {"table": table, "coefficients": room}
            self._rows = rows
        if settings.shape != self._settings.shape or (settings != self._settings).any():
            self._tensors["settings"] = self.of.upload(torch.from_numpy(settings), like)
            self._settings = settings
        if self.of.capturing():
            self._captured.append(dict(self._tensors))
        rates = {n: group.lr for n, group in enumerate(groups) if on_device(group.lr, like.device)}
        self._launch(like, chunks, rates, scale, found_inf)
        _written(entries)

    def _launch(
        self,
        like: Tensor,
        chunks: int,
        rates: Mapping[int, Any],
        scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        of, tensors = self.of, self._tensors
        with of.verbs(like) as verbs:
            for group, lr in rates.items():
                target = of.array(tensors["settings"][group, :1])
                verbs.gather_rows(of.array(lr.reshape(1)), None, target)
            numbers = (None if t is None else t.reshape(1) for t in (scale, found_inf))
            update_table(
                verbs,
                UPDATES[self.rule],
                of.array(like).dtype,
                of.array(tensors["table"].view(torch.uint64)),
                of.array(tensors["settings"]),
                of.array(tensors["coefficients"]),
                chunks,
                *map(of.array, numbers),
            )


def on_device(lr: float | Tensor, device: torch.device) -> bool:
    return isinstance(lr, Tensor) and lr.device == device


def table_rows(entries: list[Entry]) -> tuple[np.ndarray, int]:
    """The table of kernels/update_table.cu as (tensors, WORDS) int64, and the number of chunks."""
    p = entries[0].p
    pack = (2 if p.dtype == torch.float64 else 4) * p.element_size()  # bytes of p in a pack
    rows = np.zeros((len(entries), WORDS), np.int64)
    addresses = [
        [entry.p.data_ptr(), entry.g.data_ptr(), *(slot.data_ptr() for slot in entry.slots)]
        for entry in entries
    ]
    rows[:, : len(addresses[0])] = addresses
    rows[:, 4] = [entry.step.data_ptr() for entry in entries]
    rows[:, 5] = [entry.p.numel() for entry in entries]
    rows[:, 7] = [entry.group for entry in entries]
    heads = rows[:, 0] % pack // p.element_size()
    ends = np.cumsum(-(-(rows[:, 5] + heads) // TABLE_CHUNK))
    rows[1:, 6] = ends[:-1]
    if ends[-1] >= 2**31:
        raise OptionError(f"{ends[-1]} chunks of parameters are more than a launch covers")
    return rows, int(ends[-1])
