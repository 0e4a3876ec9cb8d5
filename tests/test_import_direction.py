"""Imports run one way and in no circle, and no optional package is imported before it is needed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "gpubackprop"

# From the bottom up. A module imports from its own row and from the rows above it in this table.
LAYERS = (
    ("errors", "_optional", "dtypes"),
    ("tensorfile",),
    ("formulas",),
    ("backends",),
    ("ops", "data", "distributed"),
    ("layout",),
    (
        "network",
        "torch_modules",
        "trace",
        "gradients",
        "passes",
        "coded_layer",
        "losses",
        "optimizers",
        "initializers",
        "schedules",
    ),
    (
        "training",
        "checkpoint",
        "ensemble",
        "model",
        "model_file",
        "onnx",
        "gradient_check",
        "scores",
    ),
    ("many",),
    ("__init__",),  # `from gpubackprop import MLP`: for the front-ends and for users
    (
        "sklearn",
        "torch",
        "bench",
        "cli",
        "plots",
        "figures",
        "network_picture",
        "loggers",
        "report",
        "__main__",
    ),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

OPTIONAL = {
    "cuda", "cupy", "jax", "liger_kernel", "matplotlib", "ml_dtypes", "mlflow", "mpi4py", "nvmath", "onnx", "pandas",
    "pyarrow", "pynvml", "scipy", "skl2onnx", "sklearn", "tensorboard", "thinc", "torch", "wandb",
}  # fmt: skip

# Front-ends that are of no use without their package, and may import it at module level.
MAY_IMPORT = {"sklearn": {"sklearn", "scipy"}, "torch": {"torch"}}


def part(module: str) -> str:
    """The entry of LAYERS that holds `module`: gpubackprop.ops.affine -> ops."""
    return module.split(".")[1] if "." in module else "__init__"


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(source: str, module: str, *, is_package: bool) -> tuple[tuple[int, str, bool], ...]:
    """Line, absolute dotted name and whether it runs on import, of each import in `source`.

    `from a import b` gives a.b, which holds for a module b and for a name b of the module a.
    Names given as text to import_module, __import__ and `require` count too.
    """
    package = module.split(".") if is_package else module.split(".")[:-1]

    def walk(node: ast.AST, runs: bool) -> Iterator[tuple[int, str, bool]]:
        match node:
            case ast.Import():
                for alias in node.names:
                    yield node.lineno, alias.name, runs
            case ast.ImportFrom():
                base = package[: len(package) - node.level + 1] if node.level else []
                origin = ".".join([*base, *([node.module] if node.module else [])])
                for alias in node.names:
                    yield node.lineno, f"{origin}.{alias.name}", runs
            case ast.Call(args=[ast.Constant(value=str(name)), *_]):
                function = ast.unparse(node.func).rpartition(".")[2]
                if function in {"import_module", "__import__", "require"}:
                    yield node.lineno, name, runs
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            # Decorators and defaults run on import; the body does not.
            body = node.body if isinstance(node.body, list) else [node.body]
            for child in ast.iter_child_nodes(node):
                yield from walk(child, runs and child not in body)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for child in node.body:
                yield from walk(child, False)
            for child in node.orelse:
                yield from walk(child, runs)
        else:
            for child in ast.iter_child_nodes(node):
                yield from walk(child, runs)

    return tuple(walk(ast.parse(source), True))


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What `source`, standing as `module`, imports against the rules; one line for each."""
    own = part(module)
    if own not in RANK:
        return [f"{module} is in no layer: add {own!r} to LAYERS in {Path(__file__).name}"]
    found = []
    for line, name, runs in imports(source, module, is_package=is_package):
        top = name.partition(".")[0]
        if top == "gpubackprop":
            target = part(name)
            if target not in RANK and name.count(".") > 1:
                found.append(f"{module}:{line} imports {name}: {target} is in no layer")
                continue
            if target not in RANK:
                target = "__init__"  # `from gpubackprop import MLP`
            if RANK[target] > RANK[own]:
                found.append(f"{module}:{line} imports {name}: {own} lies below {target}")
        elif top in OPTIONAL and runs and top not in MAY_IMPORT.get(own, ()):
            found.append(f"{module}:{line} imports {name} at module level: import it where used")
    return found


def modules(root: Path = PACKAGE) -> list[Path]:
    return sorted(root.rglob("*.py"))


def test_package_is_found():
    assert "gpubackprop.errors" in {module_name(path, PACKAGE) for path in modules()}


@pytest.mark.parametrize("path", modules(), ids=lambda path: module_name(path, PACKAGE))
def test_module_imports_only_from_its_layer_or_below(path):
    found = violations(
        path.read_text(encoding="utf-8"),
        module_name(path, PACKAGE),
        is_package=path.name == "__init__.py",
    )
    assert not found, "\n".join(found)


PLANTED = {
    "upward": ("gpubackprop.ops.affine", "import gpubackprop.training", "ops lies below training"),
    "upward from": (
        "gpubackprop.formulas.losses",
        "from gpubackprop import ops",
        "formulas lies below ops",
    ),
    "upward, relative": ("gpubackprop.network", "from .cli import main", "network lies below cli"),
    "upward, relative from a deeper module": (
        "gpubackprop.backends.numpy.gemm",
        "from ...ops import affine",
        "backends lies below ops",
    ),
    "upward in a function": (
        "gpubackprop.backends.devices",
        "def f():\n    from gpubackprop.training import Trainer",
        "gpubackprop.backends.devices:2 imports gpubackprop.training.Trainer",
    ),
    "upward for types only": (
        "gpubackprop.losses",
        "if TYPE_CHECKING:\n    from gpubackprop.training import Trainer",
        "losses lies below training",
    ),
    "upward by name": (
        "gpubackprop.training",
        "importlib.import_module('gpubackprop.sklearn')",
        "training lies below sklearn",
    ),
    "the package itself from below": (
        "gpubackprop.network",
        "from gpubackprop import Trainer",
        "network lies below __init__",
    ),
    "unknown module": ("gpubackprop.novelty", "", "add 'novelty' to LAYERS"),
    "from an unknown module": (
        "gpubackprop.ops",
        "from gpubackprop.novelty import x",
        "novelty is in no layer",
    ),
    "optional": ("gpubackprop.data", "import pyarrow.csv", "imports pyarrow.csv at module level"),
    "optional in a try": (
        "gpubackprop.ops",
        "try:\n    import cupy\nexcept ImportError:\n    cupy = None",
        "imports cupy at module level",
    ),
    "optional in a class body": ("gpubackprop.model", "class A:\n    import scipy", "scipy"),
    "optional in a default": ("gpubackprop.cli", "def f(x=__import__('torch')): ...", "torch"),
    "optional by name": (
        "gpubackprop.plots",
        "pyplot = require('matplotlib.pyplot', 'cli', 'plot')",
        "imports matplotlib.pyplot at module level",
    ),
    "one front-end's package in another": ("gpubackprop.sklearn", "import torch", "torch"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_planted_violation_is_found(case):
    module, source, said = PLANTED[case]
    assert [said in line for line in violations(source, module)] == [True]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gpubackprop.ops", "from gpubackprop.backends import numpy"),
        ("gpubackprop.losses", "from gpubackprop.network import MLP"),
        ("gpubackprop.cli.train", "from gpubackprop import MLP, __version__"),
        ("gpubackprop.data", "def read():\n    import pyarrow.csv"),
        ("gpubackprop.data", "read = lambda: require('pyarrow.csv', 'cli', 'read')"),
        ("gpubackprop.ops", "if TYPE_CHECKING:\n    import cupy"),
        ("gpubackprop.torch.functions", "import torch"),
        ("gpubackprop.backends", "from . import numpy, devices"),
        ("gpubackprop.errors", "import cupyx_of_another_name"),
    ],
)
def test_allowed_import_is_not_reported(module, source):
    is_package = module.count(".") == 1
    assert violations(source, module, is_package=is_package) == []


def test_relative_import_in_a_package_starts_at_the_package():
    source = "from .training import x"
    assert violations(source, "gpubackprop", is_package=True) == []
    assert violations(source, "gpubackprop.ops", is_package=True) == []  # gpubackprop.ops.training
    assert violations(source, "gpubackprop.ops", is_package=False) != []


# -- circles --------------------------------------------------------------------------------------


def imported_files(sources: dict[str, tuple[str, bool]]) -> dict[str, set[str]]:
    """For each module the modules among them that it imports, whenever it does: at once, in a
    function, or for types alone.

    Parameters
    ----------
    sources : module name -> its text, and whether it is a package.
    """
    graph = {}
    for module, (source, is_package) in sources.items():
        found = set()
        for _, imported, _ in imports(source, module, is_package=is_package):
            name = imported
            while name and name not in sources:  # a name of a module, not a module
                name = name.rpartition(".")[0]
            found.add(name)
        graph[module] = found - {"", module}
    return graph


def circles(graph: dict[str, set[str]]) -> list[frozenset[str]]:
    """Sets of modules each of which imports, by way of others, all others of its set."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for name in graph[waiting.pop()] - seen:
                seen.add(name)
                waiting.append(name)
        return seen

    reach = {module: reachable(module) for module in graph}
    found = {
        frozenset(other for other in reach[module] if module in reach[other])
        for module in graph
        if module in reach[module]
    }
    return sorted(found, key=sorted)


def test_no_files_import_one_another_in_a_circle():
    sources = {
        module_name(path, PACKAGE): (path.read_text(encoding="utf-8"), path.name == "__init__.py")
        for path in modules()
    }
    found = [sorted(circle) for circle in circles(imported_files(sources))]
    assert not found, (
        f"these files import one another: {found}; move what both need into a file below them"
    )


@pytest.mark.parametrize(
    "back",
    [
        "from gpubackprop.ops import layers",
        "from . import layers",
        "import gpubackprop.ops.layers as layers",
        "def f():\n    from gpubackprop.ops.layers import x",
        "if TYPE_CHECKING:\n    from gpubackprop.ops.layers import X",
        "importlib.import_module('gpubackprop.ops.layers')",
    ],
)
def test_a_planted_circle_is_found(back):
    def found(source: str) -> list[frozenset[str]]:
        layers, middle = "from gpubackprop.ops import middle", "from .checks import x"
        texts = {
            "": "from .layers import y",
            ".layers": layers,
            ".middle": middle,
            ".checks": source,
        }
        return circles(
            imported_files({f"gpubackprop.ops{n}": (text, not n) for n, text in texts.items()})
        )

    assert found("import numpy") == []
    assert found(back) == [{f"gpubackprop.ops.{name}" for name in ("layers", "middle", "checks")}]


def test_a_name_of_the_package_itself_closes_a_circle_and_a_module_of_it_does_not():
    package = ("from gpubackprop.ops.layers import x", True)
    of_itself = {"gpubackprop.ops": package, "gpubackprop.ops.layers": ("from . import x", False)}
    assert circles(imported_files(of_itself)) == [{"gpubackprop.ops", "gpubackprop.ops.layers"}]
    of_a_module = of_itself | {
        "gpubackprop.ops.layers": ("from . import checks", False),
        "gpubackprop.ops.checks": ("", False),
    }
    assert circles(imported_files(of_a_module)) == []
