"""The record of sources that were compiled whole and found within their resources.

compiled.json has a key for each source and card; what is on record need not be compiled again. The
key changes with what the compiler reads of the source for that card, with its version and options, with
the entries and with what is asserted; then the source is compiled again. It is the same in every
checkout. A test run with GPUBACKPROP_RECORD=1 writes the keys of what passed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TypeVar

from tests import compiled_resources
from tests.emulator import compilers

T = TypeVar("T")

RECORD = Path(__file__).with_suffix(".json")
SAMPLE = 2  # so many entries of a source on record are compiled all the same


def key_of(source: str, architecture: int, entries: Sequence[str]) -> str:
    """Return the key of those entries of a source for a card."""
    compiler = compilers.compiler()
    assert compiler is not None
    code = compilers.device_code(source, architecture, compiler.version)
    asserted = compiled_resources.asserted(entries)
    parts = (code, str(architecture), compiler.version, *compilers.OPTIONS, asserted)
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


def sample(cases: Sequence[T], name: str) -> list[T]:
    """Return a few cases, others each day; GPUBACKPROP_SEED names a day's choice again."""
    seed = os.environ.get("GPUBACKPROP_SEED") or date.today().isoformat()
    return random.Random(f"{seed} {name}").sample(sorted(cases), min(SAMPLE, len(cases)))  # type: ignore[type-var]
