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
from gpubackprop.errors import OptionError
from gpubackprop.formulas import UPDATES
from gpubackprop.torch import bridge
from gpubackprop.torch.cuda_bridge import numpy_dtype
from gpubackprop.torch.operands import Entry, Operands

# Columns of kernels/update_table.cu; the addresses of p, g and the slots come before these.
STEP, COUNT, FIRST_CHUNK, GROUP, WORDS = range(5, 10)
SETTINGS = 8


@dataclass(frozen=True)
class Settings:
    """The options of a parameter group.

    An `lr` that is a tensor of the device is read when the step runs.
    """

    lr: float | Tensor
    weight_decay: float
    maximize: bool
    hyperparameters: dict[str, float]

    def rate(self) -> float:
        """Return the learning rate as a number; this waits if it is a tensor of a GPU."""
        return float(self.lr.detach() if isinstance(self.lr, Tensor) else self.lr)

    def check(self) -> None:
        """PyTorch's RuntimeError where the rate is a tensor without memory, before any update."""
        if isinstance(self.lr, Tensor) and self.lr.is_meta:
            self.rate()

    def row(self, device: torch.device) -> list[float]:
        """Return a row of the kernel's `settings`; lr is 0 if it is a tensor of the device."""
        lr = 0.0 if on_device(self.lr, device) else self.rate()
        row = [
            lr,
            self.weight_decay,
            -1.0 if self.maximize else 1.0,
            *self.hyperparameters.values(),
        ]
        return row + [0.0] * (SETTINGS - len(row))


def flat(tensor: Tensor) -> Tensor:
    """Return all elements of a dense tensor in the order of memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def update_on_host(
    rule: str,
    storage: torch.dtype,
    entries: list[Entry],
    groups: list[Settings],
    scale: Any,
    found_inf: Any,
) -> None:
    """Do the same as `UpdateTable.update` in NumPy: the backend's operation, tensor by tensor."""
    if found_inf is not None and float(found_inf):
        return
    dtype = bridge.compute_dtype(storage)
    unscale = 1.0 if scale is None else 1.0 / float(scale)
    known: dict[tuple[int, float], dict[str, Any]] = {}
    with bridge.HOST.backend_of(entries[0].p) as backend:
        for entry in entries:
            entry.step += 1
            key = entry.group, float(entry.step)
            if key not in known:
                known[key] = _host_coefficients(rule, groups[key[0]], key[1], unscale, dtype)
            operands = Operands(entry, dtype)
            p, g, *slots = (
                bridge.numpy_view(flat(t)) for t in (operands.p, operands.g, *operands.slots)
            )
            backend.update(p, g, tuple(slots), UPDATES[rule], known[key])
            operands.write_back()
    _written(entries)


def _written(entries: list[Entry]) -> None:
    """Tell autograd what was written past it: a graph that needs an older value raises."""
    torch.autograd.graph.increment_version(
        [tensor for entry in entries for tensor in (entry.p, *entry.slots, entry.step)]
    )


def _host_coefficients(
    rule: str, settings: Settings, step: float, unscale: float, dtype: torch.dtype
) -> dict[str, Any]:
    """Return the coefficients of a step as `NumpyBackend.update` takes them."""
    number = np.float64 if dtype == torch.float64 else np.float32
    formula, lr = UPDATES[rule], settings.rate()
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

    It is uploaded again if an address or a setting has changed. Memory that a captured CUDA graph
    reads is kept as long as this object.
    """

    def __init__(self, rule: str, storage: torch.dtype, of: bridge.CudaBridge) -> None:
        self.rule, self.storage, self.of = rule, storage, of
        self._rows = self._settings = np.empty((0, WORDS))
        self._chunks = np.empty(0, np.int64)
        self._rates: set[int] = set()  # groups whose learning rate is a tensor of the device
        self._tensors: dict[str, Tensor] = {}
        self._captured: list[dict[str, Tensor]] = []

    def update(
        self, entries: list[Entry], groups: list[Settings], scale: Any, found_inf: Any
    ) -> None:
        """Do one step: two launches, whatever the number of tensors."""
        like = entries[0].p
        operands = [Operands(entry, self.storage) for entry in entries]
        for one in operands:
            one.count_in_float32()
        rows, chunks = table_rows(operands, [entry.group for entry in entries])
        settings = np.array([group.row(like.device) for group in groups])
        if rows.shape != self._rows.shape or (rows != self._rows).any():
            compute = bridge.compute_dtype(self.storage)
            room = torch.empty((len(rows), COEFFICIENTS), dtype=compute, device=like.device)
            table = self.of.upload(torch.from_numpy(rows), like)
            self._tensors |= {"table": table, "coefficients": room}
            self._rows = rows
        if not np.array_equal(chunks, self._chunks):
            owner = np.repeat(np.arange(len(rows), dtype=np.int32), chunks)
            self._tensors["owner"] = self.of.upload(torch.from_numpy(owner), like)
            self._chunks = chunks
        rates = {n: group.lr for n, group in enumerate(groups) if on_device(group.lr, like.device)}
        same = settings.shape == self._settings.shape and (settings == self._settings).all()
        if not same or rates.keys() != self._rates:  # the device has other rates than `settings`
            self._tensors["settings"] = self.of.upload(torch.from_numpy(settings), like)
            self._settings, self._rates = settings, set(rates)
        if self.of.capturing():
            self._captured.append(dict(self._tensors))
        self._launch(like, rates, scale, found_inf)
        for one in operands:
            one.write_back()
        _written(entries)

    def _launch(
        self,
        like: Tensor,
        rates: Mapping[int, Any],
        scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        of, tensors = self.of, self._tensors
        with of.backend_of(like) as backend:
            for group, lr in rates.items():
                target = of.array(tensors["settings"][group, :1])
                backend.gather_rows(of.array(_number(lr)), None, target)
            numbers = (None if t is None else t.reshape(1) for t in (scale, found_inf))
            update_table(
                backend,
                UPDATES[self.rule],
                numpy_dtype(self.storage),
                of.array(tensors["table"].view(torch.uint64)),
                of.array(tensors["settings"]),
                of.array(tensors["coefficients"]),
                of.array(tensors["owner"]),
                *map(of.array, numbers),
            )


def on_device(lr: float | Tensor, device: torch.device) -> bool:
    return isinstance(lr, Tensor) and lr.device == device


def _number(lr: Tensor) -> Tensor:
    lr = lr.detach().reshape(1)
    return lr if lr.dtype in bridge.FLOATS else lr.to(torch.float64)


def table_rows(operands: list[Operands], groups: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the table (tensors, WORDS) of kernels/update_table.cu, and each tensor's chunks."""
    size = operands[0].p.element_size()
    pack = (2 if size == 8 else 4) * size  # bytes of p in a pack
    rows = np.zeros((len(operands), WORDS), np.int64)
    addresses = [
        [one.p.data_ptr(), one.g.data_ptr(), *(slot.data_ptr() for slot in one.slots)]
        for one in operands
    ]
    rows[:, : len(addresses[0])] = addresses
    rows[:, STEP] = [one.step.data_ptr() for one in operands]
    rows[:, COUNT] = [one.p.numel() for one in operands]
    rows[:, GROUP] = groups
    heads = rows[:, 0] % pack // size
    chunks = -(-(rows[:, COUNT] + heads) // TABLE_CHUNK)
    ends = np.cumsum(chunks)
    rows[1:, FIRST_CHUNK] = ends[:-1]
    if ends[-1] >= 2**31:
        raise OptionError(f"{ends[-1]} chunks of parameters are more than a launch covers")
    return rows, chunks
