"""gpubackprop train, predict and info on tables as people have them: text, gaps, dates, messy files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from gpubackprop import Model
from tests.cli_runs import QUICK, ok, read_table, run_cli, write_table

pa = pytest.importorskip("pyarrow")
TABLES = Path(__file__).parent / "tables"


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def trained(path, target, output, *options):
    """The summary of a training of hundredths of a second."""
    return ok(
        "train", path, "--target", target, "--output", output, "--json", *QUICK, *options
    ).json


def people(rows=60, seed=0):
    """A table of all that people put in tables."""
    rng = np.random.default_rng(seed)
    age = rng.integers(18, 80, rows).astype(object)
    age[rng.random(rows) < 0.1] = ""
    days = np.datetime64("2023-01-01") + rng.integers(0, 600, rows)
    return {
        "name": [f"person {i}" for i in range(rows)],
        "age": age,
        "town": rng.choice(["Oslo", "Rome", "Lima", ""], rows),
        "member": rng.choice(["true", "false"], rows),
        "since": [str(day) for day in days],
        "score": rng.normal(size=rows).round(3),
        "kind": rng.choice(["gold", "silver"], rows),
    }


# -- real tables ----------------------------------------------------------------------------------

REAL = {
    "survey": ("Sex", "classification", {"Fold": "3 categories", "unnamed": "identifier"}),
    "chile": (
        "vote",
        "classification",
        {"region": "5 categories", "income": "missing ones become"},
    ),
    "seattle_weather": ("weather", "classification", {"date": "date and its place in the year"}),
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_table_trains_with_one_call_and_says_what_was_done_to_each_column(name, tmp_path):
    target, task, done = REAL[name]
    summary = trained(TABLES / f"{name}.csv", target, tmp_path)
    assert summary["task"] == task
    for column, what in done.items():
        assert what in summary["columns"][column]
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    shown = ok("info", tmp_path)
    for column, what in summary["columns"].items():
        assert f"column        {column}: {what}\n" in shown.out
    assert ok("info", tmp_path, "--json").json["columns"] == summary["columns"]


@pytest.mark.parametrize("name", REAL)
def test_the_training_file_is_predicted_from_in_any_order_of_its_columns(name, tmp_path):
    target, *_ = REAL[name]
    source = TABLES / f"{name}.csv"
    trained(source, target, tmp_path)
    wanted = ok("predict", tmp_path, source, "--probabilities").out
    header, *rows = csv.reader(io.StringIO(source.read_text()))
    with open(tmp_path / "turned.csv", "w", newline="") as file:
        csv.writer(file).writerows([[*row[::-1], "x"] for row in [header, *rows]])
    result = ok("predict", tmp_path, tmp_path / "turned.csv", "--probabilities")
    assert result.out == wanted
    assert "columns that the model does not use: 'x'\n" in result.err
    assert len(rows) == len(wanted.splitlines()) - 1


def test_the_accuracy_on_a_real_table_beats_the_baseline(tmp_path):
    options = (
        "--hidden",
        "32",
        "--epochs",
        "40",
        "--device",
        "cpu",
        "--output",
        tmp_path,
        "--json",
    )
    summary = ok("train", TABLES / "seattle_weather.csv", "--target", "weather", *options).json
    assert summary["test_accuracy"] > summary["baseline"]["accuracy"] + 0.15


# -- columns --------------------------------------------------------------------------------------


def test_what_is_left_out_is_named_with_the_flag_that_keeps_it(tmp_path):
    table = write_table(tmp_path / "t.csv", people())
    result = ok("train", table, "--target", "kind", "--output", tmp_path / "o", *QUICK)
    assert (
        "name: left out: looks like an identifier: every value is another text (--include"
        in result.out
    )
    kept = trained(table, "kind", tmp_path / "p", "--include", "name", "--drop", "town,age")
    assert "categories" in kept["columns"]["name"] or kept["columns"]["name"]
    assert kept["columns"]["town"] == kept["columns"]["age"] == "left out: dropped"
    only = trained(
        table, "kind", tmp_path / "q", "--columns", "score,town", "--max-categories", "2"
    )
    assert list(only["columns"]) == ["score", "town"]
    assert only["columns"]["town"] == "2 categories, the rest together, missing ones apart"


def test_numbers_that_are_codes_can_be_categories(tmp_path):
    rng = np.random.default_rng(0)
    code = rng.integers(0, 4, 200)
    table = write_table(
        tmp_path / "t.csv", {"code": code, "x": rng.random(200), "y": np.isin(code, (0, 2))}
    )
    summary = trained(table, "y", tmp_path / "o", "--categorical", "code")
    assert summary["columns"]["code"] == "4 categories"
    assert (
        Model.load(tmp_path / "o/model.safetensors").preprocessor.columns[0].categories[0] in "0123"
    )
    floats = write_table(tmp_path / "f.csv", {"code": code.astype(float), "x": rng.random(200)})
    assert "categories" not in ok("predict", tmp_path / "o", floats).err


def test_prediction_goes_through_unseen_categories_and_gaps_and_counts_them(tmp_path):
    trained(write_table(tmp_path / "t.csv", people()), "kind", tmp_path / "o")
    later = people(8, 1) | {"town": ["Oslo", "Bern", "Kyiv", "", *["Rome"] * 4]}
    later |= {"score": ["", *range(7)], "member": ["", *["true"] * 7]}
    path = write_table(tmp_path / "later.csv", later)
    result = ok("predict", tmp_path / "o", path)
    line = next(line for line in result.err.splitlines() if "training had" in line)
    assert "2 missing values ('member' 1, 'score' 1), where training had none" in line
    assert "2 values ('town' 2) of categories that training had not" in line
    assert len(result.out.splitlines()) == 9
    assert ok("predict", tmp_path / "o", path, "--quiet").err == ""
    assert len(ok("predict", tmp_path / "o", path, "--json").json["notes"]) == 1


def test_a_missing_column_is_an_error_that_names_it(tmp_path):
    trained(write_table(tmp_path / "t.csv", people()), "kind", tmp_path / "o")
    some = {name: values for name, values in people().items() if name != "town"}
    result = run_cli("predict", tmp_path / "o", write_table(tmp_path / "some.csv", some))
    assert result.code == 1
    assert "feature column 'town' not in the file" in result.err


def test_a_word_in_a_column_of_numbers_is_an_error_with_row_and_line(tmp_path):
    trained(write_table(tmp_path / "t.csv", people()), "kind", tmp_path / "o")
    path = write_table(tmp_path / "w.csv", people(4) | {"age": ["30", "?", "old", ""]})
    result = run_cli("predict", tmp_path / "o", path)
    assert result.code == 1
    assert "row 3 (line 4), column 'age' holds the text 'old'" in result.err


def test_columns_named_by_keep_go_to_the_output_as_they_are_written(tmp_path):
    trained(write_table(tmp_path / "t.csv", people()), "kind", tmp_path / "o")
    data = people(3, 2) | {"id": ["007", "7", "1.0"]}
    path = write_table(tmp_path / "new.csv", data)
    options = ("--keep", "id,name", "--keep", "town", "--output", tmp_path / "out.csv")
    for _ in range(2):  # the second call replaces the predictions of the first
        ok("predict", tmp_path / "o", path, *options)
    found = read_table((tmp_path / "out.csv").read_text())
    assert list(found) == ["id", "name", "town", "prediction"]
    assert (found["id"], found["town"]) == (["007", "7", "1.0"], list(data["town"]))
    result = run_cli("predict", tmp_path / "o", path, "--keep", "idd")
    assert "did you mean 'id'?" in result.err


@pytest.mark.parametrize("categorical", [(), ("--categorical", "code")])
def test_categories_that_look_like_numbers_in_a_later_file_are_what_they_were(
    categorical, tmp_path
):
    code = ["1.0", "2.0", "3.50"] * 20
    code = code if categorical else [*code[:-1], "x"]
    y = np.where(np.array(code) == "1.0", "one", "other")
    path = write_table(tmp_path / "t.csv", {"code": code, "z": [i % 7 for i in range(60)], "y": y})
    options = ("--hidden", "8", "--epochs", "60", "--lr", "0.02", "--device", "cpu", *categorical)
    ok("train", path, "--target", "y", "--output", tmp_path / "o", *options)
    for text in ("1.0", "1"):
        few = write_table(tmp_path / "few.csv", {"code": [text, "2.0"], "z": [1, 2]})
        result = ok("predict", tmp_path / "o", few)
        assert "training had not" not in result.err
        assert result.out.split() == ["prediction", "one", "other"]


def test_dates_with_slashes_are_read_as_in_training(tmp_path):
    days = [f"{1 + i % 28}/{1 + i % 12}/2024" for i in range(60)]
    table = {"day": days, "z": [i % 7 for i in range(60)], "y": [i % 2 for i in range(60)]}
    trained(write_table(tmp_path / "t.csv", table), "y", tmp_path / "o")
    assert Model.load(tmp_path / "o/model.safetensors").preprocessor.columns[0].form == "dmy"
    whole = ok("predict", tmp_path / "o", tmp_path / "t.csv", "--probabilities").out.splitlines()
    few = write_table(tmp_path / "few.csv", {name: values[2:5] for name, values in table.items()})
    assert ok("predict", tmp_path / "o", few, "--probabilities").out.splitlines()[1:] == whole[3:6]


# -- labels ---------------------------------------------------------------------------------------

LABELS = {
    "times": ["12:30", "13:30"],
    "booleans": ["true", "False"],
    "zeros": ["007", "7"],
    "floats": ["1.0", "2.0"],
    "dates": ["2024-1-5", "2024-01-06"],
    "words": ["yes ", "no"],
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_come_back_as_they_were_written(kind, tmp_path):
    rng = np.random.default_rng(0)
    side = rng.integers(0, 2, 80)
    table = {"x": side + rng.normal(size=80) / 9, "y": np.array(LABELS[kind])[side]}
    path = write_table(tmp_path / "t.csv", table)
    options = ("--hidden", "4", "--epochs", "60", "--lr", "0.02", "--device", "cpu")
    ok(
        "train",
        path,
        "--target",
        "y",
        "--output",
        tmp_path / "o",
        *options,
        "--task",
        "classification",
    )
    found = read_table(ok("predict", tmp_path / "o", path).out)["prediction"]
    assert set(found) == set(LABELS[kind])
    assert np.mean(np.array(found) == table["y"]) == 1
    few = write_table(tmp_path / "few.csv", {name: values[:1] for name, values in table.items()})
    assert "accuracy: 1.0000" in ok("predict", tmp_path / "o", few, "--score").err


def test_whole_numbers_are_labels_of_numbers_and_found_however_they_are_spelled(tmp_path):
    rng = np.random.default_rng(0)
    table = {"x": rng.random(80), "y": rng.integers(0, 3, 80)}
    trained(write_table(tmp_path / "t.csv", table), "y", tmp_path / "o")
    assert Model.load(tmp_path / "o/model.safetensors").classes.tolist() == [0, 1, 2]
    spelled = write_table(tmp_path / "f.csv", table | {"y": table["y"].astype(float)})
    want = ok("predict", tmp_path / "o", tmp_path / "t.csv", "--score", "--json").json
    got = ok("predict", tmp_path / "o", spelled, "--score", "--json").json
    assert got["accuracy"] == want["accuracy"]


# -- the task -------------------------------------------------------------------------------------


def test_the_inferred_task_is_said_with_the_reason_and_the_flag(tmp_path):
    rng = np.random.default_rng(0)
    table = {
        "x": rng.random(200),
        "income": rng.integers(20, 80, 200),
        "few": rng.integers(0, 3, 200),
    }
    path = write_table(tmp_path / "t.csv", table)
    result = ok("train", path, "--target", "income", "--output", tmp_path / "a", *QUICK)
    distinct = len(set(table["income"].tolist()))
    assert (
        f"because income has {distinct} distinct numbers in 200 rows (--task classification"
        in result.out
    )
    result = ok("train", path, "--target", "few", "--output", tmp_path / "b", *QUICK)
    assert "because few has only 3 distinct whole numbers (--task regression" in result.out


def test_columns_of_zeros_and_ones_are_several_labels_or_one_hot(tmp_path):
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, 90)
    x = kind + rng.normal(size=90) / 9
    table = (
        {"x": x} | {f"is_{k}": (kind == k) * 1 for k in range(3)} | {"odd": rng.integers(0, 2, 90)}
    )
    path = write_table(tmp_path / "t.csv", table)
    options = ("--output", tmp_path / "a", "--hidden", "16", "--epochs", "60", "--lr", "0.02")
    summary = ok(
        "train", path, "--target", "is_0,is_1,is_2", "--drop", "odd", "--json", *options
    ).json
    assert summary["task"] == "classification"
    assert summary["data"]["classes"] == ["is_0", "is_1", "is_2"]
    assert "single 1 in every row" in summary["task_why"]
    assert float(ok("predict", tmp_path / "a", path, "--score", "--json").json["accuracy"]) > 0.95
    summary = ok("train", path, "--target", "is_0", "--target", "odd", "--json", "--output",
                 tmp_path / "b", *QUICK).json  # fmt: skip
    assert summary["task"] == "multilabel"
    assert summary["data"]["target_names"] == ["is_0", "odd"]


def test_rows_without_a_target_are_left_out_and_counted(tmp_path):
    table = people()
    table["kind"][[3, 7]] = ""
    path = write_table(tmp_path / "t.csv", table)
    summary = trained(path, "kind", tmp_path / "o")
    assert summary["data"]["rows"] == 58
    assert "2 rows have no target 'kind' (row 4 (line 5) first): left out" in summary["notes"]
    result = ok("predict", tmp_path / "o", path, "--score")
    assert "2 rows have no target and are not scored" in result.err
    assert len(result.out.splitlines()) == 61


def test_doubtful_classes_are_warned_of(tmp_path):
    rng = np.random.default_rng(0)
    y = np.array(["a", "b"] * 30 + ["c"])
    summary = trained(
        write_table(tmp_path / "t.csv", {"x": rng.random(61), "y": y}), "y", tmp_path / "o"
    )
    assert "1 of 3 classes have one row only ('c')" in summary["notes"][0]
    y = np.array([f"c{i // 3}" for i in range(60)])
    summary = trained(
        write_table(tmp_path / "u.csv", {"x": rng.random(60), "y": y}), "y", tmp_path / "p"
    )
    assert "20 classes in 60 rows are many" in summary["notes"][0]


# -- figures --------------------------------------------------------------------------------------


def test_the_figures_of_a_summary_are_those_of_scikit_learn(tmp_path):
    metrics = pytest.importorskip("sklearn.metrics")
    path = write_table(tmp_path / "t.csv", people(90))
    summary = trained(path, "kind", tmp_path / "o", "--test", str(path))
    found = read_table(ok("predict", tmp_path / "o", path, "--probabilities").out)
    true, said = people(90)["kind"], np.array(found["prediction"])
    p = np.array([float(value) for value in found["probability_silver"]])
    assert summary["test_accuracy"] == pytest.approx(np.mean(true == said))
    assert summary["test_balanced_accuracy"] == pytest.approx(
        metrics.balanced_accuracy_score(true, said)
    )
    assert summary["test_f1"] == pytest.approx(metrics.f1_score(true, said, average="macro"))
    assert summary["test_auc"] == pytest.approx(metrics.roc_auc_score(true == "silver", p))
    assert summary["test_log_loss"] == pytest.approx(
        metrics.log_loss(true == "silver", p), rel=1e-5
    )
    assert summary["test_log_loss"] != summary["test_loss"]  # which is smoothed
    scored = ok("predict", tmp_path / "o", path, "--score", "--json").json
    for name in ("accuracy", "balanced_accuracy", "f1", "auc", "log_loss"):
        assert scored[name] == pytest.approx(summary[f"test_{name}"], rel=1e-5)


def test_numbers_are_judged_in_the_units_of_each_target_and_beside_their_mean(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.random(100)
    table = {"x": x, "small": x + 1, "large": 1000 * x}
    path = write_table(tmp_path / "t.csv", table)
    result = ok(
        "train", path, "--target", "small,large", "--test", path, "--output", tmp_path, *QUICK
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    yhat = read_table(ok("predict", tmp_path, path).out)
    for name in ("small", "large"):
        rmse = np.sqrt(np.mean((np.array(yhat[name], float) - table[name]) ** 2))
        assert summary["test_rmse_by_target"][name] == pytest.approx(rmse, rel=1e-4)
        assert f"rmse of {name}: {rmse:.3g}"[:-1] in result.out
    assert summary["baseline"]["rmse"] == pytest.approx(np.std(x) * 1000 / np.sqrt(2), rel=0.05)
    assert "R² " in result.out
    assert "baseline    always" in result.out


def test_the_baseline_says_the_most_frequent_class(tmp_path):
    rng = np.random.default_rng(0)
    table = {"x": rng.random(100), "y": np.array(["often"] * 70 + ["seldom"] * 30)}
    result = ok(
        "train",
        write_table(tmp_path / "t.csv", table),
        "--target",
        "y",
        "--output",
        tmp_path / "o",
        *QUICK,
    )
    assert "baseline    always often: accuracy 0.7000" in result.out


# -- weights, groups, time, a test file -----------------------------------------------------------


def test_rows_of_weight_zero_teach_nothing(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    lies = np.arange(200) % 2
    y = np.where((x > 0) ^ (lies == 1), "up", "down")
    path = write_table(tmp_path / "t.csv", {"x": x, "y": y, "w": 1 - lies})
    options = (
        "--hidden",
        "8",
        "--epochs",
        "60",
        "--lr",
        "0.02",
        "--validation",
        "0",
        "--device",
        "cpu",
    )
    ok("train", path, "--target", "y", "--weights", "w", "--output", tmp_path / "o", *options)
    said = np.array(read_table(ok("predict", tmp_path / "o", path).out)["prediction"])
    assert np.mean(said == np.where(x > 0, "up", "down")) > 0.95
    assert Model.load(tmp_path / "o/model.safetensors").feature_names == ["x"]
    bad = write_table(tmp_path / "bad.csv", {"x": x, "y": y, "w": -np.ones(200)})
    result = run_cli("train", bad, "--target", "y", "--weights", "w", "--output", tmp_path / "p")
    assert "'w' of --weights must hold numbers of at least 0" in result.err


def test_rows_of_a_group_are_held_out_together(tmp_path, monkeypatch):
    from gpubackprop.cli import train_found

    seen = {}
    split = train_found.split
    monkeypatch.setattr(
        train_found, "split", lambda *a, **o: seen.setdefault("parts", split(*a, **o))
    )
    data = people(90) | {"house": [f"h{i % 11}" for i in range(90)]}
    path = write_table(tmp_path / "t.csv", data)
    summary = trained(path, "kind", tmp_path / "o", "--group", "house", "--validation", "0.2")
    houses = [set(np.array(data["house"])[rows]) for rows in seen["parts"]]
    assert all(houses)
    assert not houses[0] & houses[1]
    assert not houses[0] & houses[2]
    assert not houses[1] & houses[2]
    assert "house" not in summary["columns"]


def test_a_split_by_time_takes_the_last_rows(tmp_path, monkeypatch):
    from gpubackprop.cli import train_found

    seen = {}
    split = train_found.split
    monkeypatch.setattr(
        train_found, "split", lambda *a, **o: seen.setdefault("parts", split(*a, **o))
    )
    path = write_table(tmp_path / "t.csv", people(100))
    trained(path, "kind", tmp_path / "o", "--validation-last", "0.25")
    train, validation, test = (rows.tolist() for rows in seen["parts"])
    assert (train, validation, test) == (list(range(60)), list(range(60, 80)), list(range(80, 100)))


def test_a_test_file_is_what_the_result_is_measured_on(tmp_path):
    path = write_table(tmp_path / "t.csv", people(80))
    other = write_table(tmp_path / "other.csv", people(30, 5))
    summary = trained(path, "kind", tmp_path / "o", "--test", other)
    assert summary["data"]["test_rows"] == 30
    assert summary["data"]["train_rows"] + summary["data"]["validation_rows"] == 80
    scored = ok("predict", tmp_path / "o", other, "--score", "--json").json
    assert scored["accuracy"] == pytest.approx(summary["test_accuracy"])
    unknown = write_table(tmp_path / "u.csv", people(30, 5) | {"kind": ["tin"] * 30})
    result = run_cli(
        "train", path, "--target", "kind", "--test", unknown, "--output", tmp_path / "p"
    )
    assert "'tin', which is not among the 2 classes" in result.err
    assert not (tmp_path / "p").exists()
    counts = write_table(tmp_path / "c.csv", {"x": range(50), "n": range(50)})
    less = write_table(tmp_path / "d.csv", {"x": [1, 2], "n": [1, -2]})
    options = ("--task", "poisson", "--target", "n", "--test", less, "--output", tmp_path / "p")
    result = run_cli("train", counts, *options)
    assert f"{less}, target n" in result.err
    assert "targets[1, 0] is -2.0" in result.err


# -- messy files ----------------------------------------------------------------------------------


def plain(rows=40):
    data = people(rows)
    return data | {"score": [f"{v:.3f}" for v in data["score"]]}


def text_of(data, separator=",", newline="\n", comma=False):
    rows = [list(data), *map(list, zip(*data.values(), strict=True))]
    out = io.StringIO()
    csv.writer(out, delimiter=separator, lineterminator=newline).writerows(rows)
    if comma:
        return out.getvalue().replace(".", ",")
    return out.getvalue()


MESSY = {
    "a byte order mark": ("t.csv", lambda d: b"\xef\xbb\xbf" + text_of(d).encode(), ()),
    "CRLF": ("t.csv", lambda d: text_of(d, newline="\r\n").encode(), ()),
    "semicolons and decimal commas": ("t.csv", lambda d: text_of(d, ";", comma=True).encode(), ()),
    "both, named": (
        "t.csv", lambda d: text_of(d, ";", comma=True).encode(), ("--separator", ";", "--decimal", ","),
    ),
    "tabs": ("t.tsv", lambda d: text_of(d, "\t").encode(), ()),
    "tabs in a .csv": ("t.csv", lambda d: text_of(d, "\t").encode(), ()),
    "tabs, zipped": ("t.tsv.gz", lambda d: gzip.compress(text_of(d, "\t").encode()), ()),
    "bars": ("t.csv", lambda d: text_of(d, "|").encode(), ("--separator", "|")),
    "empty lines before": ("t.csv", lambda d: b"\n\n" + text_of(d).encode(), ()),
    "an empty column at the end": ("t.csv", lambda d: text_of(d | {"": [""] * len(d["kind"])}).encode(), ()),
}  # fmt: skip


@pytest.mark.parametrize("kind", MESSY)
def test_a_messy_file_gives_the_model_of_the_tidy_one(kind, tmp_path):
    name, write, options = MESSY[kind]
    data = plain()
    (tmp_path / "tidy.csv").write_text(text_of(data))
    wanted = trained(tmp_path / "tidy.csv", "kind", tmp_path / "a")
    (tmp_path / name).write_bytes(write(data))
    found = trained(tmp_path / name, "kind", tmp_path / "b", *options)
    assert found["columns"] == wanted["columns"]
    models = [(tmp_path / part / "model.safetensors").read_bytes() for part in "ab"]
    assert models[0] == models[1]
    outputs = [ok("predict", tmp_path / "a", tmp_path / "tidy.csv").out,
               ok("predict", tmp_path / "a", tmp_path / name, *options).out]  # fmt: skip
    assert outputs[0] == outputs[1]


def test_headers_that_are_empty_or_there_twice_get_names(tmp_path):
    rows = "".join(f"{i * 7 % 11},{i % 5},{i % 3},{i % 2}\n" for i in range(40))
    (tmp_path / "t.csv").write_text("a,,a,y\n" + rows)
    summary = trained(tmp_path / "t.csv", "y", tmp_path / "o")
    assert list(summary["columns"]) == ["a", "unnamed", "a (2)"]
    assert "column names that are there twice were numbered: 'a'" in summary["notes"]


def test_line_breaks_within_quotes_are_part_of_a_category(tmp_path):
    rows = "".join(f'"two\nlines",{i % 7},{i % 2}\none,{i % 5},1\n' for i in range(30))
    (tmp_path / "t.csv").write_text("c,x,y\n" + rows)
    trained(tmp_path / "t.csv", "y", tmp_path / "o")
    plan = Model.load(tmp_path / "o/model.safetensors").preprocessor.columns[0]
    assert set(plan.categories) == {"two\nlines", "one"}


def test_parquet_of_every_type_trains_and_predicts(tmp_path):
    import datetime
    import decimal

    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    rows = 60
    day = [
        datetime.date(2024, 1, 1) + datetime.timedelta(days=int(d))
        for d in rng.integers(0, 500, rows)
    ]
    table = pa.table({
        "nullable": pa.array([None if i % 9 == 0 else i % 7 for i in range(rows)], pa.int32()),
        "dictionary": pa.array(rng.choice(["a", "b"], rows).tolist()).dictionary_encode(),
        "string": pa.array(["p", "q", None] * 20, pa.large_string()),
        "view": pa.array(["p", "q", "r"] * 20, pa.string_view()),
        "decimal": pa.array([decimal.Decimal(int(v)) / 4 for v in rng.integers(0, 99, rows)]),
        "date": pa.array(day),
        "stamp": pa.array(day).cast(pa.timestamp("ms")),
        "clock": pa.array([datetime.time(int(h), 30) for h in rng.integers(0, 24, rows)]),
        "flag": pa.array(rng.random(rows) > 0.5),
        "half": pa.array(rng.random(rows).astype(np.float16)),
        "list": pa.array([[1]] * rows),
        "y": pa.array(rng.choice(["u", "v"], rows).tolist()),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "t.parquet")
    columns = trained(tmp_path / "t.parquet", "y", tmp_path / "o")["columns"]
    assert columns["nullable"].startswith("number, missing ones become")
    assert columns["dictionary"] == "2 categories"
    assert columns["string"] == "2 categories, missing ones apart"
    assert columns["clock"] == "time of day and its place in the day"
    assert columns["date"].startswith("date and its place in the year")
    assert "left out" in columns["list"]
    result = ok("predict", tmp_path / "o", tmp_path / "t.parquet", "--score", "--keep", "date")
    assert "accuracy: " in result.err
    import pyarrow.csv

    pyarrow.csv.write_csv(
        table.drop_columns(["list", "view"]).append_column("view", table["view"].cast("string")),
        tmp_path / "t.csv",
    )
    again = ok("predict", tmp_path / "o", tmp_path / "t.csv", "--keep", "date")
    assert again.out.splitlines() == result.out.splitlines()


def test_options_of_tables_are_wrong_usage_for_arrays(tmp_path):
    np.savez(tmp_path / "t.npz", x=np.eye(20), y=np.arange(20) % 2)
    for option in (("--drop", "a"), ("--weights", "w"), ("--separator", ";"), ("--test", "f.csv")):
        result = run_cli("train", tmp_path / "t.npz", "--target", "y", *option)
        assert (result.code, option[0] in result.err) == (2, True)
    result = run_cli("train", TABLES / "chile.csv", "--target", "vote", "--separator", "ab")
    assert result.code == 2
    both = ("--group", "region", "--validation-last", "0.2")
    result = run_cli("train", TABLES / "chile.csv", "--target", "vote", *both)
    assert (result.code, "choose one" in result.err) == (2, True)


def test_a_large_file_is_read_under_a_bar(tmp_path, monkeypatch):
    from gpubackprop.cli import train_table

    moved = []

    class Bar:
        def __init__(self, **options):
            moved.append(options["total"])

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def update(self, size):
            moved.append(size)

    monkeypatch.setattr(train_table, "LARGE_FILE", 100)
    monkeypatch.setattr(train_table, "tqdm", Bar)
    path = write_table(tmp_path / "t.csv", people())
    trained(path, "kind", tmp_path / "o")
    assert sum(moved[1:]) == moved[0] == path.stat().st_size


# -- tables that do not fit memory ----------------------------------------------------------------


def small_blocks(monkeypatch):
    monkeypatch.setattr("gpubackprop.data.tables._BLOCK", 1000)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_read_in_batches_gives_the_model_of_the_one_read_whole(kind, tmp_path, monkeypatch):
    import pyarrow.csv
    import pyarrow.parquet as pq

    data = people(300)
    data["kind"][5::30] = ""
    path = write_table(tmp_path / "t.csv", data)
    test = write_table(tmp_path / "u.csv", people(40, 3))
    if kind == "parquet":
        pq.write_table(pyarrow.csv.read_csv(path), tmp_path / "t.parquet", row_group_size=64)
        path = tmp_path / "t.parquet"
    whole = trained(path, "kind", tmp_path / "a", "--test", test, "--drop", "name")
    small_blocks(monkeypatch)
    batches = trained(
        path, "kind", tmp_path / "b", "--test", test, "--drop", "name", "--low-memory"
    )
    assert "learnt from 261 of 261 training rows" in batches["notes"][-1]
    assert batches["columns"] == whole["columns"]
    models = [(tmp_path / part / "model.safetensors").read_bytes() for part in "ab"]
    assert models[0] == models[1]
    assert batches["test_accuracy"] == whole["test_accuracy"]


def test_a_table_beyond_half_of_the_free_memory_is_read_in_batches_and_learnt_from_a_sample(
    tmp_path, monkeypatch
):
    from gpubackprop.cli import train_batches

    path = write_table(tmp_path / "t.csv", people(3000))
    small_blocks(monkeypatch)
    monkeypatch.setattr(train_batches, "free_memory", lambda: 11.9 * path.stat().st_size)
    monkeypatch.setattr(train_batches, "SAMPLE_CELLS", 1000)
    summary = trained(path, "kind", tmp_path / "o", "--epochs", "1")
    assert "learnt from 1,000 of 2,160 training rows" in summary["notes"][-1]
    monkeypatch.setattr(train_batches, "free_memory", lambda: 12.1 * path.stat().st_size)
    assert not trained(path, "kind", tmp_path / "p", "--epochs", "1")["notes"]
    assert train_batches.exceeds_memory(str(path)) is False
    assert 0 < train_batches.free_memory() < float("inf")


def test_a_large_table_is_predicted_in_batches_with_the_same_rows_and_scores(tmp_path, monkeypatch):
    path = write_table(tmp_path / "t.csv", people(300))
    trained(path, "kind", tmp_path / "o")
    command = ("predict", tmp_path / "o", path, "--score", "--probabilities", "--keep", "name")
    whole = ok(*command)
    small_blocks(monkeypatch)
    monkeypatch.setattr("gpubackprop.cli.predict_table.LARGE_FILE", 100)
    batches = ok(*command)
    assert batches.err == whole.err
    found, wanted = read_table(batches.out), read_table(whole.out)
    assert (found["name"], found["prediction"]) == (wanted["name"], wanted["prediction"])
    p = [np.array(part["probability_gold"], float) for part in (found, wanted)]
    np.testing.assert_allclose(*p, atol=1e-6)  # BLAS sums a batch of another size otherwise
    lines = path.read_text().splitlines()
    lines[290] = lines[290].replace("gold", "tin").replace("silver", "tin")
    path.write_text("\n".join(lines) + "\n")
    result = run_cli(*command)
    assert "row 290 (line 291) has the label 'tin', which is not among the 2 classes" in result.err
