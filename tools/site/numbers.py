"""The library's numbers for the interactive page: python -m tools.site.numbers FILE.

The page's own formulas are held to them, in the browser of whoever reads it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import gpubackprop
from gpubackprop import MLP, Trainer, optimizers

STEPS, RATE = 5, 0.4


def cases() -> list[dict[str, Any]]:
    """Return networks of every activation and depth of the page, with values and gradients."""
    found = []
    for activation in ("tanh", "logistic", "relu"):
        for depth in range(1, 7):
            rng = np.random.default_rng([depth, len(activation)])
            network = MLP([2, *[2] * depth, 2], activation, dtype="float64", seed=rng)
            for b in network.b:
                b[...] = rng.normal(0, 0.5, b.shape)
            x, y = rng.normal(size=(1, 2)), rng.integers(0, 2, 1)
            found.append(_case(network, activation, x, y))
    return found


def _case(network: MLP, activation: str, x: Any, y: Any) -> dict[str, Any]:
    g = network.gradients(x, y)
    before = _parameters(network)
    plain = optimizers.GradientDescent(RATE)
    Trainer(network, optimizer=plain).fit(x, y, epochs=STEPS)
    return {
        "network": {"activation": activation, **before},
        "x": x[0].tolist(),
        "y": int(y[0]),
        "expected": {
            "a": [a[0].tolist() for a in g.a],
            "h": [h[0].tolist() for h in g.h],
            "yhat": g.yhat[0].tolist(),
            "loss": float(g.loss),
            "delta": [d[0].tolist() for d in g.pre_activation],
            "grad_W": [W.tolist() for W in g.W],
            "grad_b": [b.tolist() for b in g.b],
        },
        "steps": STEPS,
        "lr": RATE,
        "after": _parameters(network),
    }


def _parameters(network: MLP) -> dict[str, Any]:
    return {"W": [W.tolist() for W in network.W], "b": [b.tolist() for b in network.b]}


def write(path: Path) -> None:
    """Write the numbers as a script, since a page that is opened as a file may read no JSON."""
    numbers = {"version": gpubackprop.__version__, "cases": cases()}
    text = f"const PLAY_NUMBERS = {json.dumps(numbers)};\n"
    text += 'if (typeof module !== "undefined") module.exports = PLAY_NUMBERS;\n'
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
