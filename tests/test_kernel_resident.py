"""Resident training, emulated: many networks in a launch, each as the NumPy path trains it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpubackprop import losses, optimizers
from gpubackprop.backends import Total
from gpubackprop.backends.cupy import resident as launching
from gpubackprop.backends.resident_plan import LAYER_FIELDS, LAYER_WORDS, WORDS
from gpubackprop.data import Standardizer
from gpubackprop.errors import DtypeError, OptionError
from gpubackprop.formulas import ACTIVATIONS, POINTWISE_LOSSES, UPDATES
from gpubackprop.training.batches import Batches
from gpubackprop.training.resident import (
    LOSSES,
    REDUCTIONS,
    ResidentJob,
    obstacle,
    train_together,
)
from gpubackprop.training.step import StepOptions, TrainStep
from tests import emulator
from tests.emulator import Module, count_traffic
from tests.emulator.module import KERNELS
from tests.emulator.traffic import conflicts, shared_accesses
from tests.resident_jobs import (
    LOSS_CASES,
    MANY,
    OPTIMIZERS,
    SHAPES,
    assert_same_in_orders,
    assert_same_training,
    both,
    by_batches,
    emulated,
    job,
    launch_of,
    numbers,
    orders,
    planned,
    rates,
    step_of,
)
from tests.tolerances import Draws, ulps

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)


@pytest.fixture(autouse=True)
def card() -> Iterator[None]:
    with emulated():
        yield


# -- the same training ----------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_training_with_every_activation_is_that_of_the_cpu(activation, dropout):
    both(activation=activation, dropout=dropout)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", LOSS_CASES)
def test_training_with_every_loss_is_that_of_the_cpu(case, weighted):
    weights = np.random.default_rng(0).random(40) + 0.1 if weighted else None
    both(loss=LOSS_CASES[case], weights=weights, optimizer=optimizers.SGD(0.01, momentum=0.9))


def test_targets_may_be_probabilities():
    targets = np.random.default_rng(1).dirichlet(np.ones(3), 40)
    both(targets=targets, loss=losses.SoftmaxCrossEntropy(label_smoothing=0.1))


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_training_with_optimizers_and_regularization_is_that_of_the_cpu(case):
    optimizer, options = OPTIMIZERS[case]
    both(optimizer=optimizer, epochs=3, **options)


@pytest.mark.parametrize("shape", SHAPES)
def test_training_of_any_shape_is_that_of_the_cpu(shape):
    both(blocks=1, optimizer=optimizers.SGD(0.05, momentum=0.9), **SHAPES[shape])


@pytest.mark.parametrize("kind", ["uint8", "float16", "float64", "standardized"])
def test_inputs_are_converted_as_batches_are(kind):
    raw = np.random.default_rng(5).integers(0, 200, (40, 5))
    x = raw.astype("float64" if kind == "standardized" else kind)
    steps = []
    for device in ("cpu:numpy", "cuda"):
        step = step_of(device, inputs=x, activation="relu")
        if kind == "standardized":
            network, loss = step.network, step.loss
            batches = Batches.check(
                network, loss, x, step_of("cpu").data.targets, None, Standardizer.fit(x)
            )
            step = TrainStep(network, loss, batches, 16, step.optimizer, step.regularization)
        steps.append(step)
    cpu, card = steps
    by_batches(cpu, orders(cpu, 2), rates(cpu, 2))
    train_together([job(card)])
    assert_same_training(numbers(card), numbers(cpu))
    before = card.source.inputs()
    assert before is card.source.inputs(), "converted again"


def test_each_batch_may_have_a_penalty_and_rows_weights_in_the_order_of_the_epoch():
    weights = np.random.default_rng(2).random(40) + 0.5
    penalties = np.array([0.1, 0.2, 0.4])
    steps = []
    for device in ("cpu:numpy", "cuda"):
        made = step_of(device, l2=0.1)
        steps.append(
            TrainStep(
                made.network, made.loss, made.data, 16, made.optimizer, made.regularization,
                StepOptions(weighted=True),
            )
        )  # fmt: skip
    cpu, card = steps
    order = orders(cpu, 1)
    for number, start in enumerate((0, 16, 32)):
        rows = slice(start, start + 16)
        cpu.update(order[rows], 0.05, weights[rows].astype(np.float32), l2=penalties[number])
    train_together([ResidentJob(card, order, np.full(3, 0.05), l2=penalties, weights=weights)])
    got, wanted = numbers(card), numbers(cpu)
    got["totals"][Total.PENALTY] = wanted["totals"][Total.PENALTY]  # there it is the rule's l2
    assert_same_training(got, wanted)


@pytest.mark.parametrize("shape", ["several tiles", "odd widths", "wide inputs"])
def test_the_gradient_is_as_accurate_as_numpys(shape):
    """The first momentum is the gradient itself: sgd's slot after one step."""
    draws = Draws()
    for seed in range(4):
        options = SHAPES[shape] | {"optimizer": optimizers.SGD(0.1, momentum=0.9), "seed": seed}
        slots = []
        for device, dtype in (("cuda", "float32"), ("cpu:numpy", "float32"), ("cpu", "float64")):
            step = step_of(device, dtype=dtype, **options)
            same = step_of("cpu:numpy", **options).network
            step.network.W, step.network.b = same.W, same.b
            order = orders(step, 1)[: step.batch_size]
            if device == "cuda":
                train_together([ResidentJob(step, orders(step, 1), np.array([0.1]))])
            else:
                step.update(order, 0.1)
            W, _ = step.network.layout.views(step.network.backend.to_host(step.slots[0]))
            slots.append(W[0])
        draws.add(*slots)
    draws.check()


# -- many networks --------------------------------------------------------------------------------


def test_networks_of_one_launch_are_each_trained_as_alone_bit_for_bit():
    alone = [step_of("cuda", **options) for options in MANY]
    for number, step in enumerate(alone):
        train_together([job(step, epochs=number + 1, seed=number)])
    for places in ((0, 1, 2, 3, 4), (3, 1, 4, 0, 2)):
        together = {place: step_of("cuda", **MANY[place]) for place in places}
        train_together(
            [job(step, place + 1, seed=place) for place, step in together.items()]
        )  # fmt: skip
        for place, step in together.items():
            got, wanted = numbers(step), numbers(alone[place])
            assert all(np.array_equal(got[name], wanted[name]) for name in wanted), place


def test_two_launches_end_where_one_ends_bit_for_bit():
    whole, parts = (step_of("cuda", activation="gelu", dropout=0.2) for _ in range(2))
    train_together([job(whole, epochs=2)])
    order, lr = orders(parts, 2), rates(parts, 2)
    train_together([ResidentJob(parts, order[:40], lr[:2])])
    train_together([ResidentJob(parts, order, lr[2:], start=2)])
    got, wanted = numbers(parts), numbers(whole)
    assert all(np.array_equal(got[name], wanted[name]) for name in wanted)
    assert parts.steps == whole.steps == 6


def test_a_step_goes_on_batch_by_batch_after_a_launch_and_back():
    cpu, card = step_of("cpu:numpy", dropout=0.2), step_of("cuda", dropout=0.2)
    order, lr = orders(cpu, 3), rates(cpu, 3)
    by_batches(cpu, order, lr)
    by_batches(card, order[:40], lr[:3])
    train_together([ResidentJob(card, order[40:80], lr[3:6])])
    by_batches(card, order[80:], lr[6:])
    assert_same_training(numbers(card), numbers(cpu))


def test_the_order_in_which_threads_run_changes_nothing():
    with planned(1):
        launch, reached = launch_of([job(step_of("cuda", **options)) for options in MANY])
    module = Module(launch.source, "values", launch.defines)
    assert_same_in_orders(module, launch, reached, (0, 1, 100, 255))


# -- what goes wrong ------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_counted_at_its_step():
    step = step_of("cuda", inputs=np.where(np.arange(200).reshape(40, 5) == 100, np.nan, 1.0))
    order = np.arange(40)  # row 20 is in the second batch
    train_together([ResidentJob(step, order, np.full(3, 0.1))])
    assert step.read_totals()[Total.BAD_STEP] == 1


def test_an_update_whose_gradient_is_not_finite_is_skipped_under_clipping():
    x = np.ones((40, 5))
    x[:16] = np.inf
    step = step_of("cuda", inputs=x, activation="relu", clip_norm=1.0)
    before = numbers(step)["parameters"]
    train_together([ResidentJob(step, np.arange(40), np.array([0.1]))])
    assert np.array_equal(numbers(step)["parameters"], before)
    assert step.updater.skipped() == 1


def test_row_numbers_outside_are_moved_inside():
    inside, outside = step_of("cuda"), step_of("cuda")
    order = np.arange(40)
    train_together([ResidentJob(inside, order, np.full(3, 0.1))])
    order = np.where(order == 0, -(2**40), np.where(order == 39, 2**40, order))
    train_together([ResidentJob(outside, order, np.full(3, 0.1))])
    assert np.array_equal(numbers(inside)["parameters"], numbers(outside)["parameters"])


def test_what_cannot_be_trained_so_has_a_sentence_and_is_refused():
    step = step_of("cpu")
    assert obstacle(step) == "no resident training: the network is not on a GPU"
    with pytest.raises(OptionError, match="not on a GPU; train it batch by batch"):
        train_together([job(step)])
    assert "float64" in obstacle(step_of("cuda", dtype="float64"))
    assert "parameters, gradients and slots" in obstacle(step_of("cuda", widths=(784, 512, 10)))
    assert "scaled" in obstacle(step_of("cuda", loss_scale="dynamic"))
    assert "the loss Own is not among" in obstacle(step_of("cuda", loss=Own()))
    apart = step_of("cuda")
    apart.loss = losses.SoftmaxCrossEntropy(reduction="none")
    assert "reduced by 'none'" in obstacle(apart)


class Own(losses.SoftmaxCrossEntropy):
    """A loss of a program, whose `emit` the kernel does not know."""


def test_a_job_that_does_not_fit_its_step_is_refused():
    step = step_of("cuda")
    with pytest.raises(OptionError, match="3 batches from batch 0 on, but there are 4 rates"):
        train_together([ResidentJob(step, np.arange(40), np.ones(4))])
    with pytest.raises(OptionError, match="epochs of 40 rows"):
        train_together([ResidentJob(step, np.arange(41), np.ones(3))])
    with pytest.raises(OptionError, match="wants weights, no other"):
        train_together([ResidentJob(step, np.arange(40), np.ones(3), weights=np.ones(40))])
    with pytest.raises(OptionError, match="l2 has 2 numbers but 3"):
        train_together([ResidentJob(step, np.arange(40), np.ones(3), l2=np.ones(2))])
    with pytest.raises(OptionError, match="a step is there twice"):
        train_together([job(step), job(step)])
    train_together([])
    train_together([ResidentJob(step, np.arange(40), np.ones(0))])
    assert step.steps == 0


def test_an_array_of_another_dtype_never_reaches_the_card():
    step = step_of("cuda")
    backend: Any = step.network.backend
    with pytest.raises(DtypeError, match="device array of int64 as order but got int32"):
        launching._address(backend, "order", backend.zeros(3, np.int32))


# -- the two sides of the interface ---------------------------------------------------------------


def names_of(header: str, begin: str) -> list[str]:
    text = (KERNELS / "include" / header).read_text(encoding="utf-8")
    body = text[text.index(begin) + len(begin) :].split("}")[0]
    return re.findall(r"\w+", re.sub(r"//.*", "", body))


def test_the_words_of_a_network_are_those_of_the_header():
    assert names_of("resident.cuh", "enum Word {") == [*map(str.upper, WORDS), "WORDS"]
    assert names_of("resident.cuh", "enum Reduction {") == [*map(str.upper, REDUCTIONS)]


def test_the_numbers_of_a_layer_are_those_of_the_header():
    types = {"int", "uint32", "float"}
    names = [name for name in names_of("resident.cuh", "struct Layer {") if name not in types]
    assert names == [*LAYER_FIELDS, "reserved", "2"]
    assert len(LAYER_FIELDS) + 2 == LAYER_WORDS


@pytest.mark.parametrize(
    ("header", "registry"),
    [
        ("activations.cuh", ACTIVATIONS),
        ("losses.cuh", POINTWISE_LOSSES),
        ("updates.cuh", UPDATES),
    ],
    ids=["activations", "losses", "updates"],
)
def test_the_lists_of_formulas_have_the_registries_order(header, registry):
    """A layer, a loss and an update have their number there."""
    text = (KERNELS / header).read_text(encoding="utf-8")
    body = text[text.index("#define FOR_EACH_", text.index("#else")) :].partition("#endif")[0]
    assert re.findall(r"(?:FOR_EACH_DTYPE\(ENTRY, |ENTRIES\()(\w+)\)", body)[-len(registry) :] == [
        *registry
    ]
    assert ("softmax_cross_entropy", *POINTWISE_LOSSES) == LOSSES


# -- traffic -----------------------------------------------------------------------------------------


def test_a_step_moves_no_byte_of_parameters_and_each_row_once():
    """Between launches of 2 and of 5 epochs the difference is the rows, their numbers and the
    coefficients of the updates; parameters, slots and state are read and written once."""
    moved = []
    for epochs in (2, 5):
        with planned(1):
            launch, reached = launch_of([job(step_of("cuda", widths=(8, 16, 3), l2=0.1), epochs)])
        module = Module(launch.source, "traffic", launch.defines)
        reached += launch.arguments[0].arrays.items()
        counts = count_traffic(
            module, launch.entry, launch.grid, launch.block, launch.arguments,
            [array for _, array in reached], shared=launch.shared,
        )[1:]  # fmt: skip
        moved.append(
            {name: one for (name, _), one in zip(reached, counts, strict=True) if one is not None}
        )
    short, long = moved
    for name in ("parameters", "slot_0", "slot_1", "state", "totals"):
        assert (short[name].read, short[name].written) == (long[name].read, long[name].written)
        assert long[name].writes <= 1.0
    assert long["parameters"].read == 4 * (8 * 16 + 16 + 16 * 3 + 3)
    assert long["x"].read == 5 * 40 * 8 * 4
    assert long["x"].sectors_per_minimum == 1.0
    assert long["targets"].read == 5 * 40 * 8
    assert long["coefficient_table"].read == 5 * 3 * 10 * 4
    assert not any(long[name].written for name in ("x", "targets", "order", "coefficient_table"))


def test_accesses_to_shared_memory_are_almost_without_bank_conflicts():
    """Stores of products are packs of four neighbours where there are four."""
    options = {"widths": (64, 128, 10), "activation": "relu", "rows": 60, "batch": 60}
    with planned(1):
        launch, reached = launch_of([job(step_of("cuda", **options), 1)])
    module = Module(launch.source, "traffic", launch.defines)
    also = [array for _, array in reached] + list(launch.arguments[0].arrays.values())
    count_traffic(
        module, launch.entry, launch.grid, launch.block, launch.arguments, also,
        shared=launch.shared,
    )  # fmt: skip
    assert conflicts(shared_accesses(module)) < 1.04


def test_padding_is_never_part_of_a_result():
    """Shared memory is NaN when a block begins; rows of one unit are mostly padding."""
    step = step_of("cuda", widths=(1, 1, 1), loss=losses.SquaredError(), rows=5, batch=3)
    train_together([job(step)])
    found = numbers(step)
    assert np.isfinite(found["parameters"]).all()
    assert ulps(found["totals"][Total.ROWS], 10.0, np.float64) == 0.0
