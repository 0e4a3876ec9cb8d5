"""Whole training steps: gather, forward, loss, backward, Adam."""

OPS = ("training_step",)


def bench_training_step(measure):
    measure()
