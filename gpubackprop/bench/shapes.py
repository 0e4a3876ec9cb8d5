"""The one registry of what is measured: operations, their shapes, and the networks.

A `Case` is one piece of work. ``cases(size, device)`` gives those of a size: "smoke" (does it
work?), "quick" (under a minute on a CPU) or "full"; most important first, since a run may be
stopped by its budget.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from gpubackprop.dtypes import SUFFIXES
from gpubackprop.errors import OptionError
from gpubackprop.formulas import ACTIVATIONS, POINTWISE_LOSSES, UPDATES

SIZES = ("smoke", "quick", "full")
NETWORKS: dict[str, tuple[int, ...]] = {
    "lecture": (784, 512, 512, 10),
    "tiny": (64, 128, 10),
    "MNIST, small": (784, 320, 160, 10),  # an epoch of it is published for other libraries
    "MNIST, wide": (784, 1024, 512, 10),
    "tabular, small": (30, 128, 128, 2),
    "tabular, large": (100, 1024, 1024, 1000),
    "four of 64": (64, 64, 64, 64, 64),
    "deep and thin": (64,) * 33,
    "wide": (4096,) * 5,
}
VOCABULARIES = (32_000, 50_257, 128_256)
CLASSES = (10, 32, 100, 320, 1000, 4096, 16_384, *VOCABULARIES, 262_144)
LOSS_OPTIONS = ("label_smoothing", "class_weight", "ignore_index", "z_loss", "no_weight", "all")
BATCHES = tuple(2**power for power in range(21))
PEER_ACTIVATIONS = ("relu", "gelu", "tanh")
SHOWN_WIDTHS = 8  # in a name, of equal ones
BOTH, CUDA = ("cpu", "cuda"), ("cuda",)
CPU_ELEMENTS, CUDA_ELEMENTS = 1 << 22, 1 << 26  # of a matrix: 16 MiB, and 256 MiB (beyond any L2)


@dataclass(frozen=True)
class Case:
    """One piece of work.

    Attributes
    ----------
    op : key of `problems.PROBLEMS`.
    shape : (rows, columns), (elements,), for "affine_layer" (rows, in, out), for "training_step"
        and "cold_start" (batch, *widths).
    dtype : storage type. variant : activation, loss, optimizer or options of the operation.
    devices : where it is measured.
    key : shown in the README and also measured with one thread; the slow peers take part here only.
    quick : part of "quick".
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
        """E.g. training_step/adam/f32/784-512-512-10/batch256; 64x33 for 33 equal widths."""
        if self.op in ("training_step", "cold_start"):
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


def cases(size: str = "full", device: str = "cpu") -> list[Case]:
    """The cases of that size for "cpu" or "cuda".

    Raises
    ------
    OptionError : no such size.
    """
    if size not in SIZES:
        raise OptionError(f"size is {size!r}; valid are {', '.join(SIZES)}")
    found: dict[str, Case] = {}
    for case in _all(device):
        if device in case.devices:
            case = smaller(case) if size == "smoke" else case
            found[case.name] = _joined(found.get(case.name, case), case)
    return [case for case in found.values() if size != "quick" or case.quick]


def _joined(a: Case, b: Case) -> Case:
    """One case for two of the same name."""
    devices = tuple(dict.fromkeys((*a.devices, *b.devices)))
    return replace(a, devices=devices, key=a.key or b.key, quick=a.quick or b.quick)


def smaller(case: Case) -> Case:
    """The same work at a size that takes milliseconds, even emulated."""
    match case.op:
        case "training_step" | "cold_start":
            # Of the deep one three layers are left, of the wide one its width is cut.
            shape = (min(case.shape[0], 4), *(min(width, 6) for width in case.shape[1:5]))
        case "update" | "update_many" | "sum_of_squares" | "transfer":
            shape = (600,)
        case "affine_layer":
            shape = (5, 7, 6)
        case _:
            shape = (min(case.shape[0], 9), min(case.shape[1], 40 + case.shape[1] % 2))
    return replace(case, shape=shape)


def _all(device: str) -> Iterator[Case]:
    yield from _goals_of_gpus() if device == "cuda" else ()
    yield from _goals()
    yield from _batches(device)
    yield from _losses(device)
    yield from _layers(device)
    yield from _parameters(device)
    yield from _networks(device)


def _goals() -> Iterator[Case]:
    """What the project's goals speak of."""
    entropy, step = "softmax_cross_entropy", "training_step"
    yield Case(entropy, (4096, 1000), key=True, quick=True)
    yield Case(entropy, (256, 50_257), key=True, quick=True)
    yield Case(entropy, (4096, 10), key=True)
    yield Case(step, (256, *NETWORKS["lecture"]), variant="adam", key=True, quick=True)
    yield Case(step, (200, *NETWORKS["tiny"]), variant="adam", key=True, quick=True)


def _goals_of_gpus() -> Iterator[Case]:
    """What the project's goals for a GPU speak of, in their order: a card may be there for minutes.

    Rows and columns of the losses: the largest vocabulary in 16 bits, an odd one, every option, few
    columns of a million rows.
    """
    entropy, step = "softmax_cross_entropy", "training_step"
    yield Case(entropy, (8192, 128_256), "bfloat16", devices=CUDA, key=True)
    yield Case(entropy, (4096, 1000), devices=CUDA, key=True)
    yield Case(entropy, (4096, 50_257), "bfloat16", devices=CUDA, key=True)
    yield Case(entropy, (CUDA_ELEMENTS // 128_256, 128_256), variant="all", devices=CUDA)
    for columns in (10, 64):
        yield Case(entropy, (1 << 20, columns), devices=CUDA, key=columns == 10)
    yield Case("activation_forward", (8192, 4096), variant="relu", devices=CUDA)
    yield Case("activation_backward", (8192, 4096), variant="relu", devices=CUDA, key=True)
    yield Case("activation_backward", (1 << 20, 16), variant="relu", devices=CUDA)
    yield Case("update", (CUDA_ELEMENTS,), variant="adam", devices=CUDA, key=True)
    yield Case("update_many", (1000 * 4096,), variant="adam", devices=CUDA, key=True)
    yield Case(step, (128, *NETWORKS["lecture"]), variant="adam", devices=CUDA, key=True)
    yield Case(step, (8192, *NETWORKS["lecture"]), variant="adam", devices=CUDA)
    yield Case(step, (64, *NETWORKS["MNIST, small"]), variant="adam", devices=CUDA, key=True)
    yield Case(step, (4096, *NETWORKS["MNIST, wide"]), variant="adam", devices=CUDA, key=True)
    yield Case(step, (1 << 20, *NETWORKS["four of 64"]), variant="adam", devices=CUDA)


def _batches(device: str) -> Iterator[Case]:
    """Time against the batch size: where does a GPU start to win?"""
    largest = {"cpu": 13, "cuda": 20}[device]
    for network, step in (("lecture", 2), ("tabular, small", 3)):
        for power in sorted({*range(0, largest, step), largest}, key=lambda power: abs(power - 9)):
            devices = BOTH if power <= 13 else CUDA
            quick = network == "lecture" and power in (0, 4, 10)
            shape = (BATCHES[power], *NETWORKS[network])
            yield Case("training_step", shape, variant="adam", devices=devices, quick=quick)


def _losses(device: str) -> Iterator[Case]:
    op, on_gpu = "softmax_cross_entropy", device == "cuda"
    elements = CUDA_ELEMENTS if on_gpu else CPU_ELEMENTS
    for columns in CLASSES:
        rows = min(1 << 20, max(1, elements // columns))
        yield Case(op, (rows, columns), devices=(device,), quick=on_gpu and columns == 32_000)
    for variant in LOSS_OPTIONS:
        yield Case(op, (4096, 1000), variant=variant)
    for columns in CLASSES if on_gpu else ():
        yield Case(op, (min(1 << 20, elements // columns), columns), "bfloat16", devices=CUDA)
    for variant in LOSS_OPTIONS:
        yield Case(op, (elements // 128_256, 128_256), variant=variant, devices=CUDA)
    for name in POINTWISE_LOSSES:
        yield Case("pointwise_loss", (elements // 1024, 1024), variant=name, devices=(device,))


def _layers(device: str) -> Iterator[Case]:
    rows = (CUDA_ELEMENTS if device == "cuda" else CPU_ELEMENTS) // 1024
    names = (*PEER_ACTIVATIONS, *(name for name in ACTIVATIONS if name not in PEER_ACTIVATIONS))
    for name in names if device == "cuda" else PEER_ACTIVATIONS:
        quick = name == "relu"
        for op in ("activation_forward", "activation_backward"):
            devices = BOTH if quick else (device,)
            yield Case(op, (rows, 1024), variant=name, devices=devices, quick=quick)
            if device == "cuda" and name in PEER_ACTIVATIONS:
                yield Case(op, (rows, 1024), "bfloat16", name, CUDA)
    yield Case("column_sum", (rows, 1024), devices=(device,))
    if device == "cuda":
        yield Case("activation_backward", (1 << 20, 16), variant="relu", devices=CUDA)
        yield Case("affine_layer", (4096, 4096, 4096), variant="tanh", devices=CUDA)
    yield Case("affine_layer", (1024, 1024, 1024), variant="tanh", quick=True)


def _parameters(device: str) -> Iterator[Case]:
    count = CUDA_ELEMENTS if device == "cuda" else CPU_ELEMENTS
    yield Case("update", (count,), variant="adam", quick=True)
    yield Case("update_many", (1000 * 4096,), variant="adam")
    for name in UPDATES if device == "cuda" else ("sgd", "momentum"):
        if name != "adam" and name in UPDATES:
            yield Case("update", (count,), variant=name, devices=(device,))
    yield Case("sum_of_squares", (count,), devices=(device,))
    yield Case("gather_rows", (count // 784, 784), devices=(device,))
    yield Case("transfer", (count,), variant="to_device", devices=CUDA)
    yield Case("transfer", (count,), variant="to_host", devices=CUDA)


def _networks(device: str) -> Iterator[Case]:
    """Whole steps of the other networks, each at one batch size; more on a GPU."""
    step = "training_step"
    for network, batch in (("tabular, large", 256), ("deep and thin", 256), ("wide", 128)):
        yield Case(step, (batch, *NETWORKS[network]), variant="adam")
    yield Case(step, (1 << 14, *NETWORKS["four of 64"]), variant="adam")
    if device == "cuda":
        for batch in (128, 1024, 8192):
            yield Case(step, (batch, *NETWORKS["lecture"]), variant="adam", devices=CUDA)
        yield Case(step, (1 << 20, *NETWORKS["four of 64"]), variant="adam", devices=CUDA)
        yield Case(step, (8192, *NETWORKS["wide"]), variant="adam", devices=CUDA)
    yield Case("cold_start", (256, *NETWORKS["lecture"]), variant="adam", key=True)


def products(case: Case) -> list[tuple[int, int, int]]:
    """(rows, inner, columns) of the matrix products of a layer or of a step: 3 L - 1 of these."""
    if case.op == "affine_layer":
        rows, inner, columns = case.shape
        return [(rows, inner, columns), (columns, rows, inner), (rows, columns, inner)]
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
