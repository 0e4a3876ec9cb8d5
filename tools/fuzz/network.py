"""Histories of networks, trainers and models, by this package and by `reference`."""

from __future__ import annotations

import copy
import functools
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import gpubackprop
from gpubackprop import optimizers
from gpubackprop.gradients import Gradients
from tools.fuzz import estimators, known, programs, reference
from tools.fuzz.draw import Draw
from tools.fuzz.leaves import Leaves, leaves_of
from tools.fuzz.programs import Fuzzer, World

# -- worlds -----------------------------------------------------------------------------------

OPTIMIZERS = {
    "adam": lambda: optimizers.Adam(lr=0.05),
    "adamw": lambda: optimizers.AdamW(lr=0.05, weight_decay=0.1),
    "sgd": lambda: optimizers.SGD(lr=0.05, momentum=0.9),
    "gradient_descent": lambda: optimizers.GradientDescent(lr=0.05),
}


def trainer(network: Any, optimizer: str, **options: Any) -> gpubackprop.Trainer:
    return gpubackprop.Trainer(
        network, optimizer=OPTIMIZERS[optimizer](), shuffle=False, progress=False, **options
    )


def by_file(network: Any) -> Any:
    """Write a model file and read it back."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        gpubackprop.Model(network).save(path)
        return gpubackprop.Model.load(path).network


def _names(**own: Any) -> dict[str, Any]:
    return {"np": np, "copy": copy, "pickle": pickle} | own


@contextmanager
def other_roundings(seed: int) -> Iterator[None]:
    """Make the reference round differently, by four units of each sum's terms."""
    reference.Roundings.units, reference.Roundings.rng = 4.0, np.random.default_rng(seed)
    try:
        yield
    finally:
        reference.Roundings.units = 0.0


def _reference() -> dict[str, Any]:
    return _names(MLP=reference.MLP, Trainer=reference.Trainer, by_file=copy.deepcopy)


def _twins() -> list[World]:
    return [
        World(f"twin {seed}", _reference, functools.partial(other_roundings, seed))
        for seed in range(4)
    ]


# -- what can be seen -------------------------------------------------------------------------


def _special(value: Any, path: str) -> Leaves | None:
    if isinstance(value, (gpubackprop.MLP, reference.MLP)):
        parameters = {"W": list(value.W), "b": list(value.b)}
        return leaves_of(parameters, _special, f"{path}.parameters")
    if isinstance(value, Gradients):
        return leaves_of((value.loss, list(value.W), list(value.b)), _special, path)
    if isinstance(value, gpubackprop.Trainer):
        losses = value.history["loss"] if len(value.history) else []
        return leaves_of(value.network, _special, f"{path}.network") | {
            f"{path}.losses": np.array(losses, value.network.dtype)
        }
    if isinstance(value, reference.Trainer):
        return leaves_of(value.network, _special, f"{path}.network") | {
            f"{path}.losses": np.array(value.losses, value.network.dtype)
        }
    if isinstance(value, (gpubackprop.training.History, reference.Everything)):
        return {}
    return None


def _describe(value: Any) -> Leaves:
    if value is None:
        return {}
    return leaves_of(value, _special)


def same(there: np.ndarray, here: np.ndarray, twins: list[np.ndarray], lines: Sequence[str]) -> str:
    """Compare as `estimators.same`; numbers that lost digits in steps of 0.05 have their scale."""
    parts = (np.append(array, array.dtype.type(0.05)) for array in (there, here, *twins))
    there, here, *twins = parts
    return estimators.same(there, here, twins, lines)


# -- programs ---------------------------------------------------------------------------------

READS = [
    "{n}.predict(x)",
    "{n}.gradients(x, y)",
    "{n}.logits(x[:2])",
    "{n}.predict(x.astype(np.float32))",
]
COPIES = [
    "{o} = copy.deepcopy({n})", "{o} = pickle.loads(pickle.dumps({n}))", "{o} = {n}.copy()", "{o} = by_file({n})",
    "{o} = copy.copy({n})", "{o}, {u} = copy.deepcopy(({n}, {t}))", "{o}, {u} = pickle.loads(pickle.dumps(({n}, {t})))",
    "{u} = copy.deepcopy({t}); {o} = {u}.network", "{u} = pickle.loads(pickle.dumps({t}))", "{u} = copy.deepcopy({t})",
    "{o} = {t}.network", "{o} = {n}", "{u} = {t}",
]  # fmt: skip
EDITS = [
    "{n}.W[0] = {n}.W[0] * 2", "{n}.W[0][...] = 0.25", "{n}.W[0] *= 0.5", "{n}.b[-1] = np.ones_like({n}.b[-1])",
    "{n}.W = [w * 0.5 for w in {n}.W]", "{n}.b = [b + 1 for b in {n}.b]", "{n}.parameters[...] = 0.125", "{n}.parameters *= 0.5",
    "{n}.parameters = {o}.parameters", "{n}.W[0] = {n}.W[0].astype(np.float32)", "{n}.W[0] = {n}.W[0].tolist()",
    "{n}.W[0] = {n}.W[0].T.copy()", "{n}.W[0] = {o}.W[0]", "{n}.W = {o}.W", "{n}.W[-1][0] += 1", "{n}.W[0], {n}.W[-1] = {n}.W[-1], {n}.W[0]",
    "{n}.W[0] = 1.0", "w = {n}.W[0]; w[0, 0] = 3", "{n}.b[0] -= 0.5", "{n}.W = {n}.W", "{n}.b = {n}.b[:-1]", "{n}.W[:] = [0 * w for w in {n}.W]",
    "{n}.W[0] = np.asfortranarray({n}.W[0])", "{n}.W[5] = {n}.W[0]", "{n}.W[0] = 'x'",
]  # fmt: skip


def _line(draw: Draw) -> str:
    n, t, o, u = draw.choice([("n", "t", "o", "u")] * 2 + [("o", "u", "n", "t")])
    held = {"n": n, "t": t, "o": o, "u": u}
    kind = draw.choice(["fit", "fit", "read", "copy", "edit", "new"])
    if kind == "fit":
        rows = draw.pick(["", "", ", rows=[0, 2, 4]", ", rows=np.arange(3)"])
        kinds = draw.pick(["x", "x", "x.astype(np.float32)", "np.asfortranarray(x)"])
        return f"{t}.fit({kinds}, y, epochs={draw.pick(['1', '2', '3'])}{rows})"
    if kind == "read":
        return draw.choice(READS).format(**held)
    if kind == "copy":
        return draw.choice(COPIES).format(**held)
    if kind == "edit":
        return draw.choice(EDITS).format(**held)
    return f"{t} = {_trainer(draw, n)}"


def _trainer(draw: Draw, of: str) -> str:
    more = draw.pick(["", "", "", ", l2=0.1", ", clip_norm=0.1"])
    return f"Trainer({of}, '{draw.choice(sorted(OPTIMIZERS))}', batch_size={draw.pick(['4', '100', '3'])}{more})"


def history(draw: Draw) -> list[str]:
    """Return a program: data, two networks n and o, two trainers t and u, and up to twelve
    calls."""
    widths, dtype = (
        draw.choice(["3, 4, 2", "3, 2", "3, 5, 4, 2", "3, 3, 3"]),
        draw.pick(["float64", "float32"]),
    )
    output, activation = (
        draw.choice(["softmax", "linear"]),
        draw.choice(["tanh", "logistic", "relu"]),
    )
    made = f"MLP([{widths}], '{activation}', output='{output}', dtype='{dtype}'"
    targets = (
        "rng.integers(0, 2, 7)"
        if output == "softmax"
        else f"rng.standard_normal((7, {widths[-1]}))"
    )
    return [
        f"rng = np.random.default_rng({draw.randrange(4)})",
        "x = rng.standard_normal((7, 3))",
        f"y = {targets}",
        f"n, o = {made}, seed=1), {made}, seed=2)",
        f"t, u = {_trainer(draw, 'n')}, {_trainer(draw, 'o')}",
        *(_line(draw) for _ in range(draw.randint(1, 12))),
    ]


FUZZER = Fuzzer(
    "network", "network.check(PROGRAM)", ["import copy, pickle, numpy as np", "from gpubackprop import MLP, Trainer"], history,
    World("reference", _reference),
    World("gpubackprop", lambda: _names(MLP=gpubackprop.MLP, Trainer=trainer, by_file=by_file)),
    _twins, _describe, same,
    lambda lines, found: known.reason(known.NETWORK, lines, found),
    frozenset({"np", "rng", "copy", "batch_size", "dtype", "output"}),
)  # fmt: skip


def check(program: str) -> None:
    programs.check(FUZZER, program)
