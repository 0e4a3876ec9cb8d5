"""The record of sources that were compiled whole and found within their resources.

compiled.json has a key for each source and card; what is on record need not be compiled again. The
key changes with the preprocessed source, the compiler's version and options, and the test; then the
whole source is compiled again. It is the same in every checkout. A test run with
GPUBACKPROP_RECORD=1 writes the keys of what passed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from datetime import date
from pathlib import Path

from tests.emulator import compilers
from tests.emulator.module import KERNELS, _preprocess

RECORD = Path(__file__).with_suffix(".json")
SAMPLE = 2  # so many entries of a source on record are compiled all the same


def key_of(source: str, architecture: int, test: str) -> str:
    """Return the key; `test` is the text of what is asserted."""
    compiler = compilers.compiler()
    assert compiler is not None
    # A line that begins with # says from which file of this machine the next lines are.
    lines = _preprocess(KERNELS / source, ()).splitlines()
    code = "\n".join(line for line in lines if line and not line.startswith("#"))
    parts = (code, str(architecture), compiler.version, *compilers.OPTIONS, test)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def is_on_record(name: str, key: str) -> bool:
    found: dict[str, str] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found.get(name) == key


def passed(name: str, key: str) -> None:
    """Write the key down, if that is asked for.

    Two workers may write at once, so the file is read just before.
    """
    if not os.environ.get("GPUBACKPROP_RECORD"):
        return
    found = json.loads(RECORD.read_text(encoding="utf-8")) | {name: key}
    part = RECORD.with_suffix(f".{os.getpid()}")
    text = json.dumps(dict(sorted(found.items())), indent=1) + "\n"
    part.write_text(text, encoding="utf-8")
    part.replace(RECORD)


def sample(entries: list[str], name: str) -> list[str]:
    """Return a few entries, others each day; GPUBACKPROP_SEED names a day's choice again."""
    seed = os.environ.get("GPUBACKPROP_SEED") or date.today().isoformat()
    return random.Random(f"{seed} {name}").sample(sorted(entries), min(SAMPLE, len(entries)))
