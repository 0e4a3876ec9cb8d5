"""A contestant of bench_sklearn in its own process: fits a classifier for each line that it reads.

    python -m benchmarks.fit_worker CONTESTANT

CONTESTANT is "gpubackprop.sklearn", "sklearn.neural_network", "torch" or "torch-fused". A line is
a case as JSON, with "check" where the loss curve is to be compared; the answer is
{"seconds", "loss", "device"}.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import warnings
from itertools import pairwise
from typing import Any

import numpy as np


class TorchClassifier:
    """The same fit as a careful person writes it in PyTorch: scikit-learn's draws, weights, batches
    and penalty, data on the device, gradients dropped and not zeroed, no wait but once an epoch.

    Parameters
    ----------
    fused : PyTorch's fused Adam, else its default.
    whole_loss : loss_curve_ has the penalty in it, which training does not need.
    parameters : of MLPClassifier, as far as bench_sklearn uses them; `device` as PyTorch names it.
    """

    ALPHA, RATE, EPS, BETA2 = 1e-4, 1e-3, 1e-8, 0.999  # scikit-learn's defaults

    def __init__(
        self, *, fused: bool, whole_loss: bool, device: str = "cpu", **parameters: Any
    ) -> None:
        self.fused, self.whole_loss = fused, whole_loss
        self.device_, self.parameters = device, parameters

    def fit(self, x: np.ndarray, y: np.ndarray) -> None:
        import torch
        from torch.nn.functional import cross_entropy

        device, p = self.device_, self.parameters
        draws = np.random.RandomState(p["random_state"])
        units = [x.shape[1], *p["hidden_layer_sizes"], len(np.unique(y))]
        model, weights = self._model(units, draws, x.dtype, device)
        biases = [q for q in model.parameters() if q.ndim == 1]
        optimizer = torch.optim.Adam(
            [{"params": weights}, {"params": biases}], lr=self.RATE, fused=self.fused
        )
        data, labels = torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)
        batch_rows = min(p["batch_size"], len(x))
        order, self.loss_curve_, steps = np.arange(len(x)), [], 0
        for _ in range(p["max_iter"]):
            order = order[draws.permutation(len(order))]
            total = torch.zeros((), dtype=torch.float64, device=device)
            for rows in torch.from_numpy(order).to(device).split(batch_rows):
                steps += 1
                optimizer.param_groups[0]["weight_decay"] = self.ALPHA / len(rows)
                for group in optimizer.param_groups:  # scikit-learn has eps beside the plain root
                    group["eps"] = self.EPS / (1 - self.BETA2**steps) ** 0.5
                loss = cross_entropy(model(data[rows]), labels[rows])
                if self.whole_loss:
                    squares = sum(w.detach().double().square().sum() for w in weights)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(rows)
                if self.whole_loss:
                    total += 0.5 * self.ALPHA * squares
            self.loss_curve_.append(float(total) / len(x))

    @staticmethod
    def _model(units: list[int], draws: Any, dtype: Any, device: str) -> tuple[Any, list[Any]]:
        """Layers with the weights that scikit-learn draws for relu, and these weights."""
        import torch

        layers: list[Any] = []
        for fan_in, fan_out in pairwise(units):
            bound = np.sqrt(6.0 / (fan_in + fan_out))
            linear = torch.nn.Linear(fan_in, fan_out)
            weight = draws.uniform(-bound, bound, (fan_in, fan_out)).astype(dtype)
            bias = draws.uniform(-bound, bound, fan_out).astype(dtype)
            linear.weight.data = torch.from_numpy(np.ascontiguousarray(weight.T)).to(device)
            linear.bias.data = torch.from_numpy(bias).to(device)
            layers += [linear, torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers[:-1])
        return model, [layer.weight for layer in layers[::2]]


def classifier(name: str, parameters: dict[str, Any], *, check: bool) -> Any:
    if name.startswith("torch"):
        return TorchClassifier(fused=name == "torch-fused", whole_loss=check, **parameters)
    if name == "sklearn.neural_network":
        parameters = {key: value for key, value in parameters.items() if key != "device"}
    return importlib.import_module(name).MLPClassifier(**parameters)


def data_of(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    if case["data"] == "digits":
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        x = x / 16
    else:
        draws = np.random.default_rng(0)
        x, y = draws.random(case["data"]), draws.integers(0, 10, case["data"][0])
    return x.astype(case["dtype"]), y


def main(name: str) -> None:
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        case = json.loads(line)
        x, y = data_of(case)
        model = classifier(name, case["parameters"], check=case["check"])
        started = time.perf_counter()
        model.fit(x, y)
        seconds = time.perf_counter() - started
        device = getattr(model, "device_", "cpu")
        answer = {"seconds": seconds, "loss": model.loss_curve_, "device": device}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
