"""tests/compiled.py: a record of what was compiled whole is worth nothing after a change."""

from __future__ import annotations

import json

import pytest

from tests import compiled
from tests.emulator import compilers
from tests.emulator.module import missing_compiler

pytestmark = pytest.mark.skipif(
    compilers.compiler() is None or bool(missing_compiler()), reason="needs g++ and NVRTC"
)


def test_a_key_changes_with_source_header_card_options_and_test(monkeypatch):
    key = compiled.key_of("update.cu", 90, "check")
    assert compiled.key_of("update.cu", 90, "check") == key
    others = {
        compiled.key_of("update.cu", 75, "check"),
        compiled.key_of("update.cu", 90, "another check"),
        compiled.key_of("column_sum.cu", 90, "check"),
    }
    monkeypatch.setattr(compilers, "OPTIONS", (*compilers.OPTIONS, "--fmad=false"))
    others.add(compiled.key_of("update.cu", 90, "check"))
    monkeypatch.setattr(compiled, "_preprocess", lambda path, defines: "an edited header")
    others.add(compiled.key_of("update.cu", 90, "check"))
    assert len(others) == 5
    assert key not in others


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
