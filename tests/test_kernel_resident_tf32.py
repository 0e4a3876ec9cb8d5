"""Resident training by tensor cores, emulated: the training of the NumPy path in TF32, bit for bit alike
in any company. What does not depend on the product is tested in test_kernel_resident.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from gpubackprop import losses, optimizers
from gpubackprop.backends.cupy import resident as launching
from gpubackprop.formulas import ACTIVATIONS
from gpubackprop.training.resident import obstacle, plan_of, spread_of, train_together
from gpubackprop.training.step import TrainStep
from tests import emulator, resident_jobs
from tests.emulator import Module, cupy_stub
from tests.emulator.traffic import conflicts, shared_accesses
from tests.resident_jobs import (
    LOSS_CASES,
    MANY,
    OPTIMIZERS,
    SHAPES,
    TOLERANCE,
    assert_same_in_orders,
    by_batches,
    emulated,
    job,
    launch_of,
    multiprocessors,
    numbers,
    orders,
    planned,
    rates,
    spread,
    spread_launches_of,
)
from tests.test_kernel_resident_clusters import (
    OPTIONS,
    counted,
    equal,
    in_one_block,
)

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
step_of = partial(resident_jobs.step_of, precision="tf32")
WAYS = ("one block", "a cluster of 4", "spread")


@pytest.fixture(autouse=True)
def card() -> Iterator[None]:
    with emulated():
        yield


def trained(how: str, step: Callable[[], TrainStep], epochs: int) -> TrainStep:
    """Train a network on the emulated card that way, which none of its sizes may refuse."""
    if how == "spread":
        with spread():
            made = step()
            assert made._batch.spread is not None
            by_batches(made, orders(made, epochs), rates(made, epochs))
            return made
    with planned(1 if how == "one block" else int(how.split()[-1])):
        made = step()
        assert obstacle(made) == ""
        train_together([job(made, epochs)])
    return made


# -- every option ---------------------------------------------------------------------------------

ONE_BATCH = {"rows": 16, "batch": 16}


def assert_alike(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """Assert that results differ as those of float32 in the mean, and by half a unit of TF32 at most.

    Sums in another order may round a number of the next product to the other side.
    """
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        apart = np.abs(got[name] - array) / max(1.0, np.abs(array).max(initial=0.0))
        assert apart.max(initial=0.0) <= 2.0**-11, name
        assert np.sqrt(np.mean(apart**2)) <= TOLERANCE, name


def both(how: str, epochs: int = 1, **options: Any) -> None:
    """Train the same network by NumPy and on the card; they must be alike."""
    cpu = step_of("cpu:numpy", **options)
    by_batches(cpu, orders(cpu, epochs), rates(cpu, epochs))
    assert_alike(numbers(trained(how, partial(step_of, "cuda", **options), epochs)), numbers(cpu))


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_step_with_every_activation_is_that_of_the_cpu(activation, dropout, how):
    optimizer = optimizers.SGD(0.05, momentum=0.9)
    both(how, activation=activation, dropout=dropout, optimizer=optimizer, **ONE_BATCH)


def divides_by_rows(loss: losses.Loss) -> bool:
    """Return whether the sum over 16 rows is divided by 16, or by nothing."""
    options = loss.options
    by_label = options.ignore_index is not None or options.class_weight is not None
    return options.reduction != "elementwise_mean" and not by_label


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", LOSS_CASES)
def test_a_step_with_every_loss_is_that_of_the_cpu(case, weighted, how):
    """Rows that are spread have delta rounded before it is divided, by what need not be a power of 2."""
    if how == "spread" and (weighted or not divides_by_rows(LOSS_CASES[case])):
        how = "a cluster of 2"
    weights = np.random.default_rng(0).random(16) + 0.1 if weighted else None
    optimizer = optimizers.SGD(0.01, momentum=0.9)
    both(how, loss=LOSS_CASES[case], weights=weights, optimizer=optimizer, **ONE_BATCH)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("case", OPTIMIZERS)
def test_a_step_with_optimizers_and_regularization_is_that_of_the_cpu(case, how):
    optimizer, options = OPTIMIZERS[case]
    both(how, optimizer=optimizer, **options, **ONE_BATCH)


@pytest.mark.parametrize("how", ["one block", "a cluster of 2", "a cluster of 8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_training_of_any_shape_is_that_of_the_cpu(shape, how):
    both(how, epochs=2, optimizer=optimizers.SGD(0.05, momentum=0.9), **SHAPES[shape])


def test_targets_may_be_probabilities():
    targets = np.random.default_rng(1).dirichlet(np.ones(3), 16)
    loss = losses.SoftmaxCrossEntropy(label_smoothing=0.1)
    both("one block", targets=targets, loss=loss, **ONE_BATCH)


# -- every edge -----------------------------------------------------------------------------------


def exact(device: str, widths: Sequence[int], rows: int, precision: str | None) -> TrainStep:
    """Return a step whose units and deltas are exact sums in float32, in whatever order.

    So both sides round the same numbers to TF32. x has 13 bits, and weights are -1, 0 or 1.
    """
    rng = np.random.default_rng(rows)
    x = (4096 + rng.integers(0, 4096, (rows, widths[0]))) * rng.choice([-1, 1], (rows, 1)) / 4096
    targets = rng.integers(-8, 9, (rows, widths[-1])) / 8
    step = resident_jobs.step_of(
        device, widths, "relu", losses.SquaredError(reduction="sum"), rows=rows, batch=rows,
        inputs=x.astype(np.float32), targets=targets.astype(np.float32), precision=precision,
        optimizer=optimizers.SGD(0.5, momentum=0.9),
    )  # fmt: skip
    sizes = list(pairwise(widths))
    step.network.W = [rng.integers(-1, 2, (o, i)).astype(np.float32) for i, o in sizes]
    step.network.b = [rng.integers(-4, 5, o).astype(np.float32) / 4 for _, o in sizes]
    return step


def held_to_numpy(how: str, widths: Sequence[int], rows: int) -> None:
    """Assert that the gradient, which is the first momentum, is NumPy's, and not that of float32."""
    card = trained(how, partial(exact, "cuda", widths, rows, "tf32"), 1)
    gradients = [np.array(card.network.backend.to_host(card.slots[0]))]
    for precision in ("tf32", None):
        cpu = exact("cpu:numpy", widths, rows, precision)
        by_batches(cpu, orders(cpu, 1), rates(cpu, 1))
        gradients.append(np.array(cpu.slots[0]))
    found, tf32, plain = gradients
    size = np.abs(tf32).max()
    assert np.abs(found - tf32).max() <= 1e-6 * size
    assert np.abs(plain - tf32).max() > 2e-5 * size


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("width", [*range(1, 10), 15, 16, 17, 31, 32, 33, 47, 48, 49])
def test_products_of_every_depth_and_edge_are_numpys(width, how):
    """Rows, inputs and units are below, at and above 8, 16 and 32: each is a depth somewhere."""
    held_to_numpy(how, (width, 35 - width % 35, width, 2), width + 1)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(
    ("widths", "rows"),
    [
        ((7, 3), 33), ((3, 1, 40, 1, 5), 3), ((64, 128, 10), 60),
        ((64, 128, 10), 300), ((33, 17, 65, 5), 50), ((300, 8, 3), 40), ((4, 9, 100), 70),
    ],
)  # fmt: skip
def test_products_of_any_shape_are_numpys(widths, rows, how):
    held_to_numpy(how, widths, rows)


# -- the same bits --------------------------------------------------------------------------------


def test_networks_of_one_launch_are_each_trained_as_alone_bit_for_bit():
    """Those in float32 have a launch of their own."""
    precisions = ("tf32", None, "tf32", "tf32", None)
    networks = [{**one, "precision": p} for one, p in zip(MANY, precisions, strict=True)]
    alone = [step_of("cuda", **options) for options in networks]
    for number, step in enumerate(alone):
        train_together([job(step, epochs=number + 1, seed=number)])
    for places in ((0, 1, 2, 3, 4), (3, 1, 4, 0, 2)):
        together = {place: step_of("cuda", **networks[place]) for place in places}
        launched: list[str] = []

        def keep(launch: cupy_stub.Launched, launched: list[str] = launched) -> None:
            launched.append(launch.entry)
            cupy_stub.execute(launch)

        with cupy_stub.launches_go_to(keep):
            train_together([job(step, place + 1, seed=place) for place, step in together.items()])
            assert all(equal(step, alone[place]) for place, step in together.items())
        products = {"_tf32" in entry for entry in launched if entry.startswith(launching.KERNEL)}
        assert products == {False, True}


@pytest.mark.parametrize("blocks", [2, 4, 8])
@pytest.mark.parametrize("case", OPTIONS)
def test_one_block_trains_as_the_cluster_bit_for_bit(case, blocks):
    cluster, one = (step_of("cuda", **OPTIONS[case]) for _ in range(2))
    with planned(blocks):
        train_together([job(cluster)])
        with patch.object(launching, "in_company", in_one_block):
            train_together([job(one)])
    assert equal(one, cluster)


def test_the_bits_are_those_of_any_card_whatever_its_multiprocessors():
    found = []
    for count in (132, 1, 264):
        with spread(), multiprocessors(count):
            step = step_of("cuda", dropout=0.2, l2=0.1, clip_norm=0.5, seed=3)
            assert step._batch.spread is not None
            by_batches(step, orders(step, 1), rates(step, 1))
        found.append(numbers(step))
    for other in found[1:]:
        assert all(np.array_equal(found[0][name], other[name]) for name in other)


@pytest.mark.parametrize("how", WAYS)
def test_the_order_in_which_threads_run_changes_nothing(how):
    options: dict[str, Any] = {"widths": (9, 20, 3), "l2": 0.1, "rows": 37, "batch": 37}
    if how == "spread":
        with spread(8):
            launches, reached = spread_launches_of(step_of("cuda", **options))
        (launch, _) = launches
        assert launch.entry == "spread_gradient_tf32_f32"
        reached = reached + list(launch.arguments[0].arrays.items())
    else:
        with planned(1 if how == "one block" else 4):
            launch, reached = launch_of([job(step_of("cuda", **options), 1)])
    module = Module(launch.source, "values", launch.defines)
    assert_same_in_orders(module, launch, reached, (0, 1, 255))


# -- who says it, and what it costs ---------------------------------------------------------------


def test_the_plan_of_a_network_says_by_which_product():
    step, plain = step_of("cuda"), resident_jobs.step_of("cuda")
    assert str(plan_of(step)).endswith("rows, products by tensor cores in TF32")
    assert str(plan_of(plain)).endswith(" rows")
    with spread():
        wide = step_of("cuda", rows=64, batch=64)
        assert str(spread_of(wide)).endswith("gradients, products by tensor cores in TF32")


def test_accesses_to_shared_memory_are_almost_without_bank_conflicts():
    options: dict[str, Any] = {"widths": (64, 128, 10), "activation": "relu"}
    with planned(1):
        module, _ = counted(*launch_of([job(step_of("cuda", rows=60, batch=60, **options), 1)]))
    accesses = shared_accesses(module)
    assert conflicts(accesses) < 1.01
    loads = [one for one in accesses if "resident_tensor.cuh" in one.place().split(" <")[0]]
    assert loads
    assert conflicts(loads) == 1.0
