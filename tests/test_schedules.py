"""Learning-rate schedules against torch.optim.lr_scheduler and scikit-learn's inverse scaling."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from sklearn.neural_network._stochastic_optimizers import SGDOptimizer

from gpubackprop.errors import OptionError
from gpubackprop.schedules import SCHEDULES, Progress, schedule

EPOCHS = 40
T = torch.optim.lr_scheduler


def torch_factors(make, steps=EPOCHS, metrics=None):
    """The learning rate of a torch scheduler before each of `steps` steps, from 1.0."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, factors = make(optimizer), []
    for step in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(*([] if metrics is None else [metrics[step]]))
    return factors


def factors(chosen, steps=EPOCHS, total=EPOCHS, unit="epoch", metrics=None):
    got = []
    for step in range(steps):
        progress = {"step": 10 * step, "epoch": step, "total_steps": 10 * total}
        if unit == "step":
            progress = {"step": step, "epoch": 0, "total_steps": total}
        got.append(chosen.factor(Progress(**progress)))
        if metrics is not None:
            chosen.observe(metrics[step])
    return got


@pytest.mark.parametrize(("step_epochs", "gamma"), [(1, 0.5), (7, 0.1), (10, 0.9), (100, 0.1)])
def test_step_matches_torchs_steplr(step_epochs, gamma):
    wanted = torch_factors(lambda o: T.StepLR(o, step_epochs, gamma))
    got = factors(schedule("step", step_epochs=step_epochs, gamma=gamma))
    np.testing.assert_allclose(got, wanted, rtol=1e-13)


@pytest.mark.parametrize("gamma", [0.5, 0.95, 1.0])
def test_exponential_matches_torchs_exponentiallr(gamma):
    wanted = torch_factors(lambda o: T.ExponentialLR(o, gamma))
    np.testing.assert_allclose(factors(schedule("exponential", gamma=gamma)), wanted, rtol=1e-13)


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_cosine_without_warm_up_matches_torchs_cosineannealinglr(final):
    wanted = torch_factors(lambda o: T.CosineAnnealingLR(o, EPOCHS, eta_min=final))
    got = factors(schedule("cosine", final=final), unit="step")
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("warmup", [1, 5, 20])
def test_cosine_with_warm_up_matches_torchs_lambda_and_cosine_in_sequence(warmup):
    def make(optimizer):
        ramp = T.LambdaLR(optimizer, lambda step: (step + 1) / warmup)
        cosine = T.CosineAnnealingLR(optimizer, EPOCHS - warmup, eta_min=0.05)
        return T.SequentialLR(optimizer, [ramp, cosine], [warmup])

    got = factors(schedule("cosine", warmup_steps=warmup, final=0.05), unit="step")
    np.testing.assert_allclose(got, torch_factors(make), rtol=1e-12)


def test_cosine_by_hand_and_beyond_its_end():
    chosen = schedule("cosine", warmup_steps=4, final=0.2)
    got = factors(chosen, steps=20, total=12, unit="step")
    np.testing.assert_allclose(got[:5], [0.25, 0.5, 0.75, 1.0, 1.0], rtol=1e-15)
    np.testing.assert_allclose(got[8], 0.6, rtol=1e-15)  # half way: (1 + 0.2) / 2
    np.testing.assert_allclose(
        got[12:], 0.2, rtol=1e-15
    )  # stays down, where PyTorch's goes up again
    only_warm_up = factors(schedule("cosine", warmup_steps=30), steps=10, total=10, unit="step")
    np.testing.assert_allclose(only_warm_up, [(step + 1) / 30 for step in range(10)], rtol=1e-15)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("unit", ["step", "epoch"])
def test_inverse_scaling_matches_scikit_learns_invscaling(power, unit):
    theirs = SGDOptimizer(
        [np.zeros(1)], learning_rate_init=1.0, lr_schedule="invscaling", power_t=power
    )
    wanted = []
    for done in range(EPOCHS):
        theirs.iteration_ends(done)
        wanted.append(theirs.learning_rate)
    got = factors(schedule("inverse_scaling", power=power, unit=unit), unit=unit)
    np.testing.assert_allclose(got, wanted, rtol=1e-15)


METRICS = {
    "noise": np.random.default_rng(0).uniform(0.5, 1.0, EPOCHS),
    "falling": np.linspace(2, 1, EPOCHS),
    "flat": np.ones(EPOCHS),
    "below the threshold": 1.0 - 1e-6 * np.arange(EPOCHS),
    "a step down": np.repeat([1.0, 0.5], EPOCHS // 2),
    "NaN": np.where(np.arange(EPOCHS) % 3, np.nan, 1.0 / (1 + np.arange(EPOCHS))),
    "infinite at first": np.r_[np.inf, np.inf, np.linspace(2, 1, EPOCHS - 2)],
    "negative": -np.linspace(1, 2, EPOCHS),
    "negative and flat": -np.ones(EPOCHS),
    "through zero": np.linspace(1, -1, EPOCHS),
}


@pytest.mark.parametrize("metrics", METRICS.values(), ids=METRICS)
@pytest.mark.parametrize("patience", [0, 1, 3, 10])
def test_reduce_on_plateau_matches_torchs_reducelronplateau(metrics, patience):
    """eps=0: PyTorch leaves out steps below 1e-8, which is no part of the rule."""
    wanted = torch_factors(
        lambda o: T.ReduceLROnPlateau(o, factor=0.5, patience=patience, eps=0, min_lr=0.01),
        metrics=metrics.tolist(),
    )  # fmt: skip
    chosen = schedule("reduce_on_plateau", gamma=0.5, patience=patience, minimum=0.01)
    np.testing.assert_allclose(factors(chosen, metrics=metrics.tolist()), wanted, rtol=1e-13)


def test_reduce_on_plateau_continues_from_its_saved_state_as_if_never_stopped():
    metrics = METRICS["noise"].tolist()
    straight = factors(schedule("reduce_on_plateau", patience=1), metrics=metrics)
    for stop in (0, 1, 17):
        first = schedule("reduce_on_plateau", patience=1)
        head = factors(first, steps=stop, metrics=metrics)
        second = schedule("reduce_on_plateau", patience=1)
        second.restore(json.loads(json.dumps(first.state())))
        tail = factors(second, steps=EPOCHS - stop, metrics=metrics[stop:])
        assert head + tail == straight


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_starts_with_a_factor_in_0_to_1_and_config_rebuilds_it(name):
    chosen = schedule(name)
    config = json.loads(json.dumps(chosen.config()))
    assert config.pop("name") == name
    again = schedule(name, **config)
    for step in (0, 1, 50, 99):
        progress = Progress(step, step // 10, 100)
        assert chosen.factor(progress) == again.factor(progress)
        assert 0.0 <= chosen.factor(progress) <= 1.0
    assert schedule(chosen) is chosen


def test_constant_is_the_default_and_stays_1():
    assert factors(schedule(None)) == [1.0] * EPOCHS
    assert schedule(None).name == "constant"


REFUSED = [
    ("cosin", {}, "schedule is 'cosin' but must be one of .*did you mean 'cosine'"),
    ("step", {"step_epochs": 0}, "step_epochs is 0"),
    ("step", {"step_epochs": 2.5}, "step_epochs is 2.5 but must be a whole number"),
    ("step", {"gamma": -1}, "gamma is -1"),
    ("exponential", {"gamma": math.nan}, "gamma is nan"),
    ("cosine", {"warmup_steps": -1}, "warmup_steps is -1"),
    ("cosine", {"final": 1.5}, "final is 1.5"),
    ("cosine", {"warmup": 3}, "schedule 'cosine': .*warmup"),
    ("inverse_scaling", {"unit": "hour"}, "unit is 'hour' but must be one of 'step', 'epoch'"),
    ("inverse_scaling", {"power": -0.5}, "power is -0.5"),
    ("reduce_on_plateau", {"gamma": 1.0}, "gamma is 1.0"),
    ("reduce_on_plateau", {"gamma": 0.0}, "gamma is 0.0"),
    ("reduce_on_plateau", {"patience": -1}, "patience is -1"),
    ("reduce_on_plateau", {"threshold": -0.1}, "threshold is -0.1"),
    ("reduce_on_plateau", {"minimum": math.nan}, "minimum is nan"),
]


@pytest.mark.parametrize(("name", "options", "text"), REFUSED)
def test_options_out_of_range_are_refused_by_name(name, options, text):
    with pytest.raises(OptionError, match=text):
        schedule(name, **options)
