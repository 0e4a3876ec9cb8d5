"""``gpubackprop predict``: a trained model on a data file, to a CSV file or stdout."""

from __future__ import annotations

import argparse
import csv
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from gpubackprop import Model
from gpubackprop.cli.common import Say, add_device_options, count, use_device
from gpubackprop.data import Dataset, load_dataset
from gpubackprop.data.classes import as_text
from gpubackprop.data.dataset import _format
from gpubackprop.errors import (
    DataError,
    GpubackpropError,
    OptionError,
    ShapeError,
    StorageError,
)

Array = np.ndarray
BATCH_ROWS = 4096
_EPILOG = """\
examples:
  gpubackprop predict runs/iris/model.safetensors new.csv
  gpubackprop predict runs/iris/model.safetensors new.csv --probabilities --output out.csv
  gpubackprop predict runs/iris/model.safetensors labelled.csv --score --output /dev/null

The columns of a table are found by their names: their order does not matter and others are
ignored. Arrays (NPY, NPZ, IDX) have no names: their columns are taken as they come.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.usage = "gpubackprop predict MODEL DATA [options]"
    parser.description = (
        "Apply a trained model to a data file; one row of output for each of input."
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="model.safetensors, or the directory that holds it")
    add("data", metavar="DATA", help=".csv, .csv.gz, .parquet, .npz, .npy or IDX file")
    add("--output", default="-", metavar="FILE", help="CSV file (default -: stdout)")
    add(
        "--probabilities",
        action="store_true",
        help="also a column for each class (or label, with a multilabel model)",
    )
    add("--score", action="store_true", help="compare with the targets in DATA: accuracy, rmse")
    add("--target", metavar="COLUMN", help="targets for --score (default: named as in training)")
    add("--features", metavar="KEY", help="key of the inputs in an NPZ file")
    add("--no-header", action="store_true", help="line 1 of the CSV file is data")
    add("--json", action="store_true", help="print one JSON object instead of text")
    add("--quiet", action="store_true", help="print nothing but predictions to stdout")
    add_device_options(parser)


def run(args: argparse.Namespace) -> int:
    to_stdout = args.output == "-"
    device = use_device(args)
    path = Path(args.model)
    model = Model.load(path / "model.safetensors" if path.is_dir() else path)
    if device.name != "cpu":
        model.network = model.network.copy(device.name)
    dataset = read(args, model)
    rows: list[list[Any]] = []
    table = Table(model, args.probabilities)
    predicted = np.empty((len(dataset.x) if args.score else 0, model.network.widths[-1]))
    with _sink(None if to_stdout and args.json else args.output) as sink:
        writer = csv.writer(sink, lineterminator="\n") if sink else None
        if writer:
            writer.writerow(table.columns)
        for start, yhat in model.predict_batches(dataset.x, batch_rows=BATCH_ROWS):
            if args.score:
                predicted[start : start + len(yhat)] = yhat
            lines = table.rows(yhat)
            if writer:
                writer.writerows(lines)
            else:
                rows.extend(lines)
    scores = score(model, dataset, predicted) if args.score else {}
    say = Say(args.json, args.quiet)
    if not to_stdout:
        say.line(f"{count(len(dataset.x), 'prediction')} written to {args.output}")
    for name, value in scores.items():
        text = f"{name}: {value:.4f}" if name == "accuracy" else f"{name}: {value:.5g}"
        (say.note if to_stdout and not args.json else say.result)(text)
    values = {"rows": len(dataset.x), "columns": table.columns, "device": device.name, **scores}
    values |= {"predictions": rows} if to_stdout else {"output": args.output}
    say.object(values)
    return 0


def read(args: argparse.Namespace, model: Model) -> Dataset:
    """DATA with the model's columns in the model's order; targets only for --score.

    Raises
    ------
    DataError, ShapeError : names the columns that are absent, or the number wanted.
    """
    by_name = _format(Path(args.data)) in ("csv", "parquet")
    names = model.feature_names if by_name and not args.no_header else None
    target: Any = None
    if args.score:
        target = args.target or model.target_names
        if target is None:
            raise OptionError(
                "--score wants to know the targets: name them with --target (column, key of an "
                "NPZ file, or file for NPY and IDX)"
            )
        if not by_name and args.target is None:
            raise OptionError(f"--score on {args.data} wants --target: a key (NPZ) or a file")
    elif args.target is not None and names is None:
        target = args.target  # so that it is not taken for a feature
    features = args.features if args.features is not None else names
    dataset = load_dataset(args.data, target=target, features=features, header=not args.no_header)
    wanted, got = model.network.widths[0], dataset.x.shape[1]
    if got != wanted:
        hint = "; if one of them is the target, name it with --target" if got == wanted + 1 else ""
        raise ShapeError(
            f"{args.data} has {count(got, 'feature column')} but {args.model} was trained on "
            f"{wanted}{hint}"
        )
    return dataset


@dataclass(frozen=True)
class Table:
    """The columns of the output.

    classification: prediction, and probability_<class>. multilabel: 0 or 1 for each target, and
    probability_<target>. Numbers: prediction, or one column for each target.
    """

    model: Model
    probabilities: bool

    @property
    def columns(self) -> list[str]:
        if self.model.classes is not None:
            names = [as_text(label) for label in self.model.classes]
            return ["prediction", *self._probability_columns(names)]
        names = self._target_names()
        if len(names) == 1 and not self._multilabel:
            return ["prediction"]
        return [*names, *self._probability_columns(names)]

    def rows(self, yhat: Array) -> list[list[Any]]:
        """Cells of each row, as Python values; floats shortest that read back the same."""
        more = self.probabilities and (self.model.classes is not None or self._multilabel)
        tail = [[float(str(v)) for v in row] for row in yhat] if more else [[]] * len(yhat)
        if self.model.classes is not None:
            labels = self.model.labels(yhat).tolist()
            head: Sequence[list[Any]] = [
                [as_text(label) if isinstance(label, bytes) else label] for label in labels
            ]
        elif self._multilabel:
            head = self.model.labels(yhat).tolist()
        else:
            head = [[float(str(v)) for v in row] for row in yhat]
        return [[*first, *rest] for first, rest in zip(head, tail, strict=True)]

    @property
    def _multilabel(self) -> bool:
        return self.model.network.output == "logistic"

    def _target_names(self) -> list[str]:
        units = self.model.network.widths[-1]
        return list(self.model.target_names or (f"prediction_{i}" for i in range(units)))

    def _probability_columns(self, names: Sequence[str]) -> list[str]:
        return [f"probability_{name}" for name in names] if self.probabilities else []


def score(model: Model, dataset: Dataset, yhat: Array) -> dict[str, float]:
    """accuracy of classes (multilabel: of rows with every label right), else rmse.

    Raises
    ------
    DataError : a label that the model does not know (row named), targets of another kind.
    """
    try:
        return model.compare(yhat, dataset.y)
    except GpubackpropError as error:
        raise DataError(f"{dataset.source}: {error}; --target names the targets") from error


@contextmanager
def _sink(output: str | None) -> Iterator[IO[str] | None]:
    """Where the rows go: stdout for "-", a file that appears whole or not at all, or nowhere."""
    if output is None or output == "-":
        yield None if output is None else sys.stdout
        return
    target = Path(os.path.realpath(output))
    if target.exists() and not target.is_file():  # /dev/null, a pipe
        with open(target, "w", encoding="utf-8", newline="") as file:
            yield file
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise StorageError(
            f"{output} could not be written ({error.strerror or error}); free space or choose "
            "another file with --output"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
