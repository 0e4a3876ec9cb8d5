"""python -m tools.peers OLD NEW ... says what PyTorch changed in what its front end here mirrors.

OLD and NEW are wheels of PyTorch, or folders that have `torch/`. Nothing of them is installed or
run: signatures are read from the source. A wheel for macOS has the same Python files and no CUDA:
pip download torch==2.15.0 --no-deps --only-binary=:all: --platform macosx_14_0_arm64
"""

from __future__ import annotations

import argparse
import ast
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

# The names that the front end mirrors, calls or overrides, by the file that defines them; () is all
# of that file.
OPTIMIZER = (
    "__init__", "add_param_group", "load_state_dict", "profile_hook_step", "state_dict", "step",
    "register_step_post_hook", "register_step_pre_hook", "zero_grad",
)  # fmt: skip
STUBS = ("_debug_has_internal_overlap", "_foreach_mul_", "_is_functional_tensor", "addmm", "mm")
MIRRORED: dict[str, tuple[str, ...]] = {
    "torch/optim/sgd.py": ("SGD.__init__", "SGD.step", "SGD.__setstate__"),
    "torch/optim/adam.py": ("Adam.__init__", "Adam.step", "Adam.__setstate__"),
    "torch/optim/adamw.py": ("AdamW.__init__", "AdamW.__setstate__"),
    "torch/optim/optimizer.py": tuple(f"Optimizer.{name}" for name in OPTIMIZER),
    "torch/amp/grad_scaler.py": ("GradScaler.step", "GradScaler.unscale_"),
    "torch/nn/functional.py": ("cross_entropy", "linear_cross_entropy"),
    "torch/nn/modules/linear.py": ("Linear.__init__", "Linear.forward"),
    "torch/nn/modules/loss.py": ("CrossEntropyLoss.__init__", "CrossEntropyLoss.forward"),
    "torch/nn/modules/activation.py": (),
    "torch/nn/modules/container.py": ("Sequential.__init__", "Sequential.forward"),
    "torch/_compile.py": ("_disable_dynamo",),
    "torch/_C/_VariableFunctions.pyi": STUBS,
}  # fmt: skip


def reader(place: Path) -> Callable[[str], str]:
    """Return a function that reads a file of a wheel or folder; "" if there is none."""
    if place.is_dir():
        return lambda name: text_of(place / name)
    archive = zipfile.ZipFile(place)
    names = set(archive.namelist())
    return lambda name: archive.read(name).decode() if name in names else ""


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def signatures(text: str) -> dict[str, list[str]]:
    """Return the parameters of a file's functions and methods, by "name" or "Class.name".

    Types are left out. A name has several where it is overloaded.

    Examples
    --------
    >>> signatures("class A:\\n    def f(self, x: int = 1, *, y=None) -> int: ...")
    {'A.f': ['(self, x=1, *, y=None)']}
    """
    found: dict[str, list[str]] = {}
    for name, node in _functions(ast.parse(text)):
        for argument in ast.walk(node.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
        found.setdefault(name, []).append(f"({ast.unparse(node.args)})")
    return found


def _functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{node.name}.")
        elif isinstance(node, (ast.If, ast.Try)):
            yield from _functions(node, prefix)


def mirrored(place: Path) -> dict[str, list[str]]:
    """Return the signatures of what is mirrored, by "file:name"; [] where there is none."""
    read = reader(place)
    found: dict[str, list[str]] = {}
    for file, names in MIRRORED.items():
        there = signatures(read(file))
        found |= {f"{file}:{name}": there.get(name, []) for name in names or there}
    return found


def changes(old: Path, new: Path) -> list[str]:
    """Return a line for each name whose signatures differ.

    Parameters
    ----------
    old : Path
        Wheel or folder of a release.
    new : Path
        Wheel or folder of another one.

    Returns
    -------
    list of str
        What was and what is.

    Raises
    ------
    ValueError
        A place has none of the files.
    """
    before, after = mirrored(old), mirrored(new)
    for place in (old, new):
        if not any(map(reader(place), MIRRORED)):
            raise ValueError(f"{place} is no wheel of PyTorch and no folder with torch/")
    names = {**before, **after}
    changed = {name: (before.get(name, []), after.get(name, [])) for name in names}
    return [
        f"{name}: {said(was)} is now {said(now)}"
        for name, (was, now) in changed.items()
        if was != now
    ]


def said(found: list[str]) -> str:
    return " or ".join(found) or "missing"


def main() -> int:
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=description, epilog=epilog)
    parser.add_argument("old", type=Path, metavar="OLD")
    parser.add_argument("new", type=Path, metavar="NEW", nargs="+")
    args = parser.parse_args()
    differs = False
    for new in args.new:
        try:
            lines = changes(args.old, new)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            parser.error(str(error))
        total = len(mirrored(args.old))
        print(f"{args.old.name} to {new.name}: {len(lines)} of {total} names differ")
        for line in lines:
            print(f"  {line}")
        differs |= bool(lines)
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
