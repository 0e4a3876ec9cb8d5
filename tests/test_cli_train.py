"""gpubackprop train: what it learns, and what it leaves behind."""

from __future__ import annotations

import json
import re
import sys
import tracemalloc

import numpy as np
import pytest

from gpubackprop import Model, Trainer
from gpubackprop.cli.train_options import epochs
from gpubackprop.data import split_rows
from gpubackprop.formulas import ACTIVATIONS
from gpubackprop.initializers import INITIALIZERS
from gpubackprop.losses import LOSSES
from gpubackprop.optimizers import OPTIMIZERS
from gpubackprop.schedules import SCHEDULES
from tests.cli_runs import QUICK, flowers, houses, ok, read_table, run_cli, write_table

FILES = {
    "model.safetensors", "history.csv", "summary.json", "learning_curve.png", "report.html",
}  # fmt: skip


@pytest.fixture
def table(tmp_path):
    return write_table(tmp_path / "flowers.csv", flowers())


@pytest.fixture
def no_pictures(monkeypatch):
    """As if matplotlib were not installed: drawing takes longer than these trainings."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


# -- the demonstration ----------------------------------------------------------------------------


def test_digits_with_default_options_end_with_device_and_accuracy_above_97_percent(tmp_path):
    pytest.importorskip("sklearn")
    result = ok("train", "--output", tmp_path / "digits", "--device", "cpu")
    *_, device, accuracy = result.out.splitlines()
    assert re.fullmatch(r"device: cpu \(the CPU was asked for; \d+ threads?, .+\)", device)
    assert re.fullmatch(r"test accuracy: 0\.9[789]\d\d", accuracy)
    assert {path.name for path in (tmp_path / "digits").iterdir()} == FILES | {
        "confusion_matrix.png"
    }
    summary = json.loads((tmp_path / "digits/summary.json").read_text())
    assert summary["test_accuracy"] == pytest.approx(float(accuracy.split()[-1]), abs=5e-5)
    assert summary["data"]["test_rows"] == 359
    assert summary["seconds"] < 30


@pytest.mark.slow
def test_digits_reach_97_percent_whatever_the_seed(tmp_path, no_pictures, sweep):
    pytest.importorskip("sklearn")
    results = [
        ok("train", "--json", "--output", tmp_path, "--seed", seed).json["test_accuracy"]
        for seed in sweep.cases(range(10), keep=2)
    ]
    assert min(results) >= 0.97, results


def test_digits_without_scikit_learn_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    result = run_cli("train", "--output", tmp_path / "out")
    assert (result.code, result.out) == (1, "")
    assert 'pip install "gpubackprop[sklearn]"' in result.err
    assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


# -- what is printed ------------------------------------------------------------------------------


def test_json_is_the_summary_and_nothing_else_is_printed(table, tmp_path, no_pictures):
    result = ok("train", table, "--target", "kind", "--output", tmp_path / "o", "--json", *QUICK)
    summary = result.json
    assert summary == json.loads((tmp_path / "o/summary.json").read_text())
    assert summary["device"] == "cpu"
    assert summary["dtype"] == "float32"
    assert (summary["epochs"], summary["stopped"], summary["resumed"]) == (5, "epochs", False)
    assert {
        "train_loss",
        "test_loss",
        "train_accuracy",
        "test_accuracy",
        "seconds",
    } <= summary.keys()
    assert summary["samples_per_second"] > 0
    assert {"python", "numpy", "gpubackprop"} <= summary["versions"].keys()
    assert summary["parameters"] == (2 + 1) * 8 + (8 + 1) * 3
    assert summary["data"]["classes"] == ["iris", "lily", "rose"]
    assert (summary["data"]["rows"], summary["data"]["features"]) == (90, 2)
    assert summary["options"]["hidden"] == [8]
    assert summary["command"][:3] == ["gpubackprop", "train", str(table)]


def test_quiet_prints_device_and_result_only(table, tmp_path, no_pictures):
    result = ok("train", table, "--target", "kind", "--output", tmp_path / "o", "--quiet", *QUICK)
    device, accuracy = result.out.splitlines()
    assert device.startswith("device: cpu")
    assert accuracy.startswith("test accuracy: ")


def test_the_files_are_listed_and_go_where_the_data_file_says(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = ok("train", table, "--target", "kind", *QUICK)
    folder = tmp_path / "runs/flowers"
    assert {path.name for path in folder.iterdir()} == FILES | {"confusion_matrix.png"}
    for name in FILES:
        assert re.search(rf"^  {re.escape(name)} ", result.out, re.MULTILINE)
    assert "3 classes" in result.out
    assert "2-8-3, relu, softmax; 51 parameters" in result.out


def test_without_matplotlib_all_but_the_pictures_is_written(table, tmp_path, no_pictures):
    out = tmp_path / "o"
    ok("train", table, "--target", "kind", "--output", out, *QUICK)
    (out / "confusion_matrix.png").write_bytes(b"of an earlier run")
    result = ok("train", table, "--target", "kind", "--output", out, *QUICK)
    assert {path.name for path in out.iterdir()} == FILES - {"learning_curve.png"}
    assert result.err == (
        "pictures left out: matplotlib is needed to draw pictures; install it with: pip install "
        '"gpubackprop[cli]"\n'
    )


def test_history_has_a_row_for_each_epoch(table, tmp_path, no_pictures):
    ok("train", table, "--target", "kind", "--output", tmp_path, *QUICK)
    history = read_table((tmp_path / "history.csv").read_text())
    assert history["epoch"] == ["1", "2", "3", "4", "5"]
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= history.keys()


# -- what is learned ------------------------------------------------------------------------------


def test_flowers_are_told_apart(table, tmp_path, no_pictures):
    options = ("--hidden", "16", "--epochs", "60", "--output", tmp_path, "--json")
    assert ok("train", table, "--target", "kind", *options).json["test_accuracy"] == 1.0


def test_the_same_command_gives_the_same_model(table, tmp_path, no_pictures):
    for name in ("a", "b"):
        ok("train", table, "--target", "kind", "--output", tmp_path / name, *QUICK)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert first == second


def test_another_seed_gives_another_model(table, tmp_path, no_pictures):
    for seed in ("1", "2"):
        ok("train", table, "--target", "kind", "--output", tmp_path / seed, "--seed", seed, *QUICK)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in "12")
    assert first != second


def test_inputs_are_standardised_by_the_training_rows_only(table, tmp_path, no_pictures):
    ok("train", table, "--target", "kind", "--output", tmp_path, *QUICK)
    data = flowers()
    x = np.stack([data["length"], data["width"]], 1)
    _, kind = np.unique(data["kind"], return_inverse=True)
    rest, _ = split_rows(90, 0.2, 0, kind)
    train = rest[split_rows(len(rest), 0.1, 0, kind[rest])[0]]
    standardizer = Model.load(tmp_path / "model.safetensors").standardizer
    np.testing.assert_allclose(standardizer.mean, x[train].mean(0), rtol=1e-12)
    np.testing.assert_allclose(standardizer.scale, x[train].std(0), rtol=1e-9)


def test_one_scale_for_all_columns_is_the_root_of_the_mean_variance(table, tmp_path, no_pictures):
    shared = ("--validation", "0", "--test", "0", "--standardize", "whole")
    ok("train", table, "--target", "kind", "--output", tmp_path, *shared, *QUICK)
    data = flowers()
    wanted = np.sqrt((data["length"].var() + data["width"].var()) / 2)
    scale = Model.load(tmp_path / "model.safetensors").standardizer.scale
    np.testing.assert_allclose(scale, [wanted, wanted], rtol=1e-9)


def test_no_standardize_leaves_no_standardizer(table, tmp_path, no_pictures):
    ok("train", table, "--target", "kind", "--output", tmp_path, "--no-standardize", *QUICK)
    assert Model.load(tmp_path / "model.safetensors").standardizer is None


def test_a_regression_answers_in_the_units_of_the_file(tmp_path, no_pictures):
    """Targets of 1e5 are learned with the default rate: they are scaled inside."""
    table = write_table(tmp_path / "houses.csv", houses())
    options = ("--hidden", "0", "--epochs", "300", "--lr", "0.02", "--output", tmp_path / "o")
    result = ok("train", table, "--target", "price", "--json", *options)
    summary = result.json
    assert summary["task"] == "regression"
    assert summary["test_rmse"] < 2_000  # of prices between 120,000 and 720,000
    # squared error is half the square of what rmse is the root mean square of
    assert summary["test_loss"] == pytest.approx(summary["test_rmse"] ** 2 / 2, rel=1e-4)
    model = Model.load(tmp_path / "o/model.safetensors")
    price = model.predict(np.array([[100.0, 3.0]]))[0, 0]
    assert price == pytest.approx(50_000 + 300_000 + 30_000, rel=0.02)


def test_several_target_columns_are_learned_at_once(tmp_path, no_pictures):
    data = houses() | {"tax": -7 * houses()["area"]}
    table = write_table(tmp_path / "houses.csv", data)
    options = ("--hidden", "0", "--epochs", "300", "--lr", "0.02", "--output", tmp_path / "o")
    ok("train", table, "--target", "price,tax", *options)
    model = Model.load(tmp_path / "o/model.safetensors")
    assert model.feature_names == ["area", "rooms"]
    price, tax = model.predict(np.array([[100.0, 3.0]]))[0]
    assert price == pytest.approx(380_000, rel=0.02)
    assert tax == pytest.approx(-700, rel=0.02)


def test_several_labels_at_once(tmp_path, no_pictures):
    x = np.random.default_rng(0).normal(size=(200, 2))
    data = {"a": x[:, 0], "b": x[:, 1], "up": (x[:, 0] > 0) * 1, "right": x[:, 1] > 0}
    table = write_table(tmp_path / "signs.csv", data)
    options = (
        "--task",
        "multilabel",
        "--hidden",
        "16",
        "--epochs",
        "60",
        "--output",
        tmp_path / "o",
    )
    result = ok("train", table, "--target", "up,right", "--json", *options)
    assert result.json["test_accuracy"] > 0.8
    assert not (tmp_path / "o/confusion_matrix.png").exists()


def test_counts_with_poisson(tmp_path, no_pictures):
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, 400)
    table = write_table(tmp_path / "counts.csv", {"x": x, "n": rng.poisson(np.exp(1 + x))})
    options = ("--hidden", "0", "--epochs", "200", "--lr", "0.02", "--validation", "0")
    options += ("--output", tmp_path / "o", "--task", "poisson", "--json")
    result = ok("train", table, "--target", "n", *options)
    model = Model.load(tmp_path / "o/model.safetensors")
    assert model.predict(np.zeros((1, 1)))[0, 0] == pytest.approx(np.e, rel=0.15)
    assert result.json["test_rmse"] > 0


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_of_the_library_is_trained_by_its_name(name, tmp_path, no_pictures):
    rng = np.random.default_rng(0)
    table = write_table(tmp_path / "t.csv", {"x": rng.random(60), "y": rng.integers(0, 2, 60)})
    options = ("--loss", name, "--epochs", "1", "--output", tmp_path / "o", "--json")
    result = ok("train", table, "--target", "y", *options)
    assert result.json["loss"]["name"] == name
    assert result.json["task"] == LOSSES[name].task
    assert Model.load(tmp_path / "o/model.safetensors").network.output == LOSSES[name].output


def test_a_loss_of_another_task_is_refused(tmp_path):
    table = write_table(tmp_path / "t.csv", {"x": np.arange(9.0), "y": np.arange(9.0)})
    said = "--loss poisson is a loss of poisson but this is regression; leave it out, or pass"
    options = ("--task", "regression", "--output", tmp_path / "o")
    result = run_cli("train", table, "--target", "y", "--loss", "poisson", *options)
    assert (result.code, said in result.err) == (1, True)
    result = run_cli("train", table, "--target", "y", "--loss", "poison", *options)
    assert (result.code, "did you mean 'poisson'" in result.err) == (2, True)


CHOICES = [
    *(("--activation", name) for name in [*ACTIVATIONS, "leaky_relu(0.2)"]),
    *(("--optimizer", name) for name in OPTIMIZERS),
    *(("--schedule", name) for name in SCHEDULES),
    *(("--initializer", name) for name in INITIALIZERS),
    ("--dtype", "float64"),
    ("--class-weight", "balanced"),
    ("--l2", "0.01", "--clip-norm", "1"),
    ("--optimizer", "sgd", "--momentum", "0.9", "--optimizer-option", "nesterov=true"),
    ("--schedule", "step", "--schedule-option", "gamma=0.5"),
    ("--warmup", "3"),
    ("--threads", "1"),
    ("--batch-size", "1000"),
    ("--hidden", ""),
]


@pytest.mark.parametrize("choice", CHOICES, ids=" ".join)
def test_every_choice_of_an_option_trains(choice, table, tmp_path, no_pictures):
    result = ok("train", table, "--target", "kind", "--output", tmp_path, "--json", *QUICK, *choice)
    assert np.isfinite(result.json["test_loss"])


def test_the_activation_of_each_layer_can_be_named(table, tmp_path, no_pictures):
    layers = ("--hidden", "4,5", "--activation", "leaky_relu(0.2),tanh", "--epochs", "1")
    ok("train", table, "--target", "kind", "--output", tmp_path, *layers)
    network = Model.load(tmp_path / "model.safetensors").network
    assert network.widths == (2, 4, 5, 3)
    assert [str(act) for act in network.activations] == ["leaky_relu(0.2)", "tanh"]


def test_balanced_weights_are_inverse_to_the_number_of_rows(tmp_path, no_pictures):
    data = {"x": np.arange(40.0), "y": ["a"] * 30 + ["b"] * 10}
    table = write_table(tmp_path / "t.csv", data)
    whole = ("--test", "0", "--validation", "0", "--class-weight", "balanced")
    result = ok(
        "train", table, "--target", "y", "--json", "--output", tmp_path / "o", *whole, *QUICK
    )
    assert result.json["loss"]["class_weight"] == pytest.approx([40 / (2 * 30), 40 / (2 * 10)])


def test_options_reach_optimizer_and_schedule(table, tmp_path, no_pictures):
    options = ("--lr", "0", "--weight-decay", "0", "--optimizer", "adamw", "--warmup", "7")
    options += ("--optimizer-option", "beta2=0.9", "--schedule-option", "final=0.5")
    result = ok(
        "train", table, "--target", "kind", "--json", "--output", tmp_path, *QUICK, *options
    )
    optimizer, schedule = result.json["optimizer"], result.json["schedule"]
    assert (optimizer["lr"], optimizer["weight_decay"], optimizer["beta2"]) == (0.0, 0.0, 0.9)
    assert (schedule["warmup_steps"], schedule["final"]) == (7, 0.5)


def test_no_deterministic_reaches_the_trainer(table, tmp_path, no_pictures, monkeypatch):
    asked = []

    def noted(*args, **options):
        asked.append(options["deterministic"])
        return Trainer(*args, **options)

    monkeypatch.setattr("gpubackprop.cli.train.Trainer", noted)
    for more in ((), ("--no-deterministic",)):
        ok("train", table, "--target", "kind", "--output", tmp_path / str(len(more)), *QUICK, *more)
    assert asked == [True, False]


def test_patience_ends_training_and_is_named(table, tmp_path, no_pictures):
    still = ("--lr", "0", "--patience", "2", "--epochs", "50", "--hidden", "4")
    result = ok("train", table, "--target", "kind", "--output", tmp_path, *still)
    assert json.loads((tmp_path / "summary.json").read_text())["stopped"] == "patience"
    assert "3 epochs" in result.out  # the first is the best, then two without progress


@pytest.mark.parametrize(
    ("rows", "batch", "wanted"), [(1294, 32, 49), (10, 32, 200), (10**6, 128, 20)]
)
def test_epochs_by_default_make_two_thousand_steps_within_limits(rows, batch, wanted):
    class NotAsked:
        epochs = None

    assert epochs(NotAsked, rows, batch) == wanted


def test_few_validation_rows_choose_the_epoch_by_a_mean_of_epochs_and_say_so(
    table, tmp_path, no_pictures
):
    options = ("--hidden", "8", "--epochs", "40", "--device", "cpu", "--output", tmp_path)
    result = ok("train", table, "--target", "kind", *options)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["validation_window"] == 4
    losses = [float(v) for v in read_table((tmp_path / "history.csv").read_text())["val_loss"]]
    means = [np.mean(losses[max(0, epoch - 3) : epoch + 1]) for epoch in range(40)]
    best = int(np.argmin(means)) + 1
    assert summary["best_epoch"] == best
    said = f"kept epoch {best}, the best mean of 4 epochs on validation (7 rows are too few"
    assert said in result.out
    many = ok("train", table, "--target", "kind", "--validation", "0.8", "--overwrite", *options)
    assert "the best on validation" in many.out


def test_without_a_test_part_the_validation_score_is_shown(table, tmp_path, no_pictures):
    result = ok("train", table, "--target", "kind", "--output", tmp_path, "--test", "0", *QUICK)
    assert result.out.splitlines()[-1].startswith("validation accuracy: ")
    rest = ("--test", "0", "--validation", "0")
    result = ok("train", table, "--target", "kind", "--output", tmp_path, *rest, *QUICK)
    assert result.out.splitlines()[-1].startswith("train accuracy: ")


# -- files of arrays ------------------------------------------------------------------------------


def arrays(tmp_path, dtype=np.float64, rows=90):
    data = flowers(rows)
    x = np.stack([data["length"] * 5, data["width"] * 500], 1).astype(dtype)
    _, y = np.unique(data["kind"], return_inverse=True)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    np.savez(tmp_path / "both.npz", x=x, y=y)


def weights(folder):
    return Model.load(folder / "model.safetensors").network.parameters


def test_a_memory_mapped_file_gives_the_model_of_the_same_data_in_memory(tmp_path, no_pictures):
    arrays(tmp_path)
    ok("train", tmp_path / "both.npz", "--target", "y", "--output", tmp_path / "a", *QUICK)
    ok(
        "train",
        tmp_path / "x.npy",
        "--target",
        tmp_path / "y.npy",
        "--output",
        tmp_path / "b",
        *QUICK,
    )
    np.testing.assert_array_equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_a_memory_mapped_file_is_read_in_batches(tmp_path, no_pictures):
    x = np.random.default_rng(0).integers(0, 255, (20_000, 500), np.uint8)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", x[:, 0] > 100)
    del x
    out = ("--target", tmp_path / "y.npy", "--output", tmp_path / "o", "--hidden", "4")
    tracemalloc.start()
    try:
        ok("train", tmp_path / "x.npy", *out, "--epochs", "1")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30e6, peak  # all rows would be 40 MB in float32


def test_bytes_are_taken_for_pixels_which_share_one_scale(tmp_path, no_pictures):
    arrays(tmp_path, np.uint8)
    ok(
        "train",
        tmp_path / "x.npy",
        "--target",
        tmp_path / "y.npy",
        "--output",
        tmp_path / "o",
        *QUICK,
    )
    scale = Model.load(tmp_path / "o/model.safetensors").standardizer.scale
    assert scale[0] == scale[1]


def test_a_nan_in_a_memory_mapped_file_is_found_with_and_without_standardising(tmp_path):
    arrays(tmp_path)
    x = np.load(tmp_path / "x.npy")
    x[6, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    for more in ((), ("--no-standardize",)):
        result = run_cli("train", tmp_path / "x.npy", "--target", tmp_path / "y.npy", *QUICK, *more)
        assert result.code == 1
        assert "row 7" in result.err
        assert "column 2" in result.err


def test_a_csv_file_without_header_and_with_the_target_by_number(tmp_path, no_pictures):
    lines = write_table(tmp_path / "t.csv", flowers()).read_text().splitlines()[1:]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    result = ok("train", tmp_path / "t.csv", "--no-header", "--target", "-1", "--json", "--output",
                tmp_path / "o", *QUICK)  # fmt: skip
    assert result.json["data"]["classes"] == ["iris", "lily", "rose"]
