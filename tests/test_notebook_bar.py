"""The bar of a training in a notebook, whose stderr is no terminal."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from gpubackprop import MLP, Trainer
from gpubackprop.training import progress
from tests.small_training import some_data


def shell(monkeypatch: pytest.MonkeyPatch, **attributes: object) -> None:
    """Make IPython look as it does in a program with such a shell."""
    found = SimpleNamespace(get_ipython=lambda: SimpleNamespace(**attributes))
    monkeypatch.setitem(sys.modules, "IPython", found)


def fitted(monkeypatch: pytest.MonkeyPatch, **options: object) -> str:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    Trainer(MLP([4, 3]), **options).fit(*some_data(20), epochs=2)
    return sys.stderr.getvalue()


def test_fit_shows_its_bar_in_a_notebook_and_not_in_a_program_or_a_shell_without_terminal(
    monkeypatch,
):
    monkeypatch.setattr(progress, "_widgets", lambda: False)
    assert fitted(monkeypatch) == ""
    shell(monkeypatch)  # IPython in a terminal has no kernel; here its stderr is a file
    assert fitted(monkeypatch) == ""
    shell(monkeypatch, kernel=object())
    assert "epoch 2/2" in fitted(monkeypatch)
    assert fitted(monkeypatch, progress=False) == ""


def test_with_ipywidgets_the_bar_is_a_widget(monkeypatch):
    bars = []

    class Widget:
        def __init__(self, **options):
            bars.append(options)

        def __getattr__(self, name):
            return lambda *args, **options: None

    shell(monkeypatch, kernel=object())
    monkeypatch.setattr(progress, "_widgets", lambda: True)
    monkeypatch.setitem(sys.modules, "tqdm.notebook", SimpleNamespace(tqdm=Widget))
    assert fitted(monkeypatch) == ""
    assert [bar["total"] for bar in bars] == [40]
