"""The docstrings of everything public, read by numpydoc: sections, fields, types, examples."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache, cached_property
from types import ModuleType
from typing import Any

import pytest

from gpubackprop import initializers, losses, optimizers, schedules
from gpubackprop.formulas import ACTIVATIONS, POINTWISE_LOSSES, UPDATES

validation = pytest.importorskip("numpydoc.validate", reason="numpydoc is not installed")

MODULES = (
    "gpubackprop",
    "gpubackprop.data",
    "gpubackprop.distributed",
    "gpubackprop.errors",
    "gpubackprop.formulas",
    "gpubackprop.initializers",
    "gpubackprop.loggers",
    "gpubackprop.losses",
    "gpubackprop.ops",
    "gpubackprop.optimizers",
    "gpubackprop.plots",
    "gpubackprop.schedules",
    "gpubackprop.sklearn",
    "gpubackprop.torch",
    "gpubackprop.training",
)
# The codes of numpydoc that are not asked for, each with the reason. All others are.
NOT_ASKED = {
    "ES01": "a summary that says everything needs no second paragraph",
    "SA01": "the package's and the modules' docstrings name what belongs together",
}
OF_MEMBERS = {"EX01": "the example of the class shows its methods"}
OF_ERRORS = {"EX01": "an error is shown by what raises it"}
SHAPE = re.compile(r"\([^()]*\)|\bscalar\b|\b0-d\b")


def named(module: ModuleType) -> Iterator[Any]:
    """Yield what a module offers: its `__all__`, or the classes and functions that it defines."""
    listed = getattr(module, "__all__", None)
    for name in listed or [name for name in vars(module) if not name.startswith("_")]:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isroutine(value):
            home = value.__module__
            if home.startswith("gpubackprop") if listed else home == module.__name__:
                yield value


def documented_above(base: type, name: str) -> bool:
    """Return whether a class of the package above `base` documents the member."""
    ours = (above for above in base.__mro__[1:] if above.__module__.startswith("gpubackprop"))
    return any(getattr(vars(above).get(name), "__doc__", None) for above in ours)


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties that the package defines.

    An overriding method without a docstring has that of the method above it.
    """
    for base in cls.__mro__:
        if not base.__module__.startswith("gpubackprop"):
            continue
        for name, value in vars(base).items():
            if name.startswith("_") or name in getattr(base, "__dataclass_fields__", {}):
                continue
            if getattr(value, "__name__", "").startswith("_"):  # another name of a private method
                continue
            kinds = (classmethod, staticmethod, property, cached_property)
            member = inspect.isfunction(value) or isinstance(value, kinds)
            if member and (value.__doc__ or not documented_above(base, name)):
                yield f"{base.__module__}.{base.__qualname__}.{name}", value


@cache
def public() -> dict[str, tuple[Any, dict[str, str]]]:
    """Return everything public by its full name, with the codes that it need not fulfil."""
    found: dict[str, tuple[Any, dict[str, str]]] = {}
    for place in MODULES:
        for value in named(importlib.import_module(place)):
            error = inspect.isclass(value) and issubclass(value, Exception)
            found[f"{value.__module__}.{value.__qualname__}"] = value, OF_ERRORS if error else {}
            if inspect.isclass(value):
                found.update((name, (member, OF_MEMBERS)) for name, member in members(value))
    return found


def faults(name: str) -> list[str]:
    """Return what numpydoc finds wrong with the docstring of `name`."""
    left = NOT_ASKED | public()[name][1]
    found = validation.validate(name)["errors"]
    return [f"{code} {text}" for code, text in found if code not in left]


def parsed(name: str) -> Any:
    """Return numpydoc's sections of the docstring of `name`."""
    return validation.Validator(validation.get_doc_object(validation.Validator._load_obj(name))).doc


def function_of(value: Any) -> Any:
    """Return the function that runs when the public object is called; None for a property."""
    value = getattr(value, "__func__", value)
    value = inspect.unwrap(value) if callable(value) else value
    if inspect.isclass(value):
        value = vars(value).get("__init__")
    return value if inspect.isfunction(value) else None


def raised_by(function: Any) -> set[str]:
    """Return the names of the exceptions that the function's own body raises."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError):
        return set()
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    names = [getattr(call, "func", call) for call in calls if call is not None]
    return {name.id for name in names if isinstance(name, ast.Name) and name.id[0].isupper()}


def test_everything_public_has_a_docstring_that_numpydoc_reads():
    assert len(public()) > 180
    found = [f"{name}: {fault}" for name in public() for fault in faults(name)]
    assert not found, "\n".join(found)


def test_arrays_say_their_shape():
    """A parameter or result whose type names an array has a shape beside it, or in its text."""
    missing = []
    for name in public():
        doc = parsed(name)
        for section in ("Parameters", "Returns", "Yields"):
            for field, kind, text in doc[section]:
                if re.search(r"\b(array|tensor)s?\b", kind) and not SHAPE.search(f"{kind} {text}"):
                    missing.append(f"{name}: {section}, {field or kind}")
    assert not missing, "\n".join(missing)


def test_errors_that_a_body_raises_are_documented():
    missing = []
    for name, (value, _) in public().items():
        function = function_of(value)
        if function is None or isinstance(value, property):
            continue
        said = {kind for _, kind, _ in parsed(name)["Raises"]}
        missing += [f"{name}: {error}" for error in raised_by(function) - said]
    assert not missing, "\n".join(missing)


def test_every_formula_has_a_source():
    """The optimizers, losses, schedules and initialisers name a paper or a library."""
    factories = [*optimizers.OPTIMIZERS.values(), *losses.LOSSES.values()]
    factories += [*schedules.SCHEDULES.values(), *initializers.INITIALIZERS.values()]
    without = {"Constant", "zeros"}  # there is nothing to cite
    for factory in factories:
        if factory.__name__ not in without:
            name = f"{factory.__module__}.{factory.__qualname__}"
            assert parsed(name)["References"], f"{name} names no source"


def test_every_formula_says_its_expression():
    formulas = [f for act in ACTIVATIONS.values() for f in (act.value, act.slope, act.backward)]
    formulas += [entry.value_and_delta for entry in POINTWISE_LOSSES.values()]
    formulas += [entry.apply for entry in UPDATES.values()]
    for formula in filter(None, formulas):
        assert re.search(r"=|<-", formula.__doc__ or ""), f"{formula.__name__} says no expression"


def test_numpydoc_finds_what_is_wrong_with_a_docstring():
    def wrong(x: int, y: int) -> int:
        """add two numbers

        Parameters
        ----------
        x : int; y : int.
        """
        return x + y

    found = {code for code, _ in validation.validate(validation.get_doc_object(wrong))["errors"]}
    assert {"SS02", "SS03", "PR01", "PR05", "PR07", "RT01", "EX01"} <= found
