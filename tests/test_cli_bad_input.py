"""What goes wrong at the command line: one line that says what and what to do, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import re
import sys

import numpy as np
import pytest

from gpubackprop import Model
from gpubackprop.errors import StorageError
from gpubackprop.tensorfile import read_tensors, write_tensors
from tests.cli_runs import QUICK, flowers, ok, run_cli, write_table


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture
def table(tmp_path):
    return write_table(tmp_path / "flowers.csv", flowers())


def fails(*arguments, code=1):
    """The one line that a failing command prints to stderr."""
    result = run_cli(*arguments)
    assert result.code == code, result
    *usage, line = result.err.splitlines()
    assert not usage or code == 2
    assert line.startswith("gpubackprop")
    assert "Traceback" not in result.err
    return line


# -- data -----------------------------------------------------------------------------------------

FILES = {
    "nothing but a constant": ("a,y\n" + "1,x\n1,y\n" * 9, ["no column is left", "'a': the same"]),
    "an infinity": (
        "a,b,y\n1,2,x\ninf,4,y\n" + "3,4,x\n4,3,y\n" * 9,
        ["row 2", "column 'a'", "inf"],
    ),
    "one class only": ("a,b,y\n1,2,x\n3,4,x\n5,6,x\n", ["target y", "one class only", "'x'"]),
    "no such column": ("a,b,z\n1,2,x\n3,4,y\n", ["target column 'y'", "'a', 'b', 'z'"]),
    "no target in any row": ("a,y\n1,\n2,NA\n", ["no row has a target 'y'"]),
    "no rows": ("a,b,y\n", ["no data rows"]),
    "nothing": ("", ["empty"]),
    "a ragged line": ("a,b,y\n1,2,x\n3,4\n", ["row 2 (line 3)", "2 cells"]),
    "only one row": ("a,y\n1,x\n2,z\n", ["--test 0.2", "2 rows", "--test 0 does without"]),
    "classes of one row": (
        "a,y\n" + "".join(f"{i},c{i}\n" for i in range(20)),
        ["one row", "--test"],
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_data_file_with(case, tmp_path):
    content, said = FILES[case]
    (tmp_path / "data.csv").write_text(content)
    line = fails("train", tmp_path / "data.csv", "--target", "y", "--output", tmp_path / "o")
    assert str(tmp_path / "data.csv") in line or "--test" in line
    for part in said:
        assert part in line
    assert not (tmp_path / "o").exists()


def test_a_file_that_is_not_there(tmp_path):
    line = fails("train", tmp_path / "none.csv", "--target", "y")
    assert f"{tmp_path}/none.csv: no such file" in line


def test_a_regression_on_text_names_the_column(table):
    line = fails("train", table, "--target", "kind", "--task", "regression")
    assert "target kind" in line
    assert "'iris'" in line
    assert "--task classification" in line


@pytest.mark.parametrize(("task", "said"), [("poisson", "at least 0"), ("multilabel", "[0, 1]")])
def test_targets_outside_the_range_of_the_task_name_file_and_row(task, said, tmp_path):
    table = write_table(tmp_path / "t.csv", {"x": [1, 2, 3, 4], "y": [0, -3, 1, 2]})
    line = fails("train", table, "--target", "y", "--task", task)
    assert f"{table}, target y" in line
    assert "targets[1, 0] is -3.0" in line
    assert said in line


# -- usage ----------------------------------------------------------------------------------------

USAGE = {
    ("train", "data.csv"): "--target",
    ("train", "--epochs", "many"): "'many' is not a whole number of at least 0",
    ("train", "--batch-size", "0"): "at least 1",
    ("train", "--test", "1"): "below 1",
    ("train", "--lr", "nan"): "not a number of at least 0",
    ("train", "--hidden", "8,x"): "such as 512,512",
    ("train", "--activation", "rely"): "did you mean 'relu'?",
    ("train", "--activation", "tanh(2)"): "tanh has no parameter",
    ("train", "--optimizer", "adm"): "invalid choice",
    ("train", "--optimizer-option", "beta2"): "KEY=VALUE",
    ("train", "--epoch", "3"): "unrecognized arguments: --epoch",
    ("predict", "model"): "DATA",
    ("check", "--seed", "-1"): "at least 0",
    ("fly",): "invalid choice: 'fly'",
    (): "COMMAND",
}


@pytest.mark.parametrize("arguments", USAGE, ids=lambda a: " ".join(a) or "nothing")
def test_wrong_usage_exits_with_2_and_says(arguments):
    assert USAGE[arguments] in fails(*arguments, code=2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--momentum", "0.9"), "momentum is no option of the optimizer adam, which has lr, beta1"),
        (("--schedule", "constant", "--warmup", "3"), "warmup_steps is no option of the schedule"),
        (("--schedule-option", "gama=0.5"), "gama is no option of the schedule cosine"),
    ],
)
def test_an_option_of_another_optimizer_or_schedule_is_wrong_usage(arguments, said, table):
    assert said in fails("train", table, "--target", "kind", *arguments, code=2)


@pytest.mark.parametrize(
    "arguments", [("--target", "y"), ("--features", "a,b"), ("--no-header",)], ids=lambda a: a[0]
)
def test_options_about_the_data_without_data_are_wrong_usage(arguments):
    assert f"{arguments[0]} is about DATA" in fails("train", *arguments, code=2)


@pytest.mark.parametrize("option", [("--no-header",), ("--features", "a")], ids=lambda o: o[0])
def test_options_of_tables_are_wrong_usage_for_arrays(option, tmp_path):
    np.save(tmp_path / "x.npy", np.eye(4))
    line = fails("train", tmp_path / "x.npy", "--target", tmp_path / "x.npy", *option, code=2)
    assert option[0] in line
    assert "leave it out" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--hidden", "4", "--activation", "relu,tanh"), "2 values but --hidden has 1 layer"),
        (("--optimizer-option", "beta2=2"), "beta2"),
        (("--device", "gpu"), "'gpu' is not a device"),
        (("--hidden", "99999999,99999999"), "out of memory"),
    ],
)
def test_options_that_cannot_work_together_fail_before_training(arguments, said, table, tmp_path):
    line = fails("train", table, "--target", "kind", "--output", tmp_path / "o", *arguments)
    assert said in line
    assert not (tmp_path / "o").exists()


def test_options_of_classification_are_refused_for_numbers(tmp_path):
    table = write_table(tmp_path / "t.csv", {"x": np.arange(9.0), "y": np.arange(9.0) / 2})
    for option in (("--label-smoothing", "0.1"), ("--class-weight", "balanced")):
        assert option[0] in fails("train", table, "--target", "y", *option)


def test_the_traceback_is_shown_to_those_who_ask(table):
    from gpubackprop.errors import DataError

    with pytest.raises(DataError, match="kynd"):
        run_cli("train", table, "--target", "kynd", "--traceback")


# -- a loss that diverges -------------------------------------------------------------------------


def test_a_learning_rate_of_1e30_names_the_step_and_leaves_nothing_half_done(table, tmp_path):
    out = tmp_path / "o"
    result = run_cli("train", table, "--target", "kind", "--output", out, "--lr", "1e30", *QUICK)
    assert result.code == 1
    assert re.search(r"NaN or infinite at step \d+", result.err)
    assert "RuntimeWarning" not in result.err
    assert not list(out.iterdir())


def test_a_loss_that_diverges_later_keeps_the_best_weights(table, tmp_path):
    """The rate is multiplied by 1e12 after each epoch."""
    out = tmp_path / "o"
    growing = ("--schedule", "exponential", "--schedule-option", "gamma=1e12", "--optimizer", "sgd")
    result = run_cli("train", table, "--target", "kind", "--output", out, *QUICK, *growing)
    assert result.code == 1
    assert "NaN" in result.err
    assert "the weights of epoch" in result.err
    assert np.isfinite(Model.load(out / "model.safetensors").network.parameters).all()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["stopped"] == "diverged"
    assert summary["epochs"] >= 1
    assert np.isfinite(summary["test_loss"])
    assert not list(out.glob("checkpoint*"))  # going on from there would diverge again


# -- the disk -------------------------------------------------------------------------------------


def test_an_output_directory_that_cannot_be_made_says_what_to_do(table):
    line = fails("train", table, "--target", "kind", "--output", table / "o", *QUICK)
    assert f"{table}/o" in line
    assert "Not a directory" in line
    assert "--output" in line


def test_a_directory_that_cannot_be_written_to_is_found_before_training(
    table, tmp_path, monkeypatch
):
    def read_only(path, content):
        raise StorageError(f"{path} could not be written (Read-only file system); choose another")

    monkeypatch.setattr("gpubackprop.cli.train_claim.write_atomically", read_only)
    monkeypatch.setattr("gpubackprop.Trainer.fit", lambda *a, **o: pytest.fail("trained"))
    line = fails("train", table, "--target", "kind", "--output", tmp_path / "o", *QUICK)
    assert "Read-only file system" in line
    assert "--output" in line


@pytest.fixture
def fill_disk(monkeypatch):
    """Call it with the name of a file: from then on, writing that one finds no room."""

    def fill(name):
        replace = os.replace

        def full(source, target):
            if str(target).endswith(name):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
            replace(source, target)

        monkeypatch.setattr(os, "replace", full)

    return fill


@pytest.mark.parametrize("name", ["model.safetensors", "history.csv", "summary.json"])
def test_a_disk_that_is_full_at_the_end_costs_no_training(
    name, table, tmp_path, fill_disk, monkeypatch
):
    out = tmp_path / "o"
    command = ("train", table, "--target", "kind", "--output", out, *QUICK)
    whole = tmp_path / "whole"
    ok("train", table, "--target", "kind", "--output", whole, *QUICK)
    with monkeypatch.context():
        fill_disk(name)
        line = fails(*command[:5], *command[5:])
        monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert name in line
    assert "No space left on device" in line
    assert "the same command run again" in line
    assert not list(out.glob(".*"))  # no temporary file
    monkeypatch.setattr(
        "gpubackprop.training.step.TrainStep.update", lambda *a: pytest.fail("trained")
    )
    result = ok(*command, "--json")
    assert (result.json["resumed"], result.json["epochs"]) == (True, 5)
    same = [(folder / "model.safetensors").read_bytes() for folder in (out, whole)]
    assert same[0] == same[1]


def test_a_disk_that_is_full_while_training_saves_the_best_weights_if_there_is_room(
    table, tmp_path, monkeypatch
):
    from gpubackprop.training import checkpoint

    write, calls = checkpoint.write_tensors, []

    def full(path, arrays, values):
        calls.append(path)
        if len(calls) > 3:
            raise StorageError(f"{path} could not be written (No space left on device)")
        write(path, arrays, values)

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    monkeypatch.setattr("gpubackprop.cli.train_run.CHECKPOINT_SECONDS", 0.0)
    out = tmp_path / "o"
    result = run_cli("train", table, "--target", "kind", "--output", out, *QUICK)
    assert result.code == 1
    saved, error = result.err.splitlines()
    assert "model.safetensors has the best weights so far" in saved
    assert "No space left on device" in error
    Model.load(out / "model.safetensors")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert ok("train", table, "--target", "kind", "--output", out, "--json", *QUICK).json["resumed"]


# -- models ---------------------------------------------------------------------------------------


@pytest.fixture
def model(table, tmp_path):
    ok("train", table, "--target", "kind", "--output", tmp_path / "m", *QUICK)
    return tmp_path / "m/model.safetensors"


def damage(model, how):
    content = model.read_bytes()
    if how == "truncated":
        model.write_bytes(content[: len(content) // 2])
    elif how == "foreign":
        model.write_bytes(b"PK\x03\x04 a zip file")
    elif how == "empty":
        model.write_bytes(b"")
    else:
        arrays, values = read_tensors(model, "model", 2)
        arrays = {name: array.copy() for name, array in arrays.items()}
        if how == "NaN":
            arrays["layers.0.weight"][2, 1] = np.nan
        elif how == "shape":
            arrays["layers.1.bias"] = np.zeros(7, np.float32)
        elif how == "checkpoint":
            values["kind"] = "checkpoint"
        write_tensors(model, arrays, values)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("truncated", "not a whole safetensors file"),
        ("foreign", "not a whole safetensors file"),
        ("empty", "not a whole safetensors file"),
        ("NaN", "layers.0.weight[2, 1] is nan"),
        ("shape", "layers.1.bias has shape (7,)"),
        ("checkpoint", "holds a checkpoint but a model was expected"),
    ],
)
def test_a_damaged_or_foreign_model_is_named_with_the_reason(how, said, model, table):
    damage(model, how)
    line = fails("predict", model, table)
    assert str(model) in line
    assert said in line


def test_a_model_that_is_not_there_and_data_as_model(model, table):
    assert "does not exist" in fails("predict", model.with_name("other"), table)
    assert "not a whole safetensors file" in fails("predict", table, table)


def test_other_columns_than_in_training_are_named(model, tmp_path):
    data = flowers()
    table = write_table(tmp_path / "t.csv", {"length": data["length"], "height": data["width"]})
    line = fails("predict", model, table)
    assert "feature column 'width' not in the file" in line
    assert "'length', 'height'" in line


def test_a_label_that_the_model_does_not_know_names_the_row(model, tmp_path):
    data = flowers() | {"kind": ["iris", "tulip"] + ["iris"] * 88}
    line = fails("predict", model, write_table(tmp_path / "t.csv", data), "--score")
    assert "row 2" in line
    assert "'tulip'" in line


def test_predictions_that_find_no_room_leave_the_earlier_file(model, table, tmp_path, fill_disk):
    output = tmp_path / "out.csv"
    output.write_text("prediction\nof yesterday\n")
    fill_disk("out.csv")
    line = fails("predict", model, table, "--output", output)
    assert "No space left on device" in line
    assert output.read_text() == "prediction\nof yesterday\n"
    assert not list(tmp_path.glob(".*"))
