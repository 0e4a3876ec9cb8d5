"""Checkpoints on disks that are full and in folders that cannot be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubackprop.errors import StorageError
from gpubackprop.training import Trainer
from gpubackprop.training.step import TrainStep
from tests.small_training import make_trainer
from tests.test_checkpoint import fit, snapshot, state


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("broken", ["os.fsync", "os.replace", "builtins.open"])
def test_a_disk_that_fills_up_keeps_the_previous_file_and_the_best_weights(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    wanted = state(fit(make_trainer(), None))
    kept: dict[str, Any] = {}

    def fill_the_disk(trainer: Trainer, row: dict[str, Any]) -> None:
        if row["epoch"] == 3:
            kept.update(file=path.read_bytes(), best=trainer.network.parameters.tobytes())
            monkeypatch.setattr(broken, refuse)

    trainer = make_trainer(callbacks=[fill_the_disk])
    with pytest.raises(StorageError, match=r"No space left.*best weights so far"):
        fit(trainer, path)
    monkeypatch.undo()
    assert path.read_bytes() == kept["file"]
    assert os.listdir(tmp_path) == ["c"]
    assert trainer.history.best_epoch == 3
    assert trainer.network.parameters.tobytes() == kept["best"]
    assert state(fit(make_trainer(), path)) == wanted


def test_a_disk_that_fills_up_in_the_first_epoch_does_not_lose_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, path = make_trainer(), tmp_path / "c"
    before = trainer.network.parameters.tobytes()
    monkeypatch.setattr(TrainStep, "update", _then_fill_the_disk(TrainStep.update, monkeypatch))
    with pytest.raises(StorageError, match=r"step 1\)"):
        fit(trainer, path)
    assert trainer.network.parameters.tobytes() != before


def _then_fill_the_disk(update: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    def wrapped(step: TrainStep, rows: np.ndarray, lr: float) -> None:
        update(step, rows, lr)
        monkeypatch.setattr("os.fsync", refuse)

    return wrapped


def test_a_path_that_cannot_be_written_shows_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    trainer = make_trainer()
    before = snapshot(trainer)
    with pytest.raises(StorageError, match="file/c could not be written"):
        fit(trainer, tmp_path / "file" / "c")
    assert snapshot(trainer) == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_shows_before_training(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(0o500)
    with pytest.raises(StorageError, match="Permission denied"):
        fit(make_trainer(), folder / "c")


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".c.123-00ff.tmp").write_bytes(b"half")
    fit(make_trainer(), tmp_path / "c", epochs=1)
    assert os.listdir(tmp_path) == ["c"]
