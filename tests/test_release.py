"""What a release is made of: one version everywhere, two builds alike, and the files of its repository."""

from __future__ import annotations

import re

import pytest

import gpubackprop
from tests.cli_runs import ROOT
from tools import release


def test_the_version_is_the_same_wherever_it_stands():
    assert set(release.versions().values()) == {gpubackprop.__version__}


@pytest.mark.parametrize("place", release.PLACES)
def test_a_place_that_says_another_version_is_seen(place, tmp_path):
    for name in release.PLACES:
        text = (ROOT / name).read_text(encoding="utf-8")
        if name == place:
            text = text.replace(gpubackprop.__version__, "9.9.9", 1)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert release.versions(tmp_path)[place] == "9.9.9"


def test_a_tag_of_another_version_is_refused_before_anything_is_built(tmp_path, capsys):
    assert release.main([str(tmp_path / "dist"), "--tag", "v9.9.9"]) == 1
    assert "'--tag': '9.9.9'" in capsys.readouterr().err
    assert not (tmp_path / "dist").exists()


def test_builds_that_differ_are_refused_by_name(tmp_path, capsys, monkeypatch):
    builds = iter([{"a.whl": b"1", "a.tar.gz": b"2"}, {"a.whl": b"3", "a.tar.gz": b"2"}])
    monkeypatch.setattr(release, "build", lambda *_: next(builds))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    assert release.main([str(tmp_path / "dist")]) == 1
    assert capsys.readouterr().err == "two builds differ: a.whl\n"


def test_a_folder_that_holds_files_is_left_alone(tmp_path, capsys):
    (tmp_path / "old.whl").write_bytes(b"")
    assert release.main([str(tmp_path)]) == 1
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["fault", "speed", "wish"])
def test_an_issue_template_asks_for_gpubackprop_info(name):
    text = (ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text(encoding="utf-8")
    assert "Output of gpubackprop info" in text


def test_the_workflows_store_no_secret_and_only_publishing_may_ask_for_a_token():
    texts = {
        path.name: path.read_text(encoding="utf-8")
        for path in (ROOT / ".github/workflows").glob("*.yml")
    }
    assert set(texts) == {"ci.yml", "docs.yml", "gpu.yml", "publish.yml"}
    assert not [name for name, text in texts.items() if re.search(r"secrets\.|password:", text)]
    assert [name for name, text in texts.items() if "id-token: write" in text] == ["publish.yml"]


def test_the_workflows_run_commands_that_are_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        commands = re.findall(r"run: (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert commands
        for command in commands:
            program, *arguments = command.split()
            if program == "make":
                assert arguments[0] in targets, path.name
            elif program == ".ci/run":
                assert (ROOT / program).is_file()
