"""Tables of the record: by source in tests/README.md; in tests/mutants.md all not killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.mutants.equivalent import reason_of
from tools.mutants.judge import DOES_NOT_COMPILE, SAME_CODE, SURVIVED
from tools.mutants.mutations import ROOT, Mutant
from tools.mutants.record import Entry, Record

README = ROOT / "tests" / "README.md"
LIST = ROOT / "tests" / "mutants.md"
BEGIN, END = "<!-- mutants: begin -->\n", "<!-- mutants: end -->\n"
SAME_OBJECT = "g++ -O2 makes the same object code of it, in every entry"


@dataclass
class Counts:
    """Of the mutants that compile."""

    killed: int = 0
    equivalent: int = 0
    survivors: int = 0

    @property
    def share(self) -> float:
        """Killed, of those that are not equivalent."""
        return self.killed / max(1, self.killed + self.survivors)

    def row(self, name: str, when: str) -> str:
        mutants = self.killed + self.equivalent + self.survivors
        counts = f"{mutants} | {self.killed} | {self.equivalent} | {self.survivors}"
        return f"| {name} | {counts} | {self.share:.1%} | {when} |"


def outcome(file: str, verdict: str, before: str, after: str) -> str:
    """ "killed", "equivalent", "survivors" or, where it does not compile, ""."""
    if verdict == DOES_NOT_COMPILE:
        return ""
    if verdict == SAME_CODE or (verdict == SURVIVED and reason_of(file, before, after)):
        return "equivalent"
    return "survivors" if verdict == SURVIVED else "killed"


def count(verdicts: dict[Mutant, str]) -> Counts:
    found = Counter(outcome(m.file, v, m.before, m.after) for m, v in verdicts.items())
    return Counts(found["killed"], found["equivalent"], found["survivors"])


def table(record: Record) -> str:
    """By source file, and all together."""
    lines = [
        "| source | mutants | killed | equivalent | survivors | killed of the rest | run |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    total: Counter[str] = Counter()
    for file, entries in sorted(record.entries.items()):
        found = Counter(outcome(file, e.verdict, e.before, e.after) for e in entries.values())
        total += found
        counts = Counts(found["killed"], found["equivalent"], found["survivors"])
        lines.append(counts.row(f"`{file}`", record.dates[file]))
    counts = Counts(total["killed"], total["equivalent"], total["survivors"])
    lines.append(counts.row("all", max(record.dates.values(), default="")))
    return "\n".join(lines) + "\n"


def listing(record: Record) -> str:
    """Markdown of the survivors and of the equivalent mutants by reason."""
    survivors, reasons = [], dict[str, list[str]]()
    for file, entry in _shown(record):
        line = f"- `{file}:{entry.line}`: `{entry.before}` → `{entry.after}`"
        reason = reason_of(file, entry.before, entry.after)
        if entry.verdict == SAME_CODE:
            reasons.setdefault(SAME_OBJECT, []).append(line)
        elif reason:
            reasons.setdefault(reason, []).append(line)
        else:
            survivors.append(line)
    parts = [
        "# Mutants of the kernels that no test kills\n",
        "Written by `python -m tools.mutants --write`; `README.md` says what this is.\n",
        "## Survivors\n",
        "\n".join(survivors or ["None."]) + "\n",
        "## Equivalent\n",
    ]
    for reason, lines in sorted(reasons.items()):
        parts += [f"{reason[0].upper()}{reason[1:]}:\n", "\n".join(lines) + "\n"]
    return "\n".join(parts)


def _shown(record: Record) -> Iterator[tuple[str, Entry]]:
    for file, entries in sorted(record.entries.items()):
        for entry in sorted(entries.values(), key=lambda e: (e.line, e.after)):
            if entry.line:
                yield file, entry


def readme_with(text: str, record: Record) -> str:
    """The text of tests/README.md with today's table in it."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"error: {README} has no lines {BEGIN!r} and {END!r}")
    return before + begin + "\n" + table(record) + "\n" + end + after


def write(record: Record, readme: Path = README, listed: Path = LIST) -> None:
    readme.write_text(readme_with(readme.read_text(), record))
    listed.write_text(listing(record))
