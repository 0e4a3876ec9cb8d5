"""Every operation at every shape of the size: a group for each case."""


def bench_operation(measure):
    measure()
