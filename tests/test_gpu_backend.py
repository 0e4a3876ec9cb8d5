"""What only real CuPy can show: streams, graphs, other libraries' arrays, large offsets, compiling.

Not measured on a GPU so far: these tests have run nowhere yet.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from gpubackprop import MLP, Trainer, backends
from gpubackprop.backends import LossOptions
from gpubackprop.cli import main
from gpubackprop.errors import DeviceUnavailable, TargetRangeError
from gpubackprop.formulas import ACTIVATIONS

pytestmark = pytest.mark.gpu
GIB = 1 << 30


@pytest.fixture
def cuda() -> Any:
    return backends.get("cuda:0")


@pytest.fixture
def cupy() -> Any:
    return pytest.importorskip("cupy")


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def loss_arrays(cuda: Any, rows: int, classes: int, dtype: Any = np.float32) -> dict[str, Any]:
    return {
        "loss": cuda.empty((), np.float32), "row_loss": cuda.empty(rows, np.float32),
        "scale": cuda.empty(rows, np.float32), "delta": cuda.empty((rows, classes), dtype),
    }  # fmt: skip


def test_work_goes_to_the_callers_current_stream(cuda, cupy):
    x = cuda.asarray(normal(1 << 12, 256))
    out = cuda.empty(256, np.float32)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    with stream:
        cuda.column_sum(x, out)
        found = cuda.to_host(out)
    assert cupy.cuda.get_current_stream() != stream
    np.testing.assert_allclose(found, normal(1 << 12, 256).sum(0, dtype=np.float64), atol=1e-3)


def test_a_plan_without_products_is_one_graph_and_reads_its_arrays_anew(cuda, cupy):
    a, h = cuda.asarray(normal(33, 65)), cuda.empty((33, 65), np.float32)
    replay = cuda.plan(lambda verbs: verbs.activation_forward(a, ACTIVATIONS["relu"], h))
    for factor in (1.0, -2.0):
        cuda.from_host(normal(33, 65) * np.float32(factor), a)
        replay()
        wanted = np.maximum(normal(33, 65) * np.float32(factor), 0)
        assert np.array_equal(cuda.to_host(h), wanted)


@pytest.mark.parametrize("shape", [(1 << 20, 16), (3, 100_000), (1000, 257)])
def test_sums_are_the_same_bit_for_bit_in_every_run(cuda, shape):
    x, out = cuda.asarray(normal(*shape)), cuda.empty(shape[1], np.float32)
    found = []
    for _ in range(5):
        cuda.column_sum(x, out)
        found.append(cuda.to_host(out))
    assert all(np.array_equal(found[0], other) for other in found)
    oracle = normal(*shape).sum(0, dtype=np.float64)
    np.testing.assert_allclose(found[0], oracle, atol=1e-6 * np.abs(oracle).max())


def test_two_trainings_are_the_same_bit_for_bit():
    x, labels = normal(500, 20), np.arange(500) % 7
    parameters = []
    for _ in range(2):
        network = MLP([20, 64, 7], "gelu", seed=1, device="cuda:0")
        Trainer(network, batch_size=64, progress=False).fit(x, labels, epochs=3)
        parameters.append(network.backend.to_host(network.parameters))
    assert np.array_equal(*parameters)


def test_arrays_of_pytorch_on_the_gpu_are_taken_without_a_copy(cuda):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    tensor = torch.arange(12.0, device="cuda").reshape(3, 4)
    array = cuda.asarray(tensor)
    assert int(array.data.ptr) == tensor.data_ptr()
    assert np.array_equal(cuda.to_host(array), tensor.cpu().numpy())


def test_a_label_out_of_range_raises_at_the_next_wait_and_touches_no_other_row(cuda):
    result = loss_arrays(cuda, 4, 3)
    logits, labels = cuda.asarray(normal(4, 3)), cuda.asarray(np.array([0, 1, 2**40, 2]))
    cuda.softmax_cross_entropy(logits, labels, LossOptions(), result)
    with pytest.raises(TargetRangeError, match=r"targets\[2\]"):
        cuda.to_host(result["loss"])
    delta = cuda.to_host(result["delta"])
    assert np.isnan(delta[2]).all()
    assert np.isfinite(delta[[0, 1, 3]]).all()


@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    "classes",
    [1, 2, 10, *range(16, 33), 1000, 1023, 1024, 1025, 16_384, 28_672, 50_257, 128_256],  # 48 KiB
)
def test_any_number_of_classes_rows_with_gaps_and_starts_off_16_bytes(cuda, classes, dtype, shift):
    wide = normal(5, classes + shift, dtype=dtype)
    z, labels = wide[:, shift:].astype(np.float64), np.arange(5) * 7 % classes
    result = loss_arrays(cuda, 5, classes, dtype)
    logits = cuda.asarray(wide)[:, shift:]
    options = LossOptions(reduction="sum")
    cuda.softmax_cross_entropy(logits, cuda.asarray(labels), options, result)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    losses = -np.log(p[np.arange(5), labels])
    np.testing.assert_allclose(cuda.to_host(result["row_loss"]), losses, rtol=1e-5, atol=1e-6)
    p[np.arange(5), labels] -= 1
    found, unit = cuda.to_host(result["delta"]), float(np.finfo(dtype).eps)
    smallest = float(np.finfo(dtype).smallest_subnormal)
    np.testing.assert_allclose(found, p, rtol=0, atol=16 * unit * np.abs(p).max() + smallest)


@pytest.mark.parametrize(("rows", "columns"), [(33_000, 65_537), (70_001, 65_537)])
def test_offsets_beyond_2_to_31_and_2_to_32_elements_are_right(cuda, cupy, rows, columns):
    need = 2 * rows * columns  # bytes: float16, in place
    if cupy.cuda.runtime.memGetInfo()[0] < need + GIB:
        pytest.skip(f"needs {need / GIB:.0f} GiB of free device memory")
    logits = cuda.empty((rows, columns), np.float16)
    logits.fill(0)
    last = normal(1, columns).astype(np.float16)
    cuda.from_host(last, logits[rows - 1 :])
    labels = cuda.asarray(np.full(rows, 5))
    result = loss_arrays(cuda, rows, 1) | {"delta": logits}
    cuda.softmax_cross_entropy(logits, labels, LossOptions(reduction="sum"), result)
    p = np.exp(last[0].astype(np.float64))
    p /= p.sum()
    found = cuda.to_host(result["row_loss"])
    assert found[-1] == pytest.approx(-np.log(p[5]), rel=1e-4)
    np.testing.assert_allclose(found[:-1], np.log(columns), rtol=1e-5)
    p[5] -= 1
    delta = cuda.to_host(logits[rows - 1 :])[0]
    np.testing.assert_allclose(delta, p, rtol=2e-3, atol=1e-7)
    cupy.get_default_memory_pool().free_all_blocks()


def test_more_than_the_gpu_has_is_one_line(cuda):
    with pytest.raises(DeviceUnavailable, match="out of memory"):
        cuda.empty((1 << 45,), np.float32)


def test_an_entry_is_compiled_once_for_all_shapes_and_soon(cuda, tmp_path):
    """A process of its own with an empty cache; the second shape must not compile anything."""
    program = (
        "import time, numpy as np\n"
        "from gpubackprop import backends\n"
        "from gpubackprop.backends.cupy import compiling\n"
        "from gpubackprop.formulas import ACTIVATIONS\n"
        "verbs = backends.get('cuda:0')\n"
        "def seconds(rows, name):\n"
        "    a = verbs.zeros((rows, 33), np.float32)\n"
        "    verbs.to_host(a[:1]); start = time.perf_counter()\n"
        "    verbs.activation_forward(a, ACTIVATIONS[name], a); verbs.to_host(a[:1])\n"
        "    return time.perf_counter() - start\n"
        "seconds(7, 'identity')\n"
        "first = seconds(7, 'gelu')\n"
        "entries = len(list(compiling.cache_directory().glob('*.cubin')))\n"
        "print(first, seconds(8, 'gelu'), entries)\n"
    )
    environment = {**os.environ, "CUPY_CACHE_DIR": str(tmp_path)}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    first, second, entries = map(float, done.stdout.split())
    print(
        f"first use {first:.4f} s, another shape {second:.4f} s, {time.perf_counter() - start:.1f} s"
    )
    # Times depend on the machine; that another shape compiles nothing does not.
    assert len(list(tmp_path.glob("gpubackprop/*.cubin"))) == entries


def test_the_check_command_passes_on_this_card(capsys):
    assert main(["check", "--device", "cuda", "--quiet"]) == 0
    assert "worst relative error" in capsys.readouterr().out
