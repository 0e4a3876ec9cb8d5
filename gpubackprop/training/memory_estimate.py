"""The memory that a training takes, before anything of it is allocated."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, cast

import numpy as np

from gpubackprop.backends import Backend
from gpubackprop.backends.linear_cross_entropy import working_bytes
from gpubackprop.losses import Loss
from gpubackprop.network import MLP
from gpubackprop.ops import display
from gpubackprop.optimizers import Optimizer
from gpubackprop.passes import PassUnits, in_chunks
from gpubackprop.training.gradient_parts import parts_of

WORKING_CPU = 4 << 20  # blocks of the elementwise operations, for each thread
WORKING_DROPOUT = 8 << 20  # words of the generator, for each thread
WORKING_CUDA = 40 << 20  # cuBLASLt's workspace and partial sums, for each plan
STAGING_BUFFERS = 2  # see `gpubackprop.backends.cupy.staging`
MB = 1e6


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a training takes on its device, beyond the arrays of the caller.

    Parameters
    ----------
    parameters : int
        Weights and biases.
    best : int
        The copy of the parameters to which training goes back.
    gradient : int
        Their gradient.
    optimizer : int
        The optimizer's state.
    half_copy : int
        The copy of the parameters in 16 bits.
    data : int
        Inputs, targets and weights of all rows; 0 on the CPU, which reads the caller's.
    batch : int
        Inputs, targets and row values of a batch.
    units : int
        Units of all layers and their gradients, for a batch.
    masks : int
        On a GPU, a bit for each unit of a ReLU that a product of cuBLASLt computes; 0 if none is
        (GPUBACKPROP_EPILOGUES). Which are is found out when the step is planned: these are all that
        may be.
    staging : int
        On a GPU, batches on their way there, where the rows stay with the host.
    working : int
        Working memory; 16 bits on a CPU may take more.

    Examples
    --------
    >>> from gpubackprop import MLP, Trainer
    >>> estimate = Trainer(MLP([784, 512, 10]), batch_size=256).memory_estimate(60_000)
    >>> estimate.parameters  # 4 bytes of 407,050 parameters, and the gaps between them
    1628288
    """

    parameters: int
    best: int
    gradient: int
    optimizer: int
    half_copy: int
    data: int
    batch: int
    units: int
    masks: int
    staging: int
    working: int

    @property
    def total(self) -> int:
        """The sum."""
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def pinned(self) -> int:
        """Bytes of pinned memory that `staging` takes on the host, beside the total."""
        return self.staging

    def largest_batch(self, batch_size: int, nbytes: int) -> int:
        """Return the most rows of a batch with which the training takes `nbytes`; 0 for none.

        Parameters
        ----------
        batch_size : int
            Rows of the batch that this was estimated for.
        nbytes : int
            Bytes that are free.

        Returns
        -------
        int
            Rows.

        Examples
        --------
        >>> estimate = MemoryEstimate(0, 0, 0, 0, 0, 500, 100, 900, 0, 0, 0)
        >>> estimate.largest_batch(10, 2500)  # 500 stay, and 100 are of each row
        20
        """
        of_batch = self.batch + self.units + self.masks + self.staging
        return max(0, int((nbytes - self.total + of_batch) * batch_size // max(1, of_batch)))

    def _table(self) -> list[list[str]]:
        names = [field.name.replace("_", " ") for field in fields(self)]
        values = [getattr(self, field.name) for field in fields(self)]
        pairs = zip([*names, "total"], [*values, self.total], strict=True)
        return [[name, f"{value / MB:,.2f}"] for name, value in pairs if value]

    def __str__(self) -> str:
        return "\n".join(f"{name:12}{value:>14} MB" for name, value in self._table())

    def _repr_html_(self) -> str:
        return display.html_table("memory of a training", ["part", "MB"], self._table())


class _Counting:
    """A backend that counts the bytes of arrays and has memory for one element of each."""

    def __init__(self) -> None:
        self.bytes = 0

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> Any:
        array = np.broadcast_to(np.zeros((), dtype), shape)
        self.bytes += array.nbytes
        return _Whole(array)

    zeros = empty


class _Whole:
    """An array of which parts and other shapes are itself: they share its memory."""

    def __init__(self, array: Any) -> None:
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, part: Any) -> _Whole:
        return self

    def reshape(self, *shape: int) -> _Whole:
        return self


class _Counted:
    """A network whose units a `_Counting` backend allocates."""

    def __init__(self, network: MLP, backend: _Counting) -> None:
        self.backend = cast(Backend, backend)
        self.widths, self.activations = network.widths, network.activations
        self.dropout, self.precision = network.dropout, network.precision


def estimated(
    network: MLP,
    loss: Loss,
    optimizer: Optimizer,
    batch_size: int,
    rows: int,
    dtype: Any,
    threads: int,
    ranks: int = 1,
    sharded: bool = False,
    staged: bool | None = None,
) -> MemoryEstimate:
    """Return the estimate of a training; see `Trainer.memory_estimate`.

    Parameters
    ----------
    network : MLP
        The network.
    loss : Loss
        Its loss.
    optimizer : Optimizer
        Its optimizer.
    batch_size : int
        Rows of a batch.
    rows : int
        Rows to train on.
    dtype : dtype
        Dtype of the inputs.
    threads : int
        Threads of the CPU.
    ranks : int
        Ranks that compute a batch together; the estimate is of one of them.
    sharded : bool
        Whether each has a part of the optimizer's state.
    staged : bool or None
        Whether the inputs stay with the host of a GPU; None if they do not fit there.
    """
    wide, narrow, size = network.dtype.itemsize, network.precision.itemsize, network.layout.size
    full = max(1, min(batch_size, rows))
    plans = [-(-count // ranks) for count in (full, rows % full) if count]  # and a short last one
    batch_size = plans[0]
    features, outputs = network.widths[0], network.widths[-1]
    labels, on_gpu = loss.output == "softmax", network.device != "cpu"
    target = 8 if labels else outputs * wide
    random = np.zeros(2, np.uint64) if any(network.dropout) else None
    units, results = _Counting(), _Counting()
    chunked = in_chunks(loss, batch_size, network.widths, network.dtype)
    PassUnits(_Counted(network, units), batch_size, separate=False, random=random, chunked=chunked)
    of_chunks = 0
    if chunked:
        last = network.widths[-2]
        of_chunks = working_bytes(batch_size, last, outputs, network.precision, on_gpu)
    counting: Any = results
    loss.buffers(counting, batch_size, network.dtype)
    converted = on_gpu or dtype == network.precision  # a GPU gathers and converts in one
    gathered = 0 if converted else features * dtype.itemsize
    x_bytes = rows * features * dtype.itemsize
    if staged is None:
        staged = not network.backend.has_room(x_bytes)
    working = _on_cpu(network, batch_size, threads)
    if on_gpu:
        working = WORKING_CUDA * len(plans)
        if network.mixed_precision:  # sums of products before they are rounded
            working += 4 * sum(plans) * max(network.widths[1:])
    per_row = features * narrow + gathered + target + (1 if labels else 0) + (8 if on_gpu else 0)
    held = parts_of(size, ranks)[0].stop if sharded else size  # the first part is a largest one
    return MemoryEstimate(
        parameters=size * wide,
        best=size * wide,
        gradient=size * wide,
        optimizer=len(optimizer.formula.slots) * held * wide,
        half_copy=size * narrow if network.mixed_precision else 0,
        data=(0 if staged else x_bytes) + rows * target if on_gpu else 0,
        batch=batch_size * per_row + results.bytes,
        units=units.bytes + of_chunks,
        masks=sum(plans) * _mask_bytes(network) if on_gpu else 0,
        staging=STAGING_BUFFERS * batch_size * features * narrow if on_gpu and staged else 0,
        working=working,
    )


def _mask_bytes(network: MLP) -> int:
    """Return the most bytes of masks for a row: of the layers of ReLU without dropout."""
    from gpubackprop.backends.cupy.epilogues import bytes_of_masks

    layers = zip(network.widths[1:], network.activations, network.dropout, strict=False)
    widths = [width for width, act, rate in layers if act.name == "relu" and not rate]
    return bytes_of_masks(cast(Any, network.backend), widths)


def _on_cpu(network: MLP, rows: int, threads: int) -> int:
    """Return the working memory on the CPU, which multiplies 16 bits, and TF32, in copies of 32."""
    each = WORKING_CPU + (WORKING_DROPOUT if any(network.dropout) else 0)
    copies = 0
    if network.mixed_precision or network.tf32:
        pairs = list(pairwise(network.widths))
        copies += max(rows * a for a, _ in pairs) + max(rows * b for _, b in pairs)
        copies += max(a * b for a, b in pairs)
    return each * threads + 4 * copies
