"""Checks of column names: none is there twice, all are present, in the order of the request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gpubackprop.data.files import did_you_mean, listing
from gpubackprop.errors import DataError


def check_names(names: Sequence[str], source: str) -> None:
    """Raise DataError if a name occurs twice."""
    doubled = repeated(names)
    if doubled:
        raise DataError(f"{source}: duplicate column names {listing(doubled)}; rename them")


def check_present(
    asked: Sequence[str], names: Sequence[str], role: str, source: str, where: str = "in the file"
) -> None:
    """Raise DataError if a column is absent or asked for twice."""
    there = set(names)
    absent = [name for name in asked if name not in there]
    if absent:
        what = "column" if len(absent) == 1 else "columns"
        raise DataError(
            f"{source}: {role} {what} {listing(absent)} not {where}"
            f"{did_you_mean(absent[0], names)}; it has {listing(names)}"
        )
    twice = repeated(asked)
    if twice:
        raise DataError(f"{source}: {role} column {listing(twice)} is asked for twice")


def positions(
    names: Sequence[str], wanted: Sequence[str], source: str, *, numbered: bool = False
) -> list[int]:
    """Return the positions of the `wanted` columns among a frame's `names`; others are ignored.

    `numbered` says that the names are the numbers of a frame without names.

    Raises
    ------
    DataError
        A name is there twice, or a wanted column is absent.
    """
    check_names(names, source)
    wanted = [str(name) for name in wanted]
    try:
        check_present(wanted, names, "the", source, "among its columns")
    except DataError as error:
        if not numbered:
            raise
        raise DataError(
            f"{error}. Its columns have numbers for names: name them, or pass {source}.to_numpy() "
            "if they are these columns in this order"
        ) from None
    place = {name: j for j, name in enumerate(names)}
    return [place[name] for name in wanted]


def repeated(names: Sequence[str]) -> list[str]:
    """Return the names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]
