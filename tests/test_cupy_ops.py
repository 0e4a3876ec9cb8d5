"""What concerns the operations on CuPy arrays alone: where they run, what they wait for, mixing.

Their values are held three ways, with `tests/ways.py`, in the tests of the operations.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpubackprop import backends, ops
from gpubackprop.backends import arrays
from gpubackprop.backends.cupy import memory
from gpubackprop.errors import DeviceUnavailable, DtypeError, OptionError, TargetRangeError
from tests import emulator
from tests.emulator import cupy_stub

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
RNG = np.random.default_rng(0)
LABELS = np.array([0, 1, 2, 1, 0])


@pytest.fixture(autouse=True)
def counts() -> Iterator[cupy_stub.Counts]:
    with cupy_stub.installed() as counted:
        yield counted


def there(array: Any, device: int = 0) -> Any:
    return cupy_stub.ndarray(np.array(array), device)


def matrix(rows: int = 5, columns: int = 3, device: int = 0) -> Any:
    return there(RNG.normal(size=(rows, columns)), device)


class Offered:
    """CUDA memory of another library, shown by __cuda_array_interface__."""

    def __init__(self, array: cupy_stub.ndarray) -> None:
        self._host, self.__cuda_array_interface__ = (
            array._host,
            array.__cuda_array_interface__,
        )


CALLS = {
    "affine_forward": lambda: ops.affine_forward(matrix(), matrix(4), there(np.ones(4)), "gelu"),
    "affine_backward": lambda: ops.affine_backward(matrix(5, 4), matrix(5, 4), matrix(), matrix(4)),
    "activation_forward": lambda: ops.activation_forward(matrix(), "tanh"),
    "activation_backward": lambda: ops.activation_backward(matrix(), matrix(), "tanh"),
    "column_sum": lambda: ops.column_sum(matrix()),
    "dropout_backward": lambda: ops.dropout_backward(matrix(), 0.5, seed=1),
    "dropout_forward": lambda: ops.dropout_forward(matrix(), 0.5, seed=1),
    "linear_cross_entropy": lambda: ops.linear_cross_entropy(
        matrix(),
        matrix(4),
        there(np.ones(4)),
        there(LABELS),
        sample_weight=there(np.ones(5)),
        class_weight=there(np.ones(4)),
    )[:4],
    "log_softmax": lambda: ops.log_softmax(matrix()),
    "pointwise_loss": lambda: ops.pointwise_loss("squared_error", matrix(), matrix()),
    "softmax": lambda: ops.softmax(matrix()),
    "softmax_cross_entropy": lambda: ops.softmax_cross_entropy(
        matrix(), there(LABELS), sample_weight=there(np.ones(5)), class_weight=there(np.ones(3))
    ),
}
NO_ARRAYS_IN = {"LinearCrossEntropy", "RowDetails", "dropout_mask"}
UPLOADS = {"dropout_forward": 1, "dropout_backward": 1}  # seed and step, 16 bytes


def test_every_public_operation_is_called_here():
    assert set(CALLS) == set(ops.__all__) - NO_ARRAYS_IN


@pytest.mark.parametrize("name", CALLS)
def test_an_operation_gives_device_arrays_and_neither_waits_nor_copies_from_the_host(name, counts):
    results = CALLS[name]()
    for result in results if isinstance(results, tuple) else (results,):
        assert isinstance(result, cupy_stub.ndarray)
        assert result.device.id == 0
    assert (counts.waits, counts.uploads) == (0, UPLOADS.get(name, 0))


@pytest.mark.parametrize("name", CALLS)
def test_where_an_array_of_a_call_lies_is_asked_once(name, monkeypatch):
    asked: list[Any] = []  # kept, so that none gets the number of another

    def counted(array: Any) -> bool:
        asked.append(array)
        return arrays.on_gpu(array)

    for module in (backends, memory):
        monkeypatch.setattr(module, "on_gpu", counted)
    CALLS[name]()
    assert len(asked) >= 1
    assert len({id(array) for array in asked}) == len(asked)


def test_details_of_the_rows_lie_on_the_device_and_wait_for_nothing(counts):
    logits = matrix()
    _, _, rows = ops.softmax_cross_entropy(logits, there(LABELS), details=True)
    assert counts.waits == 0
    best = logits._host.argmax(1)
    assert rows.predicted.get().tolist() == best.tolist()
    assert int(rows.correct.get()) == (best == LABELS).sum()


def test_an_operation_runs_on_the_gpu_of_its_inputs_and_leaves_the_current_one_alone():
    h = ops.activation_forward(matrix(device=1), "relu")
    assert h.device.id == 1
    assert cupy_stub.STATE.device == 0


def test_arrays_of_other_libraries_are_taken_and_written_into_without_a_copy(counts):
    a = matrix()
    wanted = np.maximum(a._host, 0)
    h = ops.activation_forward(Offered(a), "relu", out=Offered(a))
    assert counts.uploads == 0
    np.testing.assert_array_equal(h.get(), wanted)
    np.testing.assert_array_equal(a.get(), wanted)


def test_host_and_device_arrays_in_one_call_are_refused_with_what_to_do():
    z, t = matrix(), LABELS
    with pytest.raises(
        DtypeError, match=r"logits lies on cuda:0 but targets on the host .*asarray"
    ):
        ops.softmax_cross_entropy(z, t)
    with pytest.raises(DtypeError, match=r"targets lies on cuda:0 but logits on the host"):
        ops.softmax_cross_entropy(z._host, there(t))
    with pytest.raises(DtypeError, match="out on the host"):
        ops.softmax(z, out=np.empty((5, 3)))
    with pytest.raises(DtypeError, match="b on the host"):
        ops.affine_forward(z, matrix(4), [0.0] * 4)


def test_arrays_of_two_gpus_in_one_call_are_refused():
    with pytest.raises(DeviceUnavailable, match="grad_h lies on cuda:0 but saved on cuda:1"):
        ops.activation_backward(matrix(), matrix(device=1), "tanh")


def test_a_bad_label_spoils_its_row_at_once_and_raises_where_the_next_call_checks():
    z, bad = matrix(), LABELS.copy()
    bad[3] = 7
    before = z._host.copy()
    with pytest.raises(TargetRangeError, match=r"targets\[3\] is 7 but labels must be in \[0, 3\)"):
        ops.softmax_cross_entropy(z, there(bad), out=z, check=True)
    np.testing.assert_array_equal(z.get(), before)
    loss, delta = ops.softmax_cross_entropy(z, there(bad), reduction="none")
    rows = np.arange(5) == 3
    np.testing.assert_array_equal(np.isnan(loss.get()), rows)
    np.testing.assert_array_equal(np.isnan(delta.get()).all(1), rows)
    with pytest.raises(TargetRangeError, match=r"targets\[3\] of a batch was 7"):
        ops.softmax_cross_entropy(z, there(LABELS), check=True)
    ops.softmax_cross_entropy(z, there(LABELS), check=True)  # said once


def test_weights_and_targets_are_looked_at_only_where_asked(counts):
    weight = there(-np.ones(5))
    ops.pointwise_loss("poisson", matrix(), there(-np.ones((5, 3))), sample_weight=weight)
    assert counts.waits == 0
    with pytest.raises(OptionError, match=r"sample_weight\[0\] is -1"):
        ops.pointwise_loss("squared_error", matrix(), matrix(), sample_weight=weight, check=True)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32, np.uint64, np.int64])
def test_labels_of_any_integer_type_and_stride_are_converted_on_the_device(dtype, counts):
    z = matrix()
    wanted = ops.softmax_cross_entropy(z, there(LABELS))[1].get()
    strided = cupy_stub.ndarray(np.repeat(LABELS, 2).astype(dtype)[::2], 0)
    counts.clear()
    delta = ops.softmax_cross_entropy(z, strided)[1]
    assert (counts.waits, counts.uploads) == (0, 0)
    np.testing.assert_array_equal(delta.get(), wanted)


def test_cupy_is_not_imported_with_the_operations_nor_by_calls_on_numpy_arrays():
    code = (
        "import sys, numpy as np; from gpubackprop import ops; ops.softmax(np.ones((2, 2)));"
        "sys.exit('cupy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
