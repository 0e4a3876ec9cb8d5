"""A `TablePreprocessor` in ONNX's operators: one input for each column of the table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpubackprop.data.column_plan import DAY, PERIODS, ColumnPlan
from gpubackprop.data.preprocessor import TablePreprocessor
from gpubackprop.onnx.graph import Nodes, OnnxGraph

Array = np.ndarray
_YEAR = PERIODS["year"] / DAY


def table_inputs(graph: OnnxGraph, prepared: TablePreprocessor, dtype: np.dtype) -> str:
    """Add the inputs and their encoding; return the name of the encoded columns, (N, D) float64.

    A number or boolean is a tensor (N, 1) of `dtype`, a date or time one of float64 (seconds since
    1970, or since midnight), in all of which NaN is missing. A category is a tensor (N, 1) of text,
    in which "" is missing.
    """
    wide, parts = Wide(graph), []
    for plan in prepared.columns:
        if plan.kind == "category":
            kind: Any = object
        else:
            kind = dtype if plan.kind in ("number", "boolean") else np.float64
        value = graph.input(plan.name, kind, ["N", 1])
        encode = _category if plan.kind == "category" else _scalar
        parts += encode(wide, plan, value)
    return graph.op("Concat", *parts, name="encoded", axis=1)


class Wide(Nodes):
    """Nodes of a graph that compute in float64, whatever the network does.

    Parameters
    ----------
    graph : Nodes
        The graph.
    """

    def __init__(self, graph: Nodes) -> None:
        super().__init__(np.dtype(np.float64))
        self.graph = graph

    def fresh(self, name: str) -> str:
        """Return a name that is free in the graph."""
        return self.graph.fresh(name)

    def constant(self, values: Array, name: str = "constant") -> str:
        """Add an array to the graph; return the name that it has got."""
        return self.graph.constant(values, name)

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        """Add a node to the graph."""
        self.graph.add(operator, inputs, output, **attributes)

    def sum(self, *terms: str | float) -> str:
        """Add terms, names or numbers."""
        first, *rest = (self.number(t) if isinstance(t, float) else t for t in terms)
        for term in rest:
            first = self.op("Add", first, term)
        return first

    def times(self, value: str, factor: float) -> str:
        """Multiply by a number."""
        return self.op("Mul", value, self.number(factor))

    def floor_of(self, value: str, divisor: float) -> str:
        """Return floor(value / divisor)."""
        return self.op("Floor", self.op("Div", value, self.number(divisor)))

    def flag(self, operator: str, *inputs: str) -> str:
        """Return 1 where a comparison holds, else 0."""
        return self.cast(self.op(operator, *inputs), self.dtype)


def _scalar(n: Wide, plan: ColumnPlan, value: str) -> list[str]:
    """Return the encoded parts (N, 1) of a number, boolean, date or time."""
    value = n.cast(value, np.float64)
    missing = n.op("IsNaN", value)
    filled = n.op("Where", missing, n.number(plan.fill), value)
    parts = [filled]
    for part in plan.parts:
        angle = n.times(_turns(n, filled, part), 2 * math.pi)
        for function in ("Sin", "Cos"):
            parts.append(n.op("Where", missing, n.number(0.0), n.op(function, angle)))
    return [*parts, n.cast(missing, np.float64)] if plan.gaps else parts


def _turns(n: Wide, seconds: str, part: str) -> str:
    """Add `column_plan.turns`: the fraction of a moment within its year, week or day."""
    if part != "year":
        since = 4 * DAY if part == "week" else 0.0
        turns = n.op("Div", n.sum(seconds, -since), n.number(PERIODS[part]))
        return n.op("Sub", turns, n.op("Floor", turns))
    days = n.floor_of(seconds, DAY)
    guess = n.sum(n.floor_of(days, _YEAR), 1970.0)
    late = n.flag("Less", days, _new_year(n, guess))
    early = n.flag("GreaterOrEqual", days, _new_year(n, n.sum(guess, 1.0)))
    year = n.op("Sub", n.sum(guess, early), late)
    first = _new_year(n, year)
    length = n.op("Sub", _new_year(n, n.sum(year, 1.0)), first)
    return n.op("Div", n.op("Sub", n.times(seconds, 1 / DAY), first), length)


def _new_year(n: Wide, year: str) -> str:
    """Add the days from 1970 to the first of January of a year, by the Gregorian calendar."""
    before = n.sum(year, -1.0)
    leap = n.op("Sub", n.floor_of(before, 4.0), n.floor_of(before, 100.0))
    return n.sum(n.times(before, 365.0), leap, n.floor_of(before, 400.0), -719162.0)


def _category(n: Wide, plan: ColumnPlan, value: str) -> list[str]:
    """Return the one-hot code (N, outputs) of a column of text."""
    count = len(plan.outputs)
    places = range(len(plan.categories))
    code = n.op(
        "LabelEncoder", value, domain="ai.onnx.ml",
        keys_strings=["", *plan.categories],
        values_int64s=[count - 1 if plan.gaps else -1, *places],
        default_int64=len(plan.categories) if plan.other else -1,
    )  # fmt: skip
    return [n.flag("Equal", code, n.constant(np.arange(count, dtype=np.int64)))]
