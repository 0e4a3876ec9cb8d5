"""Ctrl-C during training, and the progress bar."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubackprop.training import Trainer
from tests.small_training import make_trainer, some_data

ROOT = Path(__file__).resolve().parents[1]


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


class InterruptAt:
    """A metric that presses Ctrl-C at the end of epoch `epoch`, `times` times."""

    def __init__(self, epoch: int, times: int = 1) -> None:
        self.epoch, self.times, self.calls = epoch, times, 0

    def __call__(self, trainer: Trainer, row: dict[str, Any]) -> None:
        if row["epoch"] == self.epoch:
            for _ in range(self.times):
                ctrl_c()


def weights_after(epochs: int) -> bytes:
    trainer = make_trainer()
    trainer.fit(*some_data(), epochs=epochs)
    return trainer.network.parameters.tobytes()


def test_first_ctrl_c_ends_after_the_step_with_the_best_weights(
    capsys: pytest.CaptureFixture[str],
) -> None:
    trainer = make_trainer(callbacks=[InterruptAt(3)])
    history = trainer.fit(*some_data(), epochs=50)
    assert history.stopped == "interrupted"
    assert len(history) == 3
    assert trainer.state.step is not None
    assert trainer.state.step.steps == 13  # 4 steps in an epoch, and the one that was not cut short
    assert history.best_epoch == 3
    assert trainer.network.parameters.tobytes() == weights_after(3)
    assert "stopping after this step" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_before_an_epoch_is_done_keeps_what_was_learned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from gpubackprop.training.step import TrainStep

    update, trainer = TrainStep.update, make_trainer()
    before = trainer.network.parameters.copy()

    def press(step: TrainStep, rows: np.ndarray, lr: float) -> None:
        update(step, rows, lr)
        if step.steps == 2:
            ctrl_c()

    monkeypatch.setattr(TrainStep, "update", press)
    history = trainer.fit(*some_data(), epochs=5, validation=0.2)
    assert history.stopped == "interrupted"
    assert trainer.state.step is not None
    assert trainer.state.step.steps == 2
    assert not np.array_equal(trainer.network.parameters, before)


def test_restore_best_false_keeps_the_last_weights_after_ctrl_c() -> None:
    trainer = make_trainer(callbacks=[InterruptAt(3)])
    trainer.fit(*some_data(), epochs=50, restore_best=False)
    assert trainer.network.parameters.tobytes() != weights_after(3)


def test_second_ctrl_c_raises_at_once_with_the_best_weights() -> None:
    trainer = make_trainer(callbacks=[InterruptAt(3, times=2)])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(*some_data(), epochs=50)
    assert trainer.network.parameters.tobytes() == weights_after(3)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_program_with_its_own_handler_keeps_it() -> None:
    pressed = []

    def own(number: int, frame: object) -> None:
        pressed.append(number)

    signal.signal(signal.SIGINT, own)
    try:
        history = make_trainer(callbacks=[InterruptAt(2)]).fit(*some_data(), epochs=4)
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert pressed == [signal.SIGINT]
    assert history.stopped == "epochs"


def test_a_handler_that_a_callback_installs_stays() -> None:
    def install(trainer: Trainer, row: dict[str, Any]) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    try:
        make_trainer(callbacks=[install]).fit(*some_data(), epochs=1)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_fit_works_outside_the_main_thread() -> None:
    trainer = make_trainer()
    thread = threading.Thread(target=trainer.fit, args=some_data(), kwargs={"epochs": 3})
    thread.start()
    thread.join(60)
    assert trainer.history.stopped == "epochs"
    assert trainer.network.parameters.tobytes() == weights_after(3)


def test_an_error_in_a_callback_leaves_the_best_weights_and_reaches_the_caller() -> None:
    def fail(trainer: Trainer, row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            trainer.network.parameters.fill(7.0)
            raise ZeroDivisionError

    trainer = make_trainer(callbacks=[fail])
    with pytest.raises(ZeroDivisionError):
        trainer.fit(*some_data(), epochs=5)
    assert trainer.network.parameters.tobytes() == weights_after(2)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT from outside")
def test_ctrl_c_from_outside_at_any_moment_ends_training_in_order() -> None:
    """As a user does it: the process gets SIGINT while it trains, and goes on after fit."""
    code = """
    import os, signal, threading, time
    import numpy as np
    from tests.small_training import make_trainer, some_data
    trainer = make_trainer()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    history = trainer.fit(*some_data(), epochs=10**6)
    print(history.stopped, len(history) > 0, np.isfinite(trainer.network.parameters).all())
    """
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["interrupted", "True", "True"]
    assert "stopping after this step" in result.stderr


def run_python(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False, **options,
    )  # fmt: skip


# -- the progress bar -----------------------------------------------------------------------------

TRAIN = """
from tests.small_training import make_trainer, some_data
make_trainer(progress={progress}).fit(*some_data(), epochs=3, validation=0.2)
"""


def test_the_bar_shows_loss_rate_and_time_left_where_it_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    history = make_trainer(progress=True).fit(*some_data(), epochs=3, validation=0.2)
    last = (f"{name} {history[name][-1]:.4f}" for name in ("loss", "val_loss", "val_accuracy"))
    text = capsys.readouterr().err
    for part in ("epoch 3/3", "samples/s", "left", "100%", *last):
        assert part in text


@pytest.mark.parametrize("progress", [None, False])
def test_without_a_terminal_there_is_no_bar(
    progress: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainer(progress=progress).fit(*some_data(), epochs=3)
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_gets_the_bar_unasked() -> None:
    import pty

    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN.format(progress=None)], cwd=ROOT, stderr=follower,
        stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(follower)
    text = b""
    try:
        while chunk := os.read(leader, 4096):
            text += chunk
    except OSError:  # Linux reports the closed terminal so
        pass
    os.close(leader)
    assert process.wait(60) == 0
    assert b"epoch 3/3" in text


def test_a_process_without_stderr_trains() -> None:
    code = "import sys; sys.stderr = None\n" + TRAIN.format(progress=None) + "print('done')"
    result = run_python(code)
    assert result.stdout.strip() == "done"
