"""Checkpoints: resuming bit for bit, files that do not fit, disks that are full."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gpubackprop.data import Standardizer
from gpubackprop.errors import ModelFileError, OptionError, StopTraining
from gpubackprop.model import Model
from gpubackprop.optimizers import SGD, Adagrad, Adam, AdamW, Lion, RMSprop
from gpubackprop.schedules import Cosine, InverseScaling, ReduceOnPlateau, StepDecay
from gpubackprop.tensorfile import read_tensors
from gpubackprop.training import Trainer
from gpubackprop.training.step import TrainStep
from tests.small_training import make_trainer, some_data
from tests.ways import MLP, host

pytestmark = pytest.mark.usefixtures("way")

EPOCHS, STEPS_PER_EPOCH = 6, 3  # 90 training rows in batches of 32


class Killed(BaseException):
    """Stands for a kill: nothing of the package may handle it in a way that reaches the file."""


def fit(trainer: Trainer, path: Path | None, **options: Any) -> Trainer:
    every = {} if path is None else {"checkpoint": path, "checkpoint_every": 1}
    trainer.fit(*some_data(), **{"epochs": EPOCHS, "validation": 0.25, **every, **options})
    return trainer


def fit_until_killed(make: Callable[[], Trainer], path: Path, step: int, **options: Any) -> bool:
    """Train from the file until `step` updates are done in all; False if training ended before."""
    update = TrainStep.update

    def count(self: TrainStep, rows: np.ndarray, lr: float) -> None:
        if self.steps == step:
            raise Killed
        update(self, rows, lr)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "update", count)
        try:
            fit(make(), path, **options)
        except Killed:
            return True
    return False


def state(trainer: Trainer) -> dict[str, Any]:
    """Everything that must not depend on interruptions."""
    assert trainer.state.step is not None
    timing = ("seconds", "samples_per_second")
    rows = [{k: v for k, v in row.items() if k not in timing} for row in trainer.history.rows]
    return {
        "parameters": host(trainer.network.parameters).tobytes(),
        "slots": [slot.tobytes() for slot in host(trainer.state.step.slots)],
        "history": rows,
        "best": (trainer.history.best_epoch, trainer.history.stopped),
        "rng": trainer.state.rng.bit_generator.state,
        "schedule": trainer.schedule.state(),
        "steps": trainer.state.step.steps,
    }


TRAININGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "adam": ({"optimizer": Adam(0.01)}, {}),
    "sgd_cosine": ({"optimizer": SGD(0.3, momentum=0.9), "schedule": Cosine(2)}, {}),
    "adamw_step": ({"optimizer": AdamW(0.02), "schedule": StepDecay(2, 0.3)}, {}),
    "rmsprop_plateau": (
        {"optimizer": RMSprop(0.1), "schedule": ReduceOnPlateau(0.5, patience=0)}, {},
    ),
    "adagrad": ({"optimizer": Adagrad(0.1, initial_accumulator=0.5)}, {"validation": None}),
    "lion_clip_l2": (
        {"optimizer": Lion(0.01), "clip_norm": 0.1, "l2": 0.01, "schedule": InverseScaling()}, {},
    ),
    "patience": ({}, {"patience": 2, "min_delta": 10.0}),
    "no_shuffle": ({"shuffle": False}, {"restore_best": False}),
}  # fmt: skip


@pytest.mark.parametrize("case", TRAININGS)
def test_a_training_killed_anywhere_goes_on_bit_for_bit(case: str, tmp_path: Path) -> None:
    settings, options = TRAININGS[case]

    def make() -> Trainer:
        return make_trainer(**copy.deepcopy(settings))

    wanted = state(fit(make(), None, **options))
    path = tmp_path / "checkpoint"
    kills = [1, 2, 3, 5, 6, 7, 11, 14]  # 3, 6: just after an epoch; the others in its middle
    killed = [fit_until_killed(make, path, step, **options) for step in kills]
    assert all(killed[:6])
    assert state(fit(make(), path, **options)) == wanted
    assert case != "patience" or wanted["best"][1] == "patience"


@pytest.mark.parametrize("every", [None, 2, 100])
def test_an_undisturbed_training_is_the_same_with_checkpoints(
    every: int | None, tmp_path: Path
) -> None:
    wanted = state(fit(make_trainer(), None))
    assert state(fit(make_trainer(), tmp_path / "c", checkpoint_every=every)) == wanted


def test_a_file_written_at_the_last_step_of_an_epoch_is_of_the_epoch_s_end(tmp_path: Path) -> None:
    """Killed after that step and before the epoch's figures: the file must still resume."""
    wanted = state(fit(make_trainer(), None))

    def kill(trainer: Trainer, row: dict[str, Any]) -> None:
        raise Killed

    with pytest.raises(Killed):
        fit(make_trainer(callbacks=[kill]), tmp_path / "c", checkpoint_every=STEPS_PER_EPOCH)
    assert state(fit(make_trainer(), tmp_path / "c", checkpoint_every=STEPS_PER_EPOCH)) == wanted


def test_ctrl_c_leaves_a_checkpoint_that_goes_on(tmp_path: Path) -> None:
    import signal

    def press(trainer: Trainer, row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            signal.raise_signal(signal.SIGINT)

    wanted = state(fit(make_trainer(), None))
    path = tmp_path / "c"
    stopped = fit(make_trainer(callbacks=[press]), path, checkpoint_every=None)
    assert stopped.history.stopped == "interrupted"
    assert read_tensors(path, "checkpoint", 1)[1]["steps"] == 2 * STEPS_PER_EPOCH + 1
    assert state(fit(make_trainer(), path)) == wanted


@pytest.mark.parametrize("case", ["adam", "patience"])
def test_a_finished_training_returns_at_once(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, options = TRAININGS[case]
    wanted = state(fit(make_trainer(**settings), tmp_path / "c", **options))
    monkeypatch.setattr(TrainStep, "update", None)
    assert state(fit(make_trainer(**settings), tmp_path / "c", **options)) == wanted


def test_a_training_that_a_callback_ended_stays_ended(tmp_path: Path) -> None:
    def stop(trainer: Trainer, row: dict[str, Any]) -> None:
        if row["epoch"] == 3:
            raise StopTraining

    def make() -> Trainer:
        return make_trainer(callbacks=[stop])

    wanted = state(fit(make(), tmp_path / "c"))
    assert wanted["best"][1] == "callback"
    assert state(fit(make(), tmp_path / "c")) == wanted


def test_more_epochs_extend_a_finished_training(tmp_path: Path) -> None:
    fit(make_trainer(), tmp_path / "c", epochs=2)
    assert state(fit(make_trainer(), tmp_path / "c")) == state(fit(make_trainer(), None))


def test_a_second_fit_writes_its_own_checkpoints(tmp_path: Path) -> None:
    twice = fit(make_trainer(), tmp_path / "c", epochs=2)
    fit(twice, tmp_path / "c", epochs=2)
    again = fit(make_trainer(), tmp_path / "c", epochs=2)
    assert state(again) == state(twice)


# -- files that do not fit ------------------------------------------------------------------------

x, labels = some_data()
OTHER: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "optimizer": ({"optimizer": Adam(0.02)}, {}, "optimizer = .*0.01.*0.02"),
    "schedule": ({"schedule": "exponential"}, {}, "schedule"),
    "batch size": ({"batch_size": 16}, {}, "batch_size = 32 but this one has 16"),
    "l2": ({"l2": 0.1}, {}, "l2"),
    "clipping": ({"clip_norm": 0.1}, {}, "clip_norm"),
    "seed": ({"seed": 1}, {}, "seed = 0 but this one has 1"),
    "shuffle": ({"shuffle": False}, {}, "shuffle"),
    "rows": ({}, {"x": x[:-1], "targets": labels[:-1]}, "training x"),
    "x": ({}, {"x": x + 1e-9}, "training x"),
    "targets": ({}, {"targets": np.roll(labels, 1)}, "training targets"),
    "split": ({}, {"validation": 0.3}, "training rows"),
    "no validation": ({}, {"validation": None}, "training rows"),
    "validation set": ({}, {"validation": (x, labels)}, "training rows"),
    "weights": ({}, {"sample_weight": np.ones(120)}, "training sample_weight = none"),
    "standardizer": ({}, {"standardizer": Standardizer.fit(x)}, "training standardizer"),
}


@pytest.mark.parametrize("case", OTHER)
def test_another_training_is_refused_by_the_name_of_what_differs(case: str, tmp_path: Path) -> None:
    settings, options, message = OTHER[case]
    fit(make_trainer(), tmp_path / "c", epochs=1)
    before = (tmp_path / "c").read_bytes()
    given = {"x": x, "targets": labels, "validation": 0.25, "checkpoint": tmp_path / "c", **options}
    trainer = make_trainer(**settings)
    weights = host(trainer.network.parameters).tobytes()
    with pytest.raises(ModelFileError, match=message):
        trainer.fit(given.pop("x"), given.pop("targets"), epochs=2, **given)
    assert (tmp_path / "c").read_bytes() == before
    assert host(trainer.network.parameters).tobytes() == weights


def test_another_validation_set_and_another_network_are_refused(tmp_path: Path) -> None:
    fit(make_trainer(), tmp_path / "c", validation=(x, labels), epochs=1)
    with pytest.raises(ModelFileError, match="validation x"):
        fit(make_trainer(), tmp_path / "c", validation=(x * 2, labels))
    wider = Trainer(MLP([4, 9, 3], "tanh", dtype="float64"), optimizer=Adam(0.01), batch_size=32)
    with pytest.raises(ModelFileError, match=r"network = .*\[4, 8, 3\].*\[4, 9, 3\]"):
        fit(wider, tmp_path / "c", validation=(x, labels))


Edit = Callable[[dict[str, Any], dict[str, Any]], Any]
EDITS: dict[str, tuple[Edit, str]] = {
    "kind": (lambda a, v: v.update(kind="model"), "holds a model but a checkpoint"),
    "newer": (lambda a, v: v.update(version=2), "format version 2"),
    "nan": (lambda a, v: a["parameters"].__setitem__(3, np.nan), r"parameters\[3\] is nan"),
    "nan best": (lambda a, v: a["best"].__setitem__(0, np.inf), r"best\[0\] is inf"),
    "nan slot": (lambda a, v: a["slot.m"].fill(np.nan), r"slot.m\[0\] is nan"),
    "shape": (lambda a, v: a.update(best=np.zeros(3)), r"best has shape \(3,\)"),
    "dtype": (lambda a, v: a.update(best=a["best"].astype("f4")), "float32 but float64"),
    "slot": (lambda a, v: a.pop("slot.v"), "no tensor 'slot.v'"),
    "no fingerprint": (lambda a, v: v.pop("fingerprint"), "network = None"),
    "rng": (lambda a, v: v["position"].update(rng_state={"bit_generator": "MT"}), "not readable"),
    "rng kind": (lambda a, v: v["position"].update(rng_state=3), "not readable"),
    "no position": (lambda a, v: v.pop("position"), "not readable"),
    "position": (lambda a, v: v["position"].update(more=1), "not readable"),
    "step": (lambda a, v: v["position"].update(step=STEPS_PER_EPOCH), "step is 3 .* at most 2"),
    "epoch": (lambda a, v: v["position"].update(epoch=-1), "epoch is -1"),
    "best loss": (lambda a, v: v["position"].update(best_loss="low"), "not readable"),
    "steps": (lambda a, v: v.update(steps=1.5), "steps is 1.5"),
    "history": (lambda a, v: v.update(history=[3]), "history is not a list"),
    "best epoch": (lambda a, v: v.update(best_epoch="x"), "best_epoch is 'x'"),
    "schedule": (lambda a, v: v["schedule"].update(best="low"), "not readable"),
    "schedule keys": (lambda a, v: v.update(schedule={}), "not readable"),
    "no stopped": (lambda a, v: v.pop("stopped"), "not readable"),
}


def snapshot(trainer: Trainer) -> Any:
    return (
        host(trainer.network.parameters).tobytes(), trainer.state.rng.bit_generator.state,
        trainer.schedule.state(), list(trainer.history.rows), trainer.history.best_epoch,
    )  # fmt: skip


@pytest.mark.parametrize("case", EDITS)
def test_a_damaged_checkpoint_is_named_and_changes_nothing(case: str, tmp_path: Path) -> None:
    change, message = EDITS[case]
    path = tmp_path / "c"
    fit(make_trainer(schedule=ReduceOnPlateau()), path, epochs=2)
    arrays, values = read_tensors(path, "checkpoint", 1)
    change(arrays, values)
    save_file(arrays, path, {"gpubackprop": json.dumps(values)})
    trainer = make_trainer(schedule=ReduceOnPlateau())
    before = snapshot(trainer)
    with pytest.raises(ModelFileError, match=message) as caught:
        fit(trainer, path)
    assert str(path) in str(caught.value)
    assert snapshot(trainer) == before


def test_cut_foreign_and_model_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    fit(make_trainer(), path, epochs=1)
    content = path.read_bytes()
    for damaged in (b"", content[:-1], content[: len(content) // 2], b"\x80\x04]\x94."):
        path.write_bytes(damaged)
        with pytest.raises(ModelFileError, match="not a whole safetensors file"):
            fit(make_trainer(), path)
    Model(make_trainer().network).save(path)
    with pytest.raises(ModelFileError, match="holds a model but a checkpoint was expected"):
        fit(make_trainer(), path)


def test_checkpoint_every_wants_a_checkpoint() -> None:
    with pytest.raises(OptionError, match="checkpoint=path"):
        make_trainer().fit(x, labels, checkpoint_every=3)
