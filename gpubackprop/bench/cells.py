"""The texts of a table's cells: times, their spread, shares and verdicts."""

from __future__ import annotations

from gpubackprop.bench.rows import Row, percentiles


def time_text(seconds: float) -> str:
    """Format a time with three significant digits and a unit.

    >>> time_text(0.00123456), time_text(2.5), time_text(1.5e-05)
    ('1.23 ms', '2.5 s', '15 us')
    """
    unit, size = ("us", 1e-6) if seconds < 1e-3 else ("ms", 1e-3) if seconds < 1 else ("s", 1.0)
    return f"{seconds / size:.3g} {unit}"


SHOWN = {"numpy": "gpubackprop", "cupy_raw": "gpubackprop", "cupy_arrays": "CuPy arrays",
         "cupy_raw, cold L2": "gpubackprop, cold L2"}  # fmt: skip


def shown(provider: str) -> str:
    """Return the provider's name for readers; our two providers differ by the device."""
    return SHOWN.get(provider, provider)


def place(row: Row) -> str:
    if row.device != "cpu":
        return row.device
    return f"{row.threads} thread" + ("s" if row.threads > 1 else "")


def noise(row: Row) -> str:
    """Format p20 – p80 of a row; "" if they are not known."""
    return "" if row.p20 is None or row.p80 is None else _between(row.p20, row.p80)


def _between(least: float, most: float) -> str:
    low, high = time_text(least), time_text(most)
    (number, unit), (_, other) = low.split(), high.split()
    return f"{number if unit == other else low} – {high}"


def spread(seconds: list[float]) -> str:
    """Format p20 – p80 of the times of several rounds.

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
    """Format the time and p20 – p80, or say why there is no time."""
    text = time_only(row)
    return f"{text} ({noise(row)})" if row and row.seconds and noise(row) else text


def verdict(row: Row) -> str:
    """Return "undecided" if 1 lies within p20 to p80 of our time over this row's, else ""."""
    low, high = row.ratio_p20, row.ratio_p80
    return "undecided" if low is not None and high is not None and low <= 1 <= high else ""


def share_cell(row: Row) -> str:
    """Format the share of the limit, the limit's name, and in brackets the share of the limit of
    the case's own size."""
    if not row.share:
        return ""
    own = f" ({share_text(row.share_same_size)} at its size)" if row.share_same_size else ""
    return f"{share_text(row.share)} {row.limit}{own}"


def share_text(share: float) -> str:
    """Format the share of a limit, with "!" if it is above 1: then it was no limit.

    >>> share_text(0.98), share_text(1.02)
    ('0.98', '1.02 !')
    """
    return f"{share:.2f}" + " !" * (round(share, 2) > 1)


def joules(row: Row) -> str:
    return f"{row.joules:.3g}" if row.joules else ""


def rate(value: float, unit: str) -> str:
    """Format a rate with three significant digits and a prefix.

    >>> rate(4.25e12, "B/s")
    '4.25 TB/s'
    """
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
