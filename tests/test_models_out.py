"""Networks that lie on a GPU go to ONNX and to PyTorch, and come from there, as those of a CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gpubackprop
from gpubackprop import Model
from tests.test_onnx import assert_close, run
from tests.ways import CURRENT, MLP, host

pytestmark = pytest.mark.usefixtures("way")
X = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)


def test_a_network_exports_from_wherever_it_lies():
    network = MLP([4, 5, 3], "tanh", seed=1)
    model = Model(network, classes=["a", "b", "c"])
    assert_close(run(model.to_onnx(), X)["probabilities"], model.predict(X))


def test_a_network_becomes_a_module_on_the_cpu_and_comes_back_to_its_device():
    network = MLP([4, 5, 3], "tanh", seed=1)
    module = network.to_torch()
    with torch.no_grad():
        found = module(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(found, host(network.predict(X)), rtol=0, atol=1e-6)
    back = gpubackprop.MLP.from_torch(module, device=CURRENT[-1].device)
    assert back.device == network.device
    np.testing.assert_array_equal(host(back.parameters), host(network.parameters))
