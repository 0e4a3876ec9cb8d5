"""``python -m gpubackprop.sklearn script.py``: run the script with the classes exchanged."""

from __future__ import annotations

import argparse
import os
import runpy
import sys

from gpubackprop.sklearn.accelerate import accelerate


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m gpubackprop.sklearn",
        description="Run a Python program with scikit-learn's MLPClassifier and MLPRegressor "
        "exchanged for this package's; what ran where is reported on stderr.",
    )
    parser.add_argument("-m", dest="module", action="store_true", help="program is a module's name")
    parser.add_argument("program", help="path of a script, or a module's name with -m")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed to the program")
    options = parser.parse_args()
    program: str = options.program
    if not options.module and not os.path.exists(program):
        parser.error(f"there is no file {program}; for a module write -m {program}")
    sys.argv = [program, *options.arguments]
    with accelerate():
        if options.module:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = os.path.dirname(os.path.abspath(program))
            runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
