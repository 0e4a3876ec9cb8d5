"""Training curves of every precision, on two tasks: `python benchmarks/precision_curves.py`.

It draws docs/images/precision.png, on the CPU and in half a minute. TF32 is emulated there: the
operands of each product are rounded to 10 bits of fraction (`gpubackprop.backends.precision`).
16 bits are rounded in the same places as on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop import MLP, Trainer
from gpubackprop.optimizers import Adam

PRECISIONS: dict[str, dict[str, Any]] = {
    "float64": {"dtype": "float64"}, "float32": {}, "tf32": {"precision": "tf32"},
    "bfloat16": {"precision": "bfloat16"}, "float16": {"precision": "float16"},
}  # fmt: skip
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "precision.png"
STYLES: dict[str, dict[str, Any]] = {  # float32 lies below the others, wide and black
    "float32": {"color": "black", "linewidth": 4, "alpha": 0.5}, "float64": {"color": "tab:blue"},
    "tf32": {"color": "tab:green", "linestyle": (0, (4, 2))},
    "bfloat16": {"color": "tab:red", "linestyle": "--"},
    "float16": {"color": "tab:orange", "linestyle": ":", "linewidth": 2},
}  # fmt: skip
Task = tuple[np.ndarray, np.ndarray, list[int]]


def digits() -> Task:
    """The 1,797 digits of scikit-learn: inputs, labels, widths."""
    from sklearn.datasets import load_digits

    x, labels = load_digits(return_X_y=True)
    return x / 16, labels, [64, 64, 10]


def spirals() -> Task:
    """Three arms of a spiral with noise: they overlap, and no line tells them apart."""
    rng = np.random.default_rng(3)
    labels, t = rng.integers(0, 3, 1500), rng.uniform(0.3, 2, 1500)
    angle = 2 * np.pi * (t + labels / 3) + rng.normal(0, 0.6, 1500)
    return np.stack([t * np.cos(angle), t * np.sin(angle)], 1), labels, [2, 64, 64, 3]


TASKS = {"digits": (digits, 25, 1e-3), "spirals": (spirals, 120, 3e-3)}  # epochs, learning rate


def losses(task: str, precision: str, seed: int, epochs: int = 0) -> list[float]:
    """Return the training loss of each epoch; 0 epochs are the task's own number."""
    make, most, rate = TASKS[task]
    x, labels, widths = make()
    network = MLP(widths, seed=seed, device="cpu", **PRECISIONS[precision])
    trainer = Trainer(network, optimizer=Adam(rate), batch_size=64, seed=seed, progress=False)
    return trainer.fit(x, labels, epochs=epochs or most)["loss"]


def draw(path: Path = PICTURE, seeds: int = 3) -> None:
    """Draw the curves, each the mean over seeds; the grey band is float32's range over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(TASKS), figsize=(9, 3.4), layout="constrained")
    for axis, task in zip(axes, TASKS, strict=True):
        for name, style in STYLES.items():
            runs = np.array([losses(task, name, seed) for seed in range(seeds)])
            epochs = np.arange(1, runs.shape[1] + 1)
            label = f"{name} (emulated)" if name == "tf32" else name
            axis.plot(epochs, runs.mean(0), label=label, **style)
            if name == "float32":
                axis.fill_between(epochs, runs.min(0), runs.max(0), color="0.85")
        axis.set(yscale="log", xlabel="epoch", ylabel="training loss", title=task)
    axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw()
