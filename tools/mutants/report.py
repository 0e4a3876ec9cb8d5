"""Tables of the record: tests/README.md has one by source, tests/mutants.md lists all not
killed."""

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
    """The numbers of mutants by outcome."""

    killed: int = 0
    equivalent: int = 0
    survivors: int = 0
    broken: int = 0  # mutants that do not compile

    @property
    def share(self) -> float:
        """Return the share of killed mutants among those that are not equivalent."""
        return self.killed / max(1, self.killed + self.survivors)

    def row(self, name: str, made: int, when: str) -> str:
        run = self.killed + self.equivalent + self.survivors + self.broken
        numbers = (made, made - run, self.broken, self.equivalent, self.killed, self.survivors)
        share = f"{self.share:.1%}" if run == made else ""  # half a run says too little
        return "| " + " | ".join([name, *map(str, numbers), share, when]) + " |"


def outcome(mutant: Mutant, verdict: str) -> str:
    """Return the attribute of `Counts` that counts this verdict."""
    if verdict == DOES_NOT_COMPILE:
        return "broken"
    if verdict == SAME_CODE or (verdict == SURVIVED and reason_of(mutant)):
        return "equivalent"
    return "survivors" if verdict == SURVIVED else "killed"


def count(verdicts: dict[Mutant, str]) -> Counts:
    return Counts(**Counter(outcome(mutant, v) for mutant, v in verdicts.items() if v))


def table(record: Record) -> str:
    """Return the table by source file, with a line for all together."""
    lines = [
        "| source | mutants | not run | do not compile | equivalent | killed | survivors "
        "| killed of the last two | last run |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    whole: Counter[str] = Counter()
    all_made = 0
    for file, entries in sorted(record.entries.items()):
        found = Counter(outcome(e.mutant(file), e.verdict) for e in entries.values())
        made, when = record.made[file], record.dates.get(file, "")
        if made == len(entries):
            whole += found
            all_made += made
        lines.append(Counts(**found).row(f"`{file}`", made, when))
    newest = max(record.dates.values(), default="")
    lines.append(Counts(**whole).row("all that were run whole", all_made, newest))
    return "\n".join(lines) + "\n"


def listing(record: Record) -> str:
    """Return Markdown of the survivors, and of the equivalent mutants by reason."""
    survivors, reasons = [], dict[str, list[str]]()
    for file, entry in _shown(record):
        line = f"- `{file}:{entry.line}`: `{entry.before}` → `{entry.after}`"
        reason = reason_of(entry.mutant(file))
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
    """Return the text of tests/README.md with today's table."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"error: {README} has no lines {BEGIN!r} and {END!r}")
    return before + begin + "\n" + table(record) + "\n" + end + after


def write(record: Record, readme: Path = README, listed: Path = LIST) -> None:
    readme.write_text(readme_with(readme.read_text(encoding="utf-8"), record), encoding="utf-8")
    listed.write_text(listing(record), encoding="utf-8")
