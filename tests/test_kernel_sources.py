"""Where the CUDA sources are found, and what their hash covers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gpubackprop.backends import kernel_sources
from gpubackprop.errors import GpubackpropError

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def kernels(tmp_path, monkeypatch) -> Path:
    """An installed package whose _kernels the test may edit."""
    package = tmp_path / "gpubackprop"
    directory = package / "_kernels"
    (directory / "include").mkdir(parents=True)
    (directory / "update.cu").write_text("update")
    (directory / "include" / "types.cuh").write_text("types")
    monkeypatch.setattr(kernel_sources, "_PACKAGE", package)
    return directory


def test_checkout_finds_the_kernels_beside_pyproject():
    assert kernel_sources.kernels_directory() == REPOSITORY / "kernels"


def test_installed_kernels_win_over_a_kernels_folder_beside_the_package(kernels):
    root = kernels.parents[1]
    (root / "kernels").mkdir()
    (root / "pyproject.toml").touch()
    assert kernel_sources.kernels_directory() == kernels


def test_another_projects_kernels_in_site_packages_are_not_taken(kernels):
    shutil.rmtree(kernels)
    (kernels.parents[1] / "kernels").mkdir()
    with pytest.raises(GpubackpropError, match=r"(?s)_kernels.*reinstall with: pip install"):
        kernel_sources.kernels_directory()


def test_files_are_sorted_by_relative_name_and_leave_out_prose_and_hidden_files(kernels):
    for name in ("activations.cuh", "README.md", ".hidden.cu", "include/zeta.suffix"):
        (kernels / name).write_text(name)
    (kernels / ".git").mkdir()
    (kernels / ".git" / "config").touch()
    names = [path.relative_to(kernels).as_posix() for path in kernel_sources.kernel_files()]
    assert names == ["activations.cuh", "include/types.cuh", "include/zeta.suffix", "update.cu"]


def test_hidden_directory_above_the_kernels_hides_nothing(tmp_path, monkeypatch):
    directory = tmp_path / ".venv" / "gpubackprop" / "_kernels"
    directory.mkdir(parents=True)
    (directory / "update.cu").touch()
    monkeypatch.setattr(kernel_sources, "_PACKAGE", directory.parent)
    assert kernel_sources.kernel_files() == (directory / "update.cu",)


def edit_header(kernels):
    (kernels / "include" / "types.cuh").write_text("types, edited")


def rename(kernels):
    (kernels / "update.cu").rename(kernels / "updates.cu")


def add_empty_file(kernels):
    (kernels / "empty.cuh").touch()


def move_a_byte_from_content_to_name(kernels):
    (kernels / "update.cu").unlink()
    (kernels / "update.cuu").write_text("pdate")


@pytest.mark.parametrize(
    "change", [edit_header, rename, add_empty_file, move_a_byte_from_content_to_name]
)
def test_hash_changes_with_a_source(kernels, change):
    before = kernel_sources.source_hash()
    change(kernels)
    assert kernel_sources.source_hash() != before


def test_hash_stays_when_prose_is_edited_or_the_folder_moves(kernels, tmp_path, monkeypatch):
    before = kernel_sources.source_hash()
    (kernels / "README.md").write_text("prose")
    moved = tmp_path / "elsewhere" / "_kernels"
    shutil.copytree(kernels, moved)
    monkeypatch.setattr(kernel_sources, "_PACKAGE", moved.parent)
    assert kernel_sources.source_hash() == before


def test_hash_of_two_files_is_the_documented_sha256(kernels):
    # sha256 over, for each name and each content, its length in 8 little-endian bytes and itself:
    # printf the four with their lengths into sha256sum
    assert (
        kernel_sources.source_hash()
        == "d9d7281018b7b03b5f6447d5bf598d60461898b9e551c6cbac80a6fb54cd8395"
    )
