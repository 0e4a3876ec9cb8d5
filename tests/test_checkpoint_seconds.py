"""Trainer.fit(checkpoint_seconds=...): checkpoints not more often than it takes to train."""

from __future__ import annotations

import pytest

from gpubackprop.errors import OptionError
from gpubackprop.training import run
from tests.small_training import make_trainer, some_data


def writes_of_a_training(monkeypatch, tmp_path, **options):
    """The epochs after which a checkpoint was written."""
    epochs = []
    save = run.Checkpoint.save

    def spy(self, position, best):
        epochs.append(position.epoch)
        save(self, position, best)

    with monkeypatch.context() as patch:
        patch.setattr(run.Checkpoint, "save", spy)
        path = tmp_path / "checkpoint.safetensors"
        make_trainer().fit(*some_data(), epochs=4, checkpoint=path, **options)
    return epochs


def test_by_default_every_epoch_is_kept(monkeypatch, tmp_path):
    assert writes_of_a_training(monkeypatch, tmp_path) == [0, 1, 2, 3, 4]


def test_epochs_that_end_sooner_are_left_out_but_for_the_last(monkeypatch, tmp_path):
    assert writes_of_a_training(monkeypatch, tmp_path, checkpoint_seconds=3600) == [0, 4]


def test_a_training_that_stops_early_is_kept_as_it_stopped(monkeypatch, tmp_path):
    options = {"checkpoint_seconds": 3600, "patience": 1, "min_delta": 1e9}
    assert writes_of_a_training(monkeypatch, tmp_path, **options) == [0, 2]


def test_negative_seconds_are_refused(tmp_path):
    with pytest.raises(OptionError, match="checkpoint_seconds"):
        make_trainer().fit(*some_data(), checkpoint=tmp_path / "c", checkpoint_seconds=-1)
