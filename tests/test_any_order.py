"""Products whose sums may vary from call to call: taken only where that is asked for.

On the stand-in for cuBLASLt, whose algorithm with reduction in place adds in another order each time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubackprop import MLP, Trainer
from gpubackprop.backends import devices
from gpubackprop.backends.cupy import CupyBackend, cublaslt
from gpubackprop.backends.cupy.product_choice import Choices
from tests import emulator
from tests.emulator import cupy_stub

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(
        bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
    ),
]
RNG = np.random.default_rng(0)
X, LABELS = RNG.normal(size=(64, 300)), np.arange(64) % 3
IN_PLACE = 64  # bytes of workspace of the stand-in's algorithm


@pytest.fixture(autouse=True)
def choices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The algorithm that is proposed last is the fastest; the file in which choices are kept."""
    monkeypatch.setattr(devices, "choose", lambda device: ("cuda:0", "emulated"))
    monkeypatch.setenv("GPUBACKPROP_RESIDENT", "0")
    monkeypatch.setenv("GPUBACKPROP_EPILOGUES", "never")
    monkeypatch.setenv("GPUBACKPROP_PRODUCT_CHOICES", str(tmp_path / "choices.json"))
    monkeypatch.setattr(
        Choices, "_take_fastest", lambda self, product, results, *rest: product.take(results[-1])
    )
    with cupy_stub.installed():
        yield tmp_path / "choices.json"


def test_the_numbers_of_the_schemes_are_those_of_the_header():
    """cublasLtReductionScheme_t of cublasLt.h 13.0: INPLACE 1, COMPUTE_TYPE 2, OUTPUT_TYPE 4."""
    assert (cublaslt.REDUCE_IN_PLACE, cublaslt.REDUCE_IN_COMPUTE_TYPE) == (1, 2)


def weights_after(deterministic: bool, **precision: Any) -> np.ndarray:
    network = MLP([300, 8, 3], seed=0, device="cuda", **precision)
    trainer = Trainer(network, batch_size=64, deterministic=deterministic, progress=False)
    trainer.fit(X, LABELS, epochs=3)
    return np.array(network.backend.to_host(network.parameters))


def test_a_training_has_the_same_bits_each_time_unless_any_order_is_allowed():
    assert np.array_equal(*(weights_after(True) for _ in range(2)))
    one, other = (weights_after(False) for _ in range(2))
    assert not np.array_equal(one, other)
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_numbers_of_16_bits_are_not_added_in_place():
    """Parts of a sum would be rounded to 16 bits: gradients of the weights are float32 and may be."""
    cuda = CupyBackend(0).in_any_order()
    wide, narrow = (cuda.zeros((4, 4), dtype) for dtype in (np.float32, np.float16))
    schemes = [cuda.products._problem(narrow, narrow, out).schemes for out in (wide, narrow)]
    assert schemes == [3, 2]


@pytest.mark.parametrize("deterministic", [True, False])
def test_choices_of_the_two_kinds_are_kept_apart(choices, deterministic):
    weights_after(deterministic)
    before = set(json.loads(choices.read_text()))
    weights_after(not deterministic)
    after = json.loads(choices.read_text())
    in_any_order = {key for key in after if "schemes 3" in key}
    assert in_any_order == (set(after) - before if deterministic else before)
    assert {after[key][2] == IN_PLACE for key in in_any_order} == {True}
    assert IN_PLACE not in {after[key][2] for key in set(after) - in_any_order}


def test_an_assignment_takes_effect_from_the_next_fit_on(monkeypatch):
    trainer = Trainer(MLP([300, 8, 3], device="cuda"), batch_size=64, progress=False)
    assert "deterministic" not in repr(trainer)
    asked = []
    in_any_order = CupyBackend.in_any_order
    monkeypatch.setattr(
        CupyBackend, "in_any_order", lambda self: (asked.append(1), in_any_order(self))[1]
    )
    trainer.fit(X, LABELS, epochs=1)
    assert not asked
    trainer.deterministic = False
    trainer.fit(X, LABELS, epochs=1)
    assert asked
    assert "deterministic=False" in repr(trainer)
