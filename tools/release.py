"""python -m tools.release [OUT] [--tag v1.2.3] builds wheel and sdist as they are published.

It builds each twice, with the time of the last commit as the time of every file, and stops if the
two differ in a byte, if the version is not the same everywhere, or if `twine check` finds a fault.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Where a version stands, and how.
PLACES = {
    "pyproject.toml": r'^version = "(.+)"$',
    "gpubackprop/__init__.py": r'^__version__ = "(.+)"$',
    "CITATION.cff": r"^version: (.+)$",
    "CHANGELOG.md": r"^## \[(\d.*)\] - \d{4}-\d\d-\d\d$",  # the first that is released
}


def versions(root: Path = ROOT) -> dict[str, str]:
    """Return the version that each place says, "" where none stands."""
    found = {}
    for place, pattern in PLACES.items():
        match = re.search(pattern, (root / place).read_text(encoding="utf-8"), re.M)
        found[place] = match[1] if match else ""
    return found


def commit_time(root: Path = ROOT) -> str:
    """Return SOURCE_DATE_EPOCH: that of the environment, or the time of the last commit."""
    if os.environ.get("SOURCE_DATE_EPOCH"):
        return os.environ["SOURCE_DATE_EPOCH"]
    command = ["git", "log", "-1", "--format=%ct"]
    return subprocess.run(
        command, cwd=root, capture_output=True, text=True, check=True
    ).stdout.strip()


def build(out: Path, epoch: str, root: Path = ROOT) -> dict[str, bytes]:
    """Build wheel and sdist into `out` and return their bytes by name."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(root)]
    environment = os.environ | {"SOURCE_DATE_EPOCH": epoch}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def main(arguments: list[str]) -> int:
    """Build, compare and check; return 0 if all is well."""
    parser = argparse.ArgumentParser(prog="python -m tools.release", description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "dist")
    parser.add_argument("--tag", default="", help="the tag, which must be v and the version")
    options = parser.parse_args(arguments)
    said = versions() | ({"--tag": options.tag.removeprefix("v")} if options.tag else {})
    if len(set(said.values())) != 1:
        print(f"the version is not the same everywhere: {said}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    if any(options.out.iterdir()):
        print(f"{options.out} is not empty", file=sys.stderr)
        return 1
    epoch = commit_time()
    first = build(options.out, epoch)
    with tempfile.TemporaryDirectory() as other:
        second = build(Path(other), epoch)
    different = [
        name for name in first.keys() | second.keys() if first.get(name) != second.get(name)
    ]
    if different:
        print(f"two builds differ: {', '.join(different)}", file=sys.stderr)
        return 1
    print(f"two builds are the same: {', '.join(first)}")
    paths = [str(options.out / name) for name in first]
    return subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *paths]).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
