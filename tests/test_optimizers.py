"""Optimizers' updates against torch.optim, scikit-learn and formulas worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.neural_network import _stochastic_optimizers as sklearn_optimizers

from gpubackprop.backends.numpy import get_num_threads, set_num_threads
from gpubackprop.errors import OptionError
from gpubackprop.formulas import UPDATES
from gpubackprop.optimizers import (
    OPTIMIZERS,
    SGD,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    GradientDescent,
    Lion,
    Momentum,
    RMSprop,
    optimizer,
)
from tests import ways
from tests.tolerances import Draws, assert_equal_in_float64

pytestmark = pytest.mark.usefixtures("way")
STEPS, SIZE = 20, 1000
LRS = [0.05 * 0.9**step * (2 if step % 3 else 0.5) for step in range(STEPS)]
O = torch.optim  # noqa: E741


def slots_of(chosen, size, dtype):
    first = chosen.hyperparameters[chosen.formula.initial] if chosen.formula.initial else 0.0
    return tuple(np.full(size, first, dtype) for _ in chosen.formula.slots)


def update(chosen, p, g, slots, lr, step, **more):
    """One update of p in place, step counted from 1; `more`: clip and l2 as the verb takes them."""
    c = tuple(np.asarray(value, p.dtype) for value in chosen.coefficients(lr, step))
    decay = chosen.decay_coefficient(lr)
    coefficients = {"c": c, "decay": None if decay is None else np.asarray(decay, p.dtype)}
    ways.verb("update", p, g, slots, chosen.formula, coefficients | more)


def gradients(dtype=np.float64, seed=0, size=SIZE):
    """STEPS gradients of many magnitudes, some elements always 0."""
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(STEPS, size)) * 10.0 ** rng.integers(-6, 3, size)
    g[:, ::7] = 0.0
    return rng.normal(size=size).astype(dtype), g.astype(dtype)


def run(chosen, p, gs, lrs=LRS):
    p, slots = p.copy(), slots_of(chosen, len(p), p.dtype)
    for step, (g, lr) in enumerate(zip(gs, lrs, strict=True), start=1):
        kept = g.copy()
        update(chosen, p, g, slots, lr, step)
        np.testing.assert_array_equal(g, kept, "the gradient is read only")
    return p


def run_torch(make, p, gs, lrs=LRS):
    parameter = torch.nn.Parameter(torch.from_numpy(p.copy()))
    chosen = make([parameter])
    for g, lr in zip(gs, lrs, strict=True):
        chosen.param_groups[0]["lr"] = lr
        parameter.grad = torch.from_numpy(g.copy())
        chosen.step()
    return parameter.detach().numpy()


TWINS = {
    "descent": (GradientDescent(), lambda p: O.SGD(p)),
    "sgd": (SGD(momentum=0.9), lambda p: O.SGD(p, momentum=0.9)),
    "sgd without momentum, decay": (SGD(weight_decay=0.1), lambda p: O.SGD(p, weight_decay=0.1)),
    "sgd dampening": (
        SGD(momentum=0.8, dampening=0.4), lambda p: O.SGD(p, momentum=0.8, dampening=0.4)),
    "sgd nesterov": (
        SGD(momentum=0.9, nesterov=True), lambda p: O.SGD(p, momentum=0.9, nesterov=True)),
    "sgd everything": (
        SGD(momentum=0.7, dampening=0.2, weight_decay=0.05),
        lambda p: O.SGD(p, momentum=0.7, dampening=0.2, weight_decay=0.05)),
    "sgd nesterov decay": (
        SGD(momentum=0.7, nesterov=True, weight_decay=0.05),
        lambda p: O.SGD(p, momentum=0.7, nesterov=True, weight_decay=0.05)),
    "adam": (Adam(), lambda p: O.Adam(p)),
    "adam betas": (
        Adam(beta1=0.5, beta2=0.9, eps=1e-3), lambda p: O.Adam(p, betas=(0.5, 0.9), eps=1e-3)),
    "adam beta1 = 0": (Adam(beta1=0.0), lambda p: O.Adam(p, betas=(0.0, 0.999))),
    "adam beta2 = 0": (Adam(beta2=0.0), lambda p: O.Adam(p, betas=(0.9, 0.0))),
    "adam decay": (Adam(weight_decay=0.1), lambda p: O.Adam(p, weight_decay=0.1)),
    "adam amsgrad": (
        Adam(beta2=0.5, amsgrad=True),
        lambda p: O.Adam(p, betas=(0.9, 0.5), amsgrad=True),
    ),
    "adamw amsgrad": (
        AdamW(beta2=0.5, amsgrad=True, weight_decay=0.5),
        lambda p: O.AdamW(p, betas=(0.9, 0.5), amsgrad=True, weight_decay=0.5),
    ),
    "adamw": (AdamW(), lambda p: O.AdamW(p)),
    "adamw decay": (AdamW(weight_decay=0.5), lambda p: O.AdamW(p, weight_decay=0.5)),
    "rmsprop": (RMSprop(), lambda p: O.RMSprop(p)),
    "rmsprop decay": (
        RMSprop(alpha=0.9, eps=1e-4, weight_decay=0.1),
        lambda p: O.RMSprop(p, alpha=0.9, eps=1e-4, weight_decay=0.1)),
    "adamax": (Adamax(), lambda p: O.Adamax(p)),
    "adamax everything": (
        Adamax(beta1=0.5, beta2=0.9, eps=1e-3, weight_decay=0.1),
        lambda p: O.Adamax(p, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.1)),
    "adagrad": (Adagrad(), lambda p: O.Adagrad(p)),
    "adagrad everything": (
        Adagrad(lr_decay=0.1, initial_accumulator=0.3, eps=1e-4, weight_decay=0.1),
        lambda p: O.Adagrad(
            p, lr_decay=0.1, initial_accumulator_value=0.3, eps=1e-4, weight_decay=0.1)),
}  # fmt: skip
TWIN = pytest.mark.parametrize(("chosen", "make"), TWINS.values(), ids=TWINS)


@TWIN
def test_twenty_steps_with_a_changing_learning_rate_match_torch_optim_in_float64(chosen, make):
    p, gs = gradients()
    assert_equal_in_float64(run(chosen, p, gs), run_torch(make, p, gs), 1e-12)


@TWIN
def test_twenty_steps_in_float32_have_at_most_a_third_more_error_than_torch_optim(chosen, make):
    """Known shortfall: PyTorch's kernels fuse multiply and add, which NumPy cannot; that saves them
    one rounding in two. (m + (1 - beta) (g - m) would save one too, but cancels for small beta.)"""
    draws = Draws()
    for seed in range(6):
        p, gs = gradients(np.float32, seed)
        p *= 1e-3  # so that the steps, and not the rounding of p, are what is compared
        oracle = run_torch(make, p.astype(np.float64), gs.astype(np.float64))
        draws.add(run(chosen, p, gs), run_torch(make, p, gs), oracle)
    draws.check(4 / 3 * np.mean(draws.theirs))


def run_sklearn(make, p, gs, lrs):
    """scikit-learn's optimizer; its steps are added to the parameters in place."""
    parameter = [p.copy()]
    chosen = make(parameter)
    for g, lr in zip(gs, lrs, strict=True):
        chosen.learning_rate = chosen.learning_rate_init = lr
        chosen.update_params(parameter, [g.copy()])
    return parameter[0]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_momentum_matches_scikit_learns_sgd_to_the_last_digits(nesterov, momentum):
    p, gs = gradients()
    wanted = run_sklearn(
        lambda params: sklearn_optimizers.SGDOptimizer(
            params, momentum=momentum, nesterov=nesterov),
        p, gs, LRS,
    )  # fmt: skip
    assert_equal_in_float64(
        run(Momentum(momentum=momentum, nesterov=nesterov), p, gs), wanted, 1e-15
    )


@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_adam_with_scikit_learns_eps_placement_matches_scikit_learn_and_differs_from_torch(eps):
    p, gs = gradients()
    wanted = run_sklearn(
        lambda params: sklearn_optimizers.AdamOptimizer(params, epsilon=eps), p, gs, LRS
    )
    got = run(Adam(eps=eps, eps_placement="sklearn"), p, gs)
    assert_equal_in_float64(got, wanted, 1e-13)
    other = run(Adam(eps=eps), p, gs)
    assert np.abs(other - got).max() > 1e3 * np.finfo(np.float64).eps


def test_classical_and_pytorchs_momentum_differ_when_the_learning_rate_changes():
    p, gs = gradients()
    same = [0.01] * STEPS
    assert_equal_in_float64(
        run(Momentum(momentum=0.9), p, gs, same), run(SGD(momentum=0.9), p, gs, same), 1e-13
    )
    assert np.abs(run(Momentum(momentum=0.9), p, gs) - run(SGD(momentum=0.9), p, gs)).max() > 1e-3


def test_lion_equals_the_papers_algorithm_in_python_floats():
    """Chen et al. 2023, algorithm 2: u = sign(beta1 m + (1 - beta1) g); p <- p - lr (u + wd p)."""
    p0, gs = gradients(size=21)
    wd, beta1, beta2 = 0.3, 0.9, 0.99
    got = run(Lion(beta1=beta1, beta2=beta2, weight_decay=wd), p0, gs)
    for i, wanted in enumerate(p0.tolist()):
        m = 0.0
        for g, lr in zip(gs[:, i].tolist(), LRS, strict=True):
            c = beta1 * m + (1 - beta1) * g
            wanted -= lr * ((c > 0) - (c < 0) + wd * wanted)
            m = beta2 * m + (1 - beta2) * g
        assert abs(got[i] - wanted) < 1e-13


def test_the_first_steps_by_hand():
    """p = 1, g = 2, lr = 0.1."""
    by_hand = {
        "gradient_descent": (GradientDescent(), [0.8, 0.6]),
        "sgd": (SGD(momentum=0.5), [0.8, 0.5]),  # v = 2, then 3
        "momentum": (Momentum(momentum=0.5), [0.8, 0.5]),
        "adam": (Adam(), [0.9, 0.8]),  # mhat / sqrt(vhat) = 1 for a constant gradient
        "adamw": (AdamW(weight_decay=0.5), [0.85, 0.7075]),  # p (1 - 0.05) - 0.1
        "rmsprop": (RMSprop(alpha=0.75), [0.8, 0.8 - 0.2 / math.sqrt(1.75)]),  # s = 1, then 1.75
        "adagrad": (Adagrad(), [0.9, 0.9 - 0.1 / math.sqrt(2)]),  # s = 4, then 8
        "lion": (Lion(), [0.9, 0.8]),
        "adamax": (Adamax(), [0.9, 0.8]),  # mhat = 2, u = 2 + eps
    }
    assert set(by_hand) == set(OPTIMIZERS)
    for chosen, wanted in by_hand.values():
        for steps, value in enumerate(wanted, start=1):
            p = run(chosen, np.ones(3), np.full((steps, 3), 2.0), [0.1] * steps)
            np.testing.assert_allclose(p, value, rtol=1e-7)


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("step", [1, 2, 10, 1000, 2**20, 2**24 + 1, 2**40])
def test_bias_correction_is_right_at_any_step_count(name, step):
    """PyTorch's step at that count; its correction 1 - beta^t is a Python float's."""
    p, gs = gradients()
    g, rng = gs[0], np.random.default_rng(1)
    m, v = rng.normal(size=SIZE), rng.uniform(0, 1, SIZE)
    parameter = torch.nn.Parameter(torch.from_numpy(p.copy()))
    twin = {"adam": O.Adam, "adamw": O.AdamW}[name]([parameter], lr=0.1)
    parameter.grad = torch.from_numpy(g.copy())
    twin.state[parameter] = {
        "step": torch.tensor(float(step - 1), dtype=torch.float64),
        "exp_avg": torch.from_numpy(m.copy()),
        "exp_avg_sq": torch.from_numpy(v.copy()),
    }
    twin.step()
    ours = p.copy()
    update(optimizer(name), ours, g, (m, v), 0.1, step)
    assert_equal_in_float64(ours, parameter.detach().numpy(), 1e-13)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_a_learning_rate_of_zero_leaves_the_parameters_alone_bit_for_bit(name, weight_decay):
    options = {} if name == "gradient_descent" else {"weight_decay": weight_decay}
    for dtype in (np.float64, np.float32):
        p, gs = gradients(dtype)
        np.testing.assert_array_equal(run(optimizer(name, **options), p, gs, [0.0] * STEPS), p)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stay_zeros_so_that_the_alignment_gaps_never_change(name):
    """Where parameter, gradient and slots are 0; 0 / 0 would be NaN. Smallest eps included."""
    extremes = (
        {"eps": 1e-30} if "eps" in UPDATES[optimizer(name).formula.name].hyperparameters else {}
    )
    decay = {} if name == "gradient_descent" else {"weight_decay": 0.1}
    for options in (decay, extremes):
        for dtype in (np.float64, np.float32):
            p = run(optimizer(name, **options), np.zeros(50, dtype), np.zeros((STEPS, 50), dtype))
            np.testing.assert_array_equal(p, 0.0)


@pytest.mark.ways("numpy", "native", reason="blocks and threads of the host")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_in_blocks_on_threads_equals_one_of_each_element_bit_for_bit(name):
    """150,001 elements: several blocks, a ragged last one."""
    size, before = 150_001, get_num_threads()
    rng = np.random.default_rng(0)
    p, gs = rng.normal(size=size).astype(np.float32), rng.normal(size=(3, size)).astype(np.float32)
    chosen, seen = optimizer(name), []
    try:
        for threads in (1, 2, 3):
            set_num_threads(threads)
            seen.append(run(chosen, p, gs, LRS[:3]))
    finally:
        set_num_threads(before)
    few = [0, 1, 16_383, 16_384, 131_072, size - 1]
    for result in seen:
        np.testing.assert_array_equal(result, seen[0])
        np.testing.assert_array_equal(result[few], run(chosen, p[few], gs[:, few], LRS[:3]))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_of_no_parameters_is_no_error(name):
    assert run(optimizer(name), np.zeros(0), np.zeros((2, 0)), [0.1, 0.1]).shape == (0,)


@pytest.mark.parametrize("stop", [0, 1, 500, 1000, 20_000, 40_000])
@pytest.mark.parametrize("clip", [None, 0.25])
def test_l2_reaches_the_weights_and_stops_before_the_biases_across_blocks(stop, clip):
    """stop falls inside a block, on its edge, before and behind all of them."""
    rng = np.random.default_rng(2)
    p, g = rng.normal(size=(2, 40_000))
    got = p.copy()
    more = {"l2": (stop, np.asarray(0.3)), "clip": None if clip is None else np.asarray(clip)}
    update(GradientDescent(), got, g, (), 0.1, 1, **more)
    total = g + 0.3 * p * (np.arange(40_000) < stop)
    np.testing.assert_allclose(got, p - 0.1 * total * (clip or 1.0), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("size", [0, 1, 5, 4096, 4097, 100_003])
def test_sum_of_squares_matches_torchs_norm(dtype, size):
    x = np.random.default_rng(size).normal(size=size).astype(dtype)
    out = np.zeros(())
    ways.verb("sum_of_squares", x, out)
    exact = torch.linalg.vector_norm(torch.from_numpy(x.astype(np.float64))).item()
    np.testing.assert_allclose(math.sqrt(out), exact, rtol=1e-14 if dtype == np.float64 else 3e-7)


# -- construction ---------------------------------------------------------------------------------

REFUSED = [
    ("adma", {}, "optimizer is 'adma' but must be one of .*did you mean 'adam"),
    ("adam", {"lr": -0.1}, "lr is -0.1 but must be a number of at least 0"),
    ("adam", {"lr": float("nan")}, "lr is nan"),
    ("adam", {"lr": "fast"}, "lr is 'fast'"),
    ("adam", {"beta1": 1.0}, "adam's beta1 is 1.0"),
    ("adam", {"beta2": -0.1}, "adam's beta2 is -0.1"),
    ("adam", {"eps": 0.0}, "adam's eps is 0.0"),
    (
        "adam",
        {"eps_placement": "keras"},
        "eps_placement is 'keras' but must be one of 'torch', 'sklearn'",
    ),
    ("adam", {"momentum": 0.9}, "optimizer 'adam': .*momentum"),
    ("sgd", {"momentum": 1.0}, "sgd's momentum is 1.0"),
    ("sgd", {"nesterov": True}, "nesterov=True wants momentum > 0 and dampening = 0"),
    ("sgd", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "dampening = 0"),
    ("rmsprop", {"alpha": 2}, "rmsprop's alpha is 2"),
    ("adagrad", {"lr_decay": -1}, "adagrad's lr_decay is -1"),
    ("lion", {"weight_decay": -1}, "weight_decay is -1"),
]


@pytest.mark.ways("numpy", reason="computes nothing on an array")
@pytest.mark.parametrize(("name", "options", "text"), REFUSED)
def test_hyperparameters_out_of_range_are_refused_by_name(name, options, text):
    with pytest.raises(OptionError, match=text):
        optimizer(name, **options)


@pytest.mark.ways("numpy", reason="computes nothing on an array")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_config_names_every_hyperparameter(name):
    chosen = optimizer(name, lr=0.125)
    config = chosen.config()
    assert config["lr"] == 0.125
    assert set(config) == {"name", "lr", "weight_decay", *chosen.formula.hyperparameters}
    assert optimizer(chosen) is chosen
