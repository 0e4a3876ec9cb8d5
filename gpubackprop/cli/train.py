"""``gpubackprop train``: from a data file to a model, its history, a summary and pictures."""

from __future__ import annotations

import argparse
import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop import MLP, Trainer
from gpubackprop.backends import devices, workload
from gpubackprop.cli import train_members as members
from gpubackprop.cli import train_options as options
from gpubackprop.cli import train_ranks
from gpubackprop.cli.common import Device, Say, count, metric_text, set_threads, use_device
from gpubackprop.cli.train_claim import claim_directory, remove_checkpoint
from gpubackprop.cli.train_data import prepare
from gpubackprop.cli.train_folds import score, score_folds, settle
from gpubackprop.cli.train_output import parameter_count, summarize, write_files
from gpubackprop.cli.train_rows import TrainingData
from gpubackprop.cli.train_run import train
from gpubackprop.errors import ShapeError
from gpubackprop.loggers import LOGGERS

configure = options.add_options
SMALL_WORK = 10_000_000  # multiplications of one forward pass of a batch


def run(args: argparse.Namespace) -> int:
    """Train, measure, write, report.

    Return 130 after Ctrl-C; raise (exit 1) if the loss diverged.
    """
    settle(args)
    ranks = train_ranks.join_ranks(args)
    members.check(args)
    say = train_ranks.say_of(args, ranks)
    device = train_ranks.own_device(args, ranks, ranks.all_succeed(lambda: use_device(args)))
    data = prepare(args, ranks)
    device = suit_work(args, data, device)
    trainers = ranks.all_succeed(lambda: members.build_members(args, data, device, build, ranks))
    trainer = trainers[0]
    args.epochs = options.epochs(args, len(data.train), trainer.batch_size)
    device = suit_threads(args, trainer, device)
    output = Path(args.output or Path("runs") / data.name)
    train_ranks.on_rank_0(ranks, lambda: claim_directory(args, data, output, say))
    loggers = [LOGGERS[name](output) for name in args.log if ranks.rank == 0]
    ranks.all_succeed(lambda: [logger.check() for logger in loggers])
    print_head(say, args, data, trainer, device)
    train_ranks.print_ranks(say, ranks)
    try:
        folds = score_folds(args, device, build, say, ranks)
        with ExitStack() as open_loggers:
            trainer.callbacks = [open_loggers.enter_context(logger) for logger in loggers]
            outcome = train(args, data, trainers, output, say, ranks)
    except KeyboardInterrupt as interrupt:
        train_ranks.end_all(ranks, interrupt)
    if ranks.rank:
        return 130 if outcome.stopped == "interrupted" else 0
    summary = summarize(args, data, trainer, outcome, device)
    if folds is not None:
        summary["folds"] = folds
    files, missing = write_files(data, trainer, outcome, summary, output)
    if "tensorboard" in args.log:
        files["tensorboard/"] = "figures of each epoch, for tensorboard --logdir"
    interrupted = outcome.stopped == "interrupted"
    if not interrupted:
        remove_checkpoint(output)
    if missing:
        say.note(f"pictures left out: {missing}")
    print_result(say, data, summary, files, output)
    say.object(summary)
    if outcome.error is not None:
        raise outcome.error
    if interrupted:
        say.note(f"interrupted; the same command goes on from the checkpoint in {output}")
    return 130 if interrupted else 0


def build(args: argparse.Namespace, data: TrainingData, device: Device) -> Trainer:
    """Return the network and its trainer.

    Raises
    ------
    OptionError
        An option is out of range.
    ShapeError
        A list does not have one value for each hidden layer.
    """
    acts = _for_each_layer(args, "activation")
    dropout = _for_each_layer(args, "dropout")
    loss = options.make_loss(args, data.task, data.targets[data.train], data.units)
    network = MLP(
        [data.x.shape[1], *args.hidden, data.units],
        acts,
        output=loss.output,
        initializer=args.initializer,
        seed=args.seed,
        dtype=args.dtype,
        device=device.name,
        dropout=dropout,
        precision=args.precision,
    )
    return Trainer(
        network,
        loss,
        options.make_optimizer(args),
        schedule=options.make_schedule(args),
        batch_size=options.batch_size(args, len(data.train)),
        l2=args.l2,
        clip_norm=args.clip_norm,
        seed=args.seed,
        progress=False if args.quiet else None,
        distributed="auto" if args.distributed == "auto" else None,
        deterministic=args.deterministic,
    )


def _for_each_layer(args: argparse.Namespace, name: str) -> Any:
    """Return the option's one value for all hidden layers, or its list with one for each."""
    values = getattr(args, name)
    if len(values) not in (1, len(args.hidden)):
        raise ShapeError(
            f"--{name} has {count(len(values), 'value')} but --hidden has "
            f"{count(len(args.hidden), 'layer')}; give one for each, or a single one for all"
        )
    return values if len(values) > 1 else values[0]


def suit_work(args: argparse.Namespace, data: TrainingData, device: Device) -> Device:
    """Take the CPU if --device auto found a GPU but the CPU is predicted to finish sooner."""
    if args.device != "auto" or device.name == "cpu":
        return device
    rows = len(data.train)
    batch = options.batch_size(args, rows)
    widths = [data.x.shape[1], *args.hidden, data.units]
    training = workload.Training.of_epochs(
        widths, rows, batch, options.epochs(args, rows, batch), np.dtype(args.dtype).itemsize
    )
    name, reason = workload.choose(training)
    return dataclasses.replace(device, name=name, reason=reason)


def suit_threads(args: argparse.Namespace, trainer: Trainer, device: Device) -> Device:
    """Use one thread for a small network, unless --threads says otherwise.

    Its products take microseconds, and threads wait for one another at each of them. That gains
    nothing on idle cores and loses tenfold on busy ones (measured on two cores: the digits in 1 s
    with one thread; with two in 1 s to 50 s, depending on what else ran).
    """
    work = trainer.batch_size * parameter_count(trainer.network.widths)
    small = devices.is_host(device.name) and work < SMALL_WORK
    if args.threads is None and small and set_threads(1):
        return dataclasses.replace(device, threads=1)
    return device


def print_head(
    say: Say, args: argparse.Namespace, data: TrainingData, trainer: Trainer, device: Device
) -> None:
    """Print what is about to be trained, on which data and device."""
    network = trainer.network
    what = data.task
    if data.classes is not None:
        what += f" into {count(data.units, 'class')}"
    names = list(dict.fromkeys(str(act) for act in network.activations)) or ["no hidden layer"]
    if any(network.dropout):
        rates = list(dict.fromkeys(f"{rate:g}" for rate in network.dropout))
        names.append(f"dropout {', '.join(rates)}")
    parts = [f"{len(data.train):,} training", f"{len(data.validation):,} validation"]
    parts += [f"{len(data.test):,} test"]
    say.line(f"data       {data.source}: {what}")
    if data.why:
        say.line(f"           because {data.why} ({_other_task(data.task)})")
    say.line(
        f"           {count(len(data.targets), 'row')} ({', '.join(parts)}), "
        f"{count(data.x.shape[1], 'feature')}"
    )
    for line in column_lines(data):
        say.line(line)
    for note in data.notes:
        say.line(f"note       {note}")
    several = "" if args.members is None else f"{count(args.members, 'member')}, each "
    say.line(
        f"network    {several}{'-'.join(map(str, network.widths))}, {', '.join(names)}, "
        f"{network.output}; {parameter_count(network.widths):,} parameters, {network.dtype.name}"
        + (f", computed in {network.products}" if network.products != network.dtype.name else "")
    )
    say.line(
        f"training   {args.optimizer}, learning rate {trainer.optimizer.lr:g} "
        f"({trainer.schedule.name}), batches of {trainer.batch_size}, "
        f"{count(args.epochs, 'epoch')}, seed {args.seed}"
    )
    say.line(f"device     {device}")


def _other_task(task: str) -> str:
    other = "classification" if task == "regression" else "regression"
    return f"--task {other} learns it otherwise"


def column_lines(data: TrainingData) -> list[str]:
    """Say what was done to each column of a table; columns of one kind share a line."""
    if data.preprocessor is None:
        return []
    done: dict[str, list[str]] = {}
    for name, what in data.preprocessor.report().items():
        done.setdefault(what, []).append(name)
    lines: list[str] = []
    for what, names in done.items():
        shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        hint = " (--include uses it)" if "identifier" in what else ""
        lines.append(f"{'columns' if not lines else '':<11}{shown}: {what}{hint}")
    return lines


def print_result(
    say: Say, data: TrainingData, summary: dict[str, Any], files: dict[str, str], output: Path
) -> None:
    """Print the table, the files, and last the device and the score."""
    metric = "accuracy" if "train_accuracy" in summary else "rmse"
    part, _ = data.judged
    say.line()
    columns = ["loss", "log_loss", metric] if f"{part}_log_loss" in summary else ["loss", metric]
    heads = "  ".join(f"{name.replace('_', ' '):>9}" for name in columns)
    say.line(f"            {'rows':>9}  {heads}")
    for name, rows in data.parts.items():
        values = (summary[f"{name}_{column}"] for column in columns)
        cells = "  ".join(
            f"{_figure(value) if 'loss' in column else metric_text(metric, value):>9}"
            for column, value in zip(columns, values, strict=True)
        )
        say.line(f"{name:<12}{len(rows):>9,}  {cells}")
    for line in figure_lines(summary, part, metric):
        say.line(line)
    if "members" in summary:
        say.line(members.line(summary["members"], f"{part}_{metric}"))
    say.line()
    best, rate = summary["best_epoch"], summary["samples_per_second"]
    say.line(
        f"{count(summary['epochs'], 'epoch')} in {summary['seconds']:.1f} s"
        + (f", {rate:,.0f} samples/s" if rate else "")
        + (f"; kept epoch {best}, {_best(data, summary)}" if best and len(data.validation) else "")
        + ("; " + _why(summary["stopped"]) if summary["stopped"] != "epochs" else "")
    )
    say.line(f"files in {output}/")
    for name, purpose in files.items():
        say.line(f"  {name:<22}{purpose}")
    say.line()
    say.result(f"device: {_device_line(summary)}")
    if "folds" in summary:
        say.result(score(summary["folds"]))
    if "folds" not in summary or part == "test":
        say.result(f"{part} {metric}: {metric_text(metric, summary[f'{part}_{metric}'])}")


_NAMES = {"balanced_accuracy": "balanced accuracy", "label_accuracy": "right labels", "f1": "F1",
          "auc": "AUC", "r2": "R²", "mae": "mean absolute error"}  # fmt: skip


def figure_lines(summary: dict[str, Any], part: str, metric: str) -> list[str]:
    """Return the further figures of the part that is judged, and the baseline."""
    found = [
        f"{name} {metric_text(key, summary[f'{part}_{key}'])}"
        for key, name in _NAMES.items()
        if f"{part}_{key}" in summary
    ]
    lines = [f"{part:<12}{', '.join(found)}"] if found else []
    for target, value in summary.get(f"{part}_rmse_by_target", {}).items():
        lines.append(f"{'':<12}rmse of {target}: {metric_text('rmse', value)}")
    says = summary["baseline"]["says"]
    what = says if isinstance(says, str) else ", ".join(f"{value:.5g}" for value in says)
    score = metric_text(metric, summary["baseline"][metric])
    return [*lines, f"{'baseline':<12}always {what}: {metric} {score}"]


def _figure(value: float) -> str:
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e3 else f"{value:.4g}"


def _best(data: TrainingData, summary: dict[str, Any]) -> str:
    epochs = summary["validation_window"]
    if epochs == 1:
        return "the best on validation"
    return (
        f"the best mean of {epochs} epochs on validation ({len(data.validation)} rows are too few "
        "to choose by one epoch)"
    )


def _why(stopped: str) -> str:
    return {"patience": "no better loss for --patience epochs"}.get(stopped, stopped)


def _device_line(summary: dict[str, Any]) -> str:
    return str(
        Device(summary["device"], summary["device_reason"], summary["threads"], summary["blas"])
    )
