"""Gathering the rows of a batch."""

OPS = ("gather_rows",)


def bench_gather_rows(measure):
    measure()
