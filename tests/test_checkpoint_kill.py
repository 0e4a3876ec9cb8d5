"""SIGKILL at 200 random moments, 40 in a sample (`sweeps.py`): training always resumes, and ends as
if never stopped."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gpubackprop.optimizers import Adam
from gpubackprop.schedules import ReduceOnPlateau
from gpubackprop.tensorfile import read_tensors
from gpubackprop.training import Trainer
from tests.small_training import make_trainer, some_data
from tests.sweeps import Sweep

ROOT = Path(__file__).resolve().parents[1]
EPOCHS, STEPS = 20, 60  # steps of the whole training, each with a checkpoint
KILLS, SAMPLE = 200, 40
# Killing goes on until all of these were seen, or their share in a sample: how often a kill falls into a phase depends on the
# machine's speed, that each phase is hit this often does not. in_write: while a temporary file was
# being written; in_epoch: a checkpoint in mid-epoch was left; moved: training had got further.
WANTED = {"kills": KILLS, "in_write": 20, "in_epoch": 20, "moved": 40, "finished": 3}


def train(path: Path | None) -> str:
    """A hash of everything that the training ends with."""
    trainer = make_trainer(
        optimizer=Adam(0.03), schedule=ReduceOnPlateau(0.5, patience=0), clip_norm=0.5
    )
    every = {} if path is None else {"checkpoint": path, "checkpoint_every": 1}
    history = trainer.fit(*some_data(), epochs=EPOCHS, validation=0.25, **every)
    columns = [history[name] for name in ("lr", "loss", "accuracy", "val_loss")]
    slots = b"".join(slot.tobytes() for slot in step_of(trainer).slots)
    text = json.dumps([columns, history.best_epoch]).encode()
    return hashlib.sha256(trainer.network.parameters.tobytes() + slots + text).hexdigest()


def step_of(trainer: Trainer) -> Any:
    assert trainer.state.step is not None
    assert trainer.state.step.steps == STEPS
    return trainer.state.step


def fork_training(folder: Path) -> int:
    """A child that trains from the checkpoint on and leaves its result in a file."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            (folder / "result").write_text(train(folder / "checkpoint"))
            code = 0
        finally:
            os._exit(code)
    return child


def finish(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Observer:
    """Looks at the folder after each kill."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.last = folder, -1
        self.leftovers: set[str] = set()
        self.seen = {"kills": 0, "in_write": 0, "in_epoch": 0, "moved": 0, "finished": 0}

    def after_kill(self) -> None:
        self.seen["kills"] += 1
        self.leftovers |= {path.name for path in self.folder.glob(".checkpoint.*.tmp")}
        self.seen["in_write"] = len(self.leftovers)
        if not (self.folder / "checkpoint").exists():
            assert self.last == -1, "the checkpoint has vanished"
            return
        values = read_tensors(self.folder / "checkpoint", "checkpoint", 1)[1]
        assert values["steps"] >= self.last, "the checkpoint has gone back"
        self.seen["moved"] += values["steps"] > self.last
        self.seen["in_epoch"] += values["position"]["step"] > 0
        self.last = values["steps"]

    def after_end(self, wanted: str) -> None:
        assert (self.folder / "result").read_text() == wanted
        assert sorted(os.listdir(self.folder)) == ["checkpoint", "result"]
        self.seen["finished"] += 1
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        self.last = -1


def wanted_of(kills: int) -> dict[str, int]:
    return {what: -(-number * kills // KILLS) for what, number in WANTED.items()}


def main(folder: Path, kills: int) -> None:
    """Kill children until what is wanted was seen; this process has no threads, so it may fork."""
    rng, wanted, observer = random.Random(2024), train(None), Observer(folder)
    began = time.monotonic()
    assert finish(fork_training(folder)) == 0
    longest = max(0.03, (time.monotonic() - began) / 4)
    observer.after_end(wanted)
    while any(observer.seen[what] < number for what, number in wanted_of(kills).items()):
        child = fork_training(folder)
        time.sleep(rng.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        code = finish(child)
        if code == -signal.SIGKILL:
            observer.after_kill()
        else:
            assert code == 0, f"a resumed training failed with exit code {code}"
            observer.after_end(wanted)
    assert finish(fork_training(folder)) == 0
    observer.after_end(wanted)
    print(json.dumps(observer.seen))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_killed_at_200_random_moments_training_always_resumes_bit_for_bit(
    tmp_path: Path, sweep: Sweep
) -> None:
    kills = sweep.number(KILLS, SAMPLE)
    result = subprocess.run(
        [sys.executable, "-m", "tests.test_checkpoint_kill", str(tmp_path), str(kills)],
        cwd=ROOT, text=True, capture_output=True, timeout=240, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    print(seen)
    assert all(seen[what] >= number for what, number in wanted_of(kills).items())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
