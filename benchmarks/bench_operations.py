"""Time every operation at every shape of the size; each case is a group."""


def bench_operation(measure):
    measure()
