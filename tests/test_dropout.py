"""Dropout: masks, operations, networks and training, against PyTorch with the same mask, central
differences and the CUDA backend (emulated)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from gpubackprop import MLP, Model, Trainer, ops, optimizers
from gpubackprop.backends import NumpyBackend, Total, devices
from gpubackprop.backends.numpy.recorded_calls import get_num_threads, set_num_threads
from gpubackprop.errors import GpubackpropError, ModelFileError, OptionError, ShapeError
from gpubackprop.formulas import ACTIVATIONS, Dropout
from gpubackprop.formulas.dropout import Philox, random_state
from gpubackprop.losses import SoftmaxCrossEntropy
from gpubackprop.training.batches import Batches
from gpubackprop.training.step import Regularization, StepOptions, TrainStep
from tests import emulator, philox, references
from tests.emulator import cupy_stub
from tests.tolerances import assert_by_the_rule, assert_equal_in_float64

SEED = 5


# -- masks ----------------------------------------------------------------------------------------


def test_the_reference_generator_reproduces_random123s_known_answers():
    full = 0xFFFFFFFF
    assert philox.philox_block([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox.philox_block([full] * 4, [full] * 2) == [
        0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD
    ]  # fmt: skip
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0]
    assert philox.philox_block(*pi) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@pytest.mark.parametrize("first", [0, 1, 3, 6, 2**32 * 4 - 5, 2**40 + 3])
@pytest.mark.parametrize(("seed", "step", "stream"), [(0, 0, 0), (2**64 - 1, 2**48 - 1, 65_534)])
def test_numpys_words_are_the_generators_from_any_element_on(first, seed, step, stream):
    def take(number: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.empty(shape, dtype)

    words = Philox(random_state(seed, step), stream, first, 30, take).words()
    assert np.array_equal(words, philox.philox_words(first, 30, step << 16 | stream, seed))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_mask_has_the_expectation_and_the_variance_of_independent_draws(p):
    shape = (1000, 400)
    kept = ops.dropout_mask(shape, p, seed=SEED)
    sigma = math.sqrt(p * (1 - p) / kept.size)
    assert abs(kept.mean() - (1 - p)) < 4 * sigma
    for axis in (0, 1):  # the rows' and columns' shares scatter as those of independent draws do
        share = kept.mean(axis)
        wanted = p * (1 - p) / shape[axis]
        assert np.var(share) == pytest.approx(wanted, rel=5 * math.sqrt(2 / share.size))
    y = ops.dropout_forward(np.ones(shape), p, seed=SEED)
    assert y.mean() == pytest.approx(1, abs=4 * sigma / (1 - p)), "the expectation is that of x"


def test_seed_step_and_layer_each_choose_another_independent_mask():
    chosen = [{"seed": 1}, {"seed": 2}, {"seed": 1, "step": 1}, {"seed": 1, "layer": 1},
              {"seed": 1 + 2**32}]  # fmt: skip
    masks = [ops.dropout_mask((100, 100), 0.5, **options) for options in chosen]
    for i, a in enumerate(masks):
        assert np.array_equal(a, ops.dropout_mask((100, 100), 0.5, **chosen[i]))
        for b in masks[:i]:
            assert abs((a == b).mean() - 0.5) < 0.02


def test_blocks_and_threads_change_nothing():
    x = np.random.default_rng(0).normal(size=(5000, 301)).astype(np.float32)
    before, results = get_num_threads(), []
    try:
        for threads in (1, 3):
            set_num_threads(threads)
            results.append(ops.dropout_forward(x, 0.25, seed=SEED, step=9, layer=2))
    finally:
        set_num_threads(before)
    kept = ops.dropout_mask(x.shape, 0.25, seed=SEED, step=9, layer=2)
    wanted = np.where(kept, x * np.float32(1 / 0.75), 0)
    for y in results:
        assert np.array_equal(y, wanted)
    backend, dropout = NumpyBackend(), Dropout(0.25, 2, random_state(SEED, 9))
    backend.activation_backward(x, x, ACTIVATIONS["identity"], x, None, dropout)
    assert np.array_equal(x, wanted), "the backward pass counts its elements through all blocks"


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_the_operations_are_pytorchs_product_with_the_mask(dtype):
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    x = np.random.default_rng(0).normal(size=(33, 17)).astype(kind)
    given, options = x.copy(), {"seed": SEED, "step": 3, "layer": 1}
    kept = ops.dropout_mask(x.shape, 0.4, **options)
    assert np.array_equal(kept, philox.keep(x.shape, 0.4, SEED, 3, 1))
    oracle = x.astype(np.float64) * kept / 0.6
    leaf = references.tensor(x)
    theirs = references.numpy(leaf * torch.tensor(kept) * (1 / 0.6))
    for verb in (ops.dropout_forward, ops.dropout_backward):
        y = verb(x, 0.4, **options)
        assert y.dtype == x.dtype
        assert_by_the_rule(y, theirs, oracle)
        assert np.array_equal(y != 0, kept)
        assert np.array_equal(x, given), "the input stays"
    x.flags.writeable = False
    ops.dropout_forward(x, 0.4, seed=1)
    place = given.copy()
    assert ops.dropout_forward(place, 0.4, out=place, **options) is place
    assert np.array_equal(place, y)


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("p", [0.0, 1 - 2**-40])
def test_no_rows_and_extreme_rates(rows, p):
    y = ops.dropout_forward(np.ones((rows, 3)), p, seed=1)
    assert y.shape == (rows, 3)
    assert np.array_equal(y, np.ones((rows, 3))) if p == 0 else not y.any()
    assert ops.dropout_mask((rows, 3), p, seed=1).shape == (rows, 3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"p": 1.0}, "below 1"), ({"p": -0.1}, "at least 0"), ({"p": math.nan}, "number"),
        ({"seed": -1}, "seed"), ({"seed": 1.5}, "seed"), ({"step": 2**48}, "step"),
        ({"layer": 65_535}, "layer"), ({"seed": "a"}, "seed"), ({"shape": (3,)}, "shape"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(arguments, says):
    values = {"shape": (2, 2), "p": 0.5, "seed": 1} | arguments
    with pytest.raises(GpubackpropError, match=says):
        ops.dropout_mask(**values)


# -- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rates", "error", "says"),
    [
        (1.0, OptionError, "below 1"), (-0.5, OptionError, "at least 0"),
        ([0.1], ShapeError, "2 hidden layers"),
        (None, OptionError, "number"), ([0.1, "a"], OptionError, "number"),
    ],
)  # fmt: skip
def test_rates_that_do_not_fit_are_refused(rates, error, says):
    with pytest.raises(error, match=says):
        MLP([2, 3, 4, 2], dropout=rates)


def test_the_rates_are_part_of_network_copy_file_and_repr(tmp_path: Path):
    network = MLP([3, 4, 5, 2], dropout=[0.0, 0.25])
    assert "dropout=[0.0, 0.25]" in repr(network)
    assert network.copy().dropout == (0.0, 0.25)
    Model(network).save(tmp_path / "m.safetensors")
    assert Model.load(tmp_path / "m.safetensors").network.dropout == (0.0, 0.25)
    plain = MLP([3, 4, 5, 2])
    assert "dropout" not in repr(plain)
    assert "dropout" not in plain.config(), "files of networks without stay as they were"


def make_step(
    device: str, activation: Any, rates: Any, dtype: str = "float64", **options: Any
) -> Any:
    rng = np.random.default_rng(1)
    network = MLP([4, 9, 8, 3], activation, dtype=dtype, device=device, seed=2, dropout=rates)
    x, targets = rng.normal(size=(11, 4)), rng.integers(0, 3, 11)
    batches = Batches.check(network, SoftmaxCrossEntropy(), x, targets)
    optimizer = options.pop("optimizer", optimizers.GradientDescent(0.0))
    step = TrainStep(
        network,
        SoftmaxCrossEntropy(),
        batches,
        11,
        optimizer,
        Regularization(**options),
        StepOptions(SEED),
    )
    return step, x, targets


def run(step: TrainStep, number: int, lr: float = 0.0) -> float:
    """The loss of a batch of all rows with the masks of update `number` (from 0)."""
    backend = step.network.backend
    if step.random is not None:
        backend.from_host(random_state(SEED, number), step.random)
    step.reset_totals()
    step.update(step.place(np.arange(11)), lr)
    totals = step.read_totals()
    return float(totals[Total.LOSS] / totals[Total.ROWS])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_loss_and_gradient_are_pytorchs_with_the_same_masks(activation, device):
    if device == "cuda" and activation not in ("relu", "tanh", "gelu"):
        pytest.skip("test_kernel_dropout.py has the kernels of all activations")
    rates = [0.3, 0.6]
    step, x, targets = make_step(device, activation, rates)
    loss = run(step, number=7)
    to_host = step.network.backend.to_host
    W, b = ([references.tensor(to_host(p)).requires_grad_() for p in group]
            for group in (step.network.W, step.network.b))  # fmt: skip
    h = references.tensor(x)
    act = ACTIVATIONS[activation]
    for layer, rate in enumerate(rates):
        a = h @ W[layer].T + b[layer]
        value = references.EXACT.get(activation, references.ACTIVATIONS[activation])
        kept = philox.keep(tuple(a.shape), rate, SEED, 7, layer)
        h = value(a, act.parameter) * torch.tensor(kept) / (1 - rate)
    wanted = torch.nn.functional.cross_entropy(h @ W[2].T + b[2], torch.tensor(targets))
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-12)
    for mine, theirs in zip([*step.grad_W, *step.grad_b], [*W, *b], strict=True):
        assert_equal_in_float64(to_host(mine), theirs.grad.numpy(), 1e-12)


@pytest.mark.parametrize("activation", ["relu", "tanh", "elu", "gelu"])
def test_the_gradient_is_the_central_difference_of_the_loss_with_the_mask_held(activation):
    step, _, _ = make_step("cpu", activation, 0.4)
    run(step, number=3)
    analytic, parameters = step.gradient.copy(), step.network.parameters
    rng = np.random.default_rng(0)
    for index in rng.choice(np.flatnonzero(parameters), 25, replace=False):
        kept = parameters[index]
        losses = []
        for sign in (1, -1):
            parameters[index] = kept + sign * 1e-6
            losses.append(run(step, number=3))
        parameters[index] = kept
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(analytic[index], rel=1e-5, abs=1e-8)


def test_evaluation_prediction_and_gradients_are_without_dropout(device):
    rng = np.random.default_rng(0)
    x, targets = rng.normal(size=(20, 4)), rng.integers(0, 3, 20)
    plain, dropped = (
        MLP([4, 9, 3], "tanh", dtype="float64", device=device, dropout=p) for p in (0.0, 0.5)
    )
    to_host = plain.backend.to_host
    assert np.array_equal(to_host(plain.predict(x)), to_host(dropped.predict(x)))
    one, two = (network.gradients(x, targets) for network in (plain, dropped))
    assert np.array_equal(to_host(one.W[0]), to_host(two.W[0]))
    assert Trainer(plain).evaluate(x, targets) == Trainer(dropped).evaluate(x, targets)


def train(device: str, steps: int = 6, **options: Any) -> Trainer:
    rng = np.random.default_rng(0)
    x, targets = rng.normal(size=(40, 4)), rng.integers(0, 3, 40)
    network = MLP(
        [4, 9, 8, 3], ["tanh", "relu"], dtype="float64", device=device, dropout=[0.5, 0.2]
    )
    trainer = Trainer(network, batch_size=16, seed=SEED, **options)
    trainer.fit(x, targets, epochs=steps // 3)
    return trainer


def test_training_on_the_gpu_is_that_of_the_cpu(device):
    trainer, cpu = train(device, 9, clip_norm=1.0), train("cpu", 9, clip_norm=1.0)
    assert trainer.state.step is not None
    to_host = trainer.network.backend.to_host
    assert to_host(trainer.state.step.random).tolist() == [SEED, 9]
    np.testing.assert_allclose(
        to_host(trainer.network.parameters), cpu.network.parameters, rtol=0, atol=1e-9
    )


def test_each_step_draws_anew_and_a_seed_repeats_them():
    step, _, _ = make_step("cpu", "relu", 0.5)
    losses = [run(step, number) for number in (0, 1, 2, 0)]
    assert len(set(losses)) == 3
    assert losses[0] == losses[3]
    step.update(np.arange(11), 0.0)
    assert step.random is not None
    assert step.random.tolist() == [SEED, 2], "counted by the update"


def test_a_second_fit_and_a_resumed_one_go_on_bit_for_bit(tmp_path: Path, device):
    rng = np.random.default_rng(0)
    x, targets = rng.normal(size=(40, 4)), rng.integers(0, 3, 40)
    path = tmp_path / "c.safetensors"

    def make() -> Trainer:
        network = MLP([4, 9, 3], "tanh", device=device, dropout=0.5)
        return Trainer(network, batch_size=16, seed=SEED)

    once, twice, first, resumed = (make() for _ in range(4))
    once.fit(x, targets, epochs=4)
    twice.fit(x, targets, epochs=1)
    twice.fit(x, targets, epochs=3)
    first.fit(x, targets, epochs=1, checkpoint=path)
    resumed.fit(x, targets, epochs=4, checkpoint=path)
    wanted = once.network.backend.to_host(once.network.parameters)
    for trainer in (twice, resumed):
        found = trainer.network.backend.to_host(trainer.network.parameters)
        assert np.array_equal(found, wanted)
    other = Trainer(MLP([4, 9, 3], "tanh", device=device), batch_size=16, seed=SEED)
    with pytest.raises(ModelFileError, match="network"):
        other.fit(x, targets, epochs=5, checkpoint=path)


def test_dropout_costs_no_launch_more(monkeypatch: pytest.MonkeyPatch):
    if emulator.missing_compiler():
        pytest.skip(emulator.missing_compiler())
    monkeypatch.setattr(devices, "choose", lambda name: ("cuda:0", "emulated"))
    counted = {}
    with cupy_stub.installed() as counts:
        for p in (0.0, 0.5):
            step, _, _ = make_step("cuda", "tanh", p)
            rows = step.place(np.arange(11))
            step.update(rows, 0.0)
            counts.clear()
            step.update(rows, 0.0)
            counted[p] = len(counts.kernels), counts.allocations, counts.waits, counts.uploads
    assert counted[0.0] == counted[0.5]
