"""What a row's cells say: times, their spread, shares, verdicts."""

from __future__ import annotations

from gpubackprop.bench.rows import Row, percentiles


def time_text(seconds: float) -> str:
    """Three significant digits and a unit.

    >>> time_text(0.00123456), time_text(2.5), time_text(1.5e-05)
    ('1.23 ms', '2.5 s', '15 us')
    """
    unit, size = ("us", 1e-6) if seconds < 1e-3 else ("ms", 1e-3) if seconds < 1 else ("s", 1.0)
    return f"{seconds / size:.3g} {unit}"


SHOWN = {"numpy": "gpubackprop", "cupy_raw": "gpubackprop", "cupy_arrays": "CuPy arrays",
         "cupy_raw, cold L2": "gpubackprop, cold L2"}  # fmt: skip


def shown(provider: str) -> str:
    """What a reader knows it by: ours are told apart by the device."""
    return SHOWN.get(provider, provider)


def place(row: Row) -> str:
    if row.device != "cpu":
        return row.device
    return f"{row.threads} thread" + ("s" if row.threads > 1 else "")


def noise(row: Row) -> str:
    """p20 – p80; "" where they are not known."""
    return "" if row.p20 is None or row.p80 is None else _between(row.p20, row.p80)


def _between(least: float, most: float) -> str:
    low, high = time_text(least), time_text(most)
    (number, unit), (_, other) = low.split(), high.split()
    return f"{number if unit == other else low} – {high}"


def spread(seconds: list[float]) -> str:
    """p20 – p80 of the times of several rounds.

    >>> spread([0.001, 0.002, 0.003, 0.004, 0.005, 0.006])
    '2 – 5 ms'
    """
    low, _, high = percentiles(seconds)
    return _between(low, high)


def time_only(row: Row | None) -> str:
    if row is None:
        return "-"
    return time_text(row.seconds) if row.seconds else ("WRONG" if row.wrong else "failed")


def time_cell(row: Row | None) -> str:
    """Time and p20 – p80, or why there is none."""
    text = time_only(row)
    return f"{text} ({noise(row)})" if row and row.seconds and noise(row) else text


def verdict(row: Row) -> str:
    """Of our time over this one's: "" where it is decided, else "undecided", as 1 lies within p20
    to p80 of the ratio."""
    low, high = row.ratio_p20, row.ratio_p80
    return "undecided" if low is not None and high is not None and low <= 1 <= high else ""


def share_cell(row: Row) -> str:
    """The share of the limit and what that is; in brackets that of the limit of the case's size."""
    if not row.share:
        return ""
    own = f" ({share_text(row.share_same_size)} at its size)" if row.share_same_size else ""
    return f"{share_text(row.share)} {row.limit}{own}"


def share_text(share: float) -> str:
    """The share of a limit; "!" where it was none.

    >>> share_text(0.98), share_text(1.02)
    ('0.98', '1.02 !')
    """
    return f"{share:.2f}" + " !" * (round(share, 2) > 1)


def joules(row: Row) -> str:
    return f"{row.joules:.3g}" if row.joules else ""


def rate(value: float, unit: str) -> str:
    """Three significant digits and a prefix.

    >>> rate(4.25e12, "B/s")
    '4.25 TB/s'
    """
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
