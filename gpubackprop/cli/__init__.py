"""The command line: ``gpubackprop train | predict | export | check | bench | info``.

Each command is a module of this package with ``configure(parser)`` and ``run(args) -> int``. It is
imported only when it is called, so that ``gpubackprop --help`` does not wait for NumPy.

Exit codes: 0 for success; 1 if the work failed (one line on stderr says why); 2 for wrong usage;
130 for Ctrl-C; 141 if the reader of the output has closed it (``| head``).
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import signal
import sys
from collections.abc import Sequence

from gpubackprop.cli.streams import any_encoding

COMMANDS = {
    "train": "train a network on a data file, or on scikit-learn's handwritten digits",
    "predict": "apply a trained model to a data file",
    "export": "write a trained model as an ONNX file, for programs without gpubackprop",
    "check": "compare every gradient of the library with central differences",
    "bench": "measure the CPU and the GPU of this machine, with their limits and the peers",
    "info": "show the device, what CUDA lacks here, BLAS, threads and versions",
}
_EPILOG = """\
examples:
  gpubackprop train                                  learn handwritten digits, in seconds
  gpubackprop train iris.csv --target species        learn a table
  gpubackprop predict runs/iris/model.safetensors new.csv --output predictions.csv
  gpubackprop COMMAND --help                         all options of a command
"""
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


def script() -> int:
    """Console entry point: runs `main`; a second Ctrl-C during clean-up exits quietly with 130."""
    try:
        return main()
    except KeyboardInterrupt:  # it came while `main` dealt with the first one
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code, also for --help and wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _set_threads_before_numpy(arguments)
    with any_encoding():
        return _main(arguments)


def _main(arguments: list[str]) -> int:
    name = "gpubackprop"
    try:
        args = build_parser(arguments).parse_args(arguments)
        args.argv = arguments
        name = f"gpubackprop {args.command}"
        return int(_run(args, name))
    except SystemExit as stop:  # argparse: 0 for --help, 2 for wrong usage
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Python flushes stdout on exit, and would then complain about the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def build_parser(arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return the parser; it has the options of a command only if `arguments` name the command."""
    from gpubackprop import __version__

    parser = argparse.ArgumentParser(
        prog="gpubackprop",
        description="Backpropagation of feed-forward networks, from the shell.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gpubackprop {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, title="commands"
    )
    for command, purpose in COMMANDS.items():
        sub = commands.add_parser(
            command,
            help=purpose,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if command in arguments:
            module = importlib.import_module(f"gpubackprop.cli.{command}")
            module.configure(sub)
            sub.add_argument(
                "--traceback",
                action="store_true",
                help="show the Python traceback of an error instead of one line",
            )
            sub.set_defaults(run=module.run, parser=sub)
    return parser


def _run(args: argparse.Namespace, name: str) -> int:
    """Return the command's exit code; 1 after an error that a user can do something about."""
    from gpubackprop.errors import GpubackpropError

    try:
        code: int = args.run(args)
        sys.stdout.flush()  # a closed pipe or a full disk must show before the exit code is set
        return code
    except BrokenPipeError:
        raise
    except (GpubackpropError, OSError, MemoryError) as error:
        if args.traceback:
            raise
        if _speaks_for_all():
            print(f"{name}: error: {one_line(error)}", file=sys.stderr)
        return 1


def _speaks_for_all() -> bool:
    """Return whether this is rank 0, if several processes train together: they share an error."""
    from gpubackprop.distributed.contract import current

    return current().rank == 0


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        text = f"out of memory ({text or 'no more to be had'}); use a smaller network or batch size"
    return " ".join(text.split())


def _set_threads_before_numpy(arguments: Sequence[str]) -> None:
    """Hand --threads to the BLAS, which reads its variable once, when NumPy is imported."""
    match = re.search(r"(?:^|\s)--threads[=\s]([1-9]\d*)(?:\s|$)", " ".join(arguments))
    if match and "numpy" not in sys.modules:
        os.environ.update(dict.fromkeys(_THREAD_VARIABLES, match[1]))
