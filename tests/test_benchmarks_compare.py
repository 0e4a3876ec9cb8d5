"""Results of several machines side by side: from the command line, as an installed package has it."""

from __future__ import annotations

import csv
import io
import json
import re
import tomllib
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gpubackprop.bench import comparing, drawing, machines, notes, page, record, tables
from gpubackprop.bench.rows import Row
from tests.benchmark_records import made_up
from tests.cli_runs import ok, run_cli

ROOT = Path(__file__).resolve().parents[1]
STEP = "training_step/adam/f32/784-512-512-10/batch256"


@cache
def head():
    """Of a record of one card, without rows."""
    return made_up(gpu=True) | {"rows": []}


def row(seconds, *, case=STEP, device="cuda:0", provider="cupy_raw", **values):
    """A row with seven rounds within 1 % of `seconds`."""
    rounds = [seconds * (1 + 0.01 * (n - 3) / 3) for n in range(7)] if seconds else []
    shared = {"case": case, "op": case.partition("/")[0], "device": device, "threads": 2}
    return shared | {"provider": provider, "rounds": rounds, "limit": "products"} | values


def written(path, rows, **more):
    """A file of results of one card."""
    record.write(path, head() | {"rows": rows} | more)
    return path


@pytest.fixture
def three(tmp_path):
    """A, B twice as fast on another card with another driver, C with one case that is noisy."""
    a = written(tmp_path / "a.json", [row(2e-3), row(1e-3, case="update/adam/f32/600")])
    b = written(
        tmp_path / "b.json", [row(1e-3), row(1.01e-3, case="update/adam/f32/600")],
        gpu={"name": "Card B", "driver_version": "580", "power.limit": "700 W", "clocks.sm": "345 MHz"},
        versions={"numpy": "9"}, load_before=[1.5, 1, 1],
    )  # fmt: skip
    noisy = [1.5e-3, 2e-3, 2e-3, 1e-3, 2.9e-3, 1.7e-3, 3e-3]
    c = written(
        tmp_path / "c.json", [row(0, rounds=noisy)], settings={"threads": [2], "size": "smoke"}
    )
    return [a, b, c]


# -- verdicts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "other", "said"),
    [
        ((1.9, 2.0, 2.1), (0.9, 1.0, 1.1), "faster"),
        ((0.9, 1.0, 1.1), (1.9, 2.0, 2.1), "slower"),
        ((0.9, 1.0, 1.1), (1.05, 1.2, 1.3), "undecided"),
        ((0.5, 1.0, 1.5), (0.6, 1.0, 1.4), "undecided"),  # equal medians and no idea
        ((0.99, 1.0, 1.01), (0.99, 1.0, 1.01), "same"),
        ((0.999, 1.0, 1.001), (1.01, 1.02, 1.021), "same"),  # apart, by less than 3 %
        ((0.999, 1.0, 1.001), (1.035, 1.04, 1.041), "slower"),
    ],
)
def test_a_verdict_is_decided_where_the_percentiles_do_not_overlap(base, other, said):
    assert comparing.verdict(base, other) == said
    turned = {"faster": "slower", "slower": "faster"}
    assert comparing.verdict(other, base) == turned.get(said, said)


def test_a_time_without_its_noise_decides_nothing():
    known, unknown = (Row("c", "op", "numpy", "cpu", 1, seconds=s) for s in (1.0, 9.0))
    known.p20, known.p80 = 0.99, 1.01
    assert comparing.Line("c", "CPU", (known, unknown)).verdict(1) == "undecided"
    assert comparing.Line("c", "CPU", (known, None)).verdict(1) == ""


def test_a_ratio_within_a_run_is_undecided_where_one_lies_within_its_percentiles():
    theirs = Row("c", "op", "torch eager", "cpu", 1, seconds=1.0, ratio=0.98)
    theirs.ratio_p20, theirs.ratio_p80 = 0.9, 1.1
    ours = Row("c", "op", "numpy", "cpu", 1, seconds=1.0)
    assert tables.lines([ours, theirs])[1].endswith("torch eager 0.98 undecided")
    theirs.ratio_p80 = 0.99
    assert tables.lines([ours, theirs])[1].endswith("torch eager 0.98")


# -- the command ----------------------------------------------------------------------------------


def test_compare_shows_machines_warnings_every_case_and_how_many_of_which_verdict(three):
    a, b, c = three
    text = ok("bench", "--compare", a, b, c).out
    for line in ("card  +Made-up GPU  +Card B  +Made-up GPU", "driver  +0  +580  +0",
                 "power limit  +700 W", r"clocks as found, SM / memory  +345 MHz / \?",
                 r"load before \(1, 5, 15 minutes\)  +0  +1.5 1 1", "numpy  +0  +9  +0"):  # fmt: skip
        assert re.search(f"^{line}", text, re.M), line
    for warning in ("card differs (A: Made-up GPU; B: Card B; C: Made-up GPU)",
                    "driver differs (A: 0; B: 580; C: 0)", "numpy differs (A: 0; B: 9; C: 0)",
                    "B: the load was 1.5 before the run, above half of its 2 cores",
                    "C: a smoke run: its times mean nothing"):  # fmt: skip
        assert f"warning: {warning}" in text
    step = next(line for line in text.splitlines() if line.startswith(STEP))
    assert "2 ms (1.99 – 2.01 ms)" in step
    assert "1 ms (994 us – 1.01 ms)" in step
    assert re.search(r"0\.5 faster +1 undecided$", step)
    assert re.search(r"^update/adam/f32/600 .* 1\.01 same +-$", text, re.M)
    last = text.splitlines()[-2:]
    assert last[0].startswith("B against A: 1 faster, 0 slower, 1 same, 0 undecided of 2 cases;")
    assert last[1].startswith("C against A: 0 faster, 0 slower, 0 same, 1 undecided of 1 case;")
    assert "measured by A alone: 1, by C alone: 0" in last[1]


def test_equal_machines_are_compared_without_a_warning(three):
    text = ok("bench", "--compare", three[0], three[0]).out
    assert "warning" not in text
    assert "0 faster, 0 slower, 2 same, 0 undecided of 2 cases" in text


def test_joules_stand_in_a_comparison_where_they_were_read(tmp_path):
    a = written(tmp_path / "a.json", [row(1e-3, joules=0.31)])
    b = written(tmp_path / "b.json", [row(1e-3)])
    text = ok("bench", "--compare", a, b).out
    assert re.search(r"A: joules .* B: joules", text)
    assert re.search(rf"{STEP} .* 0\.31 ", text)
    assert "A: joules" not in ok("bench", "--compare", b, b).out


def test_compare_as_csv_and_json_has_numbers(three, tmp_path):
    a, b, _ = three
    rows = list(csv.DictReader(io.StringIO(ok("bench", "--compare", a, b, "--csv", "-").out)))
    assert (
        ok("bench", "--csv", "--compare", a, b).out == ok("bench", "--compare", a, b, "--csv").out
    )
    assert [one["case"] for one in rows] == [STEP, "update/adam/f32/600"]
    assert float(rows[0]["A seconds"]) == 2e-3
    assert float(rows[0]["A p20"]) < 2e-3 < float(rows[0]["A p80"])
    assert (rows[0]["B / A"], rows[0]["B verdict"]) == ("0.5", "faster")
    values = ok("bench", "--compare", a, b, "--json", "-").json
    assert values["counts"] == [{"faster": 1, "slower": 0, "same": 1, "undecided": 0}]
    assert values["machines"][1]["driver"] == "580"
    assert values["cases"][0]["verdicts"] == ["faster"]
    out = tmp_path / "both.csv"
    ok("bench", "--compare", a, b, "--csv", out)
    ok("bench", "--compare", a, b, "--csv", out)  # over its own
    assert out.read_text().startswith("case,place,A seconds")


class Reader(HTMLParser):
    """What a browser would load, and whether tags close."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.words = [], [], []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_is_one_file_with_tables_pictures_and_nothing_from_elsewhere(three, tmp_path):
    pytest.importorskip("matplotlib", reason="draws with matplotlib")
    a, b, _ = three
    evil = json.loads(b.read_text())
    evil["gpu"]["name"] = "<script>alert(1)</script> & card"
    b.write_text(json.dumps(evil))
    out = tmp_path / "report.html"
    ok("bench", "--compare", a, b, "--html", out)
    text = out.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.sources
    assert all(source.startswith("data:image/png;base64,") for source in reader.sources)
    assert "http" not in text
    assert "<script" not in text
    for said in ("faster", "driver differs", "<td>580</td>", STEP, "gpubackprop"):
        assert said in text
    assert 'alt="side by side"' in text
    assert out.stat().st_size < 3_000_000
    ok("bench", "--compare", a, b, "--html", out)  # over its own


def test_without_matplotlib_the_page_says_how_to_get_pictures(three, monkeypatch):
    def absent(module, extra, purpose):
        raise page.MissingDependencyError('run: pip install "gpubackprop[cli]"')

    monkeypatch.setattr(drawing, "require", absent)
    text = page.page(comparing.compare([record.load(three[0])]))
    assert "No pictures: run: pip install" in text
    assert STEP in text


def test_a_run_on_a_cpu_and_one_on_a_gpu_are_compared_by_their_own_devices(tmp_path):
    both = [row(1e-3), row(9e-3, device="cpu", provider="numpy")]
    a = written(tmp_path / "a.json", both)
    b = written(tmp_path / "b.json", [row(5e-3, device="cpu", provider="numpy")], device="cpu",
                gpu=None)  # fmt: skip
    text = ok("bench", "--compare", a, b).out
    assert "some were measured on a GPU and some on a CPU" in text
    assert re.search(rf"{STEP} +own device +1 ms .* 5 slower", text)
    assert "of 1 case;" in text


def test_a_case_that_is_wrong_or_absent_is_said_and_has_no_verdict(tmp_path):
    a = written(tmp_path / "a.json", [row(1e-3), row(1e-3, case="update/adam/f32/600")])
    b = written(tmp_path / "b.json", [row(0, note="WRONG: differs from the oracle by 1.0e-01")])
    text = ok("bench", "--compare", a, b).out
    assert re.search(rf"{STEP} +GPU +1 ms .* WRONG +-$", text, re.M)
    assert "of 0 cases" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "is no result of these benchmarks"),
        ("nonsense", "is no JSON"),
        ('{"format": 2}', "is no whole result: it lacks date"),
        ("ROW", "has a row that is none"),
        ("CPU", "cpu should be objects"),
    ],
)
def test_a_file_that_is_no_result_is_an_error_of_one_line(three, tmp_path, content, said):
    good = json.loads(three[0].read_text())
    if content == "ROW":
        good["cases"][0]["providers"].append({"seconds": 1.0})
    if content == "CPU":
        good["cpu"] = "fast"
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(good) if content in ("ROW", "CPU") else content)
    result = run_cli("bench", "--compare", three[0], bad)
    assert result.code == 1
    assert said in result.err
    assert result.err.count("\n") == 1
    missing = run_cli("bench", "--compare", three[0], tmp_path / "absent.json")
    assert missing.code == 1
    assert "absent.json" in missing.err


def test_fields_of_a_later_version_are_left_out(three):
    values = json.loads(three[0].read_text())
    values["cases"][0]["providers"][0]["volts"] = 1.1
    values["cases"][0]["colour"] = "blue"
    three[0].write_text(json.dumps(values))
    assert "2 same" in ok("bench", "--compare", three[0], three[0]).out


def test_compare_wants_two_files_and_writes_over_none_of_them(three, tmp_path):
    alone = run_cli("bench", "--compare", three[0])
    assert alone.code == 2
    assert "--compare needs two files" in alone.err
    ok("bench", "--compare", three[0], "--csv", tmp_path / "one.csv")
    over = run_cli("bench", "--compare", three[0], three[1], "--json", three[1])
    assert over.code == 2
    assert "would be written over" in over.err
    same = run_cli("bench", "--compare", *three, "--csv", tmp_path / "x", "--html", tmp_path / "x")
    assert same.code == 2
    other = tmp_path / "notes.html"
    other.write_text("mine")
    refused = run_cli("bench", "--compare", *three, "--html", other)
    assert (refused.code, other.read_text()) == (2, "mine")


def test_op_chooses_cases_of_a_comparison_too(three):
    text = ok("bench", "--compare", three[0], three[1], "--op", "update").out
    assert STEP not in text
    assert "of 1 case;" in text
    result = run_cli("bench", "--compare", three[0], three[1], "--op", "nonsense")
    assert result.code == 2
    assert "no case of these files contains 'nonsense'; operations are training_step" in result.err


def test_list_shows_the_cases_and_who_is_installed_and_measures_nothing(monkeypatch):
    from gpubackprop.cli import bench

    monkeypatch.setattr(bench, "measure", lambda *a, **o: pytest.fail("measured"))
    text = ok("bench", "--list", "--device", "cpu", "--full", "--op", "training_step").out
    assert STEP in text.splitlines()[1]
    assert "softmax" not in text.partition("peers:")[0]
    assert re.search(r"\d+ cases of size full", text)
    assert "torch eager (--peers torch): " in text
    assert "gpubackprop, NumPy alone (--peers numpy-alone): part of this package" in text
    monkeypatch.setattr(bench.devices, "choose", lambda device: ("cuda:0", "made up"))
    text = ok("bench", "--list", "--full").out
    for case in ("softmax_cross_entropy/bf16/8192x128256",
                 "training_step/adam/f32/784-320-160-10/batch64",
                 "training_step/adam/f32/784-1024-512-10/batch4096"):  # fmt: skip
        assert f"{case}  (key case" in text
    assert run_cli("bench", "--list", "--op", "nonsense").code == 2
    unwritten = run_cli("bench", "--list", "--csv", "x.csv")
    assert unwritten.code == 2
    assert "--list prints to the terminal" in unwritten.err
    values = ok("bench", "--list", "--smoke", "--json", "-").json
    assert values["cases"]


# -- what a run says of itself --------------------------------------------------------------------


def measured(**more):
    return head() | more


def test_the_load_a_smoke_run_and_missing_clocks_make_times_doubtful():
    cpu = {"model": "x", "cores": 4}
    fine = measured(load_before=[2.0, 9, 9], cpu=cpu)
    assert machines.doubts(fine) == []
    (load,) = machines.doubts(measured(load_before=[2.1, 0, 0], cpu=cpu))
    assert load.startswith("the load was 2.1 before the run, above half of its 4 cores")
    assert machines.doubts(measured(load_before=None)) == []
    assert machines.doubts(measured(load_before=[9, 9, 9], busy_before=1.0, cpu=cpu)) == []
    busy = measured(load_before=[0, 0, 0], busy_before=1.01, cpu=cpu)
    (says,) = machines.doubts(busy)
    assert says.startswith("1.01 of its 4 cores were busy before the run: its times are not")
    assert notes.summary(busy).endswith(" | 1.01 of 4 cores busy")
    smoke = measured(settings={"size": "smoke", "threads": [2]})
    assert machines.doubts(smoke) == ["a smoke run: its times mean nothing"]
    assert notes.summary(smoke).endswith(" | smoke run: times mean nothing")
    busy = measured(load_before=[2.1, 0, 0], cpu=cpu)
    assert notes.summary(busy).endswith(" | load 2.1 of 4 cores")
    (clocks,) = machines.doubts(measured(no_clocks="NVML: Driver Not Loaded"))
    assert "NVML: Driver Not Loaded" in clocks


def test_a_run_prints_its_doubts_remarks_and_percentiles():
    from gpubackprop.cli import bench

    ours = Row(
        STEP, "training_step", "cupy_raw", "cuda:0", 2, seconds=1e-3, p20=9e-4, p80=2e-3, share=0.5,
        limit="products", remark="no CUDA graph: NotImplementedError: cuBLAS",
    )  # fmt: skip
    made = measured(rows=[ours.json()], load_before=[10.1, 1, 1])
    text = "\n".join(bench.result_lines(made))
    assert "warning: the load was 10.1" in text
    assert re.search(rf"{STEP} +- +1 ms +- +0.50 products +900 us – 2 ms", text)
    assert f"  gpubackprop: no CUDA graph: NotImplementedError: cuBLAS ({STEP})" in text
    assert "900 us – 2 ms" in tables.full_table(made)
    assert "no CUDA graph: NotImplementedError" in tables.full_table(made)
    assert "1 ms (900 us – 2 ms)" in tables.key_table(made)


def test_the_flagship_and_the_two_public_steps_are_rows_of_the_key_table():
    text = tables.key_table(made_up(gpu=True))
    for case in ("softmax_cross_entropy/bf16/8192x128256",
                 "training_step/adam/f32/784-320-160-10/batch64",
                 "training_step/adam/f32/784-1024-512-10/batch4096"):  # fmt: skip
        assert f"| {case} | cuda:0 |" in text


def test_a_peer_that_is_not_there_names_the_extra_that_brings_it():
    from gpubackprop.bench.providers import PROVIDERS, why_missing

    assert why_missing("thinc", "No module named 'thinc'") == (
        "No module named 'thinc'; run: pip install \"gpubackprop[bench]\""
    )
    assert why_missing("thinc", "MemoryError: x") == "MemoryError: x"
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    for one in PROVIDERS:
        if one.distribution:
            assert one.distribution in " ".join(extras[one.extra]), one.name


def test_rows_as_csv_are_numbers_of_every_provider(tmp_path):
    made = made_up(gpu=False)
    head, *rest = csv.reader(io.StringIO(tables.csv_text(tables.row_cells(made))))
    assert len(rest) == len(made["rows"])
    first = dict(zip(head, rest[0], strict=True))
    assert float(first["p20"]) <= float(first["seconds"]) <= float(first["p80"])
    assert head[:4] == ["size", "case", "op", "provider"]
