"""How much a step moves between ranks, and how efficient they can be: an estimate.

The assumptions are those of `ASSUMPTIONS`, which every table repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from gpubackprop.distributed.buckets import buckets_of, least_bytes

ASSUMPTIONS = (
    "a rank computes the products of a step at the given rate, whatever its number of rows",
    "the sum takes 2 (N-1)/N of the gradient's bytes over the bandwidth of one rank, as a ring "
    "does, and 2 log2(N) latencies",
    "the sum begins when the backward pass has ended: nothing overlaps (but see the last column)",
    "reading rows, the update and whatever waits are left out",
    "with shard_optimizer a reduce-scatter and an all-gather of (N-1)/N of those bytes each take "
    "the place of the sum, and a sum of four figures is between them: 2 log2(N) latencies more",
)


@dataclass(frozen=True)
class Scaling:
    """A network, a batch and what connects the ranks.

    Parameters
    ----------
    widths : sequence of int
        Units of all layers, the inputs first.
    batch_size : int
        Rows of a batch, of all ranks together (strong scaling) or of each (weak scaling).
    itemsize : int
        Bytes of a parameter's gradient.
    bandwidth : float
        Bytes a second that one rank sends and receives.
    latency : float
        Seconds of a message.
    flops : float
        Floating-point operations a second of one rank.

    Examples
    --------
    >>> scaling = Scaling([784, 512, 10], 256, 4, 25e9, 10e-6, 1e12)
    >>> scaling.gradient_bytes, scaling.moved(4)
    (1628200, 2442300.0)
    >>> [round(scaling.strong(ranks), 2) for ranks in (1, 2, 4)]
    [1.0, 0.71, 0.43]
    """

    widths: Sequence[int]
    batch_size: int
    itemsize: int
    bandwidth: float
    latency: float
    flops: float

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the gradient: of all weights and biases."""
        return self.itemsize * sum((m + 1) * n for m, n in pairwise(self.widths))

    def moved(self, ranks: int) -> float:
        """Return the bytes that a rank sends in a step, and receives.

        Parameters
        ----------
        ranks : int
            Number of ranks.

        Returns
        -------
        float
            Bytes.
        """
        return 2 * (ranks - 1) / ranks * self.gradient_bytes

    def computing(self, rows: float) -> float:
        """Return the seconds of the products of a step.

        Parameters
        ----------
        rows : float
            Rows of the step.

        Returns
        -------
        float
            Seconds: three products of 2 m n operations a row for each layer of m inputs and n
            units, and two for the first one.
        """
        layers = list(pairwise(self.widths))
        products = sum(6 * m * n for m, n in layers) - 2 * layers[0][0] * layers[0][1]
        return rows * products / self.flops

    def adding(self, ranks: int) -> float:
        """Return the seconds of the sum over the ranks.

        Parameters
        ----------
        ranks : int
            Number of ranks.

        Returns
        -------
        float
            Seconds; 0 for one rank.
        """
        rounds = max(0, (ranks - 1).bit_length())
        return self.moved(ranks) / self.bandwidth + 2 * rounds * self.latency

    def adding_in_parts(self, ranks: int) -> float:
        """Return the seconds of reduce-scatter, figures and all-gather, if optimizers are sharded.

        Parameters
        ----------
        ranks : int
            Number of ranks.

        Returns
        -------
        float
            Seconds; 0 for one rank. They move what `moved` says.

        Examples
        --------
        >>> scaling = Scaling([784, 512, 10], 256, 4, 25e9, 10e-6, 1e12)
        >>> f"{scaling.adding(4):.6f} {scaling.adding_in_parts(4):.6f}"
        '0.000138 0.000178'
        """
        latencies = self.adding(ranks) - self.moved(ranks) / self.bandwidth
        return self.adding(ranks) + latencies

    def slot_bytes(self, ranks: int) -> int:
        """Return the bytes of one slot of an optimizer on the rank with the largest part.

        Parameters
        ----------
        ranks : int
            Number of ranks that have a part each.

        Returns
        -------
        int
            Bytes, without alignment.
        """
        return self.itemsize * -(-self.gradient_bytes // self.itemsize // ranks)

    def buckets(self) -> list[tuple[int, int]]:
        """Return the buckets in which NCCL adds up the gradient beside the backward pass.

        Returns
        -------
        list of (layer, bytes)
            In their order; the layer that completes each, and its bytes. Empty for one call. The
            biases, which are one more, are left out.
        """
        sizes = [m * n for m, n in pairwise(self.widths)]
        *starts, stop = accumulate(sizes, initial=0)
        found = buckets_of(starts, stop, self.itemsize, least_bytes())
        return [(layer, self.itemsize * (p.stop - p.start)) for layer, p in found.items()]

    def left(self, ranks: int) -> float:
        """Return the seconds of the sum that are left when the backward pass has ended.

        Parameters
        ----------
        ranks : int
            Number of ranks, which do one batch together.

        Returns
        -------
        float
            Seconds. Without buckets, the whole sum.

        Examples
        --------
        >>> scaling = Scaling([2048, 2048, 2048, 2048], 8192, 4, 25e9, 20e-6, 50e12)
        >>> f"{scaling.adding(2):.5f} {scaling.left(2):.5f}"
        '0.00205 0.00071'
        """
        done = dict(self.buckets())
        if not done or ranks < 2:
            return self.adding(ranks)
        latency = self.adding(ranks) - self.moved(ranks) / self.bandwidth
        computed = summed = 0.0  # seconds since the backward pass began
        for layer, (m, n) in reversed(list(enumerate(pairwise(self.widths)))):
            product = 2 * m * n * self.batch_size / ranks / self.flops
            if layer == 0:  # the biases
                summed = max(summed, computed) + latency
            computed += product
            if layer in done:
                moved = 2 * (ranks - 1) / ranks * done[layer]
                summed = max(summed, computed) + moved / self.bandwidth + latency
            computed += product if layer else 0.0
        return max(0.0, summed - computed)

    def strong(self, ranks: int) -> float:
        """Return the efficiency of N ranks on one batch: the speed-up divided by N.

        Parameters
        ----------
        ranks : int
            Number of ranks.

        Returns
        -------
        float
            At most 1.
        """
        alone = self.computing(self.batch_size)
        return alone / ranks / (alone / ranks + self.adding(ranks))

    def weak(self, ranks: int) -> float:
        """Return the efficiency of N ranks with a batch each: one's time divided by theirs.

        Parameters
        ----------
        ranks : int
            Number of ranks.

        Returns
        -------
        float
            At most 1.
        """
        alone = self.computing(self.batch_size)
        return alone / (alone + self.adding(ranks))
