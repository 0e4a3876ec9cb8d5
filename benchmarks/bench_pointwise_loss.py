"""Squared error, binary cross entropy, Poisson: loss and gradient in one pass."""

OPS = ("pointwise_loss",)


def bench_pointwise_loss(measure):
    measure()
