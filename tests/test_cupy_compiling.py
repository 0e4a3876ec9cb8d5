"""Kernels compiled once and kept on disk, on the stand-in for CuPy."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gpubackprop.backends.cupy import CupyBackend, compiling
from gpubackprop.backends.cupy.launcher import Launcher
from gpubackprop.errors import DeviceUnavailable
from gpubackprop.formulas import ACTIVATIONS
from tests import emulator
from tests.emulator import cupy_stub

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
ENTRY = ("column_sum.cu", "column_sum_f32", (("ONLY_DTYPE", "f32"),))


@pytest.fixture
def cupy(monkeypatch, tmp_path) -> Iterator[SimpleNamespace]:
    """The stand-in with a cache of its own; `sources` are what NVRTC was given."""
    with cupy_stub.installed(), tempfile.TemporaryDirectory() as own:
        module = cupy_stub.module()
        compile_one, sources = module.cuda.compiler.compile_using_nvrtc, []

        def compile_and_note(source, *args, **options):
            sources.append(source)
            return compile_one(source, *args, **options)

        monkeypatch.setenv("CUPY_CACHE_IN_MEMORY", "0")
        monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
        monkeypatch.setattr(module.cuda.compiler, "compile_using_nvrtc", compile_and_note)
        monkeypatch.setattr(compiling, "own_directory", lambda: Path(own))
        yield SimpleNamespace(module=module, sources=sources, directory=tmp_path / "cache")
        compiling._loaded.clear()


def compile_anew(cupy, index: int = 0, entry=ENTRY):
    """As a new process would."""
    compiling._loaded.clear()
    return compiling.compiled(cupy.module, index, entry)


def test_a_second_process_reads_what_the_first_compiled(cupy):
    assert compile_anew(cupy).__name__ == "column_sum_f32"
    (file,) = (cupy.directory / "gpubackprop").iterdir()
    assert file.suffix == ".cubin"
    compile_anew(cupy)
    assert len(cupy.sources) == 1


def test_whatever_the_code_depends_on_compiles_it_again(cupy, monkeypatch):
    compile_anew(cupy)
    compile_anew(cupy, entry=("column_sum.cu", "column_sum_f64", (("ONLY_DTYPE", "f64"),)))
    assert len(cupy.sources) == 2
    monkeypatch.setattr(compiling, "_sources", lambda: "an edited header")
    compile_anew(cupy)
    monkeypatch.setattr(cupy.module.cuda.nvrtc, "getVersion", lambda: (13, 9))
    compile_anew(cupy)
    monkeypatch.setattr(cupy_stub.Device, "compute_capability", "100")
    compile_anew(cupy)
    monkeypatch.setattr(compiling, "OPTIONS", (*compiling.OPTIONS, "--minimal"))
    compile_anew(cupy)
    assert len(cupy.sources) == 6
    compile_anew(cupy, index=1)  # another GPU of the same kind
    assert len(cupy.sources) == 6


def test_what_a_plan_needs_is_compiled_at_the_same_time(cupy, monkeypatch):
    """A barrier that only two compilations at a time can pass."""
    monkeypatch.setattr(compiling, "available_cores", lambda: 2)
    compile_one, both = cupy.module.cuda.compiler.compile_using_nvrtc, threading.Barrier(2)

    def compile_with_another(*args, **options):
        both.wait(timeout=10)
        return compile_one(*args, **options)

    monkeypatch.setattr(cupy.module.cuda.compiler, "compile_using_nvrtc", compile_with_another)
    backend = CupyBackend(0)
    a, seen = backend.asarray(np.ones((3, 2))), []

    def emit(verbs):
        verbs.activation_forward(a, ACTIVATIONS["relu"], a)
        verbs.call(seen.append, 1)
        verbs.activation_forward(a, ACTIVATIONS["tanh"], a)
        verbs.activation_forward(a, ACTIVATIONS["relu"], a)

    compiling._loaded.clear()
    replay = backend.plan(emit)
    assert (len(cupy.sources), seen) == (2, [])
    replay()
    assert seen == [1]
    assert np.array_equal(backend.to_host(a), np.full((3, 2), np.tanh(1.0)))
    backend.plan(emit)
    compiling._loaded.clear()  # a new process
    backend.plan(emit)
    assert len(cupy.sources) == 2, "they were on disk"


def test_where_no_thread_can_be_started_the_entries_are_compiled_one_by_one(cupy, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(compiling, "available_cores", lambda: 2)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    entries = [
        ("column_sum.cu", f"column_sum_{suffix}", (("ONLY_DTYPE", suffix),))
        for suffix in ("f32", "f64")
    ]
    compiling._loaded.clear()
    compiling.compile_together(cupy.module, 0, entries)
    assert len(cupy.sources) == 2
    assert len(list(compiling.cache_directory().glob("*.cubin"))) == 2


def test_the_cache_is_tried_out_once_a_process(cupy, monkeypatch, tmp_path):
    made = []
    really = compiling.tempfile.TemporaryFile
    monkeypatch.setattr(
        compiling.tempfile, "TemporaryFile", lambda **k: made.append(k) or really(**k)
    )
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "new"))
    for _ in range(3):
        assert compiling.cache_directory() == tmp_path / "new" / "gpubackprop"
    assert len(made) == 1


def test_an_entry_of_a_plan_that_does_not_compile_is_named(cupy, monkeypatch):
    def refuse(*args, **options):
        raise cupy_stub.CompileException("a.cu(1): error: bad")

    monkeypatch.setattr(cupy.module.cuda.compiler, "compile_using_nvrtc", refuse)
    backend = CupyBackend(0)
    a = backend.zeros((3, 2), float)

    def emit(verbs):
        verbs.activation_forward(a, ACTIVATIONS["relu"], a)
        verbs.activation_forward(a, ACTIVATIONS["tanh"], a)

    compiling._loaded.clear()
    said = "compiling affine_epilogue_relu_f64, affine_epilogue_tanh_f64"
    with pytest.raises(DeviceUnavailable, match=said):
        backend.plan(emit)


@pytest.mark.parametrize("reason", ["not a directory", "in memory"])
def test_without_a_place_on_disk_it_lasts_as_long_as_the_process(
    cupy, monkeypatch, tmp_path, reason
):
    if reason == "in memory":
        monkeypatch.setenv("CUPY_CACHE_IN_MEMORY", "1")
    else:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "file"))
    compile_anew(cupy)
    assert len(cupy.sources) == 1
    assert not cupy.directory.exists()
    assert list(compiling.cache_directory().glob("*.cubin"))


def test_ptx_of_an_older_nvrtc_is_kept_as_bytes(cupy, monkeypatch):
    made = cupy.module.cuda.compiler.compile_using_nvrtc

    def as_text(*args, **options):
        code, mapping = made(*args, **options)
        return code.decode(), mapping

    monkeypatch.setattr(cupy.module.cuda.compiler, "compile_using_nvrtc", as_text)
    assert compile_anew(cupy).__name__ == "column_sum_f32"


@pytest.mark.parametrize(
    ("capability", "numbers"), [("75", (7, 5)), ("90", (9, 0)), ("100", (10, 0)), ("120", (12, 0))]
)
def test_the_card_is_what_cupy_says(cupy, monkeypatch, capability, numbers):
    monkeypatch.setattr(cupy_stub.Device, "compute_capability", capability)
    properties = Launcher(cupy.module, 0).properties
    assert (properties.capability, properties.shared_bytes) == (numbers, 232_448)
