"""The sum of a step's gradient where each rank updates its part of the parameters alone.

A step is then: backward pass; reduce-scatter of the gradient, so that each rank has the sum of its
part; a sum of a few figures, among them the parts' squared norms; the update of the part; and an
all-gather of the parameters. Reduce-scatter and all-gather together move what one sum of the whole
gradient moves.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from gpubackprop.backends import Backend
from gpubackprop.distributed.contract import Communicator
from gpubackprop.layout import ParameterLayout
from gpubackprop.training.gradient_sum import GradientSum

Array = Any  # an array of the network's device
UNIT = 32  # elements: at least 128 bytes, so that parts are aligned
LOSS, STOP, NORM, FIGURES = 0, 1, 2, 4  # places of `GradientParts.figures`, and their number


class GradientParts(GradientSum):
    """Adds up a flat gradient over the ranks so that each has the sum of its part alone.

    Buckets are those of `GradientSum`. Each is scattered by itself, as soon as it is final: the
    ranks whose parts it meets receive their sums of it. So parts do not depend on the buckets, and
    a bucket moves as much as in one call, but by fewer ranks at a time.

    Parameters
    ----------
    ranks : Communicator
        The ranks, for arrays of the network's device.
    flat : (P,) array
        The gradient, and zeros up to a multiple of the number of ranks: P is `padded`.
    layout : ParameterLayout
        Where the layers are in it.

    Attributes
    ----------
    parts : list of slice
        The part of `flat` of each rank, all of one length.
    figures : (4,) array
        What all ranks learn of a step besides: the batch's loss, how many ranks ask to stop, and
        what `Updater.agree_by` takes. float64 on the host.
    """

    def __init__(
        self, ranks: Communicator, flat: Array, layout: ParameterLayout, backend: Backend
    ) -> None:
        super().__init__(ranks, flat, layout)
        count = flat.size // ranks.size
        self.parts = [slice(count * rank, count * (rank + 1)) for rank in range(ranks.size)]
        dtype = flat.dtype if backend.asynchronous else np.dtype(np.float64)
        self.figures = backend.zeros(FIGURES, dtype)

    def _emit_whole(self, backend: Backend) -> None:
        self.ranks.emit_reduce_scatter(backend, self.flat, self.parts)

    def _emit_beside(self, backend: Backend, bucket: slice) -> None:
        start, stop = bucket.start, self.flat.size if bucket.stop is None else bucket.stop
        ends = [min(max(part.stop, start), stop) - start for part in self.parts]
        met = [slice(first, last) for first, last in pairwise([0, *ends])]
        self.ranks.emit_beside(backend, self.flat[bucket], met)

    def emit_figures(self, backend: Backend) -> None:
        """Issue the sum of `figures` over the ranks.

        Parameters
        ----------
        backend : Backend
            The backend that computes or records.
        """
        self.ranks.emit_allreduce(backend, self.figures)


def parts_of(size: int, ranks: int) -> list[slice]:
    """Return the part of a flat buffer of each rank.

    Parameters
    ----------
    size : int
        Elements of the buffer.
    ranks : int
        Number of ranks.

    Returns
    -------
    list of slice
        They lie in order, are all elements, and begin at multiples of UNIT. All have one length but
        the last ones, which may be shorter or empty.

    Examples
    --------
    >>> parts_of(160, 2)
    [slice(0, 96, None), slice(96, 160, None)]
    """
    count = padded(size, ranks) // ranks
    ends = [min(size, count * rank) for rank in range(ranks + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


def padded(size: int, ranks: int) -> int:
    """Return the elements of a buffer in which the part of each rank has one length.

    Parameters
    ----------
    size : int
        Elements that are wanted.
    ranks : int
        Number of ranks.

    Returns
    -------
    int
        A multiple of the number of ranks, and of UNIT times that.

    Examples
    --------
    >>> padded(160, 2)
    192
    """
    return -(-size // (UNIT * ranks)) * UNIT * ranks
