"""The native updates: a step of an optimizer in one pass, sums of squares, 16-bit copies."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from gpubackprop.backends.native import library as libraries
from gpubackprop.backends.native.arguments import address, record
from gpubackprop.backends.native.calls import (
    NativeCalls,
    code_of,
    compute_of,
    is_vector,
    same_formula,
)
from gpubackprop.backends.native.layers import FLOATS
from gpubackprop.backends.numpy.recorded_calls import run_now
from gpubackprop.backends.numpy.updater import COEFFICIENTS, NumpyUpdater
from gpubackprop.backends.updater import UpdateRule
from gpubackprop.formulas import UPDATES, Update

Array = np.ndarray
SQUARES = 1 << 16  # elements of a chunk of a sum of squares
ALIGNED = 256  # parts of flat buffers begin at multiples: of words of dropout, of vectors
PARTIAL, SUM = 60, 61  # scratch numbers
_FUNCTIONS = ("apply", "coefficients")


class NativeUpdates(NativeCalls):
    """The native updates; see `NativeBackend`."""

    def add_scaled(self, x: Array, scale: Array, out: Array) -> None:
        library, code, scale = self._native("add_scaled"), code_of(out), np.asarray(scale)
        fits = code in (0, 1) and x.dtype == scale.dtype == out.dtype and is_vector(x, out, scale)
        if library is None or not fits:
            super().add_scaled(x, scale, out)
            return
        values = {"x": x, "scale": scale, "out": out, "storage": code}
        self._issue(library.add_scaled, "add_scaled", values, self._flat_parts(x, 3))

    def sum_of_squares(self, x: Array, out: Array) -> None:
        library = self._native("sum_of_squares")
        if (
            library is None
            or (code := code_of(x)) not in (0, 1)
            or not is_vector(x, out)
            or not x.size
        ):
            super().sum_of_squares(x, out)
            return
        parts = self._parts(len(x), x.nbytes, SQUARES)
        chunks = -(-len(x) // SQUARES)
        take = self._scratch().take
        partial = take(0, PARTIAL, (chunks,), np.float64)
        total = out if out.dtype == np.float64 else take(0, SUM, (), np.float64)
        values = {
            "x": x, "partial": partial, "out": total if len(parts) == 1 else None,
            "count": len(x), "chunk": SQUARES, "storage": code,
        }  # fmt: skip
        self._issue(library.sum_of_squares, "sum_of_squares", values, parts)
        if len(parts) > 1:
            values = {"partial": partial, "out": total, "chunks": chunks}
            self._issue(library.sum_of_squares_finish, "sum_of_squares_finish", values)
        if total is not out:
            self._call(np.copyto, out, total)

    def update(
        self,
        parameters: Array,
        gradient: Array,
        slots: tuple[Array, ...],
        formula: Update,
        coefficients: dict[str, Any],
    ) -> None:
        library = self._native("update")
        if library is None:
            super().update(parameters, gradient, slots, formula, coefficients)
            return
        number, code = library.updates.get(formula.name, -1), code_of(parameters)
        copy = coefficients.get("copy")
        compute = compute_of(parameters)
        c = self._coefficients(coefficients["c"], compute)
        fits = number >= 0 and same_formula(UPDATES.get(formula.name), formula, _FUNCTIONS)
        fits = fits and code in (0, 1) and gradient.dtype == parameters.dtype and c is not None
        fits = fits and all(slot.dtype == compute for slot in slots)
        fits = fits and (copy is None or code_of(copy) in (2, 3))
        fits = fits and is_vector(parameters, gradient, copy, *slots) and parameters.size > 0
        l2 = coefficients.get("l2")
        numbers = (coefficients.get("decay"), coefficients.get("clip"), l2 and l2[1])
        fits = fits and all(self._can_be_read(value, compute) for value in numbers)
        decay, clip, penalty = (_number(value, compute) for value in numbers)
        if not fits:
            super().update(parameters, gradient, slots, formula, coefficients)
            return
        s = (*slots, None, None, None)
        values = {
            "p": parameters, "g": gradient, "s0": s[0], "s1": s[1], "s2": s[2], "copy": copy,
            "c": c, "decay": decay, "clip": clip, "l2": penalty, "unscale": None,
            "random": None if copy is None else coefficients.get("random"),
            "penalized": 0 if l2 is None else l2[0], "storage": code,
            "gradient_storage": code_of(gradient),
            "copy_storage": code if copy is None else code_of(copy), "formula": number,
        }  # fmt: skip
        parts = self._flat_parts(parameters, 3 + len(slots))
        self._issue(library.update, "update", values, parts)

    def round_to_storage(self, x: Array, out: Array, random: Array | None = None) -> None:
        library, code, narrow = self._native("round_to_storage"), code_of(x), code_of(out)
        fits = code in (0, 1) and narrow in FLOATS and is_vector(x, out) and x.size > 0
        if library is None or not fits:
            super().round_to_storage(x, out, random)
            return
        values = {"x": x, "out": out, "random": random, "storage": code, "out_storage": narrow}
        self._issue(library.round_to_storage, "round_to_storage", values, self._flat_parts(x, 1))

    def _flat_parts(self, x: Array, arrays: int) -> list[tuple[int, int]]:
        """Return the parts of a flat buffer for work that touches so many arrays of its size."""
        return self._parts(len(x), arrays * x.nbytes, ALIGNED)

    def _coefficients(self, c: tuple[Any, ...], dtype: np.dtype) -> Array | None:
        """Return an array at whose address the coefficients stand when the call runs, or None."""
        first = c[0]
        if isinstance(first, np.ndarray) and first.dtype == dtype:
            start, base = address(first), first.base
            row = all(
                isinstance(number, np.ndarray) and address(number) == start + i * first.itemsize
                for i, number in enumerate(c)
            )
            if row and isinstance(base, np.ndarray) and base.size >= COEFFICIENTS:
                return first
        if any(isinstance(number, np.ndarray) for number in c) and self._call is not run_now:
            return None  # they may change until the plan runs
        numbers = np.zeros(COEFFICIENTS, dtype)
        numbers[: len(c)] = c
        return numbers

    def _can_be_read(self, value: Any, dtype: np.dtype) -> bool:
        """Return whether a number is that of now, or stands in an array that the kernel reads."""
        fixed = not isinstance(value, np.ndarray) or self._call is run_now
        return fixed or value.dtype == dtype

    def updater(
        self,
        rule: UpdateRule,
        parameters: Array,
        gradient: Array,
        slots: tuple[Array, ...],
        random: Array | None = None,
        half_copy: Array | None = None,
    ) -> NumpyUpdater:
        kind = NumpyUpdater if self._native("prepare_update") is None else NativeUpdater
        return kind(rule, parameters, gradient, slots, random, half_copy)


def _number(value: Any, dtype: np.dtype) -> Array | None:
    """Return a 0-d array of that dtype; a number becomes one."""
    if value is None or (isinstance(value, np.ndarray) and value.dtype == dtype):
        return value
    return np.asarray(value, dtype)


class NativeUpdater(NumpyUpdater):
    """A `NumpyUpdater` whose coefficients of a step the library computes."""

    _prepare: tuple[Any, Any] | None = None  # function and record

    def _set_coefficients(self, lr: float, step: int) -> None:
        if self._prepare is None:
            self._prepare = self._make_prepare()
        if self._prepare[0] is None:
            super()._set_coefficients(lr, step)
            return
        function, made = self._prepare
        made.lr, made.step = lr, step
        function(ctypes.byref(made))

    def _make_prepare(self) -> tuple[Any, Any]:
        rule, library = self.rule, libraries.library()
        if library is None or "prepare_update" not in library.has:
            return None, None
        number = library.updates.get(rule.formula.name, -1)
        known = same_formula(UPDATES.get(rule.formula.name), rule.formula, _FUNCTIONS)
        code = code_of(self._c)
        if number < 0 or not known or code not in (0, 1):
            return None, None
        names = rule.formula.hyperparameters
        values = {
            "hyperparameters": np.array([rule.hyperparameters[name] for name in names], np.float64),
            "c": self._c, "decay": self._decay if rule.weight_decay else None, "lr": rule.lr,
            "step": 1.0, "weight_decay": rule.weight_decay, "storage": code, "formula": number,
        }  # fmt: skip
        return library.prepare_update, record("prepare_update", values)
