"""tools/mutants: mutants are made as it says, its tables are those of its record, and a sample of the
mutants is killed."""

from __future__ import annotations

import subprocess
import sys
import zlib
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests import emulator, sweeps
from tools.mutants import __main__ as program
from tools.mutants import equivalent, judge, report, worker
from tools.mutants.judge import SURVIVED, Order, killer_of
from tools.mutants.mutations import KERNELS, ROOT, Mutant, all_mutants, mutants_of, sample, users
from tools.mutants.record import Record, Sources
from tools.mutants.running import Crew
from tools.mutants.worker import Reply

needs_compiler = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)


def lines_of(text: str, kind: str) -> set[str]:
    return {m.after.strip() for m in mutants_of("x.cu", text) if m.kind == kind}


def test_one_place_of_one_line_is_changed():
    text = "    total += partial[b] * scale;\n"
    assert lines_of(text, "operator") == {
        "total -= partial[b] * scale;", "total += partial[b] / scale;",
    }  # fmt: skip
    assert lines_of(text, "scale") == {"total += partial[b];"}


@pytest.mark.parametrize(
    ("line", "kind", "wanted"),
    [
        ("for (int e = 0; e < E; ++e) f(e);", "bound", "for (int e = 0; e < E - 1; ++e) f(e);"),
        ("for (int e = 0; e < E; ++e) f(e);", "operator", "for (int e = 0; e <= E; ++e) f(e);"),
        ("return a > b ? a : b;", "minimum and maximum", "return a < b ? a : b;"),
        ("if (lane == 0 && ok) __syncthreads();", "barrier", "if (lane == 0 && ok) ;"),
        ("if (C > 1) ptx::cluster_sync();", "barrier", "if (C > 1) ;"),
        ("ptx::copy_async_wait<0>();", "barrier", ";"),
        ("int lane = threadIdx.x % 32;", "lane", "int lane = threadIdx.x % 16;"),
        ("out[i] = weight;", "store", ";"),
        ("if (copy != nullptr) store_part(copy + i, rounded_copy, lo, hi);", "store",
         "if (copy != nullptr) ;"),
    ],
)  # fmt: skip
def test_each_kind_of_fault_is_made(line, kind, wanted):
    assert wanted in lines_of(line, kind)


def test_comments_directives_and_lines_for_gpu_compilers_are_left_alone():
    text = "\n".join(
        [
            "// a + b",
            "#if 1 + 1",
            "x = y;  // a + b",
            "#ifdef __CUDA_ARCH__",
            "a + b;",
            "#else",
            "c + d;",
            "#endif",
            "#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800",
            "a + b;",
            "#elif defined(__CUDA_ARCH__)",
            "a + b;",
            "#elif !defined(__CUDA_ARCH__)",
            "c + d;",
            "#endif",
        ]
    )
    assert {m.line for m in mutants_of("x.cu", text)} == {7, 14}


def test_a_reason_may_be_of_one_of_several_equal_lines_or_of_the_end_of_a_line():
    loop = "for (int i = 0; i < n; ++i)"
    made = [m for m in mutants_of("x.cu", f"{loop}\n{loop}\n{loop} a[i];\n") if "<=" in m.after]
    ends = equivalent.Equivalent("x.cu", "i < n; ++i)\n", "i <= n; ++i)\n", "a reason")
    assert [ends.matches(m) for m in made] == [True, True, False]
    second = ends._replace(nth=1)
    assert [second.matches(m) for m in made] == [False, True, False]
    assert not ends._replace(file="y.cu").matches(made[0])


def test_every_source_is_mutated():
    with_code = {m.file for m in all_mutants()}
    without = {p.relative_to(KERNELS).as_posix() for p in KERNELS.rglob("*.cu*")} - with_code
    assert without == {"include/entries.cuh"}
    using = users(KERNELS)
    assert set(using["include/reduce.cuh"]) >= {"accumulate.cu", "pointwise_loss.cu"}
    assert using["update.cu"] == ["update.cu"]


def test_a_sample_does_not_change_with_an_edit_elsewhere():
    made = all_mutants()
    chosen = sample(made, 20, seed=3)
    others = [m for m in made if m not in chosen]
    assert sample([*others[100:], *chosen], 20, seed=3) == chosen
    assert sample(made, 20, seed=4) != chosen


def test_mutants_of_equal_lines_have_keys_of_their_own():
    made = list(mutants_of("x.cu", "    x = a + b;\n    y = 1;\n    x = a + b;\n"))
    assert len({m.key for m in made}) == len(made) > len({(m.before, m.after) for m in made})


def test_every_equivalent_mutant_still_exists():
    """An entry whose line was edited says nothing any more."""
    assert equivalent.stale(all_mutants()) == []


# -- the record -----------------------------------------------------------------------------------

KILLED = "tests/test_kernel_x.py::test_it[1-(2, 3)] (signal 11)"


@pytest.fixture
def sources() -> Sources:
    made = Sources.__new__(Sources)
    made.code, made.everything = {"x.cu": "c0"}, "t0"
    made.functions = {"tests/test_kernel_x.py::test_it": "f0"}
    return made


def test_the_killer_is_the_name_without_how_it_ended():
    assert killer_of(KILLED) == "tests/test_kernel_x.py::test_it[1-(2, 3)]"
    assert killer_of(SURVIVED) == ""


def test_a_verdict_stands_until_what_it_rests_on_changes(tmp_path, sources):
    dead, alive = Mutant("x.cu", 1, "scale", "a * b", "a"), Mutant("x.cu", 2, "store", "c;", ";")
    record = Record(tmp_path / "record.json")
    record.keep(dead, KILLED, sources)
    record.keep(alive, SURVIVED, sources)
    again = Record(tmp_path / "record.json")

    def standing() -> tuple[str, str]:
        return again.standing(dead, sources), again.standing(alive, sources)

    assert standing() == (KILLED, SURVIVED)
    assert again.standing(replace(dead, line=7), sources) == KILLED, "the line has moved"
    assert again.standing(replace(dead, after="b"), sources) == ""
    sources.everything = "t1"
    assert standing() == (KILLED, ""), "any test may kill a survivor"
    sources.functions = {"tests/test_kernel_x.py::test_it": "f1"}
    assert standing() == ("", "")
    sources.functions, sources.everything = {"tests/test_kernel_x.py::test_it": "f0"}, "t0"
    sources.code = {"x.cu": "c1"}
    assert standing() == ("", "")


def test_a_record_forgets_what_is_no_mutant_any_more(tmp_path, sources):
    first, second = (Mutant("x.cu", n, "scale", f"a * {n}", "a") for n in range(2))
    record = Record(tmp_path / "record.json")
    record.keep(first, KILLED, sources)
    record.keep(second, KILLED, sources)
    record.forget_all_but([second])
    assert (record.verdict(first), record.verdict(second)) == ("", KILLED)


def test_the_tables_are_those_of_the_record():
    """python -m tools.mutants --write makes them."""
    record = Record()
    assert report.README.read_text() == report.readme_with(report.README.read_text(), record)
    assert report.LIST.read_text() == report.listing(record)


def test_a_verdict_whose_killer_is_no_test_any_more_is_given_again(tmp_path, sources):
    mutants = [Mutant("x.cu", n, "scale", f"a * {n}", "a") for n in range(3)]
    record = Record(tmp_path / "record.json")
    for mutant, verdict in zip(
        mutants, (KILLED, SURVIVED, KILLED.replace("[1", "[2")), strict=True
    ):
        record.keep(mutant, verdict, sources)

    def waiting(*options: str) -> list[Mutant]:
        return program._waiting(
            mutants, record, sources, frozenset({killer_of(KILLED)}), program._options(options)
        )

    assert waiting() == waiting("--gone") == mutants[2:]
    sources.everything = "t1"
    assert waiting() == mutants[1:]
    assert waiting("--gone") == mutants[2:]
    assert waiting("--sample", "1") == sample(mutants[1:], 1, seed=0)


def test_a_test_kills_by_time_only_beyond_three_times_its_own():
    seconds = {"quick": 0.5, "slow": 20.0}
    order = Order(list(seconds), Reply(seconds=seconds))
    assert [order.limit(tests) for tests in ([], ["quick"], ["quick", "slow"])] == [10, 10, 60]
    assert Order(list(seconds)).limit(["slow"]) == 10, "nothing is known of it"


def test_tests_that_need_no_further_compilation_come_first_and_those_of_other_kernels_not_at_all():
    builds = {
        "other": ["y.cu values"],
        "a": ["x.cu values k1"],
        "b": ["x.cu values k2"],
        "c": ["x.cu values k1", "y.cu values"],
        "d": ["x.cu values k3"],
        "e": ["x.cu values k2"],
    }
    order = Order(list(builds), Reply(seconds=dict.fromkeys(builds, 0.1), builds=builds))
    mutant = Mutant("x.cu", 5, "scale", "a * b", "a")
    assert order.for_mutant(mutant, ["x.cu"]) == (["a", "c", "b", "e", "d"], [])
    order.note(replace(mutant, line=7), "d")
    order.note(replace(mutant, line=6), "b")
    assert order.for_mutant(mutant, ["x.cu"])[0] == ["b", "d", "e", "a", "c"], (
        "nearest killer first"
    )
    assert order.for_mutant(mutant, ["y.cu"])[0] == ["other", "c"]


class CrewWithoutPytest(Crew):
    """A crew that is told what each test compiles, and keeps what it was asked to run."""

    def __init__(self, folder, builds):
        self.builds, self.ran = builds, []
        self.copies = [SimpleNamespace(cache=folder / "0.cache")]
        self.tests = list(builds)

    def _must_pass(self, tests, limit=0.0):
        self.ran += tests
        return Reply(seconds=dict.fromkeys(tests, 0.1), builds={t: self.builds[t] for t in tests})


def test_a_test_runs_without_a_mutant_again_only_if_what_it_compiles_has_changed(tmp_path, sources):
    on_x, on_y = "tests/test_kernel_x.py::test_x", "tests/test_kernel_x.py::test_y"
    crew = CrewWithoutPytest(tmp_path, {on_x: ["x.cu values k1"], on_y: ["y.cu values"]})
    sources.files = {"tests/test_kernel_x.py": "t"}
    sources.code = {"x.cu": "x0", "x.cuh": "h0", "y.cu": "y0"}
    sources.users = {"x.cu": ["x.cu"], "x.cuh": ["x.cu"], "y.cu": ["y.cu"]}

    def run() -> list[str]:
        crew.ran = []
        known = crew.baseline(sources, [Mutant("x.cu", 1, "scale", "a * b", "a")])
        assert known.builds == crew.builds
        return crew.ran

    assert run() == [on_x, on_y], "what they compile is not known yet"
    assert run() == []
    sources.code["x.cuh"] = "h1"
    assert run() == [on_x]
    sources.code["y.cu"] = "y1"
    assert run() == [], "no test of these mutants"
    sources.files = {"tests/test_kernel_x.py": "u"}
    assert run() == [on_x]


def test_code_is_compared_entry_by_entry_up_to_the_first_difference(tmp_path, monkeypatch):
    compared = []

    def object_code(path, defines, kept=False):
        assert kept == (path.parent.name == "original")
        compared.append((path.parent.name, *defines))
        return path.parent.name if defines == ("k3",) else b"the same"

    monkeypatch.setattr(judge, "object_code", object_code)
    monkeypatch.setattr(judge, "entries", lambda: [("x.cu", k, (k,)) for k in ("k2", "k3", "k4")])
    copy = SimpleNamespace(kernels=tmp_path / "kernels", original=tmp_path / "original")
    judges = SimpleNamespace(copy=copy)
    assert not judge.Judge._same_code(judges, ["x.cu"])
    assert compared[-2:] == [("kernels", "k3"), ("original", "k3")]
    compared.clear()
    assert judge.Judge._same_code(judges, ["y.cu"]), "a source without a table of entries: whole"
    assert compared == [("kernels",), ("original",)]


@pytest.mark.slow
@needs_compiler
def test_every_killer_on_record_is_a_test_of_today():
    """python -m tools.mutants --all --gone judges the mutants of others again."""
    command = [sys.executable, "-m", "pytest", "--collect-only", *worker.chosen(ROOT)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    collected = set(result.stdout.splitlines())
    verdicts = [entry.verdict for kept in Record().entries.values() for entry in kept.values()]
    assert {killer_of(verdict) for verdict in verdicts} - {""} - collected == set()


# -- running them ---------------------------------------------------------------------------------


def run_mutants(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.mutants", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(900)  # two and a half minutes of one idle core for the whole sample
@needs_compiler
def test_a_sample_of_the_mutants_is_killed(capsys, sweep):
    """At least 95 % of those that are not equivalent."""
    seed = 0 if sweep.is_whole else zlib.crc32(sweeps.seed().encode())
    result = run_mutants("--sample", str(sweep.number(16, 4)), "--seed", str(seed))
    with capsys.disabled():
        print(f"\n{result.stdout}")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@needs_compiler
def test_a_mutant_whose_tests_are_turned_off_is_reported_as_a_survivor():
    """The tool itself: what it calls killed, a test must have killed."""
    result = run_mutants("--sample", "1", "--only", "accumulate", "--tests", "test_kernel_launch")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "SURVIVED" in result.stdout
    assert "0 killed, 1 survived" in result.stdout
