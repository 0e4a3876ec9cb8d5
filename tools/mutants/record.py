"""tests/mutants.json: the verdict on each mutant, so that a run does only what changed since.

A verdict depends on the code of the mutant's file (comments do not count) and on the test that
killed it. A survivor's verdict depends on all kernels and kernel tests, unless it is listed as
equivalent. An edit of another file may save a mutant that was killed, and the record does not
notice that: use `--again`.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from datetime import date
from pathlib import Path

from tools.mutants.equivalent import reason_of
from tools.mutants.judge import SAME_CODE, SURVIVED, killer_of
from tools.mutants.mutations import ROOT, Mutant, kernel_tests, users

SUPPORT = (".py", ".h", ".cu", ".cpp")
PATH = ROOT / "tests" / "mutants.json"


class Sources:
    """The hashes of the kernels and of the tests in a tree."""

    def __init__(self, root: Path = ROOT) -> None:
        kernels = root / "kernels"
        self.code = {
            path.relative_to(kernels).as_posix(): _hash(_code(path))
            for path in sorted(kernels.rglob("*.cu*"))
        }
        tests = kernel_tests(root)
        support = sorted((root / "tests" / "emulator").rglob("*.*"))
        shared = _hash(*(path.read_text() for path in support if path.suffix in SUPPORT))
        self.files = {f"tests/{path.name}": _hash(shared, path.read_text()) for path in tests}
        self.users = users(kernels, (root / "tests" / "emulator").glob("*.cu"))
        self.kernels = _hash(*self.code.values())
        self.everything = _hash(self.kernels, *self.files.values())
        self.functions = {
            f"tests/{path.name}::{node.name}": _hash(ast.unparse(node))
            for path in tests
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef)
        }

    def behind(self, test: str, sources: Iterable[str]) -> str:
        """Return a hash of what a test without a mutant depends on, if it compiles `sources`."""
        used = set(sources)
        read = [code for file, code in self.code.items() if used & set(self.users[file])]
        return _hash(self.files[test.partition("::")[0]], *read)

    def rests_on(self, verdict: str) -> str:
        """Return the hash of all else that a verdict depends on."""
        if verdict == SURVIVED:
            return self.everything
        if verdict == SAME_CODE:
            return self.kernels
        return self.functions.get(killer_of(verdict).partition("[")[0], "")


def _code(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    lines = (" ".join(line.partition("//")[0].split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Entry:
    """One verdict on record.

    `code` and `other` are hashes of what it depends on. The fields after the verdict are filled if
    the report shows the mutant.
    """

    code: str
    other: str
    verdict: str
    line: int = 0
    before: str = ""
    after: str = ""
    nth: int = 0

    def shown(self, mutant: Mutant) -> Entry:
        """Return the entry with the fields that the report shows."""
        if self.verdict not in (SURVIVED, SAME_CODE):
            return self
        before, after = mutant.before.strip(), mutant.after.strip()
        return replace(self, line=mutant.line, before=before, after=after, nth=mutant.nth)

    def mutant(self, file: str) -> Mutant:
        return Mutant(file, self.line, "", self.before, self.after, self.nth)


class Record:
    """The file of the record: it is read once, and `keep` writes it with one more verdict."""

    def __init__(self, path: Path = PATH) -> None:
        self.path = path
        self.dates: dict[str, str] = {}
        self.made: dict[str, int] = {}  # number of mutants of a file, on record or not
        self.entries: dict[str, dict[str, Entry]] = {}
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for file, kept in known.items():
            self.dates[file], self.made[file] = kept["date"], kept["made"]
            self.entries[file] = {key: Entry(*e) for key, e in kept["verdicts"].items()}

    def verdict(self, mutant: Mutant) -> str:
        """Return the verdict on record, however old; "" if there is none."""
        entry = self.entries.get(mutant.file, {}).get(mutant.key)
        return entry.verdict if entry else ""

    def standing(self, mutant: Mutant, sources: Sources) -> str:
        """Return the verdict on record if nothing that it depends on has changed, else ""."""
        entry = self.entries.get(mutant.file, {}).get(mutant.key)
        if entry is None or entry.code != sources.code[mutant.file]:
            return ""
        listed = entry.verdict == SURVIVED and reason_of(mutant)
        stands = listed or entry.other == sources.rests_on(entry.verdict)
        return entry.verdict if stands else ""

    def keep(self, mutant: Mutant, verdict: str, sources: Sources) -> None:
        """Write the verdict; the additions of another run to the same file stay."""
        entry = Entry(sources.code[mutant.file], sources.rests_on(verdict), verdict).shown(mutant)
        with self._latest():
            self.entries.setdefault(mutant.file, {})[mutant.key] = entry
            self.dates[mutant.file] = date.today().isoformat()

    def forget_all_but(self, mutants: Iterable[Mutant]) -> None:
        """Drop entries that are no mutants of today's sources; update the count and lines of the
        rest."""
        keys: dict[str, dict[str, Mutant]] = {}
        for mutant in mutants:
            keys.setdefault(mutant.file, {})[mutant.key] = mutant
        with self._latest():
            old, self.made = self.entries, {file: len(own) for file, own in keys.items()}
            self.entries = {
                file: {key: e.shown(own[key]) for key, e in old.get(file, {}).items() if key in own}
                for file, own in keys.items()
            }

    @contextmanager
    def _latest(self) -> Iterator[None]:
        lock = Path(tempfile.gettempdir()) / f"gpubackprop-mutants-{os.getuid()}.lock"
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            latest = Record(self.path)
            self.entries, self.dates, self.made = latest.entries, latest.dates, latest.made
            yield
            made = self.path.with_suffix(".new")
            made.write_text(self._text())
            os.replace(made, self.path)

    def _text(self) -> str:
        """Return JSON with a line for each mutant."""
        files = []
        for file in sorted(self.entries):
            lines = [
                f"   {json.dumps(key)}: {json.dumps(_trimmed(entry))}"
                for key, entry in sorted(self.entries[file].items())
            ]
            facts = {"date": self.dates.get(file, ""), "made": self.made.get(file, len(lines))}
            head = f'  {json.dumps(facts)[1:-1]}, "verdicts": {{\n'
            files.append(f" {json.dumps(file)}: {{\n{head}" + ",\n".join(lines) + "\n  }\n }")
        return "{\n" + ",\n".join(files) + "\n}\n"


def _trimmed(entry: Entry) -> list[str | int]:
    values = list(astuple(entry))
    return values if entry.line else values[:3]
