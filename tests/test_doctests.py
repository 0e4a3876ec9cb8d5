"""The examples in the docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import numpy as np
import pytest

import gpubackprop


def modules_with_examples():
    names = [info.name for info in pkgutil.walk_packages(gpubackprop.__path__, "gpubackprop.")]
    for name in ["gpubackprop", *names]:
        spec = importlib.util.find_spec(name)
        with open(spec.origin, encoding="utf-8") as source:
            if ">>> " in source.read():
                yield name


MODULES = list(modules_with_examples())


def test_the_operations_and_the_network_have_examples():
    assert {
        "gpubackprop.ops.layers",
        "gpubackprop.ops.softmax_cross_entropy",
        "gpubackprop.network",
    } <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_print_what_they_say(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    failed, tried = doctest.testmod(module, extraglobs={"np": np})
    assert tried
    assert not failed, f"{failed} of {tried} examples fail; see the output above"
