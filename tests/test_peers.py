"""What a release of PyTorch changes in what we mirror is read from its files."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import torch

from tools import peers

INSTALLED = Path(torch.__file__).parents[1]
ADAM = "torch/optim/adam.py"


def wheel(path: Path, text: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(ADAM, text)
    return path


def test_every_mirrored_name_is_in_the_pytorch_that_the_tests_use() -> None:
    assert [name for name, found in peers.mirrored(INSTALLED).items() if not found] == []


def test_a_new_parameter_another_default_and_a_lost_name_are_said_and_types_are_not(
    tmp_path: Path,
) -> None:
    old = wheel(
        tmp_path / "old.whl",
        "class Adam:\n"
        "    def __init__(self, params, lr=1e-3): ...\n"
        "    def step(self, closure=None): ...\n"
        "    def __setstate__(self, state): ...\n",
    )
    new = wheel(
        tmp_path / "new.whl",
        "class Adam:\n"
        "    def __init__(self, params: list, lr: float = 1e-2, *, decoupled=False): ...\n"
        "    if True:\n"
        "        def step(self, closure: object = None) -> None: ...\n",
    )
    assert peers.changes(old, old) == []
    assert peers.changes(old, new) == [
        f"{ADAM}:Adam.__init__: (self, params, lr=0.001) is now "
        "(self, params, lr=0.01, *, decoupled=False)",
        f"{ADAM}:Adam.__setstate__: (self, state) is now missing",
    ]


def test_the_command_counts_differences_and_refuses_what_is_no_pytorch(tmp_path: Path) -> None:
    def run(*places: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tools.peers", *map(str, places)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    same = run(INSTALLED, INSTALLED)
    assert (same.returncode, same.stdout.splitlines()[0].split(": ")[1]) == (
        0, f"0 of {len(peers.mirrored(INSTALLED))} names differ"
    )  # fmt: skip
    other = run(INSTALLED, wheel(tmp_path / "new.whl", "def adam(): ..."))

    assert other.returncode == 1
    assert f"  {ADAM}:Adam.step: (self, closure=None) is now missing" in other.stdout
    for bad in (tmp_path, tmp_path / "none.whl"):
        refused = run(INSTALLED, bad)
        assert refused.returncode == 2
        assert str(bad) in refused.stderr


def test_the_page_of_tried_versions_has_the_bounds_of_pyproject() -> None:
    root = Path(__file__).parents[1]
    page = (root / "docs/peers.md").read_text()
    project = (root / "pyproject.toml").read_text()
    bounds = re.findall(r"^\| \S+ \| `(\S+)` \|", page, re.M)
    assert len(bounds) == 9
    assert [one for one in bounds if not re.search(rf"{re.escape(one)}[\"\s,]", project)] == []
