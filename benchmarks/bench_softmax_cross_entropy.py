"""Softmax cross entropy: loss and gradient in one pass, over K = 10 ... 262,144 and its options."""

OPS = ("softmax_cross_entropy",)


def bench_softmax_cross_entropy(measure):
    measure()
