"""Kernels compiled once and kept on disk, on the stand-in for CuPy."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from gpubackprop.backends.cupy import compiling
from gpubackprop.backends.cupy.launcher import Launcher
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
        monkeypatch.setattr(compiling, "_own_directory", lambda: own)
        yield SimpleNamespace(module=module, sources=sources, directory=tmp_path / "cache")
        compiling.compiled.cache_clear()


def compile_anew(cupy, index: int = 0, entry=ENTRY):
    """As a new process would."""
    compiling.compiled.cache_clear()
    return compiling.compiled(cupy.module, index, *entry)


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
