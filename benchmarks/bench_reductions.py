"""Sums over rows, and of squares."""

OPS = ("column_sum", "sum_of_squares")


def bench_reductions(measure):
    measure()
