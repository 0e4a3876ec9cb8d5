"""Cases: operation and shape of one piece of work; the networks; the products of a case."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from gpubackprop.dtypes import SUFFIXES

NETWORKS: dict[str, tuple[int, ...]] = {
    "lecture": (784, 512, 512, 10),
    "tiny": (64, 128, 10),
    "MNIST, small": (784, 320, 160, 10),  # other libraries publish the time of an epoch
    "MNIST, wide": (784, 1024, 512, 10),
    "tabular, small": (30, 128, 128, 2),
    "tabular, large": (100, 1024, 1024, 1000),
    "four of 64": (64, 64, 64, 64, 64),
    "deep and thin": (64,) * 33,
    "wide": (4096,) * 5,
}
PEER_ACTIVATIONS = ("relu", "gelu", "tanh")
SHOWN_WIDTHS = 8  # a name with more equal widths than this says "33x64"
BOTH = ("cpu", "cuda")


@dataclass(frozen=True)
class Case:
    """One piece of work.

    Attributes
    ----------
    op : key of `operations.PROBLEMS`.
    shape : (rows, columns) or (elements,). It is (rows, in, out) for "affine_..." and
        "linear_...", (batch, *widths) for "training_step" and "cold_start", and
        (epochs, batch, rows, *widths) for "fit", with the number of networks before it for
        "fit_many".
    dtype : storage type.
    variant : activation, loss, optimizer or options of the operation.
    devices : devices on which it is measured.
    key : whether the README shows it. It is also measured with one thread; only here do slow
        peers take part.
    quick : whether it is part of "quick".
    """

    op: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    variant: str = ""
    devices: tuple[str, ...] = BOTH
    key: bool = False
    quick: bool = False

    @property
    def name(self) -> str:
        """Return e.g. training_step/adam/f32/784-512-512-10/batch256; 33 equal widths: 64x33."""
        if self.op == "fit":
            epochs, batch, rows, *widths = self.shape
            shape = f"{rows}x{'-'.join(map(str, widths))}/batch{batch}/epochs{epochs}"
        elif self.op == "fit_many":
            networks, epochs, batch, rows, *widths = self.shape
            shape = f"{rows}x{'-'.join(map(str, widths))}/batch{batch}/epochs{epochs}"
            shape += f"/networks{networks}"
        elif self.op in ("training_step", "cold_start"):
            batch, *widths = self.shape
            deep = len(widths) > SHOWN_WIDTHS and len(set(widths)) == 1
            shape = f"{widths[0]}x{len(widths)}" if deep else "-".join(map(str, widths))
            shape += f"/batch{batch}"
        else:
            shape = "x".join(map(str, self.shape))
        parts = (self.op, self.variant, SUFFIXES[self.dtype], shape)
        return "/".join(part for part in parts if part)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Case:
        tuples = {key: tuple(values[key]) for key in ("shape", "devices")}
        return cls(**(values | tuples))


def products(case: Case) -> list[tuple[int, int, int]]:
    """Return (rows, inner, columns) of each matrix product: a step of L layers has 3 L - 1."""
    if case.op.startswith(("affine_", "linear_")):
        rows, inner, columns = case.shape
        forward = [(rows, inner, columns)]
        backward = [(columns, rows, inner), (rows, columns, inner)]
        found = {"affine_forward": forward, "affine_backward": backward}
        return found.get(case.op, forward + backward)
    if case.op != "training_step":
        return []
    batch, *widths = case.shape
    layers = list(itertools.pairwise(widths))
    forward = [(batch, i, o) for i, o in layers]
    weights = [(o, batch, i) for i, o in layers]
    hidden = [(batch, o, i) for i, o in layers[1:]]
    return forward + weights + hidden


def parameter_count(widths: tuple[int, ...]) -> int:
    return sum(i * o + o for i, o in itertools.pairwise(widths))


def elements(case: Case) -> int:
    return math.prod(case.shape)
