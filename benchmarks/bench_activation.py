"""Activations, there and back; the way back with the bias gradient in the same pass."""

OPS = ("activation_forward", "activation_backward")


def bench_activation(measure):
    measure()
