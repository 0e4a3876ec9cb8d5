"""tests/sweeps.py: a sample is the seed's, reaches every case with time, and says what it left out."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import sweeps

ROOT = sweeps.ROOT
GRID: list[dict[str, Any]] = [
    {"form": form, "dtype": dtype, "rows": rows}
    for form, dtype, rows in itertools.product("abcdef", ["f32", "f64"], [1, 7, 33, 100])
]


# -- what is chosen -------------------------------------------------------------------------------


def test_a_sample_is_the_same_for_a_seed_and_every_case_is_reached_with_others(monkeypatch):
    cases, seen = list(range(40)), set()
    for seed in range(60):
        monkeypatch.setenv("GPUBACKPROP_SEED", str(seed))
        chosen = sweeps.sampled(cases, 5, "a test")
        assert chosen == sorted(chosen) == sweeps.sampled(cases, 5, "a test")
        assert len(chosen) == 5
        seen |= set(chosen)
    assert seen == set(cases)
    assert sweeps.sampled(cases, 5, "a test") != sweeps.sampled(cases, 5, "another test")
    assert sweeps.sampled(cases[:3], 5, "a test") == cases[:3]


def test_the_sample_of_a_grid_has_every_value_of_every_parameter(monkeypatch):
    seen = set()
    for seed in range(60):
        monkeypatch.setenv("GPUBACKPROP_SEED", str(seed))
        chosen = sweeps.covering(GRID, 8, "a test")
        assert chosen == sweeps.covering(GRID, 8, "a test")
        assert 8 <= len(chosen) < len(GRID) / 3
        for name in GRID[0]:
            assert {GRID[n][name] for n in chosen} == {case[name] for case in GRID}
        seen |= set(chosen)
    assert seen == set(range(len(GRID)))


def test_without_a_seed_the_day_is_the_seed(monkeypatch):
    monkeypatch.delenv("GPUBACKPROP_SEED", raising=False)
    assert sweeps.seed().count("-") == 2
    monkeypatch.setenv("GPUBACKPROP_SEED", "a commit")
    assert sweeps.seed() == "a commit"


def test_only_a_grid_may_lose_cases_unasked():
    assert sweeps.is_grid(GRID)
    assert sweeps.is_grid([case | {"source": case["form"] in "abc"} for case in GRID])
    assert sweeps.is_grid([case for case in GRID if case["form"] > "b"])
    assert not sweeps.is_grid([{"case": n} for n in range(40)])
    chosen = [(0, 3), (1, 1), (1, 400), (400, 1), (7, 3)]
    assert not sweeps.is_grid([{"rows": rows, "columns": columns} for rows, columns in chosen])
    names = [{"name": name, "length": len(name)} for name in ("a", "b", "cd", "ef")]
    assert not sweeps.is_grid(names)
    lists = [[1], [2]]  # not to be hashed
    assert sweeps.is_grid([{"a": x, "b": y} for x in lists for y in (3, 4)])


# -- what is on record ----------------------------------------------------------------------------


def test_a_key_changes_with_the_file_what_it_imports_and_what_computes(monkeypatch):
    file = "tests/test_kernel_gather.py"
    key, digest = sweeps.key_of(file), sweeps._digest
    for changed in (file, "tests/tolerances.py", "tests/emulator/include/block.h",
                    "kernels/update.cu", "gpubackprop/backends/numpy/__init__.py"):  # fmt: skip
        assert (ROOT / changed).exists()
        monkeypatch.setattr(
            sweeps,
            "_digest",
            lambda path, changed=changed: "edited" if path == ROOT / changed else digest(path),
        )
        assert sweeps.key_of.__wrapped__(file) != key, changed
    monkeypatch.setattr(
        sweeps,
        "_digest",
        lambda path: "edited" if path.name == "test_cli_train.py" else digest(path),
    )
    assert sweeps.key_of.__wrapped__(file) == key


# -- a run of pytest ------------------------------------------------------------------------------

CONFTEST = """
from pathlib import Path
from tests import sweeps
sweeps.ROOT = Path(__file__).parent
sweeps.RECORD = sweeps.ROOT / "swept.json"
from tests.sweep_plugin import pytest_addoption, pytest_configure, sweep
"""
TESTS = """
import pytest
pytestmark = pytest.mark.slow

@pytest.mark.parametrize("b", range(8))
@pytest.mark.parametrize("a", range(8))
def test_grid(a, b):
    assert FAILING not in (a, "all")

@pytest.mark.sweep(keep=3)
@pytest.mark.parametrize("n", range(20))
def test_marked(n):
    pass

@pytest.mark.parametrize("n", range(20))
def test_list(n):
    pass

def test_its_own(sweep):
    assert len(sweep.cases(range(100), keep=10)) == (100 if sweep.is_whole else 10)
"""
COUNT = 64 + 20 + 20 + 1
SAMPLED = 8 + 3 + 20 + 1  # of the grid every value of a and b
LEFT_OUT = f"left out: {64 - 8 + 20 - 3 + 90} of 184 sweep cases, seed 5; make test-all runs them"


class Suite:
    """A folder with a test file, a kernel and nothing on record."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "kernels").mkdir()
        (folder / "kernels" / "a.cu").write_text("a")
        (folder / "conftest.py").write_text(CONFTEST)
        (folder / "swept.json").write_text("{}")
        self.fail("None")

    def fail(self, which: str) -> None:
        (self.folder / "test_a.py").write_text(TESTS.replace("FAILING", which))

    def run(self, *options: str, **environment: str) -> list[str]:
        command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml")]
        command += ["--rootdir", str(self.folder), "-p", "no:cacheprovider", "-o", "testpaths=."]
        result = subprocess.run(
            [*command, *options], cwd=self.folder, env=os.environ | environment,
            capture_output=True, text=True,
        )  # fmt: skip
        return (result.stdout + result.stderr).splitlines()

    def recorded(self) -> list[str]:
        return list(json.loads((self.folder / "swept.json").read_text()))


@pytest.fixture
def suite(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUBACKPROP_SEED", "5")
    for name in ("GPUBACKPROP_RECORD", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return Suite(tmp_path)


@pytest.mark.slow
def test_a_sample_of_two_workers_ends_with_what_it_left_out(suite):
    said = suite.run("--sweeps=sample", "-n", "2", GPUBACKPROP_RECORD="1")
    assert f"{SAMPLED} passed" in said[-1]
    assert said[-2] == LEFT_OUT
    assert suite.recorded() == []


@pytest.mark.slow
def test_a_case_that_fails_in_a_sample_says_how_to_run_it_alone(suite):
    suite.fail("3")
    said = suite.run("--sweeps=sample")
    assert said[-2] == LEFT_OUT
    alone = [line for line in said if line.startswith("run it alone: ")]
    assert len(alone) == 1
    words = shlex.split(alone[0].removeprefix("run it alone: "))
    assert words[:5] == ["GPUBACKPROP_SEED=5", "python", "-m", "pytest", "--sweeps=sample"]
    assert words[5].startswith("test_a.py::test_grid[3-")
    assert "1 failed in" in suite.run(*words[4:])[-1]


@pytest.mark.slow
def test_what_passed_whole_is_on_record_until_a_kernel_changes(suite):
    said = suite.run("--sweeps=changed", "-n", "2", GPUBACKPROP_RECORD="1")
    assert f"{COUNT} passed" in said[-1]
    assert said[-2] == "not on record, so run whole: test_a.py"
    assert suite.recorded() == ["test_a.py"]
    assert LEFT_OUT in suite.run("--sweeps=changed")
    (suite.folder / "kernels" / "a.cu").write_text("b")
    assert f"{COUNT} passed" in suite.run("--sweeps=changed")[-1]


@pytest.mark.slow
def test_pytest_itself_runs_all_and_a_part_or_a_failure_is_not_recorded(suite):
    suite.run("-k", "grid", GPUBACKPROP_RECORD="1")
    suite.run("test_a.py::test_grid", GPUBACKPROP_RECORD="1")
    assert suite.recorded() == []
    suite.fail("3")
    said = suite.run(GPUBACKPROP_RECORD="1")
    assert f"8 failed, {COUNT - 8} passed" in said[-1]
    assert not any("left out" in line or "alone" in line for line in said[-3:])
    assert suite.recorded() == []
