"""The record of a kernel's arguments: declared in Python and in CUDA, held to each other by compilers,
filled by name, passed by value."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubackprop.backends.cupy import CupyBackend, arguments
from gpubackprop.backends.cupy.arguments import ARGUMENTS, checks, layout_named
from gpubackprop.backends.cupy_launch import KERNELS
from gpubackprop.errors import DtypeError
from tests import emulator, first_rung
from tests.emulator import compilers, cupy_stub
from tests.emulator import module as emulated
from tests.emulator.arrays import Guarded
from tests.emulator.cupy_stub import STATE
from tests.emulator.module import EmulatorError, Module
from tests.emulator.operations import Operations

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
F32 = (("ONLY_DTYPE", "f32"),)
BF16 = (("ONLY_DTYPE", "bf16"),)


def by_gxx(defines: tuple[tuple[str, str], ...]) -> None:
    emulated._preprocess.cache_clear()
    Module("column_sum.cu", defines=dict(defines), load=False)


def by_the_gpu_compiler(defines: tuple[tuple[str, str], ...]) -> None:
    if compilers.compiler() is None:
        pytest.skip(compilers.NONE_FOUND)
    compilers.compiler().compile("column_sum.cu", 90, defines)


COMPILERS = [by_gxx, by_the_gpu_compiler]


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, str]], None]]:
    """Declares another record of column_sum while a test lasts."""

    def caches_clear() -> None:
        arguments.layout_of.cache_clear()
        arguments._layouts.cache_clear()
        emulated._preprocess.cache_clear()

    def declare(fields: dict[str, str]) -> None:
        monkeypatch.setitem(ARGUMENTS, "column_sum", fields)
        caches_clear()

    yield declare
    monkeypatch.undo()
    caches_clear()


FIELDS = dict(ARGUMENTS["column_sum"])
SWAPPED = {**{name: FIELDS[name] for name in ("x", "partial", "cols", "rows")}, **FIELDS}
PLANTED = {
    "two fields swapped": (SWAPPED, "cols: column_sum_f32"),
    "a field dropped": ({name: FIELDS[name] for name in FIELDS if name != "stride"}, "binding|name"),
    "a field too many": (FIELDS | {"more": "i32"}, "more"),
    "a wider number": (FIELDS | {"join": "i64"}, "join: column_sum_f32"),
    "another name": (
        {("step" if name == "stride" else name): kind for name, kind in FIELDS.items()}, "step"
    ),
}  # fmt: skip


@pytest.mark.parametrize("compile_with", COMPILERS)
@pytest.mark.parametrize("plant", PLANTED)
def test_a_record_that_is_declared_otherwise_than_its_struct_does_not_compile(
    plant, compile_with, declared
):
    fields, said = PLANTED[plant]
    compile_with(F32)
    declared(fields)
    with pytest.raises((EmulatorError, compilers.CompileError), match=said):
        compile_with(F32)


@pytest.mark.parametrize("compile_with", COMPILERS)
def test_an_array_declared_of_another_type_than_the_structs_pointer_does_not_compile(
    compile_with, declared
):
    declared(FIELDS | {"x": "compute*"})
    compile_with(F32)  # there the two are one
    with pytest.raises((EmulatorError, compilers.CompileError), match="x: column_sum_bf16"):
        compile_with(BF16)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("int64 rows, cols, stride;", "int64 cols, rows, stride;", "rows: column_sum_f32"),
        ("int64 rows, cols, stride;", "int64 rows, cols;", "stride"),
        ("int join;", "int join, more;", "names provided|binding"),  # in what was padding
        ("compute_of<T>* partial;", "double* partial;", "partial: column_sum_f32"),
    ],
)
def test_a_struct_that_is_written_otherwise_than_its_record_does_not_compile(
    old, new, said, tmp_path
):
    kernels = tmp_path / "_kernels"
    shutil.copytree(emulated.KERNELS, kernels)
    source = kernels / "column_sum.cu"
    text = source.read_text(encoding="utf-8")
    assert text.count(old) == 1 or old.startswith("compute_of")
    source.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(EmulatorError, match=said):
        Module(source, defines=dict(F32), load=False)


def test_every_kernel_has_a_record_and_every_entry_is_checked():
    assert ARGUMENTS.keys() == KERNELS.keys()
    entries = [entry for _, entry, _ in arguments.entries()]
    text = checks(tuple(entries))
    assert text.count("using A = decltype(argument_of(") == len(entries)
    assert text.count("&member") == sum(len(layout_named(entry).kinds) for entry in entries)


def test_records_lie_as_a_compiler_lays_out_the_struct():
    """By hand: pointers and 64-bit numbers on multiples of 8, a float and the ints behind them."""
    dtype = layout_named("column_sum_finish_f32").dtype
    assert {name: dtype.fields[name][1] for name in dtype.names} == {
        "partial": 0, "out": 8, "divisor": 16, "rows": 32, "cols": 40, "empty_is_zero": 48,
    }  # fmt: skip
    assert dtype.itemsize == 56
    assert layout_named("column_sum_finish_f64").dtype.itemsize == 56
    most = max(layout_named(entry).dtype.itemsize for _, entry, _ in arguments.entries())
    assert most <= 4096, "what every card takes by value"


# -- filling --------------------------------------------------------------------------------------


def address(_: Any, name: str, array: np.ndarray) -> int:
    return int(array.ctypes.data)


def values(**others: Any) -> dict[str, Any]:
    x, partial = np.ones((3, 4), np.float32), np.ones((1, 4), np.float32)
    return {
        "x": x, "partial": partial, "rows": 3, "cols": 4, "stride": 4, "join": 1,
    } | others  # fmt: skip


def test_fields_are_filled_by_name_in_whatever_order_they_come():
    layout, given = layout_named("column_sum_f32"), values()
    record = layout.record(dict(reversed(given.items())), address)
    assert (int(record["rows"]), int(record["stride"]), int(record["join"])) == (3, 4, 1)
    assert int(record["x"]) == given["x"].ctypes.data
    assert record.arrays == {"x": given["x"], "partial": given["partial"]}
    assert (record.size, record.dtype) == (1, layout.dtype)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.pop("stride"), "column_sum_f32 has no value for stride"),
        (lambda v: v.update(eps=1), "column_sum_f32 has no field eps"),
        (lambda v: v.update(strides=v.pop("stride")), "for stride and has no field strides"),
    ],
)
def test_a_name_that_is_missing_or_unknown_is_an_error(change, said):
    given = values()
    change(given)
    with pytest.raises(TypeError, match=said):
        layout_named("column_sum_f32").record(given, address)


def test_a_fraction_is_no_integer_and_a_number_no_array():
    layout = layout_named("column_sum_f32")
    with pytest.raises(DtypeError, match=r"rows is an integer but got 3\.5"):
        layout.record(values(rows=3.5), address)
    with pytest.raises(OverflowError):
        layout.record(values(join=2**31), address)


def test_a_record_keeps_its_arrays_and_points_to_others():
    with cupy_stub.installed():
        backend = CupyBackend(0)
        made = [backend.zeros((3, 4), np.float32) for _ in range(2)]
        launch = backend.launcher.plan("column_sum", (3, 4), np.float32)
        partial = backend.zeros((1, 4), np.float32)
        _, _, (record,) = backend.launcher.bind(launch, values(x=made[0], partial=partial))
        assert record.arrays["x"] is made[0]
        record.point_to("x", made[1])
        assert (record.arrays["x"], int(record["x"])) == (made[1], made[1].data.ptr)


# -- by value -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_number_by_value_and_the_same_in_memory_give_the_same_bits(dtype):
    memory, rows = Guarded(1), 20
    z, t = (memory.normal((rows, 7), np.dtype(dtype)) for _ in range(2))
    found = []
    for upstream, divisor in ((0.3, 7.0), (np.array([0.3], dtype), np.array([7.0], dtype))):
        result = {"row_loss": np.empty(rows, dtype), "delta": np.empty_like(z)}
        mean = np.empty(1, dtype)
        ops = Operations()
        ops.pointwise_loss(z, t, "squared_error", result, upstream=upstream, divisor=divisor)
        found.append(result["delta"].tobytes())
        ops.softmax_cross_entropy(z, t, result, upstream=upstream, divisor=divisor)
        ops.column_sum(result["row_loss"][:, None], mean, divisor)
        found.append((result["delta"].tobytes(), mean.tobytes()))
    assert found[:2] == found[2:]


def launched(backend: CupyBackend, x: Any, out: Any) -> tuple[Any, Any, Any, Any]:
    """The entry of a column sum, and its arguments."""
    launch = backend.launcher.plan("column_sum", x.shape, x.dtype)
    given = values(x=x, partial=out, rows=x.shape[0], join=launch.join)
    return backend.launcher.entry(launch), *backend.launcher.bind(launch, given)


def test_a_launch_has_a_copy_of_its_record():
    """cuLaunchKernel copies; so a record may be filled anew at once, for the next launch."""
    with cupy_stub.installed():
        backend = CupyBackend(0)
        first, second = (backend.asarray(np.full((3, 4), n, np.float32)) for n in (1, 2))
        sums = [backend.zeros((1, 4), np.float32) for _ in range(2)]
        entry, grid, block, (record,) = launched(backend, first, sums[0])
        entry(grid, block, (record,))
        record.point_to("x", second)
        record.point_to("partial", sums[1])
        entry(grid, block, (record,))
        assert [float(one.get().sum()) for one in sums] == [12, 24]


def test_the_stand_in_refuses_what_cupy_would_pass_unseen():
    with cupy_stub.installed():
        backend = CupyBackend(0)
        x, out = backend.zeros((3, 4), np.float32), backend.zeros((1, 4), np.float32)
        entry, grid, block, (record,) = launched(backend, x, out)
        with pytest.raises(TypeError, match=r"of shape \(2,\) as a kernel parameter"):
            entry(grid, block, (np.zeros(2, record.dtype),))  # CuPy's own words
        with pytest.raises(TypeError, match="another record"):
            entry(grid, block, (np.zeros((), np.float64),))
        record["x"] += 4
        with pytest.raises(cupy_stub.CUDARuntimeError, match="nothing is kept at x"):
            entry(grid, block, (record,))
        assert STATE.counts.kernels.count("column_sum_f32") == 0


def test_an_argument_of_another_size_than_the_struct_is_refused_by_the_emulator():
    short = emulated.ByValue(np.zeros((), [("x", np.uintp)]), {})
    with pytest.raises(EmulatorError, match="takes 48 bytes but got 8"):
        Module("column_sum.cu", defines=dict(F32))("column_sum_f32", (1,), (32, 8), [short])


def test_no_source_has_an_entry_with_more_than_its_record():
    for path in sorted(Path(emulated.KERNELS).glob("*.cu")):
        if path.name == first_rung.SOURCE:
            continue  # for readers; the package has no record of it
        for entry, parameters in emulated.signatures(path).items():
            assert len(parameters) == 1, entry
            assert "__grid_constant__" in parameters[0], entry
