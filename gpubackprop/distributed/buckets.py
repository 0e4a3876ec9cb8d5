"""Buckets: parts of the gradient that are added up while the backward pass still computes others.

The backward pass goes from the last layer to the first. What is final of the weights' gradient is
therefore the end of its range, and a bucket is the layers that have become final since the one
before. A bucket costs a latency of its own, so it must be large.
"""

from __future__ import annotations

from collections.abc import Sequence

# Assumed, not measured: what a GPU sends and receives, and how long a sum of nothing takes.
BANDWIDTH = 100e9  # bytes a second
LATENCY = 20e-6  # seconds
LATENCIES = 4  # moving a bucket takes so many of them at least


def least_bytes(bandwidth: float = BANDWIDTH, latency: float = LATENCY) -> int:
    """Return the bytes of the smallest bucket that pays.

    Parameters
    ----------
    bandwidth : float
        Bytes a second that one rank sends and receives.
    latency : float
        Seconds of a sum of nothing.

    Returns
    -------
    int
        So many that the latency is at most a quarter of the time in which they move.

    Examples
    --------
    >>> least_bytes(), least_bytes(10e9)
    (8000000, 800000)
    """
    return round(LATENCIES * latency * bandwidth)


def buckets_of(starts: Sequence[int], stop: int, itemsize: int, least: float) -> dict[int, slice]:
    """Divide the gradient of the weights into buckets.

    Parameters
    ----------
    starts : sequence of int
        Where each layer's weights begin in the flat gradient, in elements, in ascending order.
    stop : int
        Where the last layer's end.
    itemsize : int
        Bytes of an element.
    least : float
        Bytes of the smallest bucket, as `least_bytes` says.

    Returns
    -------
    dict
        For each bucket the layer whose gradient completes it and its part of the flat gradient, in
        the order in which they become final. Empty if there would be one alone.

    Examples
    --------
    >>> buckets_of([0, 1000, 1800, 2800], 3000, 4, 4000)
    {2: slice(1800, 3000, None), 0: slice(0, 1800, None)}
    >>> buckets_of([0, 1000, 1800, 2800], 3000, 4, 8_000_000)
    {}
    """
    found: list[tuple[int, slice]] = []
    for layer in reversed(range(len(starts))):
        part = slice(starts[layer], stop)
        if (part.stop - part.start) * itemsize >= least:
            found.append((layer, part))
            stop = part.start
    if found and stop > starts[0]:  # what is left is too little
        found[-1] = 0, slice(starts[0], found[-1][1].stop)
    return dict(found) if len(found) > 1 else {}
