"""The place of the CUDA C++ sources, and a hash of them for the cache of compiled kernels."""

from __future__ import annotations

import hashlib
from pathlib import Path

from gpubackprop.errors import GpubackpropError

_PACKAGE = Path(__file__).resolve().parents[1]


def kernels_directory() -> Path:
    """Return the directory of the CUDA sources.

    It is gpubackprop/_kernels in an installed wheel, and kernels/ beside pyproject.toml in a
    checkout or an editable install.

    Raises
    ------
    GpubackpropError
        Neither is there.
    """
    installed = _PACKAGE / "_kernels"
    if installed.is_dir():
        return installed
    # Without pyproject.toml the parent is a site-packages; a "kernels" there is another project's.
    root = _PACKAGE.parent
    if (root / "kernels").is_dir() and (root / "pyproject.toml").is_file():
        return root / "kernels"
    raise GpubackpropError(
        f"the CUDA sources of gpubackprop are missing: neither {installed} nor the kernels/ of a "
        "checkout exists; reinstall with: pip install --force-reinstall --no-deps gpubackprop"
    )


def kernel_files() -> tuple[Path, ...]:
    """Return every source below `kernels_directory()`, sorted by relative name.

    All files count except prose (*.md) and hidden ones, so that `source_hash` can never miss a
    header with a new suffix.
    """
    directory = kernels_directory()
    files = ((path.relative_to(directory), path) for path in directory.rglob("*") if path.is_file())
    return tuple(
        path
        for name, path in sorted(files, key=lambda item: item[0].as_posix())
        if path.suffix != ".md" and not any(part.startswith(".") for part in name.parts)
    )


def source_hash() -> str:
    """Return the SHA-256, in hexadecimal, of the relative names and contents of `kernel_files()`.

    It is a part of the key of a compiled kernel, so that an edited header compiles again.
    """
    directory = kernels_directory()
    digest = hashlib.sha256()
    for path in kernel_files():
        # Lengths go in too, so that moving bytes between a name and a content changes the hash.
        for part in (path.relative_to(directory).as_posix().encode(), path.read_bytes()):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()
