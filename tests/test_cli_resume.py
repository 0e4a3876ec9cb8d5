"""gpubackprop train, ended too early: killed, interrupted, resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from gpubackprop import Model, Trainer
from gpubackprop.cli.common import deferred_interrupt
from tests.cli_runs import COMMAND, ENVIRONMENT, QUICK, flowers, ok, run_cli, write_table

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
LONG = ("--target", "kind", "--hidden", "8", "--epochs", "20000", "--device", "cpu")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture
def table(tmp_path):
    return write_table(tmp_path / "flowers.csv", flowers())


def unfinished(table, folder, monkeypatch, epochs=2):
    """Leave the checkpoint of a training that was killed in the epoch after `epochs`."""
    fit = Trainer.fit

    def kill(trainer, row):
        if row["epoch"] > epochs:
            raise SystemExit(9)  # nothing that the command line handles

    def killed(self, *args, **options):
        self.callbacks.append(kill)
        fit(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", killed)
        patch.setattr("gpubackprop.cli.train_run.CHECKPOINT_SECONDS", 0.0)
        assert run_cli("train", table, "--target", "kind", "--output", folder, *QUICK).code == 9
    assert {path.name for path in folder.iterdir()} == {"checkpoint.safetensors", "checkpoint.json"}


def start(table, folder, *more):
    """A long training in a process of its own, once it has finished some epochs."""
    process = subprocess.Popen(
        [*COMMAND, "train", str(table), *LONG, "--output", str(folder), *more],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    first = None
    while process.poll() is None:
        path = folder / "checkpoint.safetensors"
        if path.exists():
            first = first or path.stat().st_ino
            if path.stat().st_ino != first:
                break
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()
    return process


# -- resuming -------------------------------------------------------------------------------------


def test_the_same_command_goes_on_and_ends_with_the_same_model(table, tmp_path, monkeypatch):
    whole = ok("train", table, "--target", "kind", "--output", tmp_path / "a", "--json", *QUICK)
    unfinished(table, tmp_path / "b", monkeypatch)
    rest = ok("train", table, "--target", "kind", "--output", tmp_path / "b", "--json", *QUICK)
    assert "going on from" in rest.err
    assert (whole.json["resumed"], rest.json["resumed"]) == (False, True)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert first == second
    assert rest.json["epochs"] == 5


def test_after_a_kill_the_same_command_goes_on(table, tmp_path):
    folder = tmp_path / "o"
    process = start(table, folder)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    result = ok("train", table, *LONG, "--output", folder, "--json")
    assert (result.json["resumed"], result.json["epochs"]) == (True, 20_000)


def test_a_complete_run_leaves_no_checkpoint_and_starts_anew(table, tmp_path):
    command = ("train", table, "--target", "kind", "--output", tmp_path / "o", "--json", *QUICK)
    ok(*command)
    assert not list((tmp_path / "o").glob("checkpoint*"))
    again = ok(*command)
    assert (again.json["resumed"], again.err.count("going on")) == (False, 0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("--lr", "0.5"), "--lr None there, 0.5 now"),
        (("--seed", "3"), "--seed 0 there, 3 now"),
        (("--initializer", "zeros"), "--initializer 'glorot_uniform' there, 'zeros' now"),
        (("--no-standardize",), "--standardize 'auto' there, 'none' now"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_other_options_do_not_go_on_from_a_checkpoint(changed, said, table, tmp_path, monkeypatch):
    folder = tmp_path / "o"
    unfinished(table, folder, monkeypatch)
    before = (folder / "checkpoint.safetensors").read_bytes()
    result = run_cli("train", table, "--target", "kind", "--output", folder, *QUICK, *changed)
    assert result.code == 1
    assert said in result.err
    assert "--no-resume" in result.err
    assert (folder / "checkpoint.safetensors").read_bytes() == before
    anew = ("--no-resume", "--json")
    result = ok("train", table, "--target", "kind", "--output", folder, *QUICK, *changed, *anew)
    assert result.json["resumed"] is False


def test_other_contents_of_the_same_file_do_not_go_on_from_a_checkpoint(
    table, tmp_path, monkeypatch
):
    unfinished(table, tmp_path / "o", monkeypatch)
    write_table(table, flowers(seed=1))  # the same shape and targets
    result = run_cli("train", table, "--target", "kind", "--output", tmp_path / "o", *QUICK)
    assert result.code == 1
    assert "the data have changed" in result.err


def test_more_epochs_may_be_asked_for_when_going_on(table, tmp_path, monkeypatch):
    unfinished(table, tmp_path / "o", monkeypatch)
    more = ("--output", tmp_path / "o", "--json", "--quiet")
    result = ok("train", table, "--target", "kind", *QUICK, "--epochs", "7", *more)
    assert (result.json["resumed"], result.json["epochs"]) == (True, 7)


def test_a_damaged_checkpoint_is_named_with_the_way_out(table, tmp_path, monkeypatch):
    folder = tmp_path / "o"
    unfinished(table, folder, monkeypatch)
    path = folder / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    command = ("train", table, "--target", "kind", "--output", folder, *QUICK)
    result = run_cli(*command)
    assert result.code == 1
    assert str(path) in result.err
    assert "--no-resume" in result.err
    ok(*command, "--no-resume")


def test_a_checkpoint_without_its_options_is_not_trusted(table, tmp_path, monkeypatch):
    unfinished(table, tmp_path / "o", monkeypatch)
    (tmp_path / "o/checkpoint.json").write_text("{")
    result = run_cli("train", table, "--target", "kind", "--output", tmp_path / "o", *QUICK)
    assert result.code == 1
    assert "checkpoint.json" in result.err


# -- Ctrl-C ---------------------------------------------------------------------------------------


def test_ctrl_c_keeps_the_best_weights_and_the_same_command_finishes(table, tmp_path):
    folder = tmp_path / "o"
    process = start(table, folder)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted; the same command goes on" in err
    assert out.splitlines()[-1].startswith("test accuracy: ")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["stopped"] == "interrupted"
    assert 1 <= summary["epochs"] < 20_000
    assert Model.load(folder / "model.safetensors").network.widths == (2, 8, 3)
    result = ok("train", table, *LONG, "--output", folder, "--json")
    assert (result.json["resumed"], result.json["stopped"]) == (True, "epochs")
    assert result.json["epochs"] == 20_000


def test_many_ctrl_c_in_a_row_leave_a_whole_model_or_none(table, tmp_path):
    folder = tmp_path / "o"
    process = start(table, folder)
    for _ in range(10):
        process.send_signal(signal.SIGINT)
        time.sleep(0.002)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT), err  # the latter while Python shuts down
    assert "Traceback" not in err
    Model.load(folder / "model.safetensors")  # epochs were finished: there must be one
    ok("train", table, *LONG, "--output", folder)


def test_a_second_ctrl_c_saves_the_best_epoch(table, tmp_path, monkeypatch):
    fit = Trainer.fit

    def interrupted(self, *args, **options):
        fit(self, *args, **options | {"epochs": 3})
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "fit", interrupted)
    result = run_cli("train", table, "--target", "kind", "--output", tmp_path / "o", *QUICK)
    assert result.code == 130
    assert (
        f"{tmp_path}/o/model.safetensors has the best weights so far, those of epoch" in result.err
    )
    Model.load(tmp_path / "o/model.safetensors")
    assert len((tmp_path / "o/history.csv").read_text().splitlines()) == 4


def test_ctrl_c_before_anything_was_learned_says_so_on_one_line(table, tmp_path, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("gpubackprop.cli.train.prepare", interrupted)
    result = run_cli("train", table, "--target", "kind", "--output", tmp_path / "o")
    assert (result.code, result.err) == (130, "\ngpubackprop train: interrupted\n")
    assert not (tmp_path / "o").exists()


def test_an_interrupt_waits_for_the_end_of_a_block_that_must_not_be_cut():
    steps = []

    def write():
        with deferred_interrupt():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            steps.append("written")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert steps == ["written"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_a_block_that_must_not_be_cut_is_not_lost():
    with pytest.raises(OSError, match="full"), deferred_interrupt():
        raise OSError("full")


def test_ctrl_c_while_the_model_is_written_waits_until_it_is(table, tmp_path, monkeypatch):
    save = Model.save

    def interrupted(self, path):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)  # the handler runs here
        save(self, path)

    monkeypatch.setattr(Model, "save", interrupted)
    result = run_cli("train", table, "--target", "kind", "--output", tmp_path / "o", *QUICK)
    assert (result.code, result.err) == (130, "\ngpubackprop train: interrupted\n")
    Model.load(tmp_path / "o/model.safetensors")
