"""Device probing against a fake libcuda, a fake CuPy and fake CUDA libraries."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from gpubackprop.backends import cuda_driver, devices
from gpubackprop.backends.host import probe_cpu
from gpubackprop.errors import DeviceUnavailable, OptionError

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclasses.dataclass
class FakeDriver:
    """libcuda as ctypes sees it; arguments made with byref carry their object as `_obj`."""

    version: int = 12040
    init: int = 0
    names: tuple[str, ...] = ("NVIDIA H200",)
    failing: str = ""

    def __getattribute__(self, name):
        if name.startswith("cu") and name == object.__getattribute__(self, "failing"):
            return lambda *arguments: 999
        return object.__getattribute__(self, name)

    def cuDriverGetVersion(self, version):
        version._obj.value = self.version
        return 0

    def cuInit(self, flags):
        assert flags.value == 0
        return self.init

    def cuDeviceGetCount(self, count):
        count._obj.value = len(self.names)
        return 0

    def cuDeviceGet(self, device, index):
        device._obj.value = 40 + index.value  # a handle is not an index
        return 0

    def cuDeviceGetName(self, buffer, size, device):
        buffer.value = self.names[device.value - 40].encode()[: size.value - 1]
        return 0

    def cuDeviceTotalMem_v2(self, total, device):
        total._obj.value = 141 * 2**30 + device.value - 40
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = {75: 9, 76: 0}[attribute.value]
        return 0


class FakeNvrtc:
    def __init__(self, major):
        self.major = major

    def nvrtcVersion(self, major, minor):
        major._obj.value, minor._obj.value = self.major, 9
        return 0


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Makes a machine out of its parts; what is not given is absent."""

    def make(driver=None, cupy=None, cupy_body="", libraries=(), nvrtc_major=12, backend=True):
        def load_library(name):
            if driver is None:
                raise OSError(f"{name}: cannot open shared object file")
            return driver

        def load_cuda_library(name, major):
            return (FakeNvrtc(nvrtc_major), f"/cuda/lib{name}.so") if name in libraries else None

        monkeypatch.setattr(cuda_driver, "load_library", load_library)
        monkeypatch.setattr(devices, "load_cuda_library", load_cuda_library)
        monkeypatch.setattr(devices, "CUDA_BACKEND", "json" if backend else "json.no_such_module")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if cupy is None:
            monkeypatch.setitem(sys.modules, "cupy", None)
            return
        monkeypatch.delitem(sys.modules, "cupy", raising=False)
        (tmp_path / "cupy").mkdir()
        (tmp_path / "cupy" / "__init__.py").write_text(cupy_body)
        information = tmp_path / f"{cupy.replace('-', '_')}-14.2.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {cupy}\nVersion: 14.2.0\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()

    yield make
    sys.modules.pop("cupy", None)


WHOLE = {"cupy": "cupy-cuda12x", "libraries": ("nvrtc", "cublasLt")}

# What is wrong with the machine: its parts, what the message says of it, what it says to do.
LACKS = {
    "no driver library": (
        {"driver": None},
        "no NVIDIA driver found (",
        "install the NVIDIA driver",
    ),
    "driver without a device": (
        {"driver": FakeDriver(init=100)},
        "the NVIDIA driver sees no CUDA device",
        "run nvidia-smi",
    ),
    "driver with zero devices": (
        {"driver": FakeDriver(names=())},
        "the NVIDIA driver sees no CUDA device",
        "run nvidia-smi",
    ),
    "driver that fails": (
        {"driver": FakeDriver(init=999)},
        "the NVIDIA driver failed: cuInit returned 999 (CUDA_ERROR_UNKNOWN)",
        "restart the machine",
    ),
    "driver that fails with an unlisted code": (
        {"driver": FakeDriver(init=12345)},
        "the NVIDIA driver failed: cuInit returned 12345",
        "check that nvidia-smi works",
    ),
    "driver that fails after cuInit": (
        {"driver": FakeDriver(failing="cuDeviceTotalMem_v2")},
        "the NVIDIA driver failed: cuDeviceTotalMem_v2 returned 999",
        "restart the machine",
    ),
    "stub of the toolkit": (
        {"driver": FakeDriver(init=34)},
        "CUDA_ERROR_STUB_LIBRARY",
        "LD_LIBRARY_PATH",
    ),
    "library that is no driver": (
        {"driver": object()},
        "is no NVIDIA driver",
        "reinstall the NVIDIA driver",
    ),
    "no CUDA backend": (
        {"driver": FakeDriver(), "backend": False, **WHOLE},
        "this version of gpubackprop has no CUDA backend yet",
        "update gpubackprop",
    ),
    "no CuPy": (
        {"driver": FakeDriver()},
        "CuPy is not installed",
        'pip install "gpubackprop[cuda12]"',
    ),
    "no CuPy on a newer driver": (
        {"driver": FakeDriver(version=13010)},
        "CuPy is not installed",
        'pip install "gpubackprop[cuda13]"',
    ),
    "no CuPy on a driver older than every extra": (
        {"driver": FakeDriver(version=11080)},
        "CuPy is not installed",
        "update the NVIDIA driver to one that serves CUDA 12",
    ),
    "CuPy that does not import": (
        {"driver": FakeDriver(), **WHOLE, "cupy_body": "raise ImportError('no libfoo\\nmore')"},
        "CuPy 14.2.0 does not import (no libfoo)",
        'pip install "gpubackprop[cuda12]"',
    ),
    "driver too old for CuPy": (
        {"driver": FakeDriver(version=12040), **WHOLE, "cupy": "cupy-cuda13x", "nvrtc_major": 13},
        "the NVIDIA driver is too old: it serves CUDA 12.4 and CuPy 14.2.0 is built for CUDA 13",
        'update the NVIDIA driver, or run: pip install "gpubackprop[cuda12]"',
    ),
    "no NVRTC": (
        {"driver": FakeDriver(), **WHOLE, "libraries": ("cublasLt",)},
        "NVRTC, which compiles the kernels, does not load",
        'pip install "gpubackprop[cuda12]"',
    ),
    "NVRTC of another CUDA": (
        {"driver": FakeDriver(version=13000), **WHOLE, "nvrtc_major": 13},
        "NVRTC is of CUDA 13 (/cuda/libnvrtc.so) and CuPy of CUDA 12",
        'pip install "gpubackprop[cuda12]"',
    ),
    "no cuBLASLt": (
        {"driver": FakeDriver(), **WHOLE, "libraries": ("nvrtc",)},
        "cuBLASLt, which multiplies the matrices, does not load",
        'pip install "gpubackprop[cuda12]"',
    ),
}


@pytest.mark.parametrize("lack", LACKS)
def test_cuda_by_name_says_what_is_missing_and_what_to_do(machine, lack):
    parts, what, remedy = LACKS[lack]
    machine(**parts)
    with pytest.raises(DeviceUnavailable) as error:
        devices.choose("cuda")
    message = str(error.value)
    assert message.startswith('device="cuda" was asked for but ')
    assert message.endswith('without CUDA use device="cpu", or "auto" to fall back.')
    assert message.index(what) < message.index(remedy)
    assert "\n" not in message


@pytest.mark.parametrize("lack", LACKS)
def test_auto_falls_back_to_the_cpu_and_says_why(machine, lack):
    parts, what, _ = LACKS[lack]
    machine(**parts)
    resolved, reason = devices.choose("auto")
    assert resolved == "cpu"
    assert what in reason


@pytest.mark.parametrize("lack", LACKS)
def test_report_lists_what_is_missing_with_its_remedy(machine, lack):
    parts, what, remedy = LACKS[lack]
    machine(**parts)
    missing = devices.probe().missing
    assert any(what in item.what and remedy in item.remedy for item in missing)


def test_device_hidden_by_the_environment_is_said_to_be(machine, monkeypatch):
    machine(driver=FakeDriver(init=100))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(DeviceUnavailable, match="CUDA_VISIBLE_DEVICES=''; unset CUDA_VISIBLE"):
        devices.choose("cuda")


def test_whole_machine_lacks_nothing_and_its_report_is_json(machine):
    machine(driver=FakeDriver(names=("NVIDIA H200", "NVIDIA L4")), **WHOLE)
    report = devices.probe()
    assert report.missing == ()
    assert report.driver.cuda_version == (12, 4)
    assert report.driver.gpus == (
        cuda_driver.Gpu(0, "NVIDIA H200", 141 * 2**30, (9, 0)),
        cuda_driver.Gpu(1, "NVIDIA L4", 141 * 2**30 + 1, (9, 0)),
    )
    assert report.cupy == devices.CupyReport("14.2.0", 12)
    assert report.nvrtc == devices.CudaLibrary("/cuda/libnvrtc.so", (12, 9))
    assert json.loads(json.dumps(dataclasses.asdict(report)))["driver"]["status"] == "ready"


@pytest.mark.parametrize(
    ("asked", "resolved", "name"),
    [
        ("auto", "cuda:0", "NVIDIA H200"),
        ("cuda", "cuda:0", "NVIDIA H200"),
        ("cuda:1", "cuda:1", "NVIDIA L4"),
    ],
)
def test_whole_machine_resolves_to_a_numbered_device(machine, asked, resolved, name):
    machine(driver=FakeDriver(names=("NVIDIA H200", "NVIDIA L4")), **WHOLE)
    assert devices.choose(asked) == (resolved, f"{name}, compute capability 9.0")


def test_cupy_built_from_source_tells_its_own_cuda_major(machine):
    body = "class cuda:\n class driver:\n  get_build_version = staticmethod(lambda: 12090)\n"
    machine(driver=FakeDriver(), **WHOLE | {"cupy": "cupy"}, cupy_body=body)
    assert devices.probe().cupy == devices.CupyReport("14.2.0", 12)


def test_cupy_is_not_imported_where_no_driver_is(machine):
    machine(driver=None, **WHOLE, cupy_body="raise AssertionError('imported')")
    assert devices.probe().cupy == devices.CupyReport("14.2.0", 12)


@pytest.mark.parametrize(
    ("names", "visible"),
    [(("A",), "the visible devices are cuda:0;"), (("A", "B"), "are cuda:0 to cuda:1;")],
)
def test_device_number_after_the_last_names_the_visible_ones(machine, names, visible):
    machine(driver=FakeDriver(names=names), **WHOLE)
    asked = f"cuda:{len(names)}"
    with pytest.raises(DeviceUnavailable, match=f'device="{asked}" .*{visible}'):
        devices.choose(asked)


def test_cpu_asks_nothing_of_the_driver(monkeypatch):
    monkeypatch.setattr(devices, "probe_driver", lambda: pytest.fail("the driver was started"))
    assert devices.choose("cpu") == ("cpu", "the CPU was asked for")


@pytest.mark.parametrize(
    "name",
    ["gpu", "CUDA", "cuda:", "cuda:x", "cuda:-1", "cuda:01", "cuda:1 ", "cuda:\u0661", "", None, 0],
)
def test_malformed_device_name_lists_the_valid_ones(name):
    with pytest.raises(OptionError, match=r'"cpu", "cpu:numpy", "cuda" and "cuda:N"') as error:
        devices.choose(name)
    assert repr(name) in str(error.value)


@pytest.mark.skipif(devices.has_cuda_backend(), reason="this version has a CUDA backend")
def test_this_version_computes_on_the_cpu_even_where_a_gpu_is(machine, monkeypatch):
    backend = devices.CUDA_BACKEND
    machine(driver=FakeDriver(), **WHOLE)
    monkeypatch.setattr(devices, "CUDA_BACKEND", backend)
    assert devices.choose("auto") == (
        "cpu",
        "this version of gpubackprop has no CUDA backend yet",
    )


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no core affinity on this system")
def test_cores_are_those_this_process_may_use():
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from gpubackprop.backends.host import probe_cpu; print(probe_cpu().cores)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "1"


def test_blas_threads_are_those_in_force():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        assert probe_cpu().blas_threads == 1


def test_blas_threads_are_numpys_and_not_those_of_another_library(monkeypatch):
    pools = [
        {"user_api": "openmp", "filepath": "/site/numpy.libs/libgomp.so", "num_threads": 7},
        {"user_api": "blas", "filepath": "/site/scipy.libs/libopenblas.so", "num_threads": 5},
        {"user_api": "blas", "filepath": "/site/numpy.libs/libopenblas.so", "num_threads": 3},
    ]
    fake = types.ModuleType("threadpoolctl")
    fake.__spec__ = importlib.machinery.ModuleSpec("threadpoolctl", None)
    fake.threadpool_info = lambda: pools
    monkeypatch.setitem(sys.modules, "threadpoolctl", fake)
    assert probe_cpu().blas_threads == 3


def test_blas_threads_without_threadpoolctl_come_from_the_environment(monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    assert probe_cpu().blas_threads is None
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert probe_cpu().blas_threads == 3


def test_blas_is_the_one_that_is_loaded():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    cpu = probe_cpu()
    pools = [pool for pool in threadpoolctl.threadpool_info() if "numpy" in pool["filepath"]]
    if not pools:
        pytest.skip("NumPy's BLAS is not in NumPy's wheel, so its name is the distributor's")
    assert pools[0]["internal_api"] in cpu.blas
    assert pools[0]["version"] == cpu.blas_version


def test_driver_library_that_does_not_exist_is_absent(monkeypatch):
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libcuda_that_no_machine_has.so.1")
    assert cuda_driver.probe_driver().status == "absent"


def test_importing_the_module_imports_no_cupy_and_loads_no_driver():
    program = (
        "import ctypes, sys\n"
        "def refuse(name, *_, **__):\n"
        "    assert name is None or 'cuda' not in str(name), name\n"
        "    return real(name)\n"
        "real, ctypes.CDLL = ctypes.CDLL, refuse\n"
        "import gpubackprop.backends.devices\n"
        "assert 'cupy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True)


def test_importing_the_trainer_imports_nothing_slow_that_no_training_needs():
    """importlib.metadata was a tenth of the import's time, for a version that `info` prints."""
    slow = "{'importlib.metadata', 'cupy', 'pyarrow', 'pandas', 'torch', 'sklearn', 'matplotlib'}"
    program = f"import sys; from gpubackprop import MLP, Trainer; print({slow} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "set()"


def test_fallback_search_asks_for_the_soname_of_cupys_cuda(monkeypatch):
    asked = []

    def refuse(name):
        asked.append(name)
        raise OSError(name)

    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    monkeypatch.setattr(sys, "platform", "linux")
    assert devices.load_cuda_library("nvrtc", 12) is None
    assert devices.load_cuda_library("cublasLt", None) is None
    assert asked == ["libnvrtc.so.12", "libcublasLt.so.13", "libcublasLt.so.12"]
    monkeypatch.setattr(sys, "platform", "win32")
    devices.load_cuda_library("nvrtc", 12)
    assert asked[-1] == "nvrtc64_120_0.dll"
