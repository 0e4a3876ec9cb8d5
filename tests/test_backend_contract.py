"""`gpubackprop.backends.base.Backend` is what all backends are: by name, by signature, by mypy."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubackprop.backends import NumpyBackend
from gpubackprop.backends.base import Backend
from gpubackprop.backends.cupy import CupyBackend
from gpubackprop.backends.cupy.updates import CupyUpdater
from gpubackprop.backends.memory import Memory
from gpubackprop.backends.numpy.updater import NumpyUpdater
from gpubackprop.backends.updater import Updater
from gpubackprop.formulas import ACTIVATIONS

PACKAGE = Path(__file__).resolve().parents[1] / "gpubackprop"
PROTOCOLS = (Memory, Backend, Updater)


def operations(protocol: type) -> dict[str, Any]:
    """Public methods and properties of a protocol, inherited ones too."""
    members = inspect.getmembers(
        protocol, lambda member: callable(member) or isinstance(member, property)
    )
    return {name: member for name, member in members if not name.startswith("_")}


def parameters(member: Any) -> list[tuple[Any, ...]]:
    if isinstance(member, property):
        return []
    found = inspect.signature(member).parameters.values()
    return [(p.name, p.kind, p.default) for p in found]


def differences(kind: type, protocol: type) -> list[str]:
    """Where the class does not do what the protocol says, one line for each operation."""
    found = []
    for name, stated in operations(protocol).items():
        origin = next((cls for cls in kind.__mro__ if name in vars(cls)), None)
        if origin is None or origin in PROTOCOLS:
            found.append(f"{kind.__name__} has no {name}")
        elif parameters(getattr(kind, name)) != parameters(stated):
            found.append(f"{kind.__name__}.{name} has other parameters than {protocol.__name__}'s")
    return found


@pytest.mark.parametrize("kind", [NumpyBackend, CupyBackend])
def test_a_backend_has_every_operation_with_the_parameters_of_the_contract(kind: type) -> None:
    assert len(operations(Backend)) > 30
    assert differences(kind, Backend) == []


def test_the_backend_of_the_estimators_has_them_too() -> None:
    pytest.importorskip("sklearn")
    from gpubackprop.sklearn.host import HostBackend

    assert differences(HostBackend, Backend) == []


@pytest.mark.parametrize("kind", [NumpyUpdater, CupyUpdater])
def test_an_updater_has_every_method_with_the_parameters_of_the_contract(kind: type) -> None:
    assert len(operations(Updater)) > 7
    assert differences(kind, Updater) == []


class OtherName(NumpyBackend):
    def divide(self, x: Any, by: float, out: Any) -> None:  # type: ignore[override]
        super().divide(x, by, out)


class OtherDefault(NumpyBackend):
    def softmax(self, a: Any, out: Any, *, log: bool = True) -> None:
        super().softmax(a, out, log=log)


class OtherKind(NumpyBackend):
    def softmax(self, a: Any, out: Any, log: bool = False) -> None:
        super().softmax(a, out, log=log)


class OneMore(NumpyBackend):
    def column_sum(self, delta: Any, out: Any, divisor: float = 1.0) -> None:
        super().column_sum(delta, out)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (OtherName, "divide"),
        (OtherDefault, "softmax"),
        (OtherKind, "softmax"),
        (OneMore, "column_sum"),
    ],
)
def test_a_planted_difference_is_seen(kind: type, name: str) -> None:
    said = f"{kind.__name__}.{name} has other parameters than Backend's"
    assert differences(kind, Backend) == [said]


def test_a_backend_that_lacks_an_operation_is_seen_and_cannot_be_made() -> None:
    own = {n: m for cls in reversed(NumpyBackend.__mro__) for n, m in vars(cls).items()}
    lacking = {n: m for n, m in own.items() if n in operations(Backend) and n != "matmul"}
    kind = type("Lacking", (Backend,), lacking)
    assert differences(kind, Backend) == ["Lacking has no matmul"]
    with pytest.raises(TypeError, match="matmul"):
        kind()


@pytest.mark.parametrize("kind", [NumpyBackend, CupyBackend])
def test_help_on_an_operation_shows_what_it_does_and_its_attributes_are_there(kind: type) -> None:
    silent = [name for name in operations(Backend) if not inspect.getdoc(getattr(kind, name))]
    assert silent == []
    made_in_init = {"device"}
    for name in {**Memory.__annotations__, **Backend.__annotations__}:
        assert hasattr(kind, name) or name in made_in_init, name


def any_backend(source: str) -> Iterator[int]:
    """Lines on which a backend is a parameter, a variable or a result of type Any."""

    def is_any(annotation: ast.expr | None) -> bool:
        return annotation is not None and ast.unparse(annotation) == "Any"

    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.arg(arg=name, annotation=annotation):
                found = name in ("backend", "recorder") and is_any(annotation)
            case ast.FunctionDef(name=name, returns=returns):
                found = name in ("backend", "backend_of") and is_any(returns)
            case ast.AnnAssign(target=target, annotation=annotation):
                found = ast.unparse(target).endswith("backend") and is_any(annotation)
            case _:
                found = False
        if found:
            yield node.lineno


def test_no_backend_is_of_type_any_in_the_package() -> None:
    planted = "def f(backend: Any): ...\ndef backend_of(x) -> Any: ...\nself.backend: Any = 1"
    assert sorted(any_backend(planted)) == [1, 2, 3]
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line in any_backend(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
@pytest.mark.parametrize("source", [np.uint8, np.float32, np.float64])
def test_numpy_standardizes_in_float64_and_rounds_once(kind: str, source: type) -> None:
    rng = np.random.default_rng(0)
    raw = (rng.random((700, 300)) * 200).astype(source)
    mean, scale = rng.normal(100, 1, 300), rng.random(300) + 0.5
    out, again = np.empty(raw.shape, kind), np.empty(raw.shape, kind)
    backend = NumpyBackend()
    backend.standardize(raw, mean, scale, out)
    assert np.array_equal(out, ((raw.astype(np.float64) - mean) / scale).astype(kind))
    backend.plan(lambda recorder: recorder.standardize(raw, mean, scale, again))()
    assert np.array_equal(again, out)


def test_the_epilogue_of_numpy_drops_out_as_the_layer_does() -> None:
    from gpubackprop.formulas import Dropout
    from gpubackprop.formulas.dropout import random_state

    rng = np.random.default_rng(0)
    x, W, b = rng.normal(size=(9, 4)), rng.normal(size=(6, 4)), rng.normal(size=6)
    dropout, relu, backend = Dropout(0.4, 1, random_state(3)), ACTIVATIONS["relu"], NumpyBackend()
    a, h, wanted = np.empty((9, 6)), np.empty((9, 6)), np.empty((9, 6))
    backend.affine_forward(x, W, b, relu, np.empty((9, 6)), wanted, dropout)
    backend.matmul(x, W.T, a)
    backend.affine_epilogue(a, b, relu, h, dropout)
    assert np.array_equal(h, wanted)
    assert (h == 0).sum() > (np.maximum(a, 0) == 0).sum()
