"""The one list of cases: it says what is compared with the NumPy backend and what is measured.

Each variant of each problem is in two functions. ``compared(short=...)`` gives it awkward shapes;
`gpubackprop check --device cuda` and the tests on emulated kernels use these. ``cases(size,
device)`` gives it the shape that a goal names, or else the problem's own. Sizes are "smoke" (does
it work?), "quick" (under a minute on a CPU) and "full". The most important cases come first,
because a run ends when its budget is used up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from gpubackprop.bench.operations import PROBLEMS
from gpubackprop.bench.shapes import NETWORKS, PEER_ACTIVATIONS, Case
from gpubackprop.errors import OptionError
from gpubackprop.formulas import ACTIVATIONS, POINTWISE_LOSSES, UPDATES

SIZES = ("smoke", "quick", "full")
VOCABULARIES = (32_000, 50_257, 128_256)
CLASSES = (10, 32, 100, 320, 1000, 4096, 16_384, *VOCABULARIES, 262_144)
LOSS_OPTIONS = ("label_smoothing", "class_weight", "ignore_index", "z_loss", "no_weight", "all")
BATCHES = tuple(2**power for power in range(21))
BOTH, CUDA = ("cpu", "cuda"), ("cuda",)
CPU_ELEMENTS, CUDA_ELEMENTS = 1 << 22, 1 << 26  # in a matrix: 16 MiB, and 256 MiB (beyond any L2)
FEW_ELEMENTS = 1 << 20  # on a CPU, in a variant that no goal names


def compared(*, short: bool = False) -> Iterator[Case]:
    """Return every variant of every operation, in float32, on its awkward shapes.

    With `short` each variant has one shape.
    """
    for op, problem in PROBLEMS.items():
        for variant in (*problem.variants, *problem.compared_only):
            for shape in problem.compared(variant, short=short):
                yield Case(op, shape, variant=variant)


def cases(size: str = "full", device: str = "cpu") -> list[Case]:
    """Return the cases of that size for "cpu" or "cuda".

    Raises
    ------
    OptionError : there is no such size.
    """
    if size not in SIZES:
        raise OptionError(f"size is {size!r}; valid are {', '.join(SIZES)}")
    found: dict[str, Case] = {}
    cold = Case("cold_start", (256, *NETWORKS["lecture"]), variant="adam", key=True)
    for case in (*_named(device), *_others(device), cold):
        if device in case.devices:
            case = smaller(case) if size == "smoke" else case
            found[case.name] = _joined(found.get(case.name, case), case)
    return [case for case in found.values() if size != "quick" or case.quick]


def _joined(a: Case, b: Case) -> Case:
    """Join two cases of the same name into one."""
    devices = tuple(dict.fromkeys((*a.devices, *b.devices)))
    return replace(a, devices=devices, key=a.key or b.key, quick=a.quick or b.quick)


def smaller(case: Case) -> Case:
    """Return the same work at a size that takes milliseconds, even emulated."""
    match case.op:
        case "training_step" | "cold_start":
            # The deep network keeps three layers, and the wide network gets a smaller width.
            shape = (min(case.shape[0], 4), *(min(width, 6) for width in case.shape[1:5]))
        case "update" | "update_many" | "sum_of_squares" | "transfer":
            shape = (600,)
        case "affine_layer" | "affine_forward" | "affine_backward":
            shape = (5, 7, 6)
        case _:
            shape = (min(case.shape[0], 9), min(case.shape[1], 40 + case.shape[1] % 2))
    return replace(case, shape=shape)


def _others(device: str) -> Iterator[Case]:
    """Return every variant that `_named` does not name."""
    named = {(case.op, case.variant) for case in _named(device) if device in case.devices}
    elements = CUDA_ELEMENTS if device == "cuda" else FEW_ELEMENTS
    for op, problem in PROBLEMS.items():
        for variant in problem.variants:
            if (op, variant) not in named and (op != "transfer" or device == "cuda"):
                shape = problem.measured(device, elements)
                yield Case(op, shape, variant=variant, devices=(device,))


def _named(device: str) -> Iterator[Case]:
    """Return the cases that a goal, a table or a picture names."""
    yield from _goals_of_gpus() if device == "cuda" else ()
    yield from _goals()
    yield from _batches(device)
    yield from _losses(device)
    yield from _layers(device)
    yield from _parameters(device)
    yield from _networks(device)


def _goals() -> Iterator[Case]:
    """Return the cases that the project's goals name."""
    entropy, step = "softmax_cross_entropy", "training_step"
    yield Case(entropy, (4096, 1000), key=True, quick=True)
    yield Case(entropy, (256, 50_257), key=True, quick=True)
    yield Case(entropy, (4096, 10), key=True)
    yield Case(step, (256, *NETWORKS["lecture"]), variant="adam", key=True, quick=True)
    yield Case(step, (200, *NETWORKS["tiny"]), variant="adam", key=True, quick=True)
    yield Case("update", (10_000_000,), variant="adam", devices=("cpu",), key=True)


def _goals_of_gpus() -> Iterator[Case]:
    """Return the cases that the project's goals for a GPU name, in the goals' order.

    The order matters because a card may be available for minutes only. The losses have the largest
    vocabulary in 16 bits, an odd one, every option, and few columns of a million rows.
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
    """Return steps of growing batch size: from which size on does a GPU win?"""
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
    """Return whole steps of the other networks, each at one batch size; a GPU gets more of them."""
    step = "training_step"
    for network, batch in (("tabular, large", 256), ("deep and thin", 256), ("wide", 128)):
        yield Case(step, (batch, *NETWORKS[network]), variant="adam")
    yield Case(step, (1 << 14, *NETWORKS["four of 64"]), variant="adam")
    if device == "cuda":
        for batch in (128, 1024, 8192):
            yield Case(step, (batch, *NETWORKS["lecture"]), variant="adam", devices=CUDA)
        yield Case(step, (1 << 20, *NETWORKS["four of 64"]), variant="adam", devices=CUDA)
        yield Case(step, (8192, *NETWORKS["wide"]), variant="adam", devices=CUDA)
