"""What cuBLASLt does with a product before it stores it, in place of kernels of ours.

While a plan is recorded, each operation of a layer asks here whether a product with an epilogue
shall do its work. It does where its values are those of our kernels on this card, NaN included, and
where it takes less time than product and kernels. Both are found out once for each card, version of
the library and shape, and kept beside the choices of algorithms. Not measured on a GPU.

    forward     a = x W^T + b (the output layer), h = relu(x W^T + b) with a mask of its sign
    backward    delta = (delta W) * relu'(a) from the mask, and the sum of its rows
    weights     grad_W = delta^T h, and beside it grad_b, the sum of delta's rows

GPUBACKPROP_EPILOGUES=never takes our kernels, =always every epilogue that is right.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop.backends.cupy import cublaslt
from gpubackprop.backends.cupy.epilogue_trials import (
    FIRST_NAN,
    LAST_NAN,
    OUT_OF_ROOM,
    SMALL,
    Arrays,
    Trial,
    Way,
    fastest,
    right_ways,
)
from gpubackprop.backends.cupy.issuer import Issuer
from gpubackprop.backends.cupy.products import compute_type, mask_bytes
from gpubackprop.backends.cupy.recorded_calls import RecordedCalls
from gpubackprop.errors import OptionError
from gpubackprop.formulas import ACTIVATIONS, Activation

VARIABLE = "GPUBACKPROP_EPILOGUES"
FORWARD = {"identity": cublaslt.BIAS, "relu": cublaslt.RELU_MASK_BIAS}
RELU = ACTIVATIONS["relu"]


def mode() -> str:
    """Return "timed", "never" or "always".

    Raises
    ------
    OptionError
        The environment says something else.
    """
    said = os.environ.get(VARIABLE) or "timed"
    if said not in ("timed", "never", "always"):
        raise OptionError(f"{VARIABLE} is {said!r} but must be timed, never or always")
    return said


def bytes_of_masks(backend: Issuer, widths: Sequence[int]) -> int:
    """Return the most bytes that the masks of a row take, in layers of ReLU of these widths."""
    if not backend.products.epilogues or mode() == "never":
        return 0
    return sum(map(mask_bytes, widths))


@dataclass(frozen=True)
class _Mask:
    """The product that wrote a mask, and its arrays; `trial.arrays` has h and mask."""

    trial: Trial
    way: Way


@dataclass(frozen=True)
class _DataGradient:
    """The last recorded product, as grad_h = delta W; `begin` and `end` count the calls."""

    begin: int
    end: int
    delta: Any
    W: Any
    grad_h: Any


@dataclass(frozen=True)
class _Sums:
    """The last recorded calls, if they have made sums: see `Epilogues.note_sums`."""

    what: str
    begin: int
    end: int
    arrays: Arrays
    way: Way


class Epilogues:
    """What the recorder of a plan knows of its calls."""

    def __init__(self) -> None:
        self._masks: dict[int, _Mask] = {}  # by the address of h
        self._gradient: _DataGradient | None = None
        self._sums: _Sums | None = None
        self._always = mode() == "always"

    # -- the operations of a layer ----------------------------------------------------------------

    def forward(
        self, backend: Issuer, x: Any, W: Any, b: Any, activation: Activation, h: Any
    ) -> bool:
        """Record h = g(x W^T + b) as one product; return whether that was done."""
        self._masks.pop(_address(h), None)
        epilogue = FORWARD.get(activation.name)
        if epilogue is None or not _of_one_type(x, W, b, h) or not _dense(x, W, b, h):
            return False
        arrays = {"x": x, "W": W, "b": b, "h": h}
        if epilogue == cublaslt.RELU_MASK_BIAS:
            arrays["mask"] = backend.empty((len(h), mask_bytes(h.shape[1])), np.uint8)

        def plain(backend: Issuer, to: Arrays) -> None:
            backend.affine_forward(to["x"], to["W"], to["b"], activation, to["h"], to["h"])

        def joined(backend: Issuer, to: Arrays) -> None:
            _product(backend, epilogue, to["x"], to["W"].T, to["h"], to["b"], to.get("mask"))

        trial = Trial(arrays, {"x": FIRST_NAN, "W": SMALL, "b": SMALL}, ("h",))
        if not self._record(backend, f"forward {activation.name}", trial, [plain, joined]):
            return False
        if epilogue == cublaslt.RELU_MASK_BIAS:
            self._masks[_address(h)] = _Mask(trial, joined)
        return True

    def slope(
        self,
        backend: Issuer,
        grad_h: Any,
        saved: Any,
        activation: Activation,
        delta: Any,
        grad_b: Any,
    ) -> bool:
        """Record delta and its sums as part of the product that made grad_h, the last call.

        Returns whether that was done.
        """
        last, mask = self._gradient, self._masks.get(_address(saved))
        if last is None or mask is None or activation.name != "relu":
            return False
        calls = _calls(backend).calls
        if last.end != len(calls) or _address(last.grad_h) != _address(grad_h):
            return False
        if _address(delta) != _address(grad_h) or saved.shape != delta.shape:
            return False
        if not _of_one_type(last.delta, last.W, delta) or not _dense(last.delta, last.W, delta):
            return False
        made = {f"made {role}": array for role, array in mask.trial.arrays.items()}
        arrays = made | {"delta": last.delta, "W": last.W, "out": delta}
        arrays |= {} if grad_b is None else {"grad_b": grad_b}

        def prepare(backend: Issuer, to: Arrays) -> None:
            mask.way(backend, {role: to[f"made {role}"] for role in mask.trial.arrays})

        def plain(backend: Issuer, to: Arrays) -> None:
            out = to["out"]
            backend.matmul(to["delta"], to["W"], out)
            backend.activation_backward(out, to["made h"], RELU, out, to.get("grad_b"))

        def masked(backend: Issuer, to: Arrays) -> None:
            args = to["delta"], to["W"], to["out"]
            _product(backend, cublaslt.DRELU, *args, None, to["made mask"])
            if "grad_b" in to:
                backend.column_sum(to["out"], to["grad_b"])

        def summed(backend: Issuer, to: Arrays) -> None:
            args = to["delta"], to["W"], to["out"], to["grad_b"], to["made mask"]
            _product(backend, cublaslt.DRELU_BIAS_GRADIENT, *args)

        # A gradient of 16 bits would be rounded: the library's has the type of delta.
        sums = grad_b is not None and _of_one_type(delta, grad_b)
        ways = [plain, summed, masked] if sums else [plain, masked]
        contents = {f"made {role}": kind for role, kind in mask.trial.contents.items()}
        contents |= {"delta": LAST_NAN, "W": SMALL}
        results = ("out", *(() if grad_b is None else ("grad_b",)))
        trial = Trial(arrays, contents, results, prepare)
        number = self._record(backend, "slope", trial, ways, last.begin)
        if number and grad_b is not None and ways[number] is masked:
            self.note_column_sum(backend, last.begin + 1, delta, grad_b)
        return bool(number)

    def weight_gradient(self, backend: Issuer, delta: Any, h: Any, grad_W: Any) -> bool:
        """Record grad_W and the sums of delta, which the last calls have made, as one product.

        Returns whether that was done. With one output column the library's kernel faults.
        """
        last = self._sums
        if last is None or last.end != len(_calls(backend).calls):
            return False
        grad_b = last.arrays["grad_b"]
        if _address(last.arrays["delta"]) != _address(delta) or delta.shape[1] < 2:
            return False
        if not _of_one_type(grad_b, grad_W) or not _of_one_type(delta, h):
            return False
        if not _dense(delta, h, grad_W, grad_b):
            return False
        arrays = {"delta": delta, "h": h, "grad_W": grad_W, "grad_b": grad_b}

        def plain(backend: Issuer, to: Arrays) -> None:
            backend.column_sum(to["delta"], to["grad_b"])
            backend.matmul(to["delta"].T, to["h"], to["grad_W"])

        def joined(backend: Issuer, to: Arrays) -> None:
            args = to["delta"].T, to["h"], to["grad_W"], to["grad_b"]
            _product(backend, cublaslt.BIAS_GRADIENT_B, *args)

        def before(backend: Issuer, to: Arrays) -> None:
            last.way(backend, {role: to[f"sums {role}"] for role in last.arrays})
            backend.matmul(to["delta"].T, to["h"], to["grad_W"])

        def after(backend: Issuer, to: Arrays) -> None:
            rest = last.arrays.keys() - {"grad_b"}
            last.way(backend, {role: to[f"sums {role}"] for role in rest})
            joined(backend, to)

        contents = {"delta": LAST_NAN, "h": SMALL}
        trial = Trial(arrays, contents, ("grad_W", "grad_b"))
        theirs = {f"sums {role}": array for role, array in last.arrays.items()}
        timed = Trial(arrays | theirs, contents, ())
        what, issued = f"weights {last.what}", (timed, [before, after])
        return bool(self._record(backend, what, trial, [plain, joined], last.begin, issued))

    # -- what was recorded last -------------------------------------------------------------------

    def note_gradient(self, backend: Issuer, begin: int, delta: Any, W: Any, grad_h: Any) -> None:
        """Note that the last call is a product grad_h = delta W."""
        self._gradient = _DataGradient(begin, len(_calls(backend).calls), delta, W, grad_h)

    def note_sums(self, backend: Issuer, what: str, begin: int, arrays: Arrays, way: Way) -> None:
        """Note that the calls from `begin` on have put the sums of "delta" into "grad_b".

        ``way(backend, arrays)`` issues them on such arrays; without "grad_b" it leaves the sums
        out. `what` names them among the choices that are kept.
        """
        self._sums = _Sums(what, begin, len(_calls(backend).calls), arrays, way)

    def note_column_sum(self, backend: Issuer, begin: int, delta: Any, grad_b: Any) -> None:
        """Note that the calls from `begin` on are a column sum."""

        def way(backend: Issuer, to: Arrays) -> None:
            if "grad_b" in to:
                backend.column_sum(to["delta"], to["grad_b"])

        self.note_sums(backend, "column_sum", begin, {"delta": delta, "grad_b": grad_b}, way)

    # -- the choice -------------------------------------------------------------------------------

    def _record(
        self,
        backend: Issuer,
        what: str,
        trial: Trial,
        ways: Sequence[Way],
        begin: int | None = None,
        timed: tuple[Trial, Sequence[Way]] | None = None,
    ) -> int:
        """Record one of the ways unless it is the first; return its number.

        The calls from `begin` on are then taken back. `timed` is what time is taken of, and what is
        recorded, if that is more than what is compared.
        """
        recorded, (arrays, issued) = _calls(backend), timed or (trial, ways)
        compute = compute_type(trial.arrays[trial.results[0]].dtype, backend.products.tf32)
        begin = len(recorded.calls) if begin is None else begin
        try:
            order = " any" if backend.products.any_order else ""
            key = f"way {what} {compute}{order} {arrays.key()}"
            number = self._chosen(backend, key, trial, ways, arrays, issued)
        except OUT_OF_ROOM:
            return 0
        if number == 0:
            return 0
        before = recorded.cut(begin)
        silent = backend.with_memory(backend.memory)
        silent._epilogues = None
        try:
            issued[number](silent, arrays.arrays)
        except OUT_OF_ROOM:
            recorded.cut(begin)
            recorded.put_back(before)
            return 0
        return number

    def _chosen(
        self,
        backend: Issuer,
        key: str,
        trial: Trial,
        ways: Sequence[Way],
        timed: Trial,
        issued: Sequence[Way],
    ) -> int:
        choices = backend.products.choices
        if not self._always:
            kept = choices.way(key)
            if kept is not None and kept < len(ways):
                return kept
        right = right_ways(backend, trial, ways)
        if self._always:
            return right[min(1, len(right) - 1)]
        number = right[0]
        if len(right) > 1:
            number = fastest(backend, timed, {place: issued[place] for place in right})
        choices.keep_way(key, number)
        return number


def _product(
    backend: Issuer,
    epilogue: int,
    x: Any,
    y: Any,
    out: Any,
    bias: Any = None,
    mask: Any = None,
) -> None:
    """Record out = x @ y with an epilogue; see `CublasLtProducts.finished`."""
    with backend.cupy.cuda.Device(backend.index):
        call = backend.products.finished(epilogue, x, y, out, backend.memory, bias, mask)
    _calls(backend)(call[0], *call[1])


def _calls(backend: Issuer) -> RecordedCalls:
    assert backend._recorded is not None
    return backend._recorded


def _address(array: Any) -> int:
    return int(array.data.ptr)


def _of_one_type(*arrays: Any) -> bool:
    return len({array.dtype for array in arrays}) == 1


def _dense(*arrays: Any) -> bool:
    """Return whether all are whole rows one after another, with elements."""
    return all(array.flags.c_contiguous and array.size for array in arrays)
