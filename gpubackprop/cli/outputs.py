"""What a command may write over: results that it left there itself, and nothing else unasked."""

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
    """Wrong usage (exit 2) where `path` is a file with something else in it than `what`.

    Parameters
    ----------
    is_own : whether the file at this path is an earlier result, which may be replaced.
    """
    file = Path(path)
    if args.overwrite or not file.is_file() or not file.stat().st_size or is_own(file):
        return
    args.parser.error(
        f"{path} is there already and holds no {what}; choose another file, or pass --overwrite to "
        "replace it"
    )


def refuse_inputs(args: argparse.Namespace, path: str, inputs: dict[str, str | Path]) -> None:
    """Wrong usage where the output would destroy what the command reads, by whatever name."""
    for name, file in inputs.items():
        if Path(path).exists() and Path(file).exists() and Path(path).samefile(file):
            args.parser.error(f"--output {path} would destroy {name}; choose another file")
