"""Copies between host and GPU, which no other figure contains."""

OPS = ("transfer",)


def bench_transfer(measure):
    measure()
