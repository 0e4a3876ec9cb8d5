"""How many functions of this package a call enters before its first arithmetic: what a reader of
the code has to follow.

The goal is 60 functions. `fit` is beyond it: docs/decisions/2026-11-29-way-to-the-first-product.md
says what they are, and why they stay. There the bound is what the path is today, so that it does
not grow unseen. What losses enter is in test_cheap_calls and test_cheap_torch.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpubackprop
from gpubackprop import MLP, Trainer
from gpubackprop.sklearn import MLPClassifier

HOME = str(Path(gpubackprop.__file__).parent)
X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
LABELS = np.arange(8) % 3
DEVICE = "cpu"  # or "cpu:numpy"
# Parts of the function that they are written in; from Python 3.12 on, most make no call.
COMPREHENSIONS = {"<genexpr>", "<listcomp>", "<setcomp>", "<dictcomp>"}


def way_in(
    make: Callable[[], Callable[[], Any]], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, str]]:
    """(file, function) of this package, each once, that a call enters up to its first product.

    What a process keeps is there from a call before, but the object is new: a second `fit` of one
    trainer goes on from the first, which is another way. A property's getter and setter are two.
    """
    product, found, done = np.matmul, {}, []

    def matmul(*args: Any) -> Any:
        return product(*args)

    def watch(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or done:
            return
        if code is matmul.__code__:
            done.append(True)
        elif code.co_filename.startswith(HOME) and code.co_name not in COMPREHENSIONS:
            found.setdefault(code, (code.co_filename[len(HOME) + 1 :], code.co_qualname))

    monkeypatch.setattr(np, "matmul", matmul)
    make()()
    call = make()
    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    assert done, "no product was seen"
    return list(found.values())


def gradients() -> Callable[[], Any]:
    network = MLP([4, 8, 3], device=DEVICE)
    return lambda: network.gradients(X, LABELS)


def fit() -> Callable[[], Any]:
    trainer = Trainer(MLP([4, 8, 3], device=DEVICE), batch_size=8, progress=False)
    return lambda: trainer.fit(X, LABELS, epochs=1)


def fit_an_estimator() -> Callable[[], Any]:
    model = MLPClassifier(8, max_iter=1, random_state=0, device=DEVICE)
    return lambda: model.fit(X, LABELS)


def a_step() -> Callable[[], Any]:
    trainer = Trainer(MLP([4, 8, 3], device=DEVICE), batch_size=8, progress=False)
    trainer.fit(X, LABELS, epochs=1)
    step = trainer.state.step
    rows = np.arange(8)
    return lambda: step.update(rows, 0.1)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("make", "device", "functions", "files"),
    [
        (gradients, "cpu:numpy", 44, 16),
        (a_step, "cpu:numpy", 12, 7),
        (fit, "cpu:numpy", 139, 31),
        (fit_an_estimator, "cpu:numpy", 204, 47),
        (gradients, "cpu", 44, 16),
        (a_step, "cpu", 11, 7),
        (fit, "cpu", 152, 37),
        (fit_an_estimator, "cpu", 211, 49),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_way_to_the_first_product_is_no_longer_than(
    make, device, functions, files, monkeypatch
):
    monkeypatch.setitem(globals(), "DEVICE", device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = way_in(make, monkeypatch)
    listed = "\n".join(" ".join(entry) for entry in found)
    print(f"\n{make.__name__}: {len(found)} functions in {len({file for file, _ in found})} files")
    assert len(found) <= functions, listed
    assert len({file for file, _ in found}) <= files, listed
