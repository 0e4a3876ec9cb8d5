"""The target columns of a table: which task they are, and classes as they were written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpubackprop.data.files import listing, shorten
from gpubackprop.data.labels import explain_task
from gpubackprop.data.typed import Column
from gpubackprop.errors import DataError

Array = npt.NDArray[Any]
_WHOLE = re.compile(r"-?(0|[1-9]\d*)")
_MANY, _PER_CLASS = 100, 5  # classes; rows of a class on average


class Target(NamedTuple):
    """A target column: its name, its values, and its texts as the file has them."""

    name: str
    column: Column
    written: Column

    @property
    def missing(self) -> Array:
        """Mask (N,) of the rows without a target."""
        return np.asarray(self.column.missing | self.written.missing)

    def take(self, rows: Array) -> Target:
        return Target(self.name, self.column.take(rows), self.written.take(rows))


class Targets(NamedTuple):
    """What is learnt.

    Attributes
    ----------
    task : str
        "classification", "regression", "multilabel", ...
    why : str
        Why, if it was inferred; else "".
    values : (N,) int array of class indices, or (N, K) float64 array
        The targets.
    classes : (C,) array or None
        Labels: text as it was written, or integers.
    """

    task: str
    why: str
    values: Array
    classes: Array | None


def read_targets(targets: Sequence[Target], task: str = "auto") -> Targets:
    """Return the targets of a table without missing ones.

    Raises
    ------
    DataError
        The columns are of kinds that cannot be learned together, there is one class only, or a
        task for numbers was asked for and a column holds text.
    """
    why = ""
    if task == "auto":
        task, why = _infer(targets)
    if task == "classification" and len(targets) > 1:
        return Targets(task, why, *_one_hot(targets))
    if task == "classification":
        return Targets(task, why, *labels_of(targets[0]))
    for target in targets:
        if not _is_numeric(target.column):
            what = shorten(target.written.as_text().texts[0])
            raise DataError(
                f"target {target.name}: the targets are text (such as {what}) but {task} wants "
                "numbers; choose another target column, or --task classification"
            )
    return Targets(task, why, np.stack([target.column.values for target in targets], 1), None)


def _infer(targets: Sequence[Target]) -> tuple[str, str]:
    text = [target.name for target in targets if not _is_numeric(target.column)]
    if len(targets) > 1:
        if text:
            raise DataError(
                f"target columns {listing(text)} hold text and the others numbers; train on one "
                "kind at a time"
            )
        return explain_task(np.stack([target.column.values for target in targets], axis=1))
    if text:
        return "classification", f"{text[0]} holds {targets[0].column.kind}"
    kind, why = explain_task(targets[0].column.values)
    if kind == "regression" and not _spells_numbers(targets[0].written):
        return "classification", f"{targets[0].name} holds codes"
    return kind, f"{targets[0].name} has {why}"


def _is_numeric(column: Column) -> bool:
    return column.kind in ("number", "boolean")


def _spells_numbers(written: Column) -> bool:
    """Return whether no two texts are the same number: "7" and "007" are two labels."""
    if written.kind != "text":
        return True
    whole = [text for text in written.texts if re.fullmatch(r"-?\d+", text.strip())]
    return len({int(text) for text in whole}) == len(whole)


def labels_of(target: Target) -> tuple[Array, Array]:
    """Return class indices (N,) and the sorted classes, as they were written.

    Whole numbers are int64 if all are written as such; other numbers keep their spelling.

    Raises
    ------
    DataError
        There is one class only.
    """
    written = target.written
    if (written.kind == "number" and written.whole) or _all_whole(written):
        values = target.column.values if written.kind == "number" else _as_integers(written)
        distinct, indices = np.unique(values.astype(np.int64), return_inverse=True)
    else:
        text = written.as_text()
        used = np.unique(text.codes)
        order = sorted(used.tolist(), key=lambda code: text.texts[code])
        place = np.zeros(len(text.texts), np.int64)
        place[order] = np.arange(len(order))
        distinct, indices = np.array([text.texts[code] for code in order]), place[text.codes]
    if len(distinct) < 2:
        raise DataError(
            f"target {target.name} holds one class only ({shorten(distinct[0].item())} in all "
            f"{len(indices)} rows); a classifier wants two or more: check the target column, or "
            "train a regression"
        )
    return indices.astype(np.int64), distinct


def _all_whole(written: Column) -> bool:
    return written.kind == "text" and all(
        _WHOLE.fullmatch(text) and len(text) < 18 for text in written.texts
    )


def _as_integers(written: Column) -> Array:
    return np.array([int(text) for text in written.texts], np.int64)[written.codes]


def _one_hot(targets: Sequence[Target]) -> tuple[Array, Array]:
    names = [target.name for target in targets]
    if not all(_is_numeric(target.column) for target in targets):
        raise DataError(f"target columns {listing(names)} are several but not one-hot; name one")
    values = np.stack([target.column.values for target in targets], 1)
    if not np.isin(values, (0, 1)).all() or not (values.sum(1) == 1).all():
        raise DataError(
            f"target columns {listing(names)} are several but not one-hot (a single 1 in every "
            "row); for several labels at once pass --task multilabel"
        )
    return values.argmax(1), np.array(names)


def known_labels(written: Column, classes: Array) -> Array:
    """Return the labels (N,) of a file as the values of a model's `classes`, for a score.

    The kind of the classes decides how a text is read, not the other texts of the file. A number
    that is spelled otherwise than in training ("1.0" for "1") is found by its value.

    Raises
    ------
    DataError
        A row has no label.
    """
    if written.missing.any():
        raise DataError(f"row {int(np.flatnonzero(written.missing)[0]) + 1} has no label")
    if written.kind == "number" and classes.dtype.kind in "biuf":
        return written.values
    text = written.as_text()
    known = {str(label): label for label in classes.tolist()}
    by_value = {_number_of(key): label for key, label in known.items()}
    found = [known.get(t, by_value.get(_number_of(t), t)) for t in text.texts]
    if all(isinstance(value, str) for value in found) or not any(
        isinstance(value, str) for value in found
    ):
        return np.array(found)[text.codes]
    unknown = next(value for value in found if isinstance(value, str))
    row = int(np.flatnonzero(text.codes == found.index(unknown))[0])
    raise DataError(
        f"y: row {row + 1} (data rows counted from 1) has the label {shorten(unknown)}, which is "
        f"not among the {len(classes)} classes {listing(classes)}; drop the row"
    )


def _number_of(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return {"true": True, "false": False}.get(text.lower(), text)


def warnings_of(targets: Targets, train: Array) -> list[str]:
    """Return what is doubtful about the classes, for people; `train` are the training rows."""
    if targets.classes is None:
        return []
    counts = np.bincount(targets.values, minlength=len(targets.classes))
    found = []
    single = [str(label) for label in targets.classes[counts == 1]]
    if single:
        found.append(
            f"{len(single)} of {len(targets.classes)} classes have one row only "
            f"({listing(single, 5)}): nothing can be learned of them"
        )
    classes, rows = len(targets.classes), len(targets.values)
    if classes > _MANY or rows < _PER_CLASS * classes:
        found.append(
            f"{classes} classes in {rows:,} rows are many; if the target is a quantity pass "
            "--task regression"
        )
    absent = [str(targets.classes[c]) for c in np.setdiff1d(targets.values, targets.values[train])]
    if absent:
        found.append(f"the training rows have no row of the classes {listing(absent, 5)}")
    return found
