"""Tables, pictures, comparison and the README's section, from records that are made up."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import report
from gpubackprop.bench import comparing, notes, pictures, record, tables
from tests.benchmark_records import made_up

ROOT = Path(__file__).resolve().parents[1]
README = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"


@pytest.fixture(scope="module")
def on_a_gpu():
    return made_up(gpu=True)


@pytest.fixture(scope="module")
def on_a_cpu():
    return made_up(gpu=False)


@pytest.mark.slow
def test_every_picture_of_a_gpu_is_drawn(on_a_gpu, tmp_path):
    image = pytest.importorskip("matplotlib.image", reason="draws with matplotlib")
    paths = pictures.draw_all(on_a_gpu, tmp_path, "gpu")
    assert [path.stem for path in paths] == [f"benchmark_gpu_{title}" for title in pictures.TITLES]
    for path in paths:
        pixels = image.imread(path)
        assert pixels.shape[1] > 800
        assert 0.02 < (pixels[..., :3].min(axis=-1) < 0.9).mean() < 0.7, path.name


def test_pictures_without_figures_are_left_out(on_a_cpu, tmp_path):
    assert pictures.draw_all(on_a_cpu | {"rows": []}, tmp_path, "none") == []


@pytest.mark.parametrize(
    ("ratios", "at"),
    [
        ([0.25, 0.5, 2.0, 4.0], 8.0),  # halfway between 4 and 16 by logarithms
        ([2.0, 0.5, 2.0, 4.0], 8.0),
        ([2.0, 3.0, 4.0, 5.0], 1.0),
        ([0.1, 0.2, 0.3, 0.4], None),
    ],
)
def test_the_gpu_wins_from_where_it_stays_ahead(ratios, at):
    found = pictures.crossing([1, 4, 16, 64], ratios)
    assert found == pytest.approx(at) if at else found is None


def test_the_key_table_has_losing_rows_and_who_did_not_take_part(on_a_cpu):
    rows = [row | {"ratio": 1.31} if row["provider"] == "torch eager" else row
            for row in on_a_cpu["rows"]]  # fmt: skip
    lines = tables.key_table(on_a_cpu | {"rows": rows}).splitlines()
    step = next(line for line in lines if "784-512-512-10/batch256" in line)
    cells = dict(zip(lines[0].split("|"), step.split("|"), strict=True))
    assert cells[" torch eager "] == " **1.31** "
    assert cells[" thinc "] == " – "
    assert "products" in cells[" of the limit "]


def test_the_full_table_has_every_row_and_its_note(on_a_gpu):
    lines = tables.full_table(on_a_gpu).splitlines()
    assert len(lines) == 2 + len(on_a_gpu["rows"])
    assert len({line.count("|") for line in lines}) == 1
    assert sum("No module named 'thinc'" in line for line in lines) > 3


def test_the_full_table_says_what_was_different_about_a_provider(on_a_cpu):
    rows = [row | ({"remark": "optimizer eager: RuntimeError"} if "compile" in row["provider"] else {})
            for row in on_a_cpu["rows"]]  # fmt: skip
    rows = [row | ({"workers": 1} if row["provider"] == "limit" else {}) for row in rows]
    text = tables.full_table(on_a_cpu | {"rows": rows})
    assert "| limit, 1 thread |" in text
    assert "| torch.compile, optimizer eager: RuntimeError |" in text


def test_a_share_above_one_is_explained_below_its_table(on_a_cpu):
    rows = [row | {"share": 1.5} if row["provider"] == "numpy" else row
            for row in on_a_cpu["rows"]]  # fmt: skip
    text = report.section([on_a_cpu | {"rows": rows}], [])
    assert "1.50 ! products" in text
    assert report.NO_LIMIT in text
    assert report.NO_LIMIT not in report.section([on_a_cpu], [])


def test_goals_are_counted_and_missed_ones_named(on_a_cpu):
    rows = [row | {"ratio": 0.61} if row["provider"] == "scikit-learn" else row
            for row in on_a_cpu["rows"]]  # fmt: skip
    text = notes.goals(on_a_cpu | {"rows": rows})
    assert "0.61 of scikit-learn, goal 0.50" in text


def test_a_slower_run_is_a_regression_and_noise_is_not(on_a_cpu):
    same = comparing.regressions(on_a_cpu, made_up(gpu=False, seed=1))
    assert (same.slower, same.faster, same.wrong, same.missing) == ([], [], [], [])
    slower = comparing.regressions(on_a_cpu, made_up(gpu=False, factor=1.25, seed=1))
    assert slower.regressed
    assert len(slower.slower) == len({row["case"] for row in on_a_cpu["rows"]})
    assert all(1.15 < change.factor < 1.35 for change in slower.slower)
    assert not comparing.regressions(on_a_cpu, made_up(gpu=False, factor=0.7, seed=1)).regressed


def test_a_whole_machine_that_is_slower_is_no_regression(on_a_cpu):
    rows = [row | {key: row[key] * 3 for key in ("seconds", "p20", "p80") if key in row}
            for row in on_a_cpu["rows"]]  # fmt: skip
    assert not comparing.regressions(on_a_cpu, on_a_cpu | {"rows": rows}).regressed


def test_what_is_wrong_or_missing_now_is_named(on_a_cpu):
    rows = [row for row in on_a_cpu["rows"] if row["op"] != "gather_rows"]
    for row in rows:
        if row["op"] == "column_sum" and row["provider"] == "numpy":
            rows[rows.index(row)] = {
                key: row[key] for key in ("case", "op", "provider", "device", "threads")
            } | {"note": "WRONG: differs"}
    found = comparing.regressions(on_a_cpu, on_a_cpu | {"rows": rows})
    assert found.wrong == ["column_sum/f32/4096x1024, 2 threads"]
    assert found.missing == [
        "gather_rows/f32/5349x784, 2 threads", "gather_rows/repeated/f32/1024x1024, 2 threads",
        "gather_rows/uint8/f32/1024x1024, 2 threads",
    ]  # fmt: skip
    assert found.regressed


def test_without_limits_the_ratio_to_a_peer_is_compared(on_a_cpu):
    def stripped(made):
        return made | {"rows": [{k: v for k, v in row.items() if not k.startswith("share")}
                                for row in made["rows"]]}  # fmt: skip

    found = comparing.regressions(
        stripped(on_a_cpu), stripped(made_up(gpu=False, factor=1.25, seed=1))
    ).slower  # fmt: skip
    assert found
    assert {change.against for change in found} == {"NumPy by hand"}


@pytest.mark.slow
def test_the_report_writes_page_pictures_and_the_section_of_the_readme(on_a_cpu, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="draws with matplotlib")
    (tmp_path / "README.md").write_text(README)
    file = tmp_path / "result.json"
    record.write(file, on_a_cpu)
    assert report.main([str(file), "--out", str(tmp_path)]) == 0
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("before\n")
    assert readme.endswith("after\n")
    assert "old" not in readme
    assert "On a GPU: not measured." in readme
    assert "Made-up CPU, 2 cores" in readme
    for text, folder in (
        (readme, tmp_path),
        ((tmp_path / "docs/benchmarks.md").read_text(), tmp_path / "docs"),
    ):
        links = [part.split(")")[0] for part in text.split("](")[1:]]
        assert links
        assert all((folder / link).is_file() for link in links)
    again = report.with_section(readme, report.section([], []))
    assert report.with_section(again, "same") == report.with_section(readme, "same")


def test_a_readme_without_markers_is_an_error():
    with pytest.raises(ValueError, match="no <!-- benchmarks:begin -->"):
        report.with_section("nothing", "new")


def test_compare_from_the_command_line_says_what_and_exits_1(on_a_cpu, tmp_path, capsys):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    record.write(old, on_a_cpu)
    record.write(new, made_up(gpu=False, factor=1.5, seed=2))
    assert report.main(["--compare", str(old), str(new)]) == 1
    said = re.search(r"update/adam/f32/4194304, 2 threads: (\S+) times", capsys.readouterr().out)
    assert said is not None
    assert float(said[1]) == pytest.approx(1.5, rel=0.03)  # the made-up noise of one round
    assert report.main(["--compare", str(old), str(old)]) == 0
    assert "slower: nothing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "is no result of these benchmarks"),
        ('{"format": 2}', "is no whole result: it lacks date, commit"),
        ("nonsense", "is no JSON"),
    ],
)
def test_a_foreign_file_is_an_error_of_one_line(tmp_path, capsys, text, said):
    (tmp_path / "foreign.json").write_text(text)
    assert report.main([str(tmp_path / "foreign.json"), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_readme_without_markers_is_said_before_anything_is_written(on_a_cpu, tmp_path, capsys):
    record.write(tmp_path / "result.json", on_a_cpu)
    (tmp_path / "README.md").write_text("nothing")
    assert report.main([str(tmp_path / "result.json"), "--out", str(tmp_path)]) == 2
    assert "the README has no <!-- benchmarks:begin -->" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", "README.md"}


def test_results_of_a_machine_are_one_record_and_machines_are_apart(on_a_cpu, on_a_gpu):
    part = [row for row in on_a_cpu["rows"] if row["op"] == "column_sum"]
    late = on_a_cpu | {"time": "09:00:00Z", "commit": "later", "rows": part}
    found = sorted(report.by_machine([late, on_a_gpu, on_a_cpu]), key=record.card)
    assert [record.card(one) for one in found] == ["cpu-made-up-cpu-2-cores", "made-up-gpu"]
    assert len(found[0]["rows"]) == len(on_a_cpu["rows"])
    assert [run["commit"] for run in found[0]["earlier_runs"]] == ["made-up"]


def test_a_part_that_is_measured_on_a_later_day_keeps_all_other_cases(on_a_cpu):
    stale = on_a_cpu | {"date": "1999-12-31", "commit": "stale"}
    part = [row | {"seconds": 7.0} for row in on_a_cpu["rows"] if row["op"] == "column_sum"]
    versions = {"numpy": "0", "torch": "9"}
    later = on_a_cpu | {"date": "2000-01-03", "commit": "later", "rows": part, "versions": versions}
    (found,) = report.by_machine([later, on_a_cpu, stale])
    assert len(found["rows"]) == len(on_a_cpu["rows"])
    changed = {row["op"] for row in found["rows"] if row.get("seconds") == 7.0}
    assert changed == {"column_sum"}
    assert notes.goals(found) == notes.goals(on_a_cpu)
    said = notes.machine(found)
    assert said.startswith("Measured 2000-01-01 to 2000-01-03 at commits made-up, later: ")
    assert said.endswith("; NumPy 0, PyTorch 9.")
    lines = tables.full_table(found).splitlines()
    assert {line.split("|")[-2].strip() for line in lines[2:] if "column_sum" in line} == {
        "2000-01-03 later"
    }
    assert sum("2000-01-01 made-up" in line for line in lines) == len(found["rows"]) - len(part)


def test_goals_that_were_not_measured_are_named(on_a_cpu):
    rows = [row for row in on_a_cpu["rows"]
            if not (row["op"] == "training_step" and row["provider"] == "scikit-learn")]  # fmt: skip
    named = "- Not measured: training_step/adam/f32/784-512-512-10/batch256 beside scikit-learn"
    assert named in notes.goals(on_a_cpu | {"rows": rows})
    assert named not in notes.goals(on_a_cpu)


def test_committed_results_load_are_small_and_stand_in_their_folder():
    files = sorted((ROOT / "benchmarks" / "results").glob("*/*.json"))
    assert files
    for path in files:
        assert path.stat().st_size < 300_000
        loaded = record.load(path)
        assert path.parent.name == record.card(loaded)
        assert record.rows_of(loaded)


def test_a_full_result_stays_below_300_kilobytes(on_a_gpu, tmp_path):
    record.write(tmp_path / "full.json", on_a_gpu)
    assert (tmp_path / "full.json").stat().st_size < 300_000
    assert len(record.load(tmp_path / "full.json")["rows"]) == len(on_a_gpu["rows"])


def test_runs_of_two_machines_are_no_regression_of_one_another(on_a_cpu, tmp_path, capsys):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    record.write(old, on_a_cpu)
    record.write(new, made_up(gpu=False, factor=30) | {"cpu": {"model": "Other", "cores": 2}})
    assert report.main(["--compare", str(old), str(new)]) == 2
    said = capsys.readouterr()
    assert "the machines differ (Made-up CPU, 2 cores, Other, 2 cores)" in said.err
    assert "gpubackprop bench --compare" in said.err
    assert said.out == ""


def test_a_regression_run_under_load_is_warned_of(on_a_cpu, tmp_path, capsys):
    record.write(tmp_path / "old.json", on_a_cpu | {"load_before": [10.1, 9, 9]})
    file = str(tmp_path / "old.json")
    assert report.main(["--compare", file, file]) == 0
    assert "warning: A: the load was 10.1 before the run" in capsys.readouterr().out


def test_a_result_of_another_card_is_added_in_its_folder_and_a_smoke_run_is_not(
    on_a_gpu, tmp_path, capsys
):
    pytest.importorskip("matplotlib", reason="draws with matplotlib")
    rows = [row for row in on_a_gpu["rows"] if row["op"] == "column_sum"]
    file = tmp_path / "card.json"
    file.write_text(json.dumps(on_a_gpu | {"rows": rows}))  # as the command writes it
    (tmp_path / "README.md").write_text(README)
    arguments = ["--add", str(file), "--out", str(tmp_path)]
    assert report.main(arguments) == 0
    placed = tmp_path / "benchmarks/results/made-up-gpu/2000-01-01-made-up.json"
    assert len(record.load(placed)["rows"]) == len(rows)
    assert "Made-up GPU (driver 0)" in (tmp_path / "docs/benchmarks.md").read_text()
    assert report.main(arguments) == 2
    assert "is there already" in capsys.readouterr().err
    file.write_text(json.dumps(on_a_gpu | {"settings": {"size": "smoke"}}))
    placed.unlink()
    assert report.main(arguments) == 2
    assert "a smoke run: its times mean nothing" in capsys.readouterr().err


def test_a_load_above_half_of_the_cores_and_remarks_stand_in_the_documents(on_a_cpu):
    rows = [row | {"remark": "no CUDA graph: why"} if row["provider"] == "numpy" else row
            for row in on_a_cpu["rows"]]  # fmt: skip
    text = report.section([on_a_cpu | {"load_before": [1.5, 1, 1], "rows": rows}], [])
    assert "- Warning: the load was 1.5 before the run, above half of its 2 cores" in text
    assert "- gpubackprop: no CUDA graph: why (" in text
    assert "Warning" not in report.section([on_a_cpu], [])
