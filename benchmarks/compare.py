"""Two result files: which cases became slower or faster, beyond their noise.

Times of two runs are not compared. What is compared is the share of the limit that was measured in
the same rounds; where there is none, our time over a contestant's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.tables import place
from gpubackprop.bench.contestants import LIMIT, OURS
from gpubackprop.bench.harness import Row
from gpubackprop.bench.record import rows_of

LEAST_CHANGE = 0.03  # smaller ones are no news even where the noise is smaller still


@dataclass(frozen=True)
class Change:
    """`factor`: how many times as long it takes now, measured against `against`."""

    case: str
    place: str
    against: str
    factor: float

    def __str__(self) -> str:
        return (
            f"{self.case}, {self.place}: {self.factor:.2f} times as long (against {self.against})"
        )


@dataclass(frozen=True)
class Comparison:
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


def compare(old: dict[str, Any], new: dict[str, Any]) -> Comparison:
    """What changed by more than p20 to p80 of both runs together, and by more than 3 %."""
    before, after = _by_key(rows_of(old)), _by_key(rows_of(new))
    changes: list[Change] = []
    wrong, missing = [], []
    for key, row in before.items():
        if key[3] not in OURS.values() or row.seconds is None:
            continue
        current = after.get(key)
        if current is None or current.seconds is None:
            target = wrong if current is not None and current.wrong else missing
            target.append(f"{row.case}, {place(row)}")
            continue
        found = _change(row, current, before, after)
        if found is not None:
            changes.append(found)
    slower = sorted((c for c in changes if c.factor > 1), key=lambda c: -c.factor)
    faster = sorted((c for c in changes if c.factor < 1), key=lambda c: c.factor)
    return Comparison(slower, faster, wrong, missing)


def _by_key(rows: list[Row]) -> dict[Key, Row]:
    return {(row.case, row.device, row.threads, row.contestant): row for row in rows}


def _change(
    old: Row, new: Row, before: dict[Key, Row], after: dict[Key, Row]
) -> Change | None:  # fmt: skip
    for against, first, second in _measures(old, new, before, after):
        (low, middle, high), (new_low, new_middle, new_high) = first, second
        noise = (high - low) + (new_high - new_low)
        factor = new_middle / middle
        if abs(factor - 1) > LEAST_CHANGE and abs(new_middle - middle) > noise:
            return Change(new.case, place(new), against, factor)
        return None
    return None


Range = tuple[float, float, float]


def _measures(
    old: Row, new: Row, before: dict[Key, Row], after: dict[Key, Row]
) -> Iterator[tuple[str, Range, Range]]:
    """(what, range before, range now) of our time in units of something of the same run."""
    if old.share and new.share:
        yield f"the {new.limit} limit", _inverse(old), _inverse(new)
    for key, row in after.items():
        others = key[:3] == (new.case, new.device, new.threads) and key[3] not in (
            LIMIT, new.contestant
        )  # fmt: skip
        past = before.get(key)
        if others and past is not None and past.ratio and row.ratio:
            yield row.contestant, _ratio(past), _ratio(row)


def _inverse(row: Row) -> Range:
    assert row.share
    low, high = row.share_p20 or row.share, row.share_p80 or row.share
    return 1 / high, 1 / row.share, 1 / low


def _ratio(row: Row) -> Range:
    assert row.ratio
    return row.ratio_p20 or row.ratio, row.ratio, row.ratio_p80 or row.ratio
