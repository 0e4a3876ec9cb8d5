"""What the command line prints, into streams of any encoding: text, tables, JSON, errors."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from gpubackprop import Model
from gpubackprop.cli import main
from gpubackprop.cli.common import to_json
from gpubackprop.cli.streams import csv_stdout, from_shell
from gpubackprop.plots import confusion_matrix, predictions
from tests.cli_runs import COMMAND, ENVIRONMENT, QUICK, flowers, ok, write_table

NAMES = ["sétosa", "ἴρις", "花🌸"]
# Encoding and error handler of stdout; the last as Python has it under LC_ALL=C.
ENCODINGS = [("ascii", "strict"), ("cp1252", "strict"), ("utf-16", "strict")]
ENCODINGS += [("utf-8", "strict"), ("ascii", "surrogateescape")]


def named_flowers():
    data = flowers()
    names = dict(zip(["iris", "lily", "rose"], NAMES, strict=True))
    return {
        "länge": data["length"],
        "幅": data["width"],
        "espèce": np.array([names[kind] for kind in data["kind"]]),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    table = write_table(folder / "blümen.csv", named_flowers())
    ok("train", table, "--target", "espèce", "--output", folder / "m", "--quiet", *QUICK)
    return folder


def printed(encoding, errors, *arguments) -> bytes:
    """What a command writes to a stdout of this encoding; it must succeed."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, errors) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main([str(argument) for argument in arguments]) == 0
    assert (out.errors, err.errors) == (errors, errors)  # left as they were
    return out.buffer.getvalue()


@pytest.mark.parametrize(("encoding", "errors"), ENCODINGS)
def test_a_table_on_stdout_is_the_bytes_of_a_file_whatever_the_encoding(encoding, errors, folder):
    command = ("predict", folder / "m", folder / "blümen.csv", "--probabilities")
    printed(encoding, errors, *command, "--output", folder / "out.csv")
    found = printed(encoding, errors, *command)
    assert found == (folder / "out.csv").read_bytes()
    rows = list(csv.reader(found.decode("utf-8").splitlines()))
    assert rows[0] == ["prediction", *(f"probability_{name}" for name in sorted(NAMES))]
    assert {row[0] for row in rows[1:]} <= set(NAMES)


@pytest.mark.parametrize(("encoding", "errors"), ENCODINGS)
def test_json_is_read_back_with_its_names_whatever_the_encoding(encoding, errors, folder):
    text = printed(encoding, errors, "predict", folder / "m", folder / "blümen.csv", "--json")
    values = json.loads(text.decode(encoding))
    assert {row[0] for row in values["predictions"]} <= set(NAMES)


@pytest.mark.parametrize(("encoding", "errors"), ENCODINGS)
def test_text_for_people_is_escaped_where_the_encoding_lacks_a_letter(
    encoding, errors, folder, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    command = ("train", folder / "blümen.csv", "--target", "espèce", "--output", tmp_path / "花")
    text = printed(encoding, errors, *command, *QUICK).decode(encoding)
    assert ("花" if encoding.startswith("utf") else "\\u82b1") in text
    assert Model.load(tmp_path / "花/model.safetensors").classes.tolist() == sorted(NAMES)


def test_a_process_without_stdout_and_stderr_does_its_work(folder, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["predict", str(folder / "m"), str(folder / "blümen.csv"), "--score"]) == 0
    assert (sys.stdout, sys.stderr) == (None, None)


@pytest.mark.slow  # two processes
def test_a_process_of_the_c_locale_trains_and_names_a_missing_column(tmp_path):
    """As typed in a shell: the names of files and columns are UTF-8 bytes there."""
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    def run(*arguments):
        return subprocess.run(
            [os.fsencode(part) for part in (*COMMAND, *arguments)],
            env=ENVIRONMENT | locale, cwd=tmp_path, capture_output=True, timeout=120, check=False,
        )  # fmt: skip

    write_table(tmp_path / "blümen.csv", named_flowers())
    done = run("train", "blümen.csv", "--target", "espèce", *QUICK)
    assert done.returncode == 0, done.stderr
    assert Model.load(tmp_path / "runs/blümen/model.safetensors").target_names == ["espèce"]
    missing = run("train", "blümen.csv", "--target", "espèces", *QUICK)
    assert missing.returncode == 1
    assert b"Traceback" not in missing.stderr


def test_a_file_whose_name_is_no_utf8_is_trained_on_drawn_and_summarised(tmp_path):
    name = os.fsdecode(b"caf\xe9.csv")
    try:
        table = write_table(tmp_path / name, flowers())
    except OSError:
        pytest.skip("this file system wants names in UTF-8")
    out = tmp_path / "o"
    ok("train", table, "--target", "kind", "--output", out, "--quiet", *QUICK)
    assert json.loads((out / "summary.json").read_text())["data"]["name"] == "caf\udce9"
    assert (out / "confusion_matrix.png").exists()


def test_json_has_bytes_of_a_file_name_as_escapes_that_utf8_can_hold():
    text = to_json({"name": "caf\udce9 é 🌸"})
    assert json.loads(text.encode("utf-8"))["name"] == "caf\udce9 é 🌸"
    assert "é 🌸" in text


def test_a_name_typed_where_python_knows_ascii_only_is_the_name_in_the_file():
    assert from_shell("espèce".encode().decode("ascii", "surrogateescape")) == "espèce"
    assert from_shell("espèce") == "espèce"
    assert from_shell("caf\udce9") == "caf\udce9"


def test_a_terminal_and_a_stream_without_bytes_get_the_table_as_text():
    class Terminal(io.TextIOWrapper):
        def isatty(self):
            return True

    for stream in (io.StringIO(), Terminal(io.BytesIO(), "cp1252", "backslashreplace")):
        with contextlib.redirect_stdout(stream), csv_stdout() as out:
            assert out is stream


@pytest.mark.filterwarnings("error")
def test_names_are_drawn_letter_by_letter_also_dollars_and_letters_the_font_lacks(tmp_path):
    names = ["$x^{$", "花🌸", "caf\udce9"]
    confusion_matrix([0, 1, 2], [0, 1, 2], names, tmp_path / "c.png", title="$^{$ 花")
    predictions([1.0, 2.0], [1.0, 2.0], tmp_path / "p.png", names=names[:1], title=names[2])
    assert (tmp_path / "c.png").exists()
    assert (tmp_path / "p.png").exists()
