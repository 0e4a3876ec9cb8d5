"""Updates of all parameters: one flat buffer, and what others do with a thousand tensors."""

OPS = ("update", "update_many")


def bench_update(measure):
    measure()
