"""The owner of an output directory: its results, and the checkpoint of an earlier run.

A finished run leaves its claim in summary.json, an unfinished one in checkpoint.json beside the
checkpoint. The claim is the options and the data to which the files belong. Therefore no run
overwrites the results of another table, and none goes on from a checkpoint of other settings.
"""

from __future__ import annotations

import argparse
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop.cli.common import Say, to_json
from gpubackprop.cli.train_rows import TrainingData
from gpubackprop.data.coded import CodedInputs
from gpubackprop.errors import OptionError, StorageError
from gpubackprop.tensorfile import write_atomically

CHECKPOINT, CHECKPOINT_OPTIONS = "checkpoint.safetensors", "checkpoint.json"
_ANY_CHECKPOINT = re.compile(r"checkpoint(-[1-9][0-9]*)?\.safetensors")
MODEL, HISTORY, SUMMARY = "model.safetensors", "history.csv", "summary.json"
REPORT = "report.html"
PICTURES = ("learning_curve.png", "confusion_matrix.png", "predictions.png")
_NOT_OPTIONS = {"argv", "command", "parser", "run"}  # the parser puts these beside the options
# Options that may change between a run and the next one, which goes on from its checkpoint.
_FREE = {
    "checkpoint_every", "device", "distributed", "epochs", "folds", "jobs", "json", "log", "output",
    "overwrite", "patience", "quiet", "resume", "threads", "traceback",
}  # fmt: skip
# These options say what is learned from which data. If they differ, results are not replaced.
_TABLE = ("data", "target", "features", "no_header")
Claim = dict[str, Any]


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return all options of the command line, given or by default."""
    return {key: value for key, value in vars(args).items() if key not in _NOT_OPTIONS}


def checkpoint_names(args: argparse.Namespace) -> list[str]:
    """Return the name of the checkpoint, or with --members of each member's."""
    if args.members is None:
        return [CHECKPOINT]
    return [f"checkpoint-{place}.safetensors" for place in range(1, args.members + 1)]


def _checkpoints_in(output: Path) -> list[Path]:
    """Return the checkpoints that are there, of whatever run."""
    found = output.glob("checkpoint*.safetensors")
    return sorted(file for file in found if _ANY_CHECKPOINT.fullmatch(file.name))


def claim_of(args: argparse.Namespace, data: TrainingData) -> Claim:
    """Return the options and the data that decide what a run computes, as JSON has them."""
    options = {key: value for key, value in options_of(args).items() if key not in _FREE}
    options["data"] = None if args.data is None else str(Path(args.data).resolve())
    claim: Claim = json.loads(to_json({"options": options, "data": _data_sign(data)}))
    return claim


def _data_sign(data: TrainingData) -> Any:
    """Return a sign of the file's contents: a checksum, or the size of a memory map."""
    first = data.x.codes if isinstance(data.x, CodedInputs) else data.x
    if data.per_batch is not None or isinstance(first, np.memmap):
        return [*data.x.shape, str(data.x.dtype)]
    if isinstance(data.x, CodedInputs):
        parts = (np.ascontiguousarray(part) for part in (data.x.dense, data.x.codes))
        return [*data.x.shape, *(zlib.crc32(part.data) for part in parts)]
    return [*data.x.shape, zlib.crc32(np.ascontiguousarray(data.x).data)]


def claim_directory(args: argparse.Namespace, data: TrainingData, output: Path, say: Say) -> None:
    """Report wrong usage (exit 2) if `output` holds results of another table, or foreign files.

    Results of an earlier run on the same table are replaced. If its settings differ, a note on
    stderr says so.
    """
    names = [MODEL, HISTORY, SUMMARY, REPORT, *PICTURES]
    there = [name for name in names if (output / name).exists()]
    unfinished = _read_claim(output / CHECKPOINT_OPTIONS)
    if unfinished is None and not _checkpoints_in(output):
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
        return  # not reached: `error` does not return
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
    """Return whether there is a checkpoint to go on from; write checkpoint.json for this run.

    Raises
    ------
    OptionError
        The checkpoint belongs to other options or data, which are named. With --overwrite it is
        deleted instead.
    """
    if not args.resume:
        remove_checkpoint(output)
    mine = claim_of(args, data)
    if _checkpoints_in(output):
        reason = _why_another(output, mine)
        if reason and not args.overwrite:
            raise OptionError(reason)
        if reason:
            remove_checkpoint(output)
    try:
        write_atomically(output / CHECKPOINT_OPTIONS, to_json(mine).encode())
    except OSError as error:
        raise StorageError(f"{error} with --output") from error
    return bool(_checkpoints_in(output))


def _why_another(output: Path, mine: Claim) -> str:
    """Say why the checkpoint in `output` is not one to go on from; "" if it is."""
    theirs = _read_claim(output / CHECKPOINT_OPTIONS)
    if theirs is None:
        first = _checkpoints_in(output)[0]
        return (
            f"{first} is there but {CHECKPOINT_OPTIONS}, which tells what run it "
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
    """Return the claim in a JSON file (under `key`), or None if none can be read."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        values = values if key is None else values[key]
        return {"options": dict(values["options"]), "data": values["data"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _differing(theirs: Claim, mine: Claim) -> dict[str, str]:
    """Return old and new value of each option that differs; "contents" if the data have changed."""
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
    """Remove the checkpoint, or those of all members, and their claim.

    The claim goes last: if the process is killed in between, the file that is left claims nothing.
    """
    for file in (*_checkpoints_in(output), output / CHECKPOINT_OPTIONS):
        file.unlink(missing_ok=True)
