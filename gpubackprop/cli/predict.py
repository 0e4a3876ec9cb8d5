"""``gpubackprop predict``: apply a trained model to a data file; write a CSV file or stdout."""

from __future__ import annotations

import argparse
import csv
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from gpubackprop import Model
from gpubackprop.cli.common import (
    Say,
    add_device_options,
    check_data_options,
    count,
    has_column_names,
    metric_text,
    use_device,
)
from gpubackprop.cli.outputs import add_overwrite_option, claim_file, refuse_inputs
from gpubackprop.cli.predict_table import Rows, read_table
from gpubackprop.cli.streams import csv_stdout, from_shell
from gpubackprop.cli.train_options import mark
from gpubackprop.data import Dataset, load_dataset
from gpubackprop.data.classes import as_text, class_indices
from gpubackprop.data.preprocessor import Surprises
from gpubackprop.errors import (
    DataError,
    GpubackpropError,
    OptionError,
    ShapeError,
    StorageError,
)
from gpubackprop.scores import class_scores, column_rmse, label_scores, number_scores

Array = np.ndarray
BATCH_ROWS = 4096
# A program that goes by the name would misread what is written.
OTHER_FORMATS = {".gz", ".json", ".jsonl", ".npy", ".npz", ".parquet", ".tsv", ".xls", ".xlsx"}
_EPILOG = """\
examples:
  gpubackprop predict runs/iris/model.safetensors new.csv
  gpubackprop predict runs/iris/model.safetensors new.csv --probabilities --output out.csv
  gpubackprop predict runs/iris/model.safetensors labelled.csv --score --output /dev/null
  gpubackprop predict runs/iris new.csv --keep id,name --output out.csv

The columns of a table are found by their names: their order does not matter and others are
ignored. Categories that training had not, and missing values, are predicted too, and counted on
one line. Arrays (NPY, NPZ, IDX) have no names: their columns are taken as they come.
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
    add_overwrite_option(parser)
    add(
        "--probabilities",
        action="store_true",
        help="also a column for each class (or label, with a multilabel model)",
    )
    add("--score", action="store_true", help="compare with the targets in DATA: accuracy, rmse")
    add("--target", metavar="COLUMN", help="targets for --score (default: named as in training)")
    add(
        "--keep", action="append", default=[], metavar="A,B,...",
        help="columns of a table that go to the output as they are, before the predictions",
    )  # fmt: skip
    add("--features", metavar="KEY", help="key of the inputs in an NPZ file")
    add("--separator", type=mark, metavar="C", help="between the cells of a CSV file")
    add("--decimal", choices=[".", ","], help="mark before decimals in a CSV file")
    add("--no-header", action="store_true", help="line 1 of the CSV file is data")
    add("--json", action="store_true", help="print one JSON object instead of text")
    add("--quiet", action="store_true", help="print nothing but predictions to stdout")
    add_device_options(parser)


def run(args: argparse.Namespace) -> int:
    to_stdout = args.output == "-"
    device = use_device(args)
    path = Path(args.model)
    path = path / "model.safetensors" if path.is_dir() else path
    model = Model.load(path)
    columns = chosen_columns(args, model)
    if not to_stdout:
        refuse_other_formats(args)
        refuse_inputs(args, args.output, {"MODEL": path, "DATA": args.data})
        own = partial(
            is_predictions, model, [name for text in args.keep for name in text.split(",")]
        )
        claim_file(args, args.output, "predictions of this model", own)
    if device.name != "cpu":
        model.network = model.network.copy(device.name)
    with _sink(None if to_stdout and args.json else args.output) as sink:
        done = write(args, model, columns, csv.writer(sink, lineterminator="\n") if sink else None)
    say = Say(args.json, args.quiet)
    for note in () if args.quiet else done.notes:
        say.note(f"{args.data}: {note}")
    scores = score(args, model, done) if args.score else {}
    if not to_stdout:
        say.line(f"{count(done.rows, 'prediction')} written to {args.output}")
    for name, value in scores.items():
        text = f"{name}: {metric_text(name, value)}"
        (say.note if to_stdout and not args.json else say.result)(text)
    values = {"rows": done.rows, "columns": done.names, "device": device.name, **scores}
    values |= {"notes": done.notes}
    values |= {"predictions": done.lines} if to_stdout else {"output": args.output}
    say.object(values)
    return 0


def refuse_other_formats(args: argparse.Namespace) -> None:
    """Report wrong usage if the name of the output promises another format than CSV."""
    if Path(args.output).suffix.lower() in OTHER_FORMATS:
        args.parser.error(
            f"--output {args.output}: predictions are written as CSV, whatever the name; choose "
            "one that ends in .csv"
        )


@dataclass
class Done:
    """What was predicted: rows, notes, the lines if no file gets them, and what is to be scored."""

    names: list[str] = field(default_factory=list)
    rows: int = 0
    notes: list[str] = field(default_factory=list)
    lines: list[list[Any]] = field(default_factory=list)
    yhat: list[Array] = field(default_factory=list)
    targets: list[Array] = field(default_factory=list)


def write(args: argparse.Namespace, model: Model, columns: list[Column], writer: Any) -> Done:
    """Predict all rows of DATA, and write them as they come."""
    done, surprises, scored = Done(), Surprises(), 0
    for rows in read(args, model):
        if not done.names:
            done.names = [*rows.kept, *(column.name for column in columns)]
            done.notes = rows.notes
            if writer:
                writer.writerow(done.names)
        parts = []
        for start, yhat in model.predict_batches(
            rows.x, batch_rows=BATCH_ROWS, surprises=surprises
        ):
            stop = start + len(yhat)
            cells = [column[start:stop] for column in rows.kept.values()]
            cells += [column.cells(yhat) for column in columns]
            block = list(map(list, zip(*cells, strict=True)))
            if writer:
                writer.writerows(block)
            else:
                done.lines.extend(block)
            parts += [yhat] if args.score else []
        done.rows += rows.number
        if args.score and rows.y is not None:
            yhat = np.concatenate(parts)
            done.yhat.append(yhat if rows.scored is None else yhat[rows.scored])
            done.targets.append(np.asarray(rows.y))
            scored += len(done.yhat[-1])
    if args.score and scored < done.rows:
        done.notes.append(f"{done.rows - scored:,} rows have no target and are not scored")
    done.notes += [str(surprises)] if str(surprises) else []
    return done


def read(args: argparse.Namespace, model: Model) -> Iterable[Rows]:
    """Read DATA with the model's columns in the model's order; targets only for --score."""
    check_data_options(args)
    if has_column_names(args.data) and model.preprocessor is not None:
        return read_table(args, model, model.preprocessor)
    for option in ("keep", "separator", "decimal"):
        if getattr(args, option):
            args.parser.error(f"--{option} is for tables and models trained on tables")
    dataset = read_arrays(args, model)
    y = dataset.y
    if y is not None and model.classes is not None and y.ndim == 2 and y.shape[1] > 1:  # one-hot
        y = np.asarray(model.classes)[y.argmax(1)]
    return [Rows(dataset.x, len(dataset.x), y, None, {}, [])]


def read_arrays(args: argparse.Namespace, model: Model) -> Dataset:
    """Read DATA as numbers: arrays, or the columns of a table in the order of the model's.

    Raises
    ------
    DataError
        Columns are absent; they are named.
    ShapeError
        The number of columns is wrong; the number wanted is named.
    """
    check_data_options(args)
    by_name = has_column_names(args.data)
    has_names = by_name and not args.no_header
    names = model.feature_names if has_names else None
    target: Any = None
    typed = from_shell(args.target) if args.target is not None and by_name else args.target
    if args.score:
        target = typed or model.target_names
        if target is None:
            raise OptionError(
                "--score wants to know the targets: name them with --target (column, key of an "
                "NPZ file, or file for NPY and IDX)"
            )
        if not has_names and args.target is None:
            raise OptionError(
                f"--score on {args.data} wants --target: the number of a column (CSV without "
                "header), a key (NPZ) or a file"
            )
    elif args.target is not None and names is None:
        target = typed  # otherwise it would be taken for a feature
    features = args.features if args.features is not None else names
    dataset = load_dataset(args.data, target=target, features=features, header=not args.no_header)
    wanted, got = model.network.widths[0], dataset.x.shape[1]
    prepared = model.preprocessor
    if prepared is not None:
        wanted = len(prepared.names)
    if got != wanted and (prepared is None or got != len(prepared.columns)):
        hint = "; if one of them is the target, name it with --target" if got == wanted + 1 else ""
        raise ShapeError(
            f"{args.data} has {count(got, 'feature column')} but {args.model} was trained on "
            f"{wanted}{hint}"
        )
    return dataset


class Column(NamedTuple):
    """A column of the output: its name, and a function from yhat (N, K) to its cells."""

    name: str
    cells: Callable[[Array], list[Any]]


def columns_of(model: Model) -> tuple[list[Column], list[Column]]:
    """Return the columns that are always written, and those of --probabilities.

    A model with classes has prediction, and probability_<class>. A multilabel model has 0 or 1 for
    each target, and probability_<target>. A model for numbers has prediction, or one column for
    each target, and no probabilities.
    """
    units = range(model.network.widths[-1])
    names = model.target_names or [f"prediction_{k}" for k in units]
    if model.classes is not None:
        names = [as_text(label) for label in model.classes]
        first = [Column("prediction", partial(_classes, model))]
    elif model.network.output == "logistic":
        first = [Column(names[k], partial(_zeros_and_ones, model, k)) for k in units]
    else:
        names = names if len(units) > 1 else ["prediction"]
        return [Column(names[k], partial(_numbers, k)) for k in units], []
    if len(names) == 2 and len(units) == 1:  # the unit gives the second class's probability
        cells_of: list[Callable[[Array], list[Any]]] = [_one_minus_the_first, partial(_numbers, 0)]
    else:
        cells_of = [partial(_numbers, k) for k in units]
    pairs = zip(names, cells_of, strict=True)
    return first, [Column(f"probability_{name}", cells) for name, cells in pairs]


def _numbers(k: int, yhat: Array) -> list[float]:
    """Return column k; floats have the fewest digits that read back the same."""
    return [float(str(value)) for value in yhat[:, k]]


def _one_minus_the_first(yhat: Array) -> list[float]:
    return _numbers(0, 1 - yhat)


def _classes(model: Model, yhat: Array) -> list[Any]:
    labels = model.labels(yhat).tolist()
    return [as_text(label) if isinstance(label, bytes) else label for label in labels]


def _zeros_and_ones(model: Model, k: int, yhat: Array) -> list[Any]:
    return list(model.labels(yhat)[:, k].tolist())


def chosen_columns(args: argparse.Namespace, model: Model) -> list[Column]:
    """Return the columns that the command line asks for.

    It is wrong usage to ask for probabilities of a model that has none.
    """
    always, probabilities = columns_of(model)
    if args.probabilities and not probabilities:
        names = model.target_names or [column.name for column in always]
        args.parser.error(
            f"--probabilities: {args.model} predicts numbers ({', '.join(names)}), which have no "
            "probabilities; leave it out"
        )
    return always + (probabilities if args.probabilities else [])


def is_predictions(model: Model, kept: list[str], file: Path) -> bool:
    """Return whether a CSV file has the header of the model's predictions, after kept columns."""
    always, probabilities = ([column.name for column in part] for part in columns_of(model))
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            header = next(csv.reader(lines), [])
    except (OSError, ValueError, csv.Error):
        return False
    owns = (always, always + probabilities)
    return any(header in (own, kept + own) for own in owns)


def score(args: argparse.Namespace, model: Model, done: Done) -> dict[str, float]:
    """Return accuracy for classes (multilabel: share of rows with every label right), else rmse.

    Further figures of the same kind follow.

    Raises
    ------
    DataError
        The model does not know a label (the row is named), or the targets are of another kind.
    """
    picked, y = np.concatenate(done.yhat), np.concatenate(done.targets)
    if not len(y):
        raise DataError(f"{args.data}: no row has a target to score with")
    try:
        first = model.compare(picked, y)
    except GpubackpropError as error:
        raise DataError(f"{args.data}: {error}; --target names the targets") from error
    if model.classes is not None:
        if picked.shape[1] == 1:
            picked = np.concatenate([1 - picked, picked], axis=1)
        return first | class_scores(picked, class_indices(y, np.asarray(model.classes)))
    y = y[:, None] if y.ndim == 1 else y
    if model.network.output == "logistic":
        return first | label_scores(picked, y)
    found = first | number_scores(picked, y)
    if len(model.target_names or ()) > 1:
        pairs = zip(model.target_names or (), column_rmse(picked, y), strict=True)
        found |= {f"rmse of {name}": value for name, value in pairs}
    return found


@contextmanager
def _sink(output: str | None) -> Iterator[IO[str] | None]:
    """Open the place for the rows: stdout for "-", a file, or none.

    A file appears whole or not at all.
    """
    if output is None or output == "-":
        with nullcontext() if output is None else csv_stdout() as stdout:
            yield stdout
        return
    target = Path(os.path.realpath(output))
    if target.exists() and not target.is_file():  # such as /dev/null, or a pipe
        with open(target, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8", errors="backslashreplace", newline="") as file:
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
