"""Make .venv with gpubackprop (editable) and some of its extras; do nothing if it is up to date.

    python3 tools/venv.py cli,sklearn

It uses only the standard library and the syntax of Python 3.7, so that an old python3 gets a
message and not a traceback. The Makefile calls it before each target.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
STATE = VENV / "gpubackprop-extras.json"
OLDEST = (3, 11)
NEWER_NAMES = ["python3.14", "python3.13", "python3.12", "python3.11"]
OLDEST_PIP = (21, 3)  # it has editable installs from pyproject.toml and nested extras


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python3 tools/venv.py EXTRA[,EXTRA...]", file=sys.stderr)
        return 2
    if sys.version_info < OLDEST:
        return hand_over_to_a_newer_python()
    wanted = closure(sys.argv[1].split(","))
    reason = why_not_usable()
    if reason:
        create(reason)
    key = fingerprint()
    present = installed(key)
    if wanted <= present:
        return 0
    install(wanted | present, key)
    return 0


def hand_over_to_a_newer_python() -> int:
    for name in NEWER_NAMES:
        path = shutil.which(name)
        if path:
            return subprocess.call([path, *sys.argv])
    stop(
        "python3 is {}.{} and gpubackprop needs {}.{} or newer; install a newer one, or name it: "
        "make PYTHON=/path/to/python ...".format(*sys.version_info[:2], *OLDEST)
    )


def closure(extras: list[str]) -> set[str]:
    """Return `extras` and the extras that they name in pyproject.toml: dev names test names cli."""
    import tomllib  # old Pythons lack it; they only reach the message

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = project["optional-dependencies"]
    found: set[str] = set()
    waiting = list(extras)
    while waiting:
        extra = waiting.pop()
        if extra in found:
            continue
        if extra not in table:
            stop(f"{extra!r} is no extra of pyproject.toml; there are {', '.join(table)}")
        found.add(extra)
        for requirement in table[extra]:
            own = re.match(re.escape(project["name"]) + r"\[([^\]]+)\]", requirement)
            if own:
                waiting += own[1].replace(" ", "").split(",")
    return found


def venv_python() -> Path:
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


IDENTITY = "import sys, os; print(sys.version, os.path.realpath(sys.base_prefix), sep='|')"


def why_not_usable() -> str:
    """Return why .venv must be made (again), or "" if it works and has this Python."""
    if not VENV.exists():
        return "it is not there yet"
    try:
        theirs = subprocess.run(
            [venv_python(), "-c", "import pip; " + IDENTITY],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    except OSError:
        return "the one there does not run"
    if theirs.returncode != 0:
        return "the one there is broken"
    ours = subprocess.run([sys.executable, "-c", IDENTITY], stdout=subprocess.PIPE, check=True)
    if theirs.stdout != ours.stdout:
        return "the one there was made with another Python"
    return ""


def create(reason: str) -> None:
    version = "{}.{}.{}".format(*sys.version_info[:3])
    say(f"making .venv with Python {version}: {reason}")
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        install_debian_venv()
    # Inside .venv, sys.executable is a link into the folder that --clear deletes.
    python = os.path.realpath(sys.executable)
    run([python, "-m", "venv", "--clear", VENV], f"{python} -m venv failed; see above")
    pip = capture([venv_python(), "-c", "import pip; print(pip.__version__)"])
    if tuple(int(part) for part in re.findall(r"\d+", pip)[:2]) < OLDEST_PIP:
        run([*pip_install(), "--upgrade", "pip"], "pip could not be upgraded; see above")


def install_debian_venv() -> None:
    """Install python3.X-venv, the package in which Debian and Ubuntu keep ensurepip."""
    package = "python{}.{}-venv".format(*sys.version_info[:2])
    apt = shutil.which("apt-get")
    if not apt:
        stop(f"{sys.executable} has no venv or ensurepip; install a Python that has them")
    elevate = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if elevate and subprocess.call(
        "sudo -n true", shell=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ):
        stop(f"{sys.executable} has no ensurepip; run: sudo apt-get install {package}")
    say(f"{sys.executable} has no ensurepip: installing {package} with apt-get")
    command = [*elevate, "env", "DEBIAN_FRONTEND=noninteractive", apt, "-qq"]
    # A fresh machine or a container image has empty or old package lists.
    subprocess.call([*command, "update"], stdin=subprocess.DEVNULL)
    run(
        [*command, "install", "-y", "--no-install-recommends", package],
        f"apt-get could not install {package}; install it and run make again",
    )


def fingerprint() -> str:
    """Return a text that changes with the dependencies, or if the folder with .venv was moved."""
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes())
    digest.update(str(ROOT).encode())
    return digest.hexdigest()


def installed(key: str) -> set[str]:
    try:
        state = json.loads(STATE.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    return set(state["extras"]) if state.get("key") == key else set()


def install(extras: set[str], key: str) -> None:
    names = ",".join(sorted(extras))
    say(f"installing gpubackprop[{names}] into .venv")
    run(
        [*pip_install(), "--editable", f"{ROOT}[{names}]"],
        "pip could not install what gpubackprop needs; see above",
    )
    STATE.write_text(json.dumps({"key": key, "extras": sorted(extras)}), encoding="utf-8")


def pip_install() -> list[str | Path]:
    # A person wants to see pip's progress through several hundred MB; a log does not.
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    pip: list[str | Path] = [
        venv_python(),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
    ]
    return [*pip, "install", *quiet]


def capture(command: Sequence[str | Path]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout


def run(command: Sequence[str | Path], failure: str) -> None:
    sys.stdout.flush()
    if subprocess.call([str(part) for part in command], stdin=subprocess.DEVNULL, cwd=ROOT):
        stop(failure)


def say(message: str) -> None:
    print(f"# {message}", flush=True)


def stop(message: str) -> NoReturn:
    print(f"tools/venv.py: {message}", file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    raise SystemExit(main())
