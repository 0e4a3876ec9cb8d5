"""Subclasses of MLP and Model: methods that would not be called, or would be lost, are an error."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop import MLP, Ensemble, Model, Trainer
from gpubackprop.errors import OptionError

X, LABELS = np.random.default_rng(0).normal(size=(20, 4)), np.arange(20) % 3


def derived(base, *methods):
    """A subclass whose methods do what those of the base do, twice as much if they could."""

    def doubled(name):
        return lambda self, *given, **more: getattr(super(made, self), name)(*given, **more) * 2

    made = type("Derived", (base,), {name: doubled(name) for name in methods})
    return made


@pytest.mark.parametrize("method", ["logits", "forward", "gradients"])
def test_a_training_refuses_a_network_whose_method_it_would_not_call(method):
    with pytest.raises(OptionError, match=f"^Derived has {method} of its own, which a training"):
        Trainer(derived(MLP, method)([4, 3]))
    network = MLP([4, 3])
    setattr(network, method, lambda *given: None)
    with pytest.raises(OptionError, match=f"^MLP has {method} of its own"):
        Trainer(network)


def test_a_network_with_a_predict_of_its_own_is_trained_and_its_predictions_are_used():
    network = derived(MLP, "predict", "describe")([4, 3])
    found = Trainer(network, metrics={"sum": lambda yhat, targets: yhat.sum()}).evaluate(X, LABELS)
    assert found["sum"] == pytest.approx(2 * len(X), rel=1e-6)
    np.testing.assert_array_equal(Model(network).predict(X), network.predict(X))


@pytest.mark.parametrize("method", ["predict", "logits"])
def test_what_a_network_computes_otherwise_is_not_lost_in_a_file_graph_or_module(method, tmp_path):
    network = derived(MLP, method)([4, 3])
    said = f"^Derived has {method} of its own, which a"
    for model in (Model(network), Model(Ensemble([MLP([4, 3]), network]))):
        with pytest.raises(OptionError, match=f"{said} file would not have"):
            model.save(tmp_path / "model.safetensors")
        with pytest.raises(OptionError, match=f"{said} graph would not have"):
            model.to_onnx()
    with pytest.raises(OptionError, match="the module would not have"):
        network.to_torch()
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_predicts_otherwise_has_no_graph_and_a_subclass_that_adds_has_one():
    with pytest.raises(OptionError, match=r"^Derived has predict_labels of its own, which a graph"):
        derived(Model, "predict_labels")(MLP([4, 3]), classes=[1, 2, 3]).to_onnx()
    derived(Model)(derived(MLP, "describe")([4, 3])).to_onnx()
