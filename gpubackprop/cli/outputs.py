"""The files that a command may overwrite: its own earlier results, and nothing else unasked."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def add_overwrite_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="write over what is there, whatever it is (default: only over earlier results of the "
        "same kind)",
    )


def claim_file(
    args: argparse.Namespace, path: str, what: str, is_own: Callable[[Path], bool]
) -> None:
    """Report wrong usage (exit 2) if `path` is a file that holds something else than `what`.

    Parameters
    ----------
    args : Namespace
        The parsed command line.
    path : path
        The file to write.
    what : str
        What the file may hold, for the error.
    is_own : callable
        Whether the file at this path is an earlier result, which may be replaced.
    """
    file = Path(path)
    if args.overwrite or not file.is_file() or not file.stat().st_size or is_own(file):
        return
    args.parser.error(
        f"{path} is there already and holds no {what}; choose another file, or pass --overwrite to "
        "replace it"
    )


def refuse_inputs(args: argparse.Namespace, path: str, inputs: dict[str, str | Path]) -> None:
    """Report wrong usage if the output would destroy a file that the command reads, by any name."""
    for name, file in inputs.items():
        if Path(path).exists() and Path(file).exists() and Path(path).samefile(file):
            args.parser.error(f"--output {path} would destroy {name}; choose another file")
