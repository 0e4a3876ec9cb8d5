"""A layer there and back: three products and what stands between them."""

OPS = ("affine_layer",)


def bench_affine_layer(measure):
    measure()
