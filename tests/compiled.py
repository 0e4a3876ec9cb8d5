"""What was compiled whole and found within its resources, so that it need not be again.

compiled.json has a key for each source and card. The key changes with the preprocessed source, the
compiler's version and options, and the test; then the whole source is compiled again. It is the same
in every checkout. A test run with GPUBACKPROP_RECORD=1 writes the keys of what passed.
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
SAMPLE = 2  # entries of a source that is on record


def key_of(source: str, architecture: int, test: str) -> str:
    """`test`: the text of what is asserted."""
    compiler = compilers.compiler()
    assert compiler is not None
    # Lines that begin with # say from which file of this machine the next ones are.
    lines = _preprocess(KERNELS / source, ()).splitlines()
    code = "\n".join(line for line in lines if line and not line.startswith("#"))
    parts = (code, str(architecture), compiler.version, *compilers.OPTIONS, test)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def is_on_record(name: str, key: str) -> bool:
    found: dict[str, str] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found.get(name) == key


def passed(name: str, key: str) -> None:
    """Write it down, where that is asked for. Two workers may write at once: read just before."""
    if not os.environ.get("GPUBACKPROP_RECORD"):
        return
    found = json.loads(RECORD.read_text(encoding="utf-8")) | {name: key}
    part = RECORD.with_suffix(f".{os.getpid()}")
    text = json.dumps(dict(sorted(found.items())), indent=1) + "\n"
    part.write_text(text, encoding="utf-8")
    part.replace(RECORD)


def sample(entries: list[str], name: str) -> list[str]:
    """A few entries, others each day; GPUBACKPROP_SEED names a day's choice again."""
    seed = os.environ.get("GPUBACKPROP_SEED") or date.today().isoformat()
    return random.Random(f"{seed} {name}").sample(sorted(entries), min(SAMPLE, len(entries)))
