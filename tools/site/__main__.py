"""python -m tools.site [OUT] builds the documentation site into build/site: `make docs`.

It fails at the first warning: a link that leads nowhere, a page that is in no list, a docstring
that cannot be read, a cell that raises. Nothing on the site is fetched from another server.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str]) -> int:
    """Build the site anew and return Sphinx's exit code."""
    out = Path(arguments[0]) if arguments else ROOT / "build" / "site"
    for old in (out, ROOT / "docs" / "generated"):
        shutil.rmtree(old, ignore_errors=True)
    settings = ROOT / "docs" / "site"
    kept = out.with_name(f"{out.name}-doctrees")
    command: list[str | Path] = [sys.executable, "-m", "sphinx", "-b", "html", "-c", settings]
    command += ["-d", kept, "-E", "-W", "--keep-going", "-q"]
    done = subprocess.run([*command, ROOT, out], cwd=ROOT, check=False)
    if done.returncode == 0:
        print(f"open {out / 'index.html'}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
