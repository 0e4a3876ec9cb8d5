"""tools/mutants.py: mutants are made as it says, and a sample of them is killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import emulator
from tools import mutants

KERNELS = mutants.ROOT / "kernels"


def lines_of(text: str, kind: str) -> set[str]:
    return {m.after.strip() for m in mutants.mutants_of("x.cu", text) if m.kind == kind}


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
        ("int lane = threadIdx.x % 32;", "lane", "int lane = threadIdx.x % 16;"),
        ("out[i] = weight;", "store", ";"),
        ("if (copy != nullptr) store_part(copy + i, narrowed, lo, hi);", "store",
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
        ]
    )
    assert {m.line for m in mutants.mutants_of("x.cu", text)} == {7}


def test_every_source_is_mutated_and_every_kernel_has_tests_of_its_values():
    made = mutants.all_mutants(KERNELS)
    with_code = {m.file for m in made}
    without = {p.relative_to(KERNELS).as_posix() for p in KERNELS.rglob("*.cu*")} - with_code
    assert without == {"include/entries.cuh"}
    stems = {stem for names in mutants.VALUE_TESTS.values() for stem in names}
    assert stems == {path.stem for path in KERNELS.glob("*.cu")}
    users = mutants.users(KERNELS)
    assert users["include/reduce.cuh"] >= {"accumulate", "pointwise_loss", "sum_of_squares"}
    assert users["update.cu"] == {"update"}
    for name in (*mutants.VALUE_TESTS, *mutants.OTHER_TESTS):
        assert (mutants.ROOT / "tests" / name).is_file()


def test_a_sample_does_not_change_with_an_edit_elsewhere():
    made = mutants.all_mutants(KERNELS)
    chosen = mutants.sample(made, 20, seed=3)
    others = [m for m in made if m not in chosen]
    assert mutants.sample([*others[100:], *chosen], 20, seed=3) == chosen
    assert mutants.sample(made, 20, seed=4) != chosen


def test_every_equivalent_mutant_still_exists():
    """An entry whose line was edited says nothing any more."""
    made = mutants.all_mutants(KERNELS)
    stale = [
        (file, old, new)
        for file, old, new in mutants.EQUIVALENT
        if not any(m.file == file and m.before.replace(old, new, 1) == m.after for m in made)
    ]
    assert stale == []


@pytest.mark.slow
@pytest.mark.skipif(bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-")
def test_a_sample_of_the_mutants_is_killed(capsys):
    """At least 95 %: of so few, all."""
    command = [sys.executable, "tools/mutants.py", "--sample", "8", "--seed", "0"]
    result = subprocess.run(command, cwd=Path(mutants.ROOT), capture_output=True, text=True)
    with capsys.disabled():
        print(f"\n{result.stdout}")
    assert result.returncode == 0, result.stdout + result.stderr
