"""The library of host kernels is found, compiled or done without, whatever state the machine is in."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gpubackprop import ops
from gpubackprop.backends import HOST
from gpubackprop.backends.native import arguments, compiler, compiling, library
from tests import native_builds
from tests.native_builds import doubled, put_in_place, write_sources
from tests.threads import run_in_threads

ROOT = Path(__file__).resolve().parents[1]
HAS_COMPILER = bool(compiler.candidates())
pytestmark = pytest.mark.skipif(
    not HAS_COMPILER or sys.platform == "win32", reason="wants a C++ compiler and a POSIX shell"
)
DOUBLED = [1.0, 4.0, 6.0, 4.0]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and small kernels in place of the real ones."""
    put_in_place(write_sources(tmp_path / "kernels"), monkeypatch.setattr)
    folder = tmp_path / "cache"
    monkeypatch.setenv("GPUBACKPROP_CACHE_DIR", str(folder))
    monkeypatch.delenv(library.VARIABLE, raising=False)
    monkeypatch.delenv("CXX", raising=False)
    return folder


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes a shell script the only compiler; returns the file in which it counts its starts."""

    def make(script: str) -> Path:
        starts, folder = tmp_path / "starts", tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / "g++"
        program.write_text(f"#!/bin/sh\necho x >> {shlex.quote(str(starts))}\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
        return starts

    return make


def look_again() -> library.HostPath:
    """Look for the library as another process does."""
    library._path = None
    return library.host_path()


def libraries(cache: Path) -> list[Path]:
    return sorted(cache.glob(f"*{compiling.SUFFIX}"))


def process(cache: Path, *command: str, **environment: str) -> subprocess.Popen[str]:
    sources = cache.parent / "kernels"
    code = command or (sys.executable, "-m", "tests.native_builds", str(sources))
    return subprocess.Popen(
        code, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_the_first_call_compiles_and_says_so_in_one_line_and_later_ones_find_the_file(cache, capfd):
    here = library.host_path()
    assert here.name == "native"
    assert here.library is not None
    assert doubled(here.library) == DOUBLED
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("gpubackprop: compiling the host kernels with ")
    assert "GPUBACKPROP_NATIVE=0 turns this off" in said[0]
    assert said[0].endswith(" s")
    again = look_again()
    assert again.file == here.file
    assert capfd.readouterr().err == ""
    assert [str(path) for path in libraries(cache)] == [here.file]
    assert sorted(path.name for path in cache.iterdir()) == [Path(here.file).name]


def test_names_of_formulas_are_numbered_as_the_library_lists_them(cache):
    found = library.library()
    assert found is not None
    assert (found.activations, found.losses) == ({"relu": 0}, {})
    assert found.updates == {"sgd": 0, "adam": 1}


def test_an_environment_variable_turns_it_off(cache, monkeypatch, capfd):
    monkeypatch.setenv(library.VARIABLE, "0")
    here = library.host_path()
    assert (here.name, here.library) == ("numpy", None)
    assert here.reason == "GPUBACKPROP_NATIVE=0 turns the compiled kernels off"
    assert not cache.exists()
    assert capfd.readouterr().err == ""


def test_without_a_compiler_numpy_computes_and_says_nothing(
    cache, only, tmp_path, monkeypatch, capfd
):
    only("exit 1")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    here = library.host_path()
    assert here.library is None
    assert here.reason == library.NO_COMPILER
    assert 'pip install "gpubackprop[native]"' in here.reason
    _, delta = ops.softmax_cross_entropy(np.zeros((1, 2)), np.array([1]))
    assert delta.tolist() == [[0.5, -0.5]]
    assert capfd.readouterr().err == ""


def test_a_broken_compiler_is_not_asked_again_until_the_next_day(cache, only):
    starts = only('echo "double_it.cpp:1: error: no such instruction" >&2; exit 1')
    here = library.host_path()
    assert here.library is None
    assert here.reason == (
        "g++ does not compile the kernels: double_it.cpp:1: error: no such instruction"
    )
    asked = starts.read_text()
    assert look_again().reason == here.reason
    assert starts.read_text() == asked
    (failed,) = cache.glob("*.failed")
    os.utime(failed, (0, time.time() - compiling.FAILURE_SECONDS - 60))
    assert look_again().reason == here.reason
    assert starts.read_text().count("x") > asked.count("x")  # a second unit may be ended before it


def test_a_compiler_that_leaves_no_library_or_no_word_is_a_broken_one(cache, only):
    only("exit 0")
    assert library.host_path().reason.endswith("it left no library")
    only("exit 3 # another text")
    assert look_again().reason.endswith("it ended with code 3")


def test_a_compiler_that_writes_nonsense_is_a_broken_one_and_its_library_is_not_loaded(cache, only):
    only('for out; do :; done; echo nonsense > "$out"')
    here = library.host_path()
    assert here.library is None
    assert here.reason.startswith("g++ does not compile the kernels: ")
    assert look_again().library is None


def test_a_compiler_that_hangs_is_ended_with_its_children(cache, only, tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "SECONDS", 1.0)
    pid = tmp_path / "pid"
    sleep = shutil.which("sleep")
    only(f"{sleep} 60 & echo $! > {shlex.quote(str(pid))}; wait")
    begin = time.monotonic()
    here = library.host_path()
    assert here.library is None
    assert here.reason == "g++ does not compile the kernels: it took more than 1 s"
    assert time.monotonic() - begin < 30
    assert _is_gone(int(pid.read_text()))


def _is_gone(pid: int) -> bool:
    for _ in range(200):
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat")
            if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_ctrl_c_ends_the_compiler_and_the_next_call_looks_again(cache, monkeypatch):
    ended, wait = [], subprocess.Popen.wait

    def interrupted(self, timeout=None):
        if timeout is not None:
            raise KeyboardInterrupt
        ended.append(wait(self))

    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            library.host_path()
    assert ended
    assert library.host_path().library is not None


def test_a_cache_that_cannot_be_written_is_replaced_by_a_folder_of_the_process(
    cache, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GPUBACKPROP_CACHE_DIR", str(tmp_path / "file" / "cache"))
    here = library.host_path()
    assert here.library is not None
    assert doubled(here.library) == DOUBLED
    assert Path(here.file).parent == compiling.own_directory()


def test_a_cache_where_no_code_may_run_is_replaced_by_a_copy(cache, monkeypatch):
    class Picky(library.Library):
        def __init__(self, path: Path) -> None:
            if path.parent == cache:
                raise OSError("failed to map segment from shared object")
            super().__init__(path)

    monkeypatch.setattr(library, "Library", Picky)
    here = library.host_path()
    assert here.library is not None
    assert Path(here.file).parent == compiling.own_directory()


def test_the_cache_lies_where_the_variables_say(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUBACKPROP_CACHE_DIR", str(tmp_path / "own"))
    assert compiling.cache_directory() == tmp_path / "own"
    monkeypatch.delenv("GPUBACKPROP_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert compiling.cache_directory() == tmp_path / "xdg" / "gpubackprop"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compiling.cache_directory() == tmp_path / ".cache" / "gpubackprop"


def test_a_file_that_was_cut_or_changed_is_removed_and_made_anew(cache):
    def cut(content: bytes) -> bytes:
        return content[: len(content) // 2]

    def change(content: bytes) -> bytes:
        return content[:600] + bytes([content[600] ^ 1]) + content[601:]

    library.host_path()
    for damage in (cut, change, lambda content: b""):
        (path,) = libraries(cache)
        path.with_suffix(".tmp").write_bytes(damage(path.read_bytes()))  # type: ignore[no-untyped-call]
        path.with_suffix(".tmp").replace(path)
        here = look_again()
        assert here.library is not None
        assert doubled(here.library) == DOUBLED
        (path,) = libraries(cache)
        assert path.stem.partition("-")[2] == compiling._digest(path.read_bytes())


def test_the_cache_of_another_machine_compiler_or_text_is_left_alone(cache, tmp_path, monkeypatch):
    first = library.host_path().file
    monkeypatch.setattr(compiling, "machine", lambda: "another processor")
    second = look_again().file
    monkeypatch.setattr(compiling, "FLAGS", (*compiler.FLAGS, "-DOTHER"))
    third = look_again().file
    write_sources(tmp_path / "kernels", source=native_builds.SOURCE + "// another text\n")
    fourth = look_again().file
    monkeypatch.setattr(compiler, "_identity", lambda path: f"{path} of another version")
    fifth = look_again().file
    assert {Path(name) for name in (first, second, third, fourth, fifth)} == set(libraries(cache))
    assert len(libraries(cache)) == 5


def test_a_machine_is_told_by_its_architecture_and_instructions():
    said = compiler.machine()
    assert sys.platform in said
    if sys.platform == "linux" and compiler.is_x86():
        flags = [line for line in said.splitlines() if line.startswith("flags")]
        assert len(flags) == 1
        assert " sse2 " in flags[0]


def test_processes_that_compile_at_once_all_compute_right(cache):
    running = [process(cache) for _ in range(4)]
    for one in running:
        out, err = one.communicate(timeout=120)
        assert one.returncode == 0, err
        name, file, _, result = out.splitlines()
        assert (name, result) == ("native", str(DOUBLED))
        assert Path(file) in libraries(cache)
    assert all(path.suffix == compiling.SUFFIX for path in cache.iterdir())


def test_threads_whose_first_call_comes_at_once_compile_one_time(cache, capfd):
    begin, found = threading.Barrier(4), list[object]()

    def work(number: int) -> None:
        begin.wait()
        found.append(library.library())

    run_in_threads(work)
    assert len(set(map(id, found))) == 1
    assert found[0] is not None
    assert len(capfd.readouterr().err.splitlines()) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_computes_with_the_library_and_looks_for_it_even_if_a_thread_was_looking(cache):
    program = """
import os, sys
from pathlib import Path
from tests import native_builds
from gpubackprop.backends.native import library
native_builds.put_in_place(Path(sys.argv[1]))
library._looking.acquire()  # as another thread does while it compiles
child = os.fork()
if child == 0:
    ok = native_builds.doubled(library.library()) == [1.0, 4.0, 6.0, 4.0]
    os._exit(0 if ok else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
library._looking.release()
found = library.library()
child = os.fork()
if child == 0:
    os._exit(0 if native_builds.doubled(found) == [1.0, 4.0, 6.0, 4.0] else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    one = process(cache, sys.executable, "-c", program, str(cache.parent / "kernels"))
    _, err = one.communicate(timeout=120)
    assert one.returncode == 0, err


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("struct DoubleItArguments { double* x; long long last, first; };", "differ in first"),
        ("struct DoubleItArguments { double* x; long long first, last, more; };", "differ in their size"),
        ("struct DoubleItArguments { double* x; double first; long long last; };", "differ in first"),
        ("struct DoubleItArguments { double* x; int first; long long last; };", "differ in first"),
    ],
)  # fmt: skip
def test_a_struct_that_differs_from_its_fields_here_does_not_compile(cache, header, said):
    write_sources(cache.parent / "kernels", header="#pragma once\n" + header)
    here = library.host_path()
    assert here.library is None
    assert f"DoubleItArguments and gpubackprop/backends/native/arguments.py {said}" in here.reason


def test_what_a_library_lacks_is_computed_by_numpy(cache, monkeypatch):
    fields = native_builds.FIELDS | {"other": {"x": "*"}}
    monkeypatch.setattr(arguments, "ARGUMENTS", fields)
    header = native_builds.HEADER + "struct OtherArguments { void* x; };\n"
    write_sources(cache.parent / "kernels", header=header)
    found = library.library()
    assert found is not None
    assert found.has == {"double_it"}
    assert doubled(found) == DOUBLED
    out = np.empty(2, np.float32)
    HOST.column_sum(np.ones((3, 2), np.float32), out)
    assert out.tolist() == [3.0, 3.0]


def test_a_record_has_a_value_for_each_field_and_keeps_its_arrays(cache):
    x = np.zeros(3)
    made = arguments.record("double_it", {"x": x, "first": 0, "last": 3})
    assert made.x == x.ctypes.data
    assert made.arrays["x"] is x
    with pytest.raises(TypeError, match="the record of double_it is not as declared in last"):
        arguments.record("double_it", {"x": x, "first": 0})
    with pytest.raises(TypeError, match=r"float|int"):
        arguments.record("double_it", {"x": x, "first": 0.5, "last": 3})
    with pytest.raises(TypeError, match="x of double_it is float64 but must be an array"):
        arguments.record("double_it", {"x": x[0], "first": 0, "last": 3})


def test_the_address_of_an_array_is_what_numpy_says():
    base = np.arange(24.0).reshape(4, 6)
    for array in (base, base[1:, 2:], base.T, base[::-1], base[:0], np.zeros((), np.int8)):
        assert arguments.address(array) == array.__array_interface__["data"][0]


def test_importing_the_package_looks_for_nothing(tmp_path):
    program = (
        "import sys, gpubackprop\n"
        "from gpubackprop.backends.native import library\n"
        "assert library._path is None\n"
        "for name in ('compiling', 'compiler'):\n"
        "    assert f'gpubackprop.backends.native.{name}' not in sys.modules\n"
        "gpubackprop.MLP([2, 3, 2])\n"
        "assert library._path is None\n"
    )
    one = process(tmp_path, sys.executable, "-c", program, GPUBACKPROP_CACHE_DIR=str(tmp_path))
    _, err = one.communicate(timeout=60)
    assert one.returncode == 0, err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_wheel_ziglang_compiles_it_too(cache, monkeypatch):
    pytest.importorskip("ziglang")
    monkeypatch.setattr(compiler, "NAMES", ())
    here = library.host_path()
    assert here.reason == "compiled by zig c++"
    assert here.library is not None
    assert doubled(here.library) == DOUBLED


def test_other_python_threads_run_during_a_call(cache):
    found = library.library()
    assert found is not None
    assert not found.double_it._flags_ & ctypes._FUNCFLAG_PYTHONAPI  # such keep the lock
