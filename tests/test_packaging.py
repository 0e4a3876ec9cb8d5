"""The wheel, the sdist and the editable install, each installed; and what an import costs.

Nothing is fetched: the builds use the hatchling at hand, and the fresh environments see the
dependencies of the running interpreter through a .pth file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
EXTRAS = (
    "cuda", "cupy", "hypothesis", "matplotlib", "ml_dtypes", "nvmath", "onnx", "pandas",
    "pyarrow", "pytest", "scipy", "sklearn", "threadpoolctl", "torch",
)  # fmt: skip


def run(*command, cwd):
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{command} exited {result.returncode}:\n{result.stdout}"
    return result.stdout


def build(source: Path, out: Path, *what: str) -> None:
    run(
        sys.executable, "-m", "build", "--no-isolation", "--outdir", out, *what, source, cwd=out
    )  # fmt: skip


def one(directory: Path, pattern: str) -> Path:
    (path,) = directory.glob(pattern)
    return path


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    build(REPOSITORY, out, "--sdist")
    return one(out, "*.tar.gz")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build(REPOSITORY, out, "--wheel")
    return one(out, "*.whl")


def repository_files(folder: str) -> set[str]:
    """Files of `folder` that git has or would take; all of them where there is no git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", folder]
    try:
        listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        names = listed.stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        names = [path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("**/*")]
        names = [name for name in names if name.startswith(folder) and "__pycache__" not in name]
    return {
        Path(name).relative_to(folder).as_posix() for name in names if (REPOSITORY / name).is_file()
    }


PROGRAM = """
import importlib.metadata, json, pathlib
import gpubackprop
from gpubackprop.backends.kernel_sources import kernels_directory, source_hash
directory = kernels_directory()
print(json.dumps({
    "package": str(pathlib.Path(gpubackprop.__file__).parent),
    "version": [gpubackprop.__version__, importlib.metadata.version("gpubackprop")],
    "directory": str(directory),
    "files": [p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()],
    "hash": source_hash(),
}))
"""


def install(tmp_path: Path, *what: str | Path) -> dict:
    """Install into a fresh environment, import from another directory, and report."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=sys.platform != "win32")
    paths = {"base": str(environment), "platbase": str(environment)}
    python = Path(sysconfig.get_path("scripts", "venv", paths)) / Path(sys.executable).name
    site_packages = Path(sysconfig.get_path("purelib", "venv", paths))
    # One that is added by a .pth file has its own .pth files left alone, so that an editable
    # gpubackprop of the running interpreter stays out of sight.
    seen = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages / "running_interpreter.pth").write_text("\n".join(sorted(seen)))
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps",
        "--no-build-isolation", "--force-reinstall", "--no-cache-dir", *what, cwd=tmp_path,
    )  # fmt: skip
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    report = json.loads(run(python, "-c", PROGRAM, cwd=elsewhere).splitlines()[-1])
    assert report["version"][0] == report["version"][1]
    report["site_packages"] = site_packages
    return report


def assert_self_contained(report: dict) -> None:
    package = report["site_packages"] / "gpubackprop"
    assert Path(report["package"]) == package
    assert Path(report["directory"]) == package / "_kernels"
    assert set(report["files"]) == repository_files("kernels")
    assert report["files"]


@pytest.mark.slow
def test_wheel_installs_with_the_kernels_inside_the_package(wheel, tmp_path):
    assert_self_contained(install(tmp_path, wheel))


@pytest.mark.slow
def test_sdist_installs_with_the_kernels_inside_the_package(sdist, tmp_path):
    assert_self_contained(install(tmp_path, sdist))


@pytest.mark.slow
def test_editable_install_uses_the_kernels_of_the_checkout_and_copies_none(tmp_path):
    report = install(tmp_path, "--editable", REPOSITORY)
    assert Path(report["package"]) == REPOSITORY / "gpubackprop"
    assert Path(report["directory"]) == REPOSITORY / "kernels"
    assert repository_files("kernels") <= set(report["files"])
    assert not (report["site_packages"] / "gpubackprop").exists()


@pytest.mark.slow
def test_wheel_holds_the_package_the_licence_and_no_other_import_name(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {f"gpubackprop/{name}" for name in repository_files("gpubackprop")}
    expected |= {f"gpubackprop/_kernels/{name}" for name in repository_files("kernels")}
    information = {name for name in names if ".dist-info/" in name}
    assert names - information == expected
    assert any(name.endswith("licenses/LICENSE") for name in information)


@pytest.mark.slow
def test_sdist_holds_the_repository_and_builds_the_same_wheel(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        # Python 3.11.2, Debian 12's, has no filters yet.
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(tmp_path, **safely)
    for folder in ("gpubackprop", "kernels", "tests", "tools"):
        assert {f"{folder}/{name}" for name in repository_files(folder)} <= names
    assert {"Makefile", "LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml"} <= names
    out = tmp_path / "out"
    out.mkdir()
    build(tmp_path / sdist.name.removesuffix(".tar.gz"), out, "--wheel")
    assert contents(one(out, "*.whl")) == contents(wheel)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_import_takes_less_than_three_tenths_of_a_second():
    program = (
        "import time; start = time.perf_counter(); import gpubackprop; "
        "print(time.perf_counter() - start)"
    )
    # The best of five: the first one may compile bytecode, and others share the machine.
    seconds = [float(run(sys.executable, "-c", program, cwd=REPOSITORY)) for _ in range(5)]
    assert min(seconds) < 0.3


def test_import_brings_in_no_package_of_an_extra():
    program = "import sys, gpubackprop; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(run(sys.executable, "-c", program, cwd=REPOSITORY).split())
    assert "gpubackprop" in loaded
    assert loaded & set(EXTRAS) == set()
