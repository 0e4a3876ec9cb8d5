"""Several devices in one process: a thread for each; on the host, and on emulated GPUs."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

from gpubackprop import MLP, Trainer
from gpubackprop.backends import devices
from gpubackprop.errors import DeviceUnavailable, NonFiniteLossError, OptionError
from gpubackprop.optimizers import Adam
from tests import emulator
from tests.emulator import cupy_stub
from tests.ranks_programs import figures, some_rows
from tests.test_distributed import assert_close

HOSTS = ["cpu:numpy"] * 3


def make(devices: Any = None, device: str = "cpu:numpy", **options: Any) -> Trainer:
    network = MLP([4, 8, 3], "tanh", seed=1, dtype="float64", device=device, dropout=0.2)
    return Trainer(network, optimizer=Adam(0.01), batch_size=32, devices=devices, **options)


def test_devices_learn_what_one_learns_and_a_second_fit_goes_on() -> None:
    one, three = make(), make(HOSTS)
    for epochs in (2, 1):
        for trainer in (one, three):
            trainer.fit(*some_rows(), epochs=epochs, validation=0.2)
    assert_close(figures(three), figures(one))
    assert three.is_alone, "outside of fit there is one network"
    assert three.evaluate(*some_rows()) == pytest.approx(one.evaluate(*some_rows()))


def test_callbacks_are_called_once_and_in_the_thread_of_the_caller() -> None:
    rows: list[Any] = []
    make(HOSTS, callbacks=[lambda trainer, row: rows.append(row["epoch"])]).fit(
        *some_rows(), epochs=3
    )
    assert rows == [1, 2, 3]


def test_an_error_of_the_training_is_raised_once_and_another_fit_works() -> None:
    x, labels = some_rows()
    bad = x.copy()
    bad[7, 1] = np.nan
    trainer = make(HOSTS)
    with pytest.raises(NonFiniteLossError, match="row 8"):
        trainer.fit(bad, labels, epochs=1)
    with pytest.raises(OptionError, match="epochs"):
        trainer.fit(x, labels, epochs=-1)
    trainer.fit(x, labels, epochs=1)
    assert len(trainer.history) == 1


def test_copies_and_pickles_train_on_the_same_devices() -> None:
    trainer = make(HOSTS)
    trainer.fit(*some_rows(), epochs=1)
    twins = [trainer, copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer))]
    for twin in twins:
        assert "devices=['cpu:numpy', 'cpu:numpy', 'cpu:numpy']" in repr(twin)
        twin.fit(*some_rows(), epochs=1)
    losses = [twin.history["loss"] for twin in twins]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_that_a_callback_makes_trains_on_the_devices_afterwards(copied: Any) -> None:
    kept: list[Trainer] = []
    trainer = make(HOSTS, callbacks=[lambda trainer, row: kept.append(copied(trainer))])
    trainer.fit(*some_rows(), epochs=1)
    kept[0].callbacks = []
    assert len(kept[0].fit(*some_rows(), epochs=1)) == 2


@pytest.mark.parametrize("wrong", [0, True, "cuda:0", [], ["cuda:0", "cuda:1"]])
def test_devices_that_do_not_fit_are_refused(wrong: Any) -> None:
    with pytest.raises(OptionError, match="devices"):
        make(wrong)


def test_all_devices_where_there_is_no_gpu_says_so() -> None:
    if devices.probe_driver().gpus:
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceUnavailable, match="there is none here"):
        make("all")


@pytest.mark.skipif(bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-")
def test_two_gpus_of_one_process_learn_what_the_host_learns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "choose", lambda name: (name, "emulated"))
    with cupy_stub.installed() as counts:
        trainer = make(2, "cuda:0")
        for _ in range(2):
            trainer.fit(*some_rows(), epochs=1)
        found = figures(trainer)
        calls = counts.kernels.count("nccl allReduce")
        assert calls == 2 * (trainer.state.steps + 1), "they are connected once"
    one = make()
    for _ in range(2):
        one.fit(*some_rows(), epochs=1)
    assert_close(found, figures(one))
