"""gpubackprop predict: what is written, from which columns."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from gpubackprop import MLP, Model
from gpubackprop.cli import predict
from gpubackprop.data import Standardizer
from tests.cli_runs import flowers, ok, read_table, run_cli, write_table

NAMES = ["length", "width"]


def random_model(output="softmax", units=3, **names):
    """A model of flowers that nobody trained."""
    data = flowers()
    standardizer = Standardizer.fit(np.stack([data["length"], data["width"]], 1))
    network = MLP([2, 6, units], "tanh", output=output, seed=5)
    if output == "softmax":
        names["classes"] = np.array(["iris", "lily", "rose"][:units])
    return Model(network, standardizer, **({"feature_names": NAMES} | names))


@pytest.fixture
def folder(tmp_path):
    random_model(target_names=["kind"]).save(tmp_path / "model.safetensors")
    write_table(tmp_path / "flowers.csv", flowers())
    return tmp_path


def wanted(model, data=None):
    data = data or flowers()
    return model.predict(np.stack([data["length"], data["width"]], 1))


def test_predictions_are_those_of_the_model_one_a_row(folder):
    result = ok("predict", folder / "model.safetensors", folder / "flowers.csv")
    table = read_table(result.out)
    labels = random_model().classes[wanted(random_model()).argmax(1)]
    assert table == {"prediction": labels.tolist()}
    assert len(set(table["prediction"])) > 1


def test_columns_in_another_order_and_others_beside_them_change_nothing(folder):
    data = flowers()
    mixed = {
        "note": ["x"] * 90,
        "width": data["width"],
        "id": np.arange(90),
        "length": data["length"],
    }
    write_table(folder / "mixed.csv", mixed)
    first, second = (
        ok("predict", folder / "model.safetensors", folder / name, "--probabilities").out
        for name in ("flowers.csv", "mixed.csv")
    )
    assert first == second


def test_probabilities_have_a_column_for_each_class(folder):
    result = ok("predict", folder, folder / "flowers.csv", "--probabilities")
    table = read_table(result.out)
    names = ["probability_iris", "probability_lily", "probability_rose"]
    assert list(table) == ["prediction", *names]
    found = np.array([table[name] for name in names], np.float32).T
    np.testing.assert_array_equal(found, wanted(random_model()))  # written so that nothing is lost


def test_a_file_gets_what_stdout_would_get(folder):
    printed = ok("predict", folder, folder / "flowers.csv", "--probabilities").out
    result = ok(
        "predict", folder, folder / "flowers.csv", "--probabilities", "--output", folder / "o"
    )
    assert (folder / "o").read_text() == printed
    assert result.out == f"90 predictions written to {folder}/o\n"


def test_json_holds_the_predictions_or_names_their_file(folder):
    result = ok("predict", folder, folder / "flowers.csv", "--json", "--score")
    values = result.json
    assert (values["rows"], values["columns"]) == (90, ["prediction"])
    assert len(values["predictions"]) == 90
    assert set(map(tuple, values["predictions"])) <= {("iris",), ("lily",), ("rose",)}
    assert 0 <= values["accuracy"] <= 1
    result = ok("predict", folder, folder / "flowers.csv", "--json", "--output", folder / "o")
    assert "predictions" not in result.json
    assert result.json["output"] == str(folder / "o")


def test_the_score_is_the_share_of_labels_that_are_right(folder):
    kinds = read_table(ok("predict", folder, folder / "flowers.csv").out)["prediction"]
    wrong = [kinds[0], *(["rose" if k != "rose" else "iris" for k in kinds[1:]])]
    write_table(folder / "labelled.csv", flowers() | {"kind": wrong})
    result = ok("predict", folder, folder / "labelled.csv", "--score")
    assert result.err.splitlines()[0] == f"accuracy: {1 / 90:.4f}"
    write_table(folder / "renamed.csv", flowers() | {"kind": kinds, "truth": kinds})
    result = ok("predict", folder, folder / "renamed.csv", "--score", "--target", "truth")
    figures = ["accuracy", "log_loss", "balanced_accuracy", "f1", "auc"]
    assert [line.split(":")[0] for line in result.err.splitlines()] == figures
    assert result.err.startswith("accuracy: 1.0000\n")


def test_labels_of_one_class_only_can_be_scored(folder):
    write_table(folder / "one.csv", {name: values[:1] for name, values in flowers().items()})
    assert "accuracy: " in ok("predict", folder, folder / "one.csv", "--score").err


def test_numbers_are_written_in_one_column_or_one_for_each_target(tmp_path):
    table = write_table(tmp_path / "flowers.csv", flowers() | {"a": np.zeros(90)})
    model = random_model("linear", 1, target_names=["price"])
    model.save(tmp_path / "one.safetensors")
    found = read_table(ok("predict", tmp_path / "one.safetensors", table).out)
    np.testing.assert_array_equal(np.float32(found.pop("prediction")), wanted(model)[:, 0])
    assert not found
    random_model("linear", 2, target_names=["price", "tax"]).save(tmp_path / "two.safetensors")
    assert list(read_table(ok("predict", tmp_path / "two.safetensors", table).out)) == [
        "price",
        "tax",
    ]
    random_model("linear", 2).save(tmp_path / "no.safetensors")
    found = read_table(ok("predict", tmp_path / "no.safetensors", table).out)
    assert list(found) == ["prediction_0", "prediction_1"]


KINDS = {
    "two classes in one unit": ("logistic", 1, {"classes": np.array(["no", "yes"])}),
    "classes": ("softmax", 3, {}),
    "one label": ("logistic", 1, {"target_names": ["red"]}),
    "labels": ("logistic", 2, {"target_names": ["red", "blue"]}),
    "labels without names": ("logistic", 2, {}),
    "a number": ("linear", 1, {"target_names": ["price"]}),
    "numbers": ("linear", 2, {"target_names": ["price", "tax"]}),
    "counts": ("exp", 2, {}),
}


@pytest.mark.parametrize("more", [(), ("--probabilities",)], ids=["plain", "probabilities"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_row_has_a_cell_under_each_name_or_the_flag_is_wrong_usage(kind, more, tmp_path):
    output, units, names = KINDS[kind]
    random_model(output, units, **names).save(tmp_path / "model.safetensors")
    table = write_table(tmp_path / "flowers.csv", flowers())
    result = run_cli("predict", tmp_path, table, *more)
    if more and output in ("linear", "exp"):
        assert (result.code, result.out) == (2, "")
        assert "--probabilities" in result.err
        assert "predicts numbers (" in result.err
        assert "leave it out" in result.err
        return
    header, *rows = csv.reader(io.StringIO(result.out))
    assert {len(row) for row in rows} == {len(header)}
    wanted = len(names.get("classes", range(units))) if more else 0
    assert sum(name.startswith("probability_") for name in header) == wanted
    if "yes" in names.get("classes", ()) and more:
        assert {(row[0] == "yes", float(row[2]) > 0.5) for row in rows} <= {
            (True, True),
            (False, False),
        }
        assert all(float(row[1]) + float(row[2]) == pytest.approx(1) for row in rows)
    values = ok("predict", tmp_path, table, "--json", *more).json
    assert values["columns"] == header
    assert [[str(cell) for cell in row] for row in values["predictions"]] == rows


@pytest.mark.parametrize(
    ("task", "target", "score"),
    [
        ("classification", "kind", "accuracy"),
        ("multilabel", "long,wide", "accuracy"),
        ("regression", "sum,difference", "rmse"),
        ("poisson", "long,wide", "rmse"),
    ],
)
def test_the_score_of_predict_is_that_of_train_on_the_same_rows(task, target, score, tmp_path):
    data = flowers()
    long, wide = data["length"] > 20, data["width"] > 0.15
    sums = {"sum": data["length"] + data["width"], "difference": data["length"] - data["width"]}
    table = write_table(tmp_path / "t.csv", data | {"long": long * 1, "wide": wide * 1} | sums)
    out = ("--output", tmp_path / "o", "--features", "length,width", "--json")
    whole = ("--test", "0", "--validation", "0", "--epochs", "3", "--hidden", "4", *out)
    trained = ok("train", table, "--target", target, "--task", task, *whole).json
    scored = ok("predict", tmp_path / "o", table, "--score", "--json").json
    assert scored[score] == pytest.approx(trained[f"train_{score}"], rel=1e-5)


def test_rmse_of_numbers(tmp_path):
    model = random_model("linear", 1, target_names=["price"])
    model.save(tmp_path / "model.safetensors")
    table = write_table(tmp_path / "t.csv", flowers() | {"price": wanted(model)[:, 0] + 2.0})
    result = ok("predict", tmp_path, table, "--score", "--json")
    assert result.json["rmse"] == pytest.approx(2.0, rel=1e-6)


def test_labels_are_zeros_and_ones_and_all_of_a_row_must_be_right(tmp_path):
    model = random_model("logistic", 2, target_names=["red", "blue"])
    model.save(tmp_path / "model.safetensors")
    right = wanted(model) > 0.5
    red = right[:, 0].copy()
    red[:9] = ~red[:9]
    table = write_table(tmp_path / "t.csv", flowers() | {"red": red * 1, "blue": right[:, 1] * 1})
    found = read_table(ok("predict", tmp_path, table, "--probabilities").out)
    assert list(found) == ["red", "blue", "probability_red", "probability_blue"]
    assert found["blue"] == [str(int(v)) for v in right[:, 1]]
    assert ok("predict", tmp_path, table, "--score", "--json").json["accuracy"] == 0.9


def test_arrays_have_no_names_and_are_taken_as_they_come(folder):
    data = flowers()
    x = np.stack([data["length"], data["width"]], 1)
    np.save(folder / "x.npy", x)
    np.savez(folder / "x.npz", x=x, kind=data["kind"])
    printed = ok("predict", folder, folder / "flowers.csv").out
    assert ok("predict", folder, folder / "x.npy").out == printed
    scored = ok("predict", folder, folder / "x.npz", "--score", "--target", "kind")
    assert scored.out == printed
    assert scored.err == ok("predict", folder, folder / "flowers.csv", "--score").err


def test_a_table_without_header_is_taken_as_it_comes(folder):
    lines = (folder / "flowers.csv").read_text().splitlines()[1:]
    (folder / "bare.csv").write_text("\n".join(lines))
    result = ok("predict", folder, folder / "bare.csv", "--no-header", "--target", "-1")
    assert result.out == ok("predict", folder, folder / "flowers.csv").out


def test_a_wrong_number_of_columns_is_counted_in_the_error(folder):
    np.save(folder / "x.npy", np.zeros((4, 3)))
    result = run_cli("predict", folder, folder / "x.npy")
    assert result.code == 1
    assert "3 feature columns" in result.err
    assert "was trained on 2; if one of them is the target, name it with --target" in result.err


def test_a_score_without_known_targets_asks_for_them(folder):
    np.save(folder / "x.npy", np.zeros((4, 2)))
    for arguments in ((folder / "x.npy",), (folder / "nothing.csv", "--no-header")):
        result = run_cli("predict", folder, *arguments, "--score")
        assert result.code == 1
    assert "--target" in run_cli("predict", folder, folder / "x.npy", "--score").err


def test_a_memory_mapped_file_is_predicted_in_batches(folder, monkeypatch):
    x = np.stack([flowers()["length"], flowers()["width"]], 1)
    np.save(folder / "x.npy", x)
    whole = ok("predict", folder, folder / "x.npy", "--probabilities").out
    sizes, forward = [], MLP.predict
    monkeypatch.setattr(predict, "BATCH_ROWS", 40)
    monkeypatch.setattr(MLP, "predict", lambda self, x: (sizes.append(len(x)), forward(self, x))[1])
    assert ok("predict", folder, folder / "x.npy", "--probabilities").out == whole
    assert sizes == [40, 40, 10]


def test_a_nan_in_a_later_batch_names_its_row_and_writes_nothing(folder, monkeypatch):
    x = np.stack([flowers()["length"], flowers()["width"]], 1)
    x[70, 0] = np.nan
    np.save(folder / "x.npy", x)
    monkeypatch.setattr(predict, "BATCH_ROWS", 40)
    result = run_cli("predict", folder, folder / "x.npy", "--output", folder / "o.csv")
    assert result.code == 1
    assert "row 71" in result.err
    assert not (folder / "o.csv").exists()
    assert not list(folder.glob(".o*"))


def test_predictions_can_go_to_a_device_file(folder):
    ok("predict", folder, folder / "flowers.csv", "--output", "/dev/null")


def test_classes_that_are_numbers_stay_numbers_in_json(folder):
    model = random_model()
    model.classes = np.array([3, 5, 8])
    model.save(folder / "model.safetensors")
    result = ok("predict", folder, folder / "flowers.csv", "--json")
    assert {row[0] for row in json.loads(result.out)["predictions"]} <= {3, 5, 8}
