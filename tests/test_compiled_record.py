"""tests/compiled.py: a record of what was compiled whole is worth nothing after a change."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from tests import compiled, compiled_resources
from tests.emulator import compilers
from tests.emulator.module import missing_compiler

pytestmark = pytest.mark.skipif(
    compilers.compiler() is None or bool(missing_compiler()), reason="needs g++ and NVRTC"
)


def test_a_key_changes_with_source_card_options_entries_and_what_is_asserted(monkeypatch):
    entries = ["update_adam_f32", "update_lion_f32"]
    key = compiled.key_of("update.cu", 90, entries)
    assert compiled.key_of("update.cu", 90, entries[::-1]) == key
    others = {
        compiled.key_of("update.cu", 75, entries),
        compiled.key_of("update.cu", 90, entries[1:]),
        compiled.key_of("column_sum.cu", 90, entries),
    }
    monkeypatch.setattr(compilers, "OPTIONS", (*compilers.OPTIONS, "--fmad=false"))
    others.add(compiled.key_of("update.cu", 90, entries))
    before = compiled.key_of("update.cu", 90, entries)
    monkeypatch.setitem(compiled_resources.THREADS, "accumulate", 64)
    assert compiled.key_of("update.cu", 90, entries) == before, "another kernel's row"
    monkeypatch.setitem(compiled_resources.THREADS, "update", 64)
    others.add(compiled.key_of("update.cu", 90, entries))
    assert len(others) == 5
    assert key not in others


@pytest.fixture
def kernels(monkeypatch, tmp_path):
    """A copy of the kernels, which a test may edit."""
    copy = tmp_path / "kernels"
    shutil.copytree(compilers.KERNELS, copy)
    monkeypatch.setattr(compilers, "KERNELS", copy)
    return copy


@pytest.mark.parametrize(
    ("edited", "to", "due"),
    [
        ("cvt.f32.f16 %0, %1;", "cvt.f32.f16 %1, %0;", {75, 80, 90}),
        ("cvt.rn.bf16.f32 %0, %1;", "cvt.rz.bf16.f32 %0, %1;", {80, 90}),
        ("mapa.u64", "mapa.u32", {90}),
        ("cvt.rn.tf32.f32 %0, %1;", "cvt.rna.tf32.f32 %0, %1;", {90}),
        ("float(fraction) * 5.9", "float(fraction) * 6.9", set()),
        ("// float16 -> float32, exact.", "// exact", set()),
    ],
    ids=["every card's line", "sm_80's", "sm_90's", "CUDA 12.1's", "the emulator's", "a comment"],
)
def test_a_changed_line_of_a_header_makes_due_the_cards_whose_compiler_reads_it(
    kernels, edited, to, due
):
    def keys():
        return {
            card: compiled.key_of("softmax_cross_entropy.cu", card, []) for card in (75, 80, 90)
        }

    header = kernels / "include" / "ptx.cuh"
    text, before = header.read_text(), keys()
    assert edited in text
    header.write_text(text.replace(edited, to))
    after = keys()
    assert {card for card in before if after[card] != before[card]} == due


def test_the_kernels_ask_for_no_macro_of_a_compiler_that_a_key_does_not_know():
    """`compilers.device_code` sets four of them; g++ has the fifth, and clang's is not there."""
    text = "\n".join(path.read_text() for path in compilers.KERNELS.rglob("*.cu*"))
    asked = re.findall(r"\b__\w+__\b", "\n".join(re.findall(r"^\s*#.*if.*", text, re.MULTILINE)))
    known = {"__CUDA_ARCH__", "__CUDACC__", "__CUDACC_VER_MAJOR__", "__CUDACC_VER_MINOR__"}
    assert set(asked) == known | {"__GNUC__", "__clang__"}


def test_what_is_kept_of_a_compiler_is_made_once_and_another_time_for_another_text(
    kernels, monkeypatch, tmp_path
):
    monkeypatch.setattr(compilers.builds, "directory", lambda: tmp_path)
    tool, made = compilers.compiler(), []

    class Counting:
        version = tool.version

        def outputs(self, *arguments):
            made.append(arguments)
            return "ptx", "report", b"cubin"

    def ask(*arguments):
        return compilers.kept(Counting(), *arguments)

    one = ("accumulate.cu", 90, (("ONLY_DTYPE", "f32"),))
    assert ask(*one) == ask(*one) == ("ptx", "report", b"cubin")
    assert made == [one]
    source = kernels / "accumulate.cu"
    source.write_text(source.read_text() + "// a comment\n")
    ask(*one)
    assert len(made) == 1
    source.write_text(source.read_text() + "__device__ int more;\n")
    ask(*one)
    ask("accumulate.cu", 75, one[2])
    assert len(made) == 3
    ask("accumulate.cu", 75, ())
    ask("accumulate.cu", 75, ())
    assert len(made) == 5, "a whole file is not kept: compiled.json has what passed"


def test_what_passed_is_written_down_only_where_that_is_asked_for(monkeypatch, tmp_path):
    record = tmp_path / "compiled.json"
    record.write_text('{"b.cu-90": "1"}')
    monkeypatch.setattr(compiled, "RECORD", record)
    monkeypatch.delenv("GPUBACKPROP_RECORD", raising=False)
    compiled.passed("a.cu-90", "2")
    assert not compiled.is_on_record("a.cu-90", "2")
    monkeypatch.setenv("GPUBACKPROP_RECORD", "1")
    compiled.passed("a.cu-90", "2")
    assert compiled.is_on_record("a.cu-90", "2")
    assert not compiled.is_on_record("a.cu-90", "3")
    assert json.loads(record.read_text()) == {"a.cu-90": "2", "b.cu-90": "1"}


def test_a_sample_is_the_same_on_a_day_and_another_with_another_seed(monkeypatch):
    entries = [f"entry_{n}" for n in range(40)]
    monkeypatch.setenv("GPUBACKPROP_SEED", "1")
    first = compiled.sample(entries, "a.cu-90")
    assert compiled.sample(entries[::-1], "a.cu-90") == first
    seen = set()
    for seed in range(20):
        monkeypatch.setenv("GPUBACKPROP_SEED", str(seed))
        seen |= set(compiled.sample(entries, "a.cu-90"))
    assert len(seen) > 15
