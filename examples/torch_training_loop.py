"""An ordinary PyTorch training loop, before and after: python examples/torch_training_loop.py

The same loop runs in three ways on scikit-learn's handwritten digits:

* before: PyTorch alone, without gpubackprop;
* after: the changed lines are marked with <--;
* patched: the lines of "before", unchanged, within `gpubackprop.torch.patch()`.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

import gpubackprop.torch as gt


def data(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x / 16.0, dtype=torch.float32, device=device), torch.tensor(
        y, device=device
    )


def model(device: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(device)


def before(x: torch.Tensor, y: torch.Tensor, steps: int) -> list[float]:
    network = model(x.device.type)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for step in range(steps):
        rows = torch.arange(step * 200, step * 200 + 200, device=x.device) % len(x)
        optimizer.zero_grad()
        loss = criterion(network(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def after(x: torch.Tensor, y: torch.Tensor, steps: int) -> list[float]:
    report = gt.convert(model(x.device.type))  # <--
    network = report.module
    criterion = gt.CrossEntropyLoss(label_smoothing=0.05)  # <--
    optimizer = gt.AdamW(network.parameters(), lr=3e-3)  # <--
    print(report)
    losses = []
    for step in range(steps):
        rows = torch.arange(step * 200, step * 200 + 200, device=x.device) % len(x)
        optimizer.zero_grad()
        loss = criterion(network(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device", default="cpu", help='"cpu" or "cuda"')
    options = parser.parse_args(arguments)
    x, y = data(options.device)
    with gt.patch() as replaced:
        patched = before(x, y, options.steps)
    print("patch() replaced:", ", ".join(replaced))
    curves = {"before": before(x, y, options.steps), "after": after(x, y, options.steps)}
    curves["patched"] = patched
    for name, losses in curves.items():
        shown = " ".join(f"{loss:.6f}" for loss in losses[:: max(1, options.steps // 5)])
        print(f"{name:8} {shown} ... {losses[-1]:.6f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
