"""pytest.json and pytest/*.xml: the tests marked gpu, one file after another.

If a file hangs or crashes, only that file ends, and the next one runs. It gets SIGINT first: pytest
then writes the texts of all failures so far.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tools.gpu.common import SKIPPED, cuda_backend, interpreter, write_json
from tools.gpu.running import GRACE, ROOT, run

# First the tests that need a real card.
FIRST = ("test_gpu_backend", "test_torch_gpu", "test_gpu_parity", "test_cupy_backend")
SHARE = 0.4  # one file gets at most this share of the time that is left


def main() -> int:
    out, seconds = Path(sys.argv[1]), float(sys.argv[2])
    cuda_backend()  # without a GPU, the stage ends here as skipped
    files = [Path(name).resolve() for name in sys.argv[3:]] or marked_files()
    found = run_files(files, out, seconds, python=interpreter())
    write_json(out / "pytest.json", found)
    print(found["note"])
    if not found["passed"] and not found["worst"]:
        return SKIPPED
    return 1 if found["worst"] else 0


def marked_files() -> list[Path]:
    """Return test files with a test for a GPU: by its mark, or by the ways of tests/ways.py."""
    words = ("mark.gpu", 'usefixtures("way")', "torch_paths")
    found = [
        path for path in sorted((ROOT / "tests").glob("test_*.py"))
        if any(word in path.read_text(encoding="utf-8") for word in words)
    ]  # fmt: skip
    return sorted(found, key=lambda p: FIRST.index(p.stem) if p.stem in FIRST else len(FIRST))


def run_files(files: list[Path], out: Path, seconds: float, python: list[str]) -> dict[str, Any]:
    """Return the counts, and each failure with its text; write them after each file."""
    end = time.monotonic() + seconds
    reports = out / "pytest"
    reports.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0, "files": {}, "worst": []}
    for file in files:
        left = end - time.monotonic()
        if left < 5:
            found["files"][file.stem] = "no time was left"
            continue
        limit = max(5.0, SHARE * left)
        xml, log = reports / f"{file.stem}.xml", reports / f"{file.stem}.log"
        xml.unlink(missing_ok=True)
        command = [
            *python, "-m", "pytest", str(file), "-m", "gpu", "-q", "-rf", "--tb=short", "-p",
            "no:cacheprovider", "--timeout=60", f"--junitxml={xml}",
        ]  # fmt: skip
        ended = run(command, log, limit, grace=min(GRACE, left / 4))
        add(found, file.stem, xml)
        if ended.interrupted or (ended.code or 0) not in (0, 1, 5):
            how = f"stopped after {limit:.0f} s" if ended.interrupted else f"ended by {ended.code}"
            found["files"][file.stem] = how
            found["worst"].append([1e5, f"{file.stem}: {how}, see pytest/{log.name}"])
        late = sum(state == "no time was left" for state in found["files"].values())
        found["note"] = (
            f"{found['passed']} passed, {found['failed']} failed, {found['skipped']} skipped in "
            f"{len(found['files'])} of {len(files)} files" + f", {late} not begun" * bool(late)
        )
        write_json(out / "pytest.json", found)
    return found


def add(found: dict[str, Any], name: str, xml: Path) -> None:
    """Add the results of a file's report."""
    try:
        cases = list(ElementTree.parse(xml).getroot().iter("testcase"))
    except (OSError, ElementTree.ParseError) as error:
        found["files"][name] = f"no report: {error}"
        return
    found["files"][name] = f"{len(cases)} tests"
    for case in cases:
        bad = [part for part in case if part.tag in ("failure", "error")]
        if bad:
            found["failed"] += 1
            text = (bad[0].get("message") or bad[0].text or "").strip().splitlines()
            line = text[0][:200] if text else ""
            found["worst"].append([1e3, f"{name}::{case.get('name')}: {line}"])
        else:
            found["skipped" if case.find("skipped") is not None else "passed"] += 1


if __name__ == "__main__":
    sys.exit(main())
