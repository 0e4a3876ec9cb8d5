"""The options of ``gpubackprop train``, and the library's objects that they describe."""

from __future__ import annotations

import argparse
import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from gpubackprop import losses, optimizers, schedules
from gpubackprop.cli import train_ranks
from gpubackprop.cli.common import add_device_options, key_value, real, whole
from gpubackprop.cli.outputs import add_overwrite_option
from gpubackprop.data import balanced_weights
from gpubackprop.errors import OptionError
from gpubackprop.formulas import ACTIVATIONS, Activation, activation
from gpubackprop.initializers import INITIALIZERS
from gpubackprop.loggers import LOGGERS
from gpubackprop.losses import LOSSES, Loss
from gpubackprop.optimizers import OPTIMIZERS, Optimizer
from gpubackprop.schedules import SCHEDULES, Schedule

TASKS = tuple(dict.fromkeys(kind.task for kind in LOSSES.values()))  # classification is first
LABEL_SMOOTHING = 0.05
STEPS, EPOCHS = 2_000, (20, 200)
SMALL_BATCH, LARGE_BATCH, MANY_ROWS = 32, 128, 20_000

EPILOG = """\
examples:
  gpubackprop train
      the 1,797 handwritten digits that come with scikit-learn, into runs/digits/
  gpubackprop train iris.csv --target species
  gpubackprop train titanic.csv --target survived --drop cabin --include name --test later.csv
      text, dates and empty cells are taken as they are; what was done to each column is printed
  gpubackprop train visits.csv --target cost --target days --group patient --weights share
  gpubackprop train houses.parquet --target price --features area,rooms --task regression
  gpubackprop train big.npy --target labels.npy --hidden 512,512 --activation gelu
  gpubackprop train train-images-idx3-ubyte.gz --target train-labels-idx1-ubyte.gz --epochs 10
  gpubackprop train data.csv --target y --optimizer sgd --lr 0.1 --momentum 0.9 \\
      --schedule cosine --warmup 100 --patience 10 --output runs/try2
  gpubackprop train titanic.csv --target survived --members 8 --jobs 4
      eight networks by four processes; the model is the mean of what they predict
  mpirun -n 4 gpubackprop train big.npy --target labels.npy
      four processes train one network, each with its part of every batch

files written to the output directory:
  model.safetensors      network or members, standardisation, names of columns and classes
  history.csv            one row per epoch
  summary.json           result, device, versions, options
  report.html            figures, curves, predictions, importance of the columns, on one page
  learning_curve.png     and confusion_matrix.png, or predictions.png for regression
  checkpoint*            while training; the same command goes on from there after a crash,
                         a kill or Ctrl-C, and they are removed when training is complete
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.usage = "gpubackprop train [DATA --target COLUMN] [options]"
    parser.description = (
        "Train a feed-forward network. Without DATA: on scikit-learn's handwritten digits."
    )
    _data_options(parser.add_argument_group("data"))
    _network_options(parser.add_argument_group("network"))
    _training_options(parser.add_argument_group("training"))
    _output_options(parser.add_argument_group("machine and output"))


def _data_options(group: Any) -> None:
    group.add_argument(
        "data", nargs="?", metavar="DATA", help=".csv, .tsv (also .gz), .parquet, .npz, .npy or IDX"
    )
    group.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="COLUMN",
        help="column to learn, or several A,B, or given twice (CSV, Parquet); key (NPZ); file "
        "(NPY, IDX)",
    )
    group.add_argument(
        "--features",
        "--columns",
        metavar="A,B,...",
        help="columns to learn from (default: all others); key of the inputs (NPZ)",
    )
    _table_options(group)
    group.add_argument(
        "--task",
        choices=["auto", *TASKS],
        default="auto",
        help="auto: classification for text and for few distinct whole numbers (at most 20, and a "
        "tenth of the rows), multilabel for columns of 0 and 1, else regression",
    )
    group.add_argument(
        "--test",
        type=share_or_file,
        metavar="SHARE|FILE",
        help="held out: a share of the rows (default 0.2; with --folds 0), or another table",
    )
    group.add_argument(
        "--validation",
        type=real(0, 1),
        metavar="SHARE",
        help="of the other rows; chooses the best epoch (default 0.1, with --folds 0; 0: keep the "
        "last epoch)",
    )
    group.add_argument(
        "--folds",
        type=whole(2),
        metavar="N",
        help="score N networks, each on a part of the rows that it has not seen (mean and spread), "
        "and then train the model on all rows",
    )
    group.add_argument(
        "--validation-last",
        type=real(0, 1),
        metavar="SHARE",
        help="rows in the order of time: the last --test share is held out, and of the rest the "
        "last SHARE is for validation",
    )
    group.add_argument(
        "--standardize",
        choices=["auto", "columns", "whole", "none"],
        default="auto",
        help="divide by each column's deviation, or by one for all columns; auto: whole for "
        "images of 8 bits and the digits, else columns",
    )
    group.add_argument(
        "--no-standardize", action="store_const", const="none", dest="standardize", help="= none"
    )


def _table_options(group: Any) -> None:
    """Add what is for CSV and Parquet files alone."""
    several = {"action": "append", "default": [], "metavar": "A,B,..."}
    group.add_argument("--drop", **several, help="columns not to learn from")
    group.add_argument(
        "--include", **several, help="columns to learn from although they look like identifiers"
    )
    group.add_argument(
        "--categorical", **several, help="columns of numbers that are categories, such as codes"
    )
    group.add_argument(
        "--max-categories",
        type=whole(1),
        default=100,
        metavar="N",
        help="most categories of a column that count apart; the rest together (default 100)",
    )
    group.add_argument("--weights", metavar="COLUMN", help="weight of each row in training")
    group.add_argument(
        "--group", metavar="COLUMN", help="rows of one group are held out together, or not at all"
    )
    group.add_argument("--no-header", action="store_true", help="line 1 of the CSV file is data")
    group.add_argument(
        "--separator", type=mark, metavar="C", help="between cells (default: , ; tab or | by sight)"
    )
    group.add_argument(
        "--low-memory",
        action="store_true",
        help="read the table in batches (default: if it would not fit memory)",
    )
    group.add_argument(
        "--decimal", choices=[".", ","], help="mark before decimals (default: found by sight)"
    )


def _network_options(group: Any) -> None:
    group.add_argument(
        "--hidden",
        type=widths,
        default=[256, 256],
        metavar="N,N,...",
        help="units of the hidden layers (default 256,256; 0: no hidden layer)",
    )
    group.add_argument(
        "--activation",
        type=activations,
        default=activations("relu"),
        metavar="NAME",
        help=f"of all hidden layers, or one for each A,B,...: {', '.join(ACTIVATIONS)}; with a "
        "parameter: leaky_relu(0.2) (default relu)",
    )
    group.add_argument(
        "--initializer",
        choices=list(INITIALIZERS),
        default="glorot_uniform",
        metavar="NAME",
        help=f"{', '.join(INITIALIZERS)} (default glorot_uniform)",
    )
    group.add_argument(
        "--dropout",
        type=rates,
        default=[0.0],
        metavar="P",
        help="rate at which hidden units are 0 while training, or one for each layer P,Q,... "
        "(default 0)",
    )
    group.add_argument(
        "--members",
        type=whole(2),
        metavar="N",
        help="train N networks that differ in their seeds (the first has --seed) and average what "
        "they predict",
    )
    group.add_argument(
        "--dtype", choices=["float32", "float64"], default="float32", help="(default float32)"
    )
    group.add_argument(
        "--precision",
        choices=["bfloat16", "float16", "tf32", "auto"],
        help="compute in 16 bits, with parameters in float32 (float16 with loss scaling); or "
        "multiply in TF32, which auto does on a card that has it (default: as --dtype)",
    )


def _training_options(group: Any) -> None:
    group.add_argument(
        "--no-deterministic",
        dest="deterministic",
        action="store_false",
        help="let a GPU's products add in an order that varies, where that is faster",
    )
    group.add_argument(
        "--optimizer", choices=list(OPTIMIZERS), default="adam", help="(default adam)"
    )
    group.add_argument(
        "--lr", type=real(), metavar="X", help="learning rate (default: the optimizer's own)"
    )
    group.add_argument("--momentum", type=real(0, 1), metavar="X", help="of sgd and momentum")
    group.add_argument("--weight-decay", type=real(), metavar="X")
    group.add_argument(
        "--optimizer-option",
        type=key_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="anything else of it, e.g. beta2=0.99, nesterov=true; may be repeated",
    )
    group.add_argument(
        "--schedule",
        choices=list(SCHEDULES),
        default="cosine",
        help="how the rate changes (default cosine: it falls to 0 by the last step)",
    )
    group.add_argument("--warmup", type=whole(0), metavar="STEPS", help="of the cosine schedule")
    group.add_argument(
        "--schedule-option",
        type=key_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="anything else of it, e.g. gamma=0.5, step_epochs=10; may be repeated",
    )
    group.add_argument(
        "--epochs",
        type=whole(0),
        metavar="N",
        help=f"(default: {STEPS:,} steps, but at least {EPOCHS[0]} and at most {EPOCHS[1]} epochs)",
    )
    group.add_argument(
        "--batch-size",
        type=whole(1),
        metavar="N",
        help=f"(default {SMALL_BATCH}, and {LARGE_BATCH} from {MANY_ROWS:,} rows on)",
    )
    group.add_argument(
        "--patience", type=whole(1), metavar="EPOCHS", help="stop after so many without progress"
    )
    group.add_argument("--l2", type=real(), default=0.0, metavar="X", help="penalty on the weights")
    group.add_argument("--clip-norm", type=real(), metavar="X", help="largest norm of the gradient")
    group.add_argument(
        "--loss",
        type=loss_name,
        metavar="NAME",
        help=f"{', '.join(LOSSES)}; with a parameter: NAME(0.5) (default: the task's own)",
    )
    group.add_argument(
        "--label-smoothing",
        type=real(0, 1),
        metavar="X",
        help=f"of classification (default {LABEL_SMOOTHING}; 0: plain cross entropy)",
    )
    group.add_argument(
        "--class-weight", choices=["balanced"], help="rare classes weigh more, by 1 / their number"
    )
    group.add_argument(
        "--seed", type=whole(0), default=0, metavar="N", help="of split, weights and shuffling (0)"
    )


def _output_options(group: Any) -> None:
    add_device_options(group)
    group.add_argument(
        "--jobs",
        type=whole(1),
        default=1,
        metavar="N",
        help="processes on the CPU that train --folds and --members side by side (default 1)",
    )
    train_ranks.add_option(group)
    group.add_argument("--output", metavar="DIR", help="(default runs/<name of DATA>)")
    add_overwrite_option(group)
    group.add_argument(
        "--checkpoint-every",
        type=whole(1),
        metavar="STEPS",
        help="also within an epoch; after an epoch there is one anyway, once a second",
    )
    group.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on from the checkpoint that an unfinished run of this command left (the default), "
        "or throw it away",
    )
    group.add_argument(
        "--log",
        action="append",
        choices=list(LOGGERS),
        default=[],
        help="write every epoch's figures there too, for TensorBoard into DIR; may be repeated",
    )
    group.add_argument("--quiet", action="store_true", help="print only device and result")
    group.add_argument("--json", action="store_true", help="print the summary as one JSON object")


# -- types ----------------------------------------------------------------------------------------


def widths(text: str) -> list[int]:
    """ "512,512" -> [512, 512]; "" and "0" -> []."""
    if text.strip() in ("", "0"):
        return []
    try:
        return [whole(1)(part.strip()) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of whole numbers of at least 1 such as 512,512 (0: no hidden "
            "layer)"
        ) from None


def mark(text: str) -> str:
    """Return a separator; "tab" and "\\t" are a tab."""
    found = "\t" if text.lower() in ("tab", "\\t") else text
    if len(found) != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not one character, or tab")
    return found


def share_or_file(text: str) -> float | str:
    """Return a share in [0, 1), or the name of a file."""
    try:
        float(text)
    except ValueError:
        return text
    return real(0, 1)(text)


def rates(text: str) -> list[float]:
    """ "0.2,0.5" -> [0.2, 0.5]."""
    return [real(0, 1)(part.strip()) for part in text.split(",")]


def activations(text: str) -> list[Activation]:
    """ "relu,leaky_relu(0.2)" -> two activations."""
    try:
        return [activation(part.strip()) for part in re.split(r",(?![^(]*\))", text)]
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def loss_name(text: str) -> str:
    """Return a loss's name, with its parameter or without."""
    try:
        losses.loss(text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


# -- the library's objects ------------------------------------------------------------------------


def make_optimizer(args: argparse.Namespace) -> Optimizer:
    options = dict(args.optimizer_option)
    for key in ("lr", "momentum", "weight_decay"):
        if getattr(args, key) is not None:
            options[key] = getattr(args, key)
    _check_keys(args, "optimizer", OPTIMIZERS[args.optimizer], options)
    return optimizers.optimizer(args.optimizer, **options)


def make_schedule(args: argparse.Namespace) -> Schedule:
    options = dict(args.schedule_option)
    if args.warmup is not None:
        options["warmup_steps"] = args.warmup
    _check_keys(args, "schedule", SCHEDULES[args.schedule], options)
    return schedules.schedule(args.schedule, **options)


def _check_keys(
    args: argparse.Namespace, what: str, factory: Callable[..., Any], options: dict[str, Any]
) -> None:
    """Report wrong usage (exit 2) if an option does not belong to its optimizer or schedule."""
    known = [key for key in inspect.signature(factory).parameters if not key.startswith("_")]
    for key in options:
        if key not in known:
            has = f"which has {', '.join(known)}" if known else "which has none"
            args.parser.error(f"{key} is no option of the {what} {getattr(args, what)}, {has}")


def make_loss(args: argparse.Namespace, task: str, indices: np.ndarray, classes: int) -> Loss:
    """Return the loss of --loss or of the task; `indices` are the training rows' classes."""
    chosen = losses.default_loss(task=task) if args.loss is None else losses.loss(args.loss)
    if chosen.task != task:
        raise OptionError(
            f"--loss {args.loss} is a loss of {chosen.task} but this is {task}; leave it out, or "
            f"pass --task {chosen.task}"
        )
    if task == "classification":
        smoothing = LABEL_SMOOTHING if args.label_smoothing is None else args.label_smoothing
        weight = None
        if args.class_weight == "balanced":
            weight = balanced_weights(indices, classes)
        return losses.SoftmaxCrossEntropy(label_smoothing=smoothing, class_weight=weight)
    for name in ("label_smoothing", "class_weight"):
        if getattr(args, name) is not None:
            raise OptionError(
                f"--{name.replace('_', '-')} is an option of classification but this is {task}; "
                "leave it out, or pass --task classification"
            )
    return chosen


def batch_size(args: argparse.Namespace, rows: int) -> int:
    if args.batch_size is not None:
        return int(args.batch_size)
    return SMALL_BATCH if rows < MANY_ROWS else LARGE_BATCH


def epochs(args: argparse.Namespace, rows: int, batch: int) -> int:
    """Return --epochs, or as many as make 2,000 steps, at least 20 and at most 200."""
    if args.epochs is not None:
        return int(args.epochs)
    few, many = EPOCHS
    return max(few, min(many, round(STEPS / math.ceil(rows / batch))))
