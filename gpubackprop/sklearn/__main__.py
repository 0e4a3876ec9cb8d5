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
    own = 2 if sys.argv[1:2] == ["-m"] else 1  # all that follows is the program's, even "--"
    options = parser.parse_args(sys.argv[1 : 1 + own])
    program: str = options.program
    if not options.module and not os.path.exists(program):
        parser.error(f"there is no file {program}; for a module write -m {program}")
    sys.argv = [program, *sys.argv[1 + own :]]
    with accelerate():
        if options.module:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            path = os.path.abspath(program)  # Python's own __file__ is absolute too
            sys.path[0] = os.path.dirname(path)
            runpy.run_path(path, run_name="__main__")


if __name__ == "__main__":
    main()
