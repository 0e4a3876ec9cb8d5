"""Several records side by side: which cases are faster, slower, the same, or undecided.

``compare`` sets the times of any machines beside one another. ``regressions`` is for two runs of
one machine. A machine's speed drifts from one run to the next, so it compares the shares of the
limit, which was measured in the same rounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gpubackprop.bench import cells
from gpubackprop.bench.machines import letter
from gpubackprop.bench.providers import LIMIT, NO_PEERS, OWN
from gpubackprop.bench.record import rows_of
from gpubackprop.bench.rows import Row

LEAST_CHANGE = 0.03  # a smaller change is not reported, however small the noise
VERDICTS = ("faster", "slower", "same", "undecided")
Record = dict[str, Any]
Range = tuple[float, float, float]  # p20, median, p80


def verdict(base: Range, other: Range) -> str:
    """Compare the time `other` with `base`: it is decided if their p20 to p80 do not overlap.

    >>> verdict((1.9, 2.0, 2.1), (0.9, 1.0, 1.1)), verdict((1.9, 2.0, 2.1), (2.0, 2.3, 2.6))
    ('faster', 'undecided')
    >>> verdict((1.99, 2.0, 2.01), (1.99, 2.01, 2.02))
    'same'
    """
    low, high = other[0] / base[2], other[2] / base[0]
    least, most = 1 / (1 + LEAST_CHANGE), 1 + LEAST_CHANGE
    apart = low > 1 or high < 1
    if (apart and least <= other[1] / base[1] <= most) or (low >= least and high <= most):
        return "same"
    if not apart:
        return "undecided"
    return "slower" if low > 1 else "faster"


def spread(row: Row) -> Range | None:
    """Return p20, median and p80 of the time; None if it was not timed or its noise is not
    known."""
    if not row.seconds or row.p20 is None or row.p80 is None:
        return None
    return row.p20, row.seconds, row.p80


# -- any machines ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One case of our library in every record.

    Attributes
    ----------
    case : name of the case.
    place : where it ran, e.g. "GPU", "CPU, 1 thread".
    rows : the row of each record; None if the record has no such row.
    """

    case: str
    place: str
    rows: tuple[Row | None, ...]

    def times(self) -> list[str]:
        """Return each record's time; "WRONG", "failed", or "-" if it was not measured."""
        return [cells.time_cell(row) for row in self.rows]

    def factor(self, number: int) -> float | None:
        """Return the time in that record over the time in the first."""
        first, other = self.rows[0], self.rows[number]
        if first is None or other is None or not first.seconds or not other.seconds:
            return None
        return other.seconds / first.seconds

    def verdict(self, number: int) -> str:
        """Return that record's verdict against the first; "" if one of the two has no time."""
        first, other = self.rows[0], self.rows[number]
        if self.factor(number) is None or first is None or other is None:
            return ""
        ranges = spread(first), spread(other)
        return "undecided" if None in ranges else verdict(*ranges)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Comparison:
    """Records and their common cases; the others are compared with the first."""

    records: list[Record]
    lines: list[Line]

    def counts(self, number: int) -> dict[str, int]:
        """Count the verdicts of that record against the first."""
        found = [line.verdict(number) for line in self.lines]
        return {name: found.count(name) for name in VERDICTS}

    def cells(self) -> list[list[str]]:
        """Return the table for other programs: each record's seconds, percentiles and share, and
        the verdicts."""
        numbers = range(len(self.records))
        columns = ("seconds", "p20", "p80", "share", "joules")
        head = ["case", "place", *(f"{letter(n)} {name}" for n in numbers for name in columns)]
        head += [text for n in numbers[1:] for text in (f"{letter(n)} / A", f"{letter(n)} verdict")]
        found = [head]
        for line in self.lines:
            values = [getattr(row, name, None) for row in line.rows for name in columns]
            cells = ["" if value is None else str(value) for value in values]
            for n in numbers[1:]:
                factor = line.factor(n)
                cells += ["" if factor is None else f"{factor:.4g}", line.verdict(n)]
            found.append([line.case, line.place, *cells])
        return found

    def summary(self, number: int) -> str:
        """For example "B against A: 12 faster, 1 slower, 3 same, 2 undecided of 18 cases"."""
        counts, name = self.counts(number), letter(number)
        total = sum(counts.values())
        factors = sorted(f for line in self.lines if (f := line.factor(number)) is not None)
        text = ", ".join(f"{count} {what}" for what, count in counts.items())
        text = f"{name} against A: {text} of {total} case{'s' * (total != 1)}"
        if factors:
            middle = factors[len(factors) // 2]
            text += f"; {name} takes {middle:.3g} times as long in the middle case"
        only = [
            sum(bool(line.rows[a] and line.rows[a].seconds) for line in self.lines) - total  # type: ignore[union-attr]
            for a in (0, number)
        ]
        return f"{text}; measured by A alone: {only[0]}, by {name} alone: {only[1]}"


def compare(records: list[Record]) -> Comparison:
    """Compare our rows of every record, case by case.

    A line has one kind of device and one number of threads. If some records ran on a GPU and
    others did not, a line has each record's own device.
    """
    mixed = len({record["device"].partition(":")[0] for record in records}) > 1
    found = [_ours(record, mixed) for record in records]
    keys = dict.fromkeys(key for rows in found for key in rows)
    lines = [Line(*key, tuple(rows.get(key) for rows in found)) for key in keys]
    return Comparison(records, lines)


def _ours(record: Record, mixed: bool) -> dict[tuple[str, str], Row]:
    """Return our rows by case and place."""
    rows = [row for row in rows_of(record) if row.provider in OWN]
    most = max((row.threads for row in rows if row.device == "cpu"), default=1)
    found = {}
    for row in rows:
        full = row.device != "cpu" or row.threads == most
        place = "GPU" if row.device != "cpu" else "CPU"
        if mixed:
            if row.device != record["device"] or not full:
                continue
            place = "own device"
        elif not full:
            place = f"CPU, {row.threads} thread{'s' * (row.threads > 1)}"
        found[row.case, place] = row
    return found


# -- two runs of one machine ----------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """A case that takes `factor` times as long as before, in units of `against`."""

    case: str
    place: str
    against: str
    factor: float

    def __str__(self) -> str:
        return (
            f"{self.case}, {self.place}: {self.factor:.2f} times as long (against {self.against})"
        )


@dataclass(frozen=True)
class Regressions:
    slower: list[Change]
    faster: list[Change]
    wrong: list[str]
    missing: list[str]

    @property
    def regressed(self) -> bool:
        return bool(self.slower or self.wrong)

    def lines(self) -> Iterator[str]:
        parts = (("slower", self.slower), ("faster", self.faster), ("wrong now", self.wrong),
                 ("not measured now", self.missing))  # fmt: skip
        for title, found in parts:
            yield f"{title}: {len(found) or 'nothing'}"
            yield from (f"  {item}" for item in found)


Key = tuple[str, str, int, str]


def regressions(old: Record, new: Record) -> Regressions:
    """Return what changed by more than p20 to p80 of both runs together, and by more than 3 %."""
    before, after = _by_key(rows_of(old)), _by_key(rows_of(new))
    changes: list[Change] = []
    wrong: list[str] = []
    missing: list[str] = []
    for key, row in before.items():
        if key[3] not in OWN or row.seconds is None:
            continue
        current = after.get(key)
        if current is None or current.seconds is None:
            target = wrong if current is not None and current.wrong else missing
            target.append(f"{row.case}, {cells.place(row)}")
            continue
        found = _change(row, current, before, after)
        if found is not None:
            changes.append(found)
    slower = sorted((c for c in changes if c.factor > 1), key=lambda c: -c.factor)
    faster = sorted((c for c in changes if c.factor < 1), key=lambda c: c.factor)
    return Regressions(slower, faster, wrong, missing)


def _by_key(rows: list[Row]) -> dict[Key, Row]:
    return {(row.case, row.device, row.threads, row.provider): row for row in rows}


def _change(
    old: Row, new: Row, before: dict[Key, Row], after: dict[Key, Row]
) -> Change | None:  # fmt: skip
    for against, first, second in _measures(old, new, before, after):
        factor, noise = second[1] / first[1], (first[2] - first[0]) + (second[2] - second[0])
        if abs(factor - 1) > LEAST_CHANGE and abs(second[1] - first[1]) > noise:
            return Change(new.case, cells.place(new), against, factor)
        return None
    return None


def _measures(
    old: Row, new: Row, before: dict[Key, Row], after: dict[Key, Row]
) -> Iterator[tuple[str, Range, Range]]:
    """Return (what, range before, range now): our time in units of `what`, measured in the same
    run."""
    if old.share and new.share:
        yield f"the {new.limit} {LIMIT}", _inverse(old), _inverse(new)
    for key, row in after.items():
        others = key[:3] == (new.case, new.device, new.threads) and key[3] not in (
            *NO_PEERS, new.provider
        )  # fmt: skip
        past = before.get(key)
        if others and past is not None and past.ratio and row.ratio:
            yield row.provider, _ratio(past), _ratio(row)


def _inverse(row: Row) -> Range:
    assert row.share
    low, high = row.share_p20 or row.share, row.share_p80 or row.share
    return 1 / high, 1 / row.share, 1 / low


def _ratio(row: Row) -> Range:
    assert row.ratio
    return row.ratio_p20 or row.ratio, row.ratio, row.ratio_p80 or row.ratio
