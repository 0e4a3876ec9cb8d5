"""`gpubackprop info`: whether an epoch of a network is one launch on a GPU, or why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpubackprop import MLP, Model
from gpubackprop.backends.cupy_launch import DeviceProperties
from gpubackprop.cli import info_resident
from tests.cli_runs import ok, run_cli

CARD = DeviceProperties(100, shared_bytes=101_376, capability=(8, 9))


def test_a_plan_is_shown_for_a_named_network_without_a_card(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(info_resident.devices, "choose", lambda device: ("cpu", "none"))
    said = ok("info", "--resident", "64-128-10", "--batch", 200).out
    assert "resident training: a cluster of 8 blocks, 123,424 of 230,400 bytes" in said
    assert "(there is none here)" in said
    found = ok("info", "--resident", "784-512-10", "--json").json
    # 784 x 512 + 512 + 512 x 10 + 10 numbers, each twice and a quarter with Adam, are above 227 KB
    assert found["reason"].endswith("gradients and slots in each of 8 blocks, 230,400 there")
    assert (found["resident"], found["blocks"], found["device"]) == (False, 0, None)
    many = ok("info", "--resident", "64-64-64-64-10", "--batch", 1 << 20, "--json").json
    assert many["says"].startswith("rows are spread over the card: 512 blocks")
    assert not many["resident"]
    wide = ok("info", "--resident", "64-32-10", "--dtype", "float64", "--json").json
    assert wide["reason"] == "its numbers are float64 and not float32"


@pytest.mark.parametrize(("optimizer", "fits"), [("gradient_descent", True), ("adam", False)])
def test_the_plan_is_made_for_the_card_that_is_here(
    optimizer: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64-128-10 with its gradient is 77 KB, and with Adam's two slots 150 KB; 97 KB are there."""
    monkeypatch.setattr(info_resident, "_card", lambda: ("cuda:0", CARD))
    options = ("info", "--resident", "64-128-10", "--optimizer", optimizer)
    found = ok(*options, "--batch", 16, "--json").json
    assert (found["resident"], found["device"]) == (fits, "cuda:0")
    assert found["available_bytes"] == 101_376 - 2048
    assert " on cuda:0: " in ok(*options).out


def test_a_model_says_it_only_where_there_is_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Model(MLP([4, 8, 3])).save(tmp_path / "model.safetensors")

    def info() -> tuple[str, Any]:
        return ok("info", tmp_path).out, ok("info", tmp_path, "--json").json

    monkeypatch.setattr(info_resident, "_card", lambda: (None, CARD))
    said, values = info()
    assert "epochs" not in values
    assert "resident" not in said
    monkeypatch.setattr(info_resident, "_card", lambda: ("cuda:0", CARD))
    said, values = info()
    assert "adam and batches of 256 on cuda:0: resident training: one block" in said
    assert values["epochs"]["resident"] is True


def test_the_plan_says_whether_products_are_those_of_tensor_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def said(precision: str, capability: tuple[int, int], code: int = 0) -> str:
        card = DeviceProperties(40, shared_bytes=232_448, capability=capability)
        monkeypatch.setattr(info_resident, "_card", lambda: ("cuda:0", card))
        result = run_cli("info", "--resident", "64-128-10", "--precision", precision)
        assert result.code == code
        return result.out + result.err

    for precision in ("auto", "tf32"):
        assert "rows, products by tensor cores in TF32" in said(precision, (8, 0))
    assert "TF32" not in said("auto", (7, 5))
    assert "compute capability 7.5 has no TF32" in said("tf32", (7, 5), code=1)
    found = ok("info", "--resident", "64-128-10", "--precision", "auto", "--json").json
    assert (found["dtype"], found["products"], found["resident"]) == ("float32", "float32", True)


def test_a_network_that_is_none_is_wrong_usage() -> None:
    result = run_cli("info", "--resident", "784")
    assert (result.code, "784-512-10" in result.err) == (2, True)
