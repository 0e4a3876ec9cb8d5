"""The sum of a step's gradient over the ranks: one call, or buckets beside the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpubackprop.backends import Backend
from gpubackprop.distributed.buckets import buckets_of
from gpubackprop.distributed.contract import Communicator
from gpubackprop.layout import ParameterLayout
from gpubackprop.passes import BIASES

Array = Any  # an array of the network's device
Final = Callable[[Backend, int], None]  # see `gpubackprop.passes.emit_step`


class GradientSum:
    """Adds up a flat gradient over the ranks; `gpubackprop.passes.emit_step` calls its methods.

    A communicator says how large a bucket must be to pay (`Communicator.least_bucket`). Where there
    are several, each is added up on another stream as soon as its last layer's gradient is there.
    The biases, and what lies behind them, are one more: they are final before the first layer's
    weights. Every rank has the same buckets in the same order.

    Parameters
    ----------
    ranks : Communicator
        The ranks, for arrays of the network's device.
    flat : (P,) array
        The gradient, and what is added up together with it.
    layout : ParameterLayout
        Where the layers are in it.

    Attributes
    ----------
    buckets : dict
        As `buckets_of` returns them; empty for one call.
    """

    def __init__(self, ranks: Communicator, flat: Array, layout: ParameterLayout) -> None:
        self.ranks, self.flat, self._weights_end = ranks, flat, layout.weights_end
        self.buckets = buckets_of(
            layout.starts[0], layout.weights_end, flat.dtype.itemsize, ranks.least_bucket
        )

    def emitters(
        self, before: Callable[[Backend], None] | None = None
    ) -> tuple[Callable[[Backend], None], Final | None]:
        """Return what `emit_step` takes as `together` and as `final`.

        Parameters
        ----------
        before : callable or None
            ``before(backend)`` writes what else all ranks learn, from the batch's loss.

        Returns
        -------
        pair of callables
            The second is None for one call.
        """

        def whole(backend: Backend) -> None:
            if before is not None:
                before(backend)
            self._emit_whole(backend)

        def final(backend: Backend, layer: int) -> None:
            if layer == BIASES:
                if before is not None:
                    before(backend)
                self._emit_beside(backend, slice(self._weights_end, None))
            elif layer in self.buckets:
                self._emit_beside(backend, self.buckets[layer])

        return (self.ranks.emit_join, final) if self.buckets else (whole, None)

    def _emit_whole(self, backend: Backend) -> None:
        self.ranks.emit_allreduce(backend, self.flat)

    def _emit_beside(self, backend: Backend, bucket: slice) -> None:
        self.ranks.emit_beside(backend, self.flat[bucket])
