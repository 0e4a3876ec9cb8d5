"""Updates of the flat parameter buffer on a GPU: one launch, with coefficients from the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop.backends.cupy.issuer import Issuer
from gpubackprop.backends.cupy_launch import Launch, suffix_of
from gpubackprop.backends.updater import SCALE, SKIPPED, STEPS, Updater, UpdateRule
from gpubackprop.dtypes import compute_dtype
from gpubackprop.errors import ShapeError
from gpubackprop.formulas import UPDATES, Update

# c of kernels/updates.cuh: the formula's coefficients, then what every formula has.
FORMULA_COEFFICIENTS = 8
DECAY, L2, UNSCALE, GRADIENT_FACTOR, PROCEED, COEFFICIENTS = range(8, 14)
# settings of kernels/prepare_update.cu
LR, WEIGHT_DECAY, L2_PENALTY, CLIP_NORM, GROWTH_INTERVAL, HYPERPARAMETERS = range(6)
NO_TOTALS: Mapping[str, Any] = {
    "totals": None, "loss": None, "correct_rows": None, "weights2": None, "l2": 0.0, "rows": 0,
}  # fmt: skip


class CupyUpdater(Updater[Issuer]):
    """The result of `CupyBackend.updater`. If the loss is scaled, the gradient keeps the scale.

    Hyperparameters, step count and clipping are in device memory. `prepare_update` turns them into
    the coefficients of a step, so that a recorded plan follows the schedule and nothing is read
    back. If the norm of a gradient that is not finite is taken (clipping), the update is skipped
    and counted. `restored`, `counts` and `skipped` wait for the device.
    """

    def __init__(
        self,
        backend: Issuer,
        rule: UpdateRule,
        parameters: Any,
        gradient: Any,
        slots: tuple[Any, ...],
        random: Any = None,
        half_copy: Any = None,
    ) -> None:
        self.backend, self.rule, self.random, self.half_copy = backend, rule, random, half_copy
        self.parameters, self.gradient, self.slots = parameters, gradient, slots
        compute = compute_dtype(parameters.dtype)
        interval = float(rule.scaling.growth_interval) if rule.scaling else 0.0
        numbers = [rule.lr, rule.weight_decay, rule.l2, rule.clip_norm or 0.0, interval]
        if rule.clip_norm == 0:  # on the device 0 means no clipping; the least number clips to 0
            numbers[CLIP_NORM] = float(np.nextafter(0.0, 1.0))
        numbers += [rule.hyperparameters[name] for name in rule.formula.hyperparameters]
        self._settings = backend.asarray(np.array(numbers, np.float64))
        scale = rule.scaling.scale if rule.scaling else 1.0
        self.state = backend.asarray(np.array([0.0, 0.0, scale, 0.0]))
        self._c = backend.zeros(COEFFICIENTS, compute)
        self._scaling = backend.asarray(np.array([scale, 1.0 / scale], compute))
        self._norm, self._weights2 = (backend.zeros(2, compute) for _ in range(2))
        self._agree: Callable[[Issuer], None] | None = None
        self._lr, self._penalty, self.next_step = float(rule.lr), float(rule.l2), 1

    @property
    def upstream(self) -> Any:
        return None if self.rule.scaling is None else self._scaling[:1].reshape(())

    def agree_by(self, norm: Any, agree: Callable[[Issuer], None]) -> None:
        self._norm, self._agree = norm, agree

    def restored(self, next_step: int) -> None:
        self.next_step = next_step
        scale = float(self.backend.to_host(self.state)[SCALE])
        self.backend.from_host(np.array([scale, 1.0 / scale]), self._scaling)

    def set(self, lr: float, step: int) -> None:
        if lr != self._lr:
            self.backend.fill(self._settings[LR : LR + 1], lr)
            self._lr = lr
        if step != self.next_step:  # after a checkpoint, or in a second fit
            self.backend.fill(self.state[STEPS : STEPS + 1], float(step - 1))
        self.next_step = step + 1

    def set_l2(self, l2: float) -> None:
        if l2 != self._penalty:
            self.backend.fill(self._settings[L2_PENALTY : L2_PENALTY + 1], l2)
            self._penalty = l2

    def skipped(self) -> int:
        return self.counts()[1]

    def counts(self) -> tuple[int, int]:
        state = self.backend.to_host(self.state)
        return int(state[STEPS]), int(state[SKIPPED])

    def penalty(self, backend: Issuer, divisor: float) -> tuple[Any, float] | None:
        rule = self.rule
        if not rule.l2:
            return None
        backend.sum_of_squares(self.parameters[: rule.penalized], self._weights2)
        return self._weights2, rule.l2 / divisor

    def emit(self, backend: Issuer) -> None:
        rule, norm, penalized = self.rule, None, self.rule.penalized if self.rule.l2 else 0
        parameters, gradient, copy = self.parameters, self.gradient, self.half_copy
        if rule.part is not None:
            penalized, parameters, gradient, copy = rule.of_part(
                penalized, parameters, gradient, copy
            )
        if rule.clip_norm is not None or rule.scaling is not None:
            norm = self._norm
            weights = parameters if rule.l2 else None
            unscale = 1.0 if rule.scaling is None else self._scaling[1:]
            if gradient.size:
                squares(backend, gradient, norm, weights, rule.l2, penalized, unscale)
            else:
                backend.fill(norm, 0.0)
        if self._agree is not None:
            self._agree(backend)

        def prepare(totals: Mapping[str, Any]) -> None:
            prepare_update(
                backend, rule.formula, self._settings, self.state, norm, self._c, self._scaling,
                self.random, totals,
            )  # fmt: skip

        begin = backend._place
        prepare(NO_TOTALS)
        prepared = {
            "prepared": self._c,
            "penalized": penalized,
            "copy": copy,
            "random": self.random if rule.stochastic else None,
        }
        backend.update(parameters, gradient, self.slots, rule.formula, prepared)
        backend._last_update = LastUpdate(begin, backend._place, self._c.dtype, prepare)


@dataclass(frozen=True)
class LastUpdate:
    """The last update that a plan has recorded.

    Attributes
    ----------
    begin : int
        Number of the calls before its first, which computes the coefficients.
    end : int
        Number of the calls after its last.
    dtype : dtype
        That it is computed in.
    prepare : callable
        ``prepare(fields)`` issues its first call with these totals.
    """

    begin: int
    end: int
    dtype: Any
    prepare: Callable[[Mapping[str, Any]], None]


def joins_totals(backend: Issuer, fields: Mapping[str, Any]) -> bool:
    """Let the update that was recorded last add a step to the totals, if it ends the plan so far.

    An update writes nothing that the totals are made of. `fields` are those of the record that
    `NO_TOTALS` has. Returns whether that was done.
    """
    last, recorded = backend._last_update, backend._recorded
    if recorded is None or last is None or last.end != backend._place:
        return False
    if fields["loss"].dtype != last.dtype:
        return False
    rest = recorded.cut(last.begin + 1)
    recorded.cut(last.begin)
    last.prepare(fields)
    recorded.put_back(rest)
    backend._last_update = None
    return True


def prepare_update(
    backend: Issuer,
    formula: Update,
    settings: Any,
    state: Any,
    norm: Any,
    c: Any,
    scaling: Any,
    random: Any = None,
    totals: Mapping[str, Any] = NO_TOTALS,
) -> None:
    """Compute the coefficients `c` of the next step; see kernels/prepare_update.cu.

    `totals` are fields of its record: what `Backend.accumulate` would do.
    """
    backend.launch(
        "prepare_update", (1,), c.dtype,
        lambda launch: {
            "settings": settings, "state": state, "norm": norm, "c": c, "scaling": scaling,
            "random": random, **totals,
        },
        formula=formula.name,
    )  # fmt: skip


def sum_of_squares(backend: Issuer, x: Any, out: Any) -> None:
    compute = compute_dtype(x.dtype)
    if out.shape == (2,) and out.dtype == compute:
        squares(backend, x, out)
        return
    pair = backend.memory.scratch("squares", (2,), compute)
    squares(backend, x, pair)
    backend.gather_rows(pair[:1], None, out.reshape(1))


def squares(
    backend: Issuer,
    x: Any,
    out: Any,
    weights: Any = None,
    l2: Any = 0.0,
    penalized: int = 0,
    unscale: Any = 1.0,
) -> None:
    """Set out = {sum of squares of y = unscale * x + l2 * weights, 1 if a y is not finite}.

    The weights count for the first `penalized` elements. `unscale` and `l2` are numbers or arrays.
    """
    compute = compute_dtype(x.dtype)
    partial = []

    def arguments(launch: Launch) -> dict[str, Any]:
        shape = launch.partial or (2, 0)
        partial.append(backend.memory.scratch("square_sums", shape, compute))
        return {
            "x": x, "p": weights, "unscale": unscale, "l2": l2, "penalized": penalized,
            "partial": partial[0], "count": x.size,
        }  # fmt: skip

    backend.launch("sum_of_squares", (x.size,), x.dtype, arguments)
    sums = partial[0] if partial else None
    blocks = 0 if sums is None else sums.shape[1]
    backend.launch(
        "sum_of_squares_finish", (1,), compute,
        lambda launch: {"partial": sums, "blocks": blocks, "out": out},
    )  # fmt: skip


def update(
    backend: Issuer,
    parameters: Any,
    gradient: Any,
    slots: tuple[Any, ...],
    formula: Update,
    coefficients: Mapping[str, Any],
) -> None:
    if any(array.shape != parameters.shape for array in (gradient, *slots)):
        raise ShapeError("parameters, gradient and slots are flat buffers of one size")
    if len(slots) != len(formula.slots):
        raise ShapeError(f"{formula.name} has {len(formula.slots)} slots, got {len(slots)}")
    c, penalized = coefficients.get("prepared"), coefficients.get("penalized", 0)
    if c is None:
        c, penalized = _uploaded(backend, parameters, formula, coefficients)
    s0, s1, s2 = (*slots, None, None, None)[:3]
    copy, random = coefficients.get("copy"), coefficients.get("random")
    backend.launch(
        "update", (parameters.size,), _storage(parameters, gradient, copy),
        lambda launch: {
            "p": parameters, "g": gradient, "s0": s0, "s1": s1, "s2": s2, "copy": copy, "c": c,
            "random": random, "penalized": penalized, "count": parameters.size,
        },
        formula=formula.name,
    )  # fmt: skip


def _storage(parameters: Any, gradient: Any, copy: Any) -> str:
    """Return the name of these streams' types in entries, see `UPDATE_STORAGE`."""
    streams = [parameters.dtype]
    if copy is not None:
        streams += [copy.dtype] if gradient.dtype == copy.dtype else [gradient.dtype, copy.dtype]
    return "_".join(suffix_of(dtype) for dtype in streams)


def _uploaded(
    backend: Issuer, parameters: Any, formula: Update, coefficients: Mapping[str, Any]
) -> tuple[Any, int]:
    """Return coefficients given as for NumPy as the kernel's vector, which is read in the call."""
    vector = backend.empty(COEFFICIENTS, compute_dtype(parameters.dtype))
    numbers, l2 = coefficients["c"], coefficients.get("l2")
    decay, clip = coefficients.get("decay"), coefficients.get("clip")
    neutral = 1.0 if formula.decay == "decoupled" else 0.0  # p *= decay, or g += decay * p

    def fill() -> None:
        host = np.zeros(COEFFICIENTS, vector.dtype)
        host[: len(numbers)] = [float(number) for number in numbers]
        host[DECAY] = float(decay) if decay is not None else neutral
        host[L2] = 0.0 if l2 is None else float(l2[1])
        host[UNSCALE] = host[PROCEED] = 1.0
        host[GRADIENT_FACTOR] = 1.0 if clip is None else float(clip)
        backend.memory.write(host, vector)

    backend.call(fill)
    return vector, 0 if l2 is None else int(l2[0])


def round_to_storage(backend: Issuer, x: Any, out: Any, random: Any) -> None:
    if random is None:
        backend.gather_rows(x, None, out)
        return
    # An update that changes nothing, p - 0 * 0, writes the copy.
    still = {"c": (0.0,), "copy": out, "random": random}
    update(backend, x, backend.zeros(x.shape, x.dtype), (), UPDATES["gradient_descent"], still)


def update_table(
    backend: Issuer,
    formula: Update,
    dtype: Any,
    table: Any,
    settings: Any,
    coefficients: Any,
    owner: Any,
    scale: Any,
    found_inf: Any,
) -> None:
    """Do one step on many tensors of one dtype, in two launches; see kernels/update_table.cu.

    table is (tensors, 9) uint64, settings (groups, 8) float64, coefficients (tensors, COEFFICIENTS)
    of the compute dtype, working memory; owner (chunks,) int32, the number of each chunk's tensor;
    scale and found_inf are float32 of one element, or None.
    """
    tensors = table.shape[0]
    backend.launch(
        "prepare_table", (tensors,), dtype,
        lambda launch: {
            "table": table, "settings": settings, "scale": scale, "found_inf": found_inf,
            "c": coefficients, "tensors": tensors,
        },
        formula=formula.name,
    )  # fmt: skip
    backend.launch(
        "update_table", owner.shape, dtype,
        lambda launch: {"table": table, "owner": owner, "c": coefficients},
        formula=formula.name,
    )  # fmt: skip
