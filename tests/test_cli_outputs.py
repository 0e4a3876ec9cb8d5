"""What a command writes over: its own earlier results, and nothing else unasked."""

from __future__ import annotations

import json
import sys

import pytest

from gpubackprop.cli import bench
from tests.cli_runs import QUICK, flowers, houses, ok, run_cli, write_table


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture
def table(tmp_path):
    return write_table(tmp_path / "data.csv", flowers())


def train(table, *more, target="kind"):
    return run_cli("train", table, "--target", target, *QUICK, *more)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(result, folder, before):
    """Whether the command ended with 2 and one line, before it changed a file."""
    assert result.code == 2, result
    assert "Traceback" not in result.err
    assert "--overwrite" in result.err
    assert contents(folder) == before
    return result.err.splitlines()[-1]


def test_results_of_another_table_with_the_same_name_are_not_replaced(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train("data.csv").code == 0
    before = contents(tmp_path / "runs/data")
    other = tmp_path / "other"
    other.mkdir()
    write_table(other / "data.csv", houses())
    line = refused(train("other/data.csv", target="price"), tmp_path / "runs/data", before)
    assert f"DATA {table} there, {other / 'data.csv'} now" in line
    assert "--output" in line
    assert train("other/data.csv", "--overwrite", target="price").code == 0
    summary = json.loads((tmp_path / "runs/data/summary.json").read_text())
    assert summary["run"]["options"]["data"] == str(other / "data.csv")


@pytest.mark.parametrize("change", [{"target": "width"}, {"more": ("--features", "length")}])
def test_results_for_another_target_or_of_other_features_are_not_replaced(change, table, tmp_path):
    """`width` is learned from `length` alone, as `kind` is text."""
    out = ("--output", tmp_path / "o")
    assert train(table, *out).code == 0
    more = change.get("more", ("--features", "length"))
    result = train(table, *out, *more, target=change.get("target", "kind"))
    refused(result, tmp_path / "o", contents(tmp_path / "o"))


def test_the_same_command_again_replaces_its_results_without_a_word(table, tmp_path):
    first = ok("train", table, "--target", "kind", "--output", tmp_path / "o", *QUICK)
    again = ok("train", table, "--target", "kind", "--output", tmp_path / "o", *QUICK)
    assert "replaced" not in again.err
    assert first.err == again.err


def test_other_settings_or_rows_replace_the_results_and_a_note_says_so(table, tmp_path):
    assert train(table, "--output", tmp_path / "o").code == 0
    result = train(table, "--output", tmp_path / "o", "--seed", "3")
    assert (result.code, "--seed 0 there, 3 now" in result.err) == (0, True)
    write_table(table, flowers(seed=1))
    result = train(table, "--output", tmp_path / "o", "--seed", "3")
    assert (result.code, "the data have changed since" in result.err) == (0, True)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "history.csv", "summary.json", "checkpoint.json", "predictions.png"],
)
def test_a_folder_with_files_of_another_program_is_left_alone(name, table, tmp_path):
    out = tmp_path / "o"
    out.mkdir()
    (out / name).write_text('{"options": 3}')
    line = refused(train(table, "--output", out), out, {name: b'{"options": 3}'})
    assert name in line
    assert train(table, "--output", out, "--overwrite").code == 0


def test_other_files_in_the_folder_are_in_nobodys_way(table, tmp_path):
    out = tmp_path / "o"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert train(table, "--output", out).code == 0
    assert (out / "notes.txt").read_text() == "mine"


def test_overwrite_throws_the_checkpoint_of_another_run_away_and_goes_on_from_its_own(
    table, tmp_path, monkeypatch
):
    from tests.test_cli_resume import unfinished

    out = tmp_path / "o"
    for more, resumed in (((), True), (("--seed", "1"), False)):
        unfinished(table, out, monkeypatch)
        result = train(table, "--output", out, "--json", "--overwrite", *more)
        assert (result.code, result.json["resumed"]) == (0, resumed)
        for path in out.iterdir():
            path.unlink()


# -- predictions ----------------------------------------------------------------------------------


@pytest.fixture
def model(table, tmp_path):
    assert train(table, "--output", tmp_path / "m").code == 0
    return tmp_path / "m/model.safetensors"


def test_predictions_replace_earlier_ones_with_and_without_probabilities(model, table, tmp_path):
    for more in ((), ("--probabilities",), ()):
        ok("predict", model, table, "--output", tmp_path / "out.csv", *more)


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"\xff\xfe\x00"])
def test_predictions_are_not_written_over_another_file(content, model, table, tmp_path):
    output = tmp_path / "out.csv"
    output.write_bytes(content)
    result = run_cli("predict", model, table, "--output", output)
    assert (result.code, output.read_bytes()) == (2, content)
    assert "--overwrite" in result.err
    ok("predict", model, table, "--output", output, "--overwrite")


@pytest.mark.parametrize("link", [False, True])
def test_predictions_never_destroy_what_they_are_made_from(link, model, table, tmp_path):
    for file, name in ((model, "MODEL"), (table, "DATA")):
        before, output = file.read_bytes(), file
        if link:
            output = tmp_path / name
            output.symlink_to(file)
        for more in ((), ("--overwrite",)):
            result = run_cli("predict", model, table, "--output", output, *more)
            assert (result.code, file.read_bytes()) == (2, before)
            assert name in result.err


# -- bench ----------------------------------------------------------------------------------------


def test_bench_finds_another_file_in_its_place_before_it_measures(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "measure", lambda *a, **o: pytest.fail("measured"))
    other = tmp_path / "package.json"
    other.write_text('{"name": "x"}')
    result = run_cli("bench", "--json", other)
    assert (result.code, other.read_text()) == (2, '{"name": "x"}')
    assert "holds no result of bench" in result.err


@pytest.mark.parametrize("name", ["out.parquet", "out.csv.gz", "OUT.TSV", "out.json"])
def test_predictions_are_not_written_under_the_name_of_another_format(name, table, tmp_path):
    """They are CSV: `train` or pandas would not read them by such a name."""
    assert train(table, "--output", tmp_path / "o").code == 0
    result = run_cli("predict", tmp_path / "o", table, "--output", tmp_path / name)
    assert (result.code, (tmp_path / name).exists()) == (2, False)
    assert "predictions are written as CSV" in result.err.splitlines()[-1]
