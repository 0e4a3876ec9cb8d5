"""The benchmark of real tables, on one table of the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import bench_tables
from benchmarks.bench_tables import METHODS, Case

pytest.importorskip("pyarrow")
pytest.importorskip("sklearn")
pytest.importorskip("pandas")
TABLES = Path(__file__).parent / "tables"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target"), [("survey", "Sex"), ("survey", "Height")])
def test_all_methods_are_measured_on_the_same_rows_and_none_is_left_out(name, target, monkeypatch):
    monkeypatch.setattr(bench_tables, "content", lambda case: (TABLES / case.member).read_bytes())
    found = bench_tables.run(Case(name, "", f"{name}.csv", target), 1)
    assert found["classes"] == (target == "Sex")
    assert found["rows"] == (120 if target == "Sex" else 102)
    for method in METHODS:
        assert 0 < found["figures"][method][0] <= 1, method
        assert found["seconds"][method][0] > 0
    text = bench_tables.table([found], 1)
    assert f"| {name} | {target} | {found['rows']} |" in text
    assert text.count("**") in (2, 4, 6)
    assert "Ours is behind the best in" in text


def test_a_package_that_is_absent_is_named():
    with pytest.raises(SystemExit, match="pip install no_such_package"):
        bench_tables.content(Case("t", "no_such_package", "t.csv", "y"))
