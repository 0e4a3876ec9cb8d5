"""Whose output directory it is: the results that lie there, and the checkpoint of a run before.

A finished run leaves its claim in summary.json, an unfinished one in checkpoint.json beside the
checkpoint: the options and the data that the files belong to. So no run writes over the results of
another table, and none goes on from a checkpoint of other settings.
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop.cli.common import Say, to_json
from gpubackprop.cli.train_data import TrainingData
from gpubackprop.errors import OptionError, StorageError
from gpubackprop.tensorfile import write_atomically

CHECKPOINT, CHECKPOINT_OPTIONS = "checkpoint.safetensors", "checkpoint.json"
MODEL, HISTORY, SUMMARY = "model.safetensors", "history.csv", "summary.json"
PICTURES = ("learning_curve.png", "confusion_matrix.png", "predictions.png")
_NOT_OPTIONS = {"argv", "command", "parser", "run"}  # what else the parser puts beside them
# Options that may change between a run and the one that goes on from its checkpoint.
_FREE = {
    "checkpoint_every", "device", "epochs", "json", "output", "overwrite", "patience", "quiet",
    "resume", "threads", "traceback",
}  # fmt: skip
# What is learned from what. Results of another are not replaced unasked.
_TABLE = ("data", "target", "features", "no_header")
Claim = dict[str, Any]


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """All options of the command line, as they were given or are by default."""
    return {key: value for key, value in vars(args).items() if key not in _NOT_OPTIONS}


def claim_of(args: argparse.Namespace, data: TrainingData) -> Claim:
    """The options and the data that decide what a run computes, as JSON has them."""
    options = {key: value for key, value in options_of(args).items() if key not in _FREE}
    options["data"] = None if args.data is None else str(Path(args.data).resolve())
    claim: Claim = json.loads(to_json({"options": options, "data": _data_sign(data)}))
    return claim


def _data_sign(data: TrainingData) -> Any:
    """What tells other contents of the same file: a checksum, or the size of a memory map."""
    if data.per_batch is not None or isinstance(data.x, np.memmap):
        return [*data.x.shape, str(data.x.dtype)]
    return [*data.x.shape, zlib.crc32(np.ascontiguousarray(data.x).data)]


def claim_directory(args: argparse.Namespace, data: TrainingData, output: Path, say: Say) -> None:
    """Wrong usage (exit 2) where `output` has results of another table, or files of somebody else.

    Those of an earlier run on the same table are replaced; where its settings differ, a note on
    stderr says so.
    """
    names = [MODEL, HISTORY, SUMMARY, *PICTURES]
    there = [name for name in names if (output / name).exists()]
    unfinished = _read_claim(output / CHECKPOINT_OPTIONS)
    if unfinished is None and not (output / CHECKPOINT).exists():
        there += [CHECKPOINT_OPTIONS] if (output / CHECKPOINT_OPTIONS).exists() else []
    if args.overwrite or not there:
        return
    choice = "choose another folder with --output, or pass --overwrite to replace what is there"
    earlier = _read_claim(output / SUMMARY, "run") or unfinished
    if earlier is None:
        args.parser.error(
            f"{output} has {', '.join(there)}, but no {SUMMARY} that says which run left them; "
            f"{choice}"
        )
        return  # `error` does not come back
    mine = claim_of(args, data)
    differing = _differing(earlier, mine)
    others = [text for key, text in differing.items() if key in _TABLE]
    if others:
        args.parser.error(
            f"{output} has the results of another table: {'; '.join(others)}; {choice}"
        )
    if differing:
        say.note(
            f"{output} has the results of an earlier run, which are replaced: "
            f"{'; '.join(differing.values())}"
        )


def make_directory(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the output directory {output} cannot be made ({error.strerror or error}); choose "
            "another one with --output"
        ) from error


def claim_checkpoint(args: argparse.Namespace, data: TrainingData, output: Path) -> bool:
    """Whether a checkpoint is there to go on from; leaves checkpoint.json for this run.

    Raises
    ------
    OptionError : the checkpoint belongs to other options or data; names them. With --overwrite it
        is thrown away.
    """
    if not args.resume:
        remove_checkpoint(output)
    mine = claim_of(args, data)
    if (output / CHECKPOINT).exists():
        reason = _why_another(output, mine)
        if reason and not args.overwrite:
            raise OptionError(reason)
        if reason:
            remove_checkpoint(output)
    try:
        write_atomically(output / CHECKPOINT_OPTIONS, to_json(mine).encode())
    except OSError as error:
        raise StorageError(f"{error} with --output") from error
    return (output / CHECKPOINT).exists()


def _why_another(output: Path, mine: Claim) -> str:
    """Why the checkpoint in `output` is not one to go on from, or ""."""
    theirs = _read_claim(output / CHECKPOINT_OPTIONS)
    if theirs is None:
        return (
            f"{output / CHECKPOINT} is there but {CHECKPOINT_OPTIONS}, which tells what run it "
            "belongs to, cannot be read; start anew with --no-resume, or choose another --output"
        )
    differing = _differing(theirs, mine)
    if not differing:
        return ""
    return (
        f"{output} has the checkpoint of an unfinished run with other settings: "
        f"{'; '.join(differing.values())}. Run with the old ones to finish it, start anew with "
        "--no-resume, or choose another --output"
    )


def _read_claim(file: Path, key: str | None = None) -> Claim | None:
    """The claim in a JSON file (under `key`), or None where there is none to be read."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        values = values if key is None else values[key]
        return {"options": dict(values["options"]), "data": values["data"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _differing(theirs: Claim, mine: Claim) -> dict[str, str]:
    """Option -> how it was and is, of those that differ; "contents" where the data have changed."""
    keys = sorted({*theirs["options"], *mine["options"]})
    pairs = {key: (theirs["options"].get(key), mine["options"].get(key)) for key in keys}
    differing = {
        key: f"--{key.replace('_', '-')} {old!r} there, {new!r} now"
        for key, (old, new) in pairs.items()
        if old != new
    }
    if "data" in differing:
        old, new = pairs["data"]
        differing["data"] = f"DATA {old or 'digits'} there, {new or 'digits'} now"
    if not differing and theirs["data"] != mine["data"]:
        differing["contents"] = "the data have changed since"
    return differing


def remove_checkpoint(output: Path) -> None:
    """The checkpoint first: what stays behind after a kill in between claims nothing."""
    for name in (CHECKPOINT, CHECKPOINT_OPTIONS):
        (output / name).unlink(missing_ok=True)
