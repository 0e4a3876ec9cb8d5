"""The README's table of the lecture: its formulas and its calls, worked out and held to PyTorch.

A formula is read as it stands: juxtaposed matrices are a product, Σ adds up the N rows, and each
row is a column vector, as in the lecture. A call is executed as it stands.
"""

from __future__ import annotations

import itertools
import re
from typing import Any, NamedTuple

import numpy as np
import torch

import gpubackprop
from gpubackprop import MLP, Trainer, ops, optimizers

WIDTHS, ROWS, RATE = (5, 6, 4, 3), 7, 0.25
# The lecture's symbol for a name on the left of a call, or for an attribute.
MEANINGS = {
    "ops.activation_backward": "δ_l", "ops.column_sum": "∇b_l",
    "h": "h_l", "loss": "L", "delta": "δ_L", "grad_W": "∇W_l", "grad_b": "∇b_l", "grad_h_prev": "∂L/∂h_{l-1}",
    "g.a[l-1]": "a_l", "g.h[l-1]": "h_l", "g.yhat": "ŷ", "g.loss": "L", "g.output": "δ_L", "g.hidden[l-1]": "∂L/∂h_l", "g.pre_activation[l-1]": "δ_l",
    "g.W[l-1]": "∇W_l", "g.b[l-1]": "∇b_l",
}  # fmt: skip


class Row(NamedTuple):
    lecture: str
    here: str
    shape: str


def table(text: str) -> list[Row]:
    """Return the rows of the table whose first heading is "the lecture"."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("| the lecture |"):
            break
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append(Row(*(cell.strip() for cell in line.strip().strip("|").split("|"))))
    return rows


# -- the lecture's values, from PyTorch -----------------------------------------------------------


class Lecture:
    """A network, a batch, and every value of the lecture in layer l, by PyTorch's autograd.

    Attributes
    ----------
    values : dict
        Arrays in the batch form, by the lecture's names ("δ_l", "∇W_l", ...).
    """

    def __init__(self, layer: int, *, squares: bool) -> None:
        rng = np.random.default_rng(5)
        output = "linear" if squares else "softmax"
        self.layer, self.squares = layer, squares
        self.network = MLP(WIDTHS, "relu", output=output, seed=3, dtype="float64")
        for b in self.network.b:
            b[...] = rng.normal(size=b.shape)
        self.x = rng.normal(size=(ROWS, WIDTHS[0]))
        self.targets = (
            rng.normal(size=(ROWS, WIDTHS[-1])) if squares else rng.integers(0, WIDTHS[-1], ROWS)
        )
        self._torch()

    def _torch(self) -> None:
        W, b = (
            [torch.tensor(p, requires_grad=True) for p in parts]
            for parts in (self.network.W, self.network.b)
        )
        self.a: list[Any] = [None]
        self.h: list[Any] = [torch.tensor(self.x)]
        for weight, bias in zip(W, b, strict=True):
            self.a.append(torch.nn.functional.linear(self.h[-1], weight, bias))
            self.h.append(torch.relu(self.a[-1]))
        for value in (*self.a[1:], *self.h[1:]):
            value.retain_grad()
        logits, t = self.a[-1], torch.tensor(self.targets)
        if self.squares:
            loss = ((logits - t) ** 2).sum(1).mean() / 2
        else:
            loss = torch.nn.functional.cross_entropy(logits, t)
        loss.backward()
        l = self.layer  # noqa: E741 (the lecture's name)
        self.W, self.b = [None, *W], [None, *b]
        self.values = {
            "a_l": self.a[l], "h_l": self.h[l], "L": loss,
            "ŷ": logits if self.squares else torch.softmax(logits, 1),
            "δ_L": logits.grad, "∂L/∂a_L": logits.grad, "δ_l": self.a[l].grad,
            "∂L/∂h_l": self.h[l].grad, "∇W_l": W[l - 1].grad, "∇b_l": b[l - 1].grad,
        }  # fmt: skip
        if l > 1:
            self.values["∂L/∂h_{l-1}"] = self.h[l - 1].grad
        self.values = {name: value.detach().numpy() for name, value in self.values.items()}

    # -- formulas ---------------------------------------------------------------------------------

    def formula(self, text: str) -> np.ndarray:
        """Return the value of the right side of an equation, in the batch form."""
        value = np.asarray(eval(translated(text), {"__builtins__": {}}, self._names()))
        if value.shape == (1, 1):  # a number
            return value[0, 0]
        return value[..., 0] if value.shape[-1] == 1 else value  # column vectors

    def _names(self) -> dict[str, Any]:
        def columns(parts: list[Any]) -> list[Any]:
            return [None if v is None else v.detach().numpy()[..., None] for v in parts]

        yhat = self.values["ŷ"][..., None]
        names: dict[str, Any] = {
            "l": self.layer, "L": len(WIDTHS) - 1, "N": ROWS, "yhat": yhat, "log": np.log,
            "W": [None if W is None else W.detach().numpy() for W in self.W],
            "b": columns(self.b), "a": columns(self.a), "h": columns(self.h),
            "delta": columns([None, *(a.grad for a in self.a[1:])]),
            "grad_h": columns([None, *(h.grad for h in self.h[1:-1])]),
            "T": lambda value: np.swapaxes(value, -1, -2), "total": lambda value: value.sum(0),
            "act": lambda a: np.maximum(a, 0), "slope": lambda a: (a > 0) * 1.0,
            "square": lambda v: (v**2).sum(1, keepdims=True),
            "softmax": lambda a: np.exp(a) / np.exp(a).sum(1, keepdims=True),
        }  # fmt: skip
        if self.squares:
            names["t"] = self.targets[..., None]
        else:
            names["e_y"] = np.eye(WIDTHS[-1])[self.targets][..., None]
            names["yhat_y"] = yhat[np.arange(ROWS), self.targets][..., None]
        return names

    # -- calls ------------------------------------------------------------------------------------

    def call(self, text: str) -> dict[str, np.ndarray]:
        """Return what a call gives, by the lecture's names."""
        l, network = self.layer, self.network  # noqa: E741
        saved = self.h[l].detach().numpy()
        names: dict[str, Any] = vars(gpubackprop) | {
            "ops": ops, "l": l, "network": network, "x": self.x, "targets": self.targets,
            "g": network.gradients(self.x, self.targets), "h_prev": self.h[l - 1].detach().numpy(),
            "W": network.W[l - 1], "b": network.b[l - 1], "saved": saved,
            "grad_h": self.h[l].grad.numpy(), "delta": self.values["δ_l"],
            "logits": self.a[-1].detach().numpy(), "a": self.a[-1].detach().numpy(),
            "t": self.targets,
        }  # fmt: skip
        left, equals, right = text.partition(" = ")
        if not equals:
            value = eval(text, names)
            return {MEANINGS[text.partition("(")[0]]: value}
        targets = [name.strip() for name in left.split(",")]
        values = eval(right, names)
        assert len(values) == len(targets), f"{right} gives {len(values)} values"
        return {
            MEANINGS[name]: value
            for name, value in zip(targets, values, strict=True)
            if MEANINGS.get(name) in self.values  # `saved` and the inputs' gradient have none
        }


def translated(formula: str) -> str:
    """Return the lecture's notation as Python."""
    text = formula.replace("−", "-")
    text = text.replace("∂L/∂h_", "grad_h_").replace("δ", "delta").replace("ŷ", "yhat")
    text = re.sub(r"\b(W|b|a|h|grad_h|delta)_(?:\{(l[+-]1)\}|([lL])\b)", _indexed, text)
    text = re.sub(r"(\w+\[[^\]]*\])ᵀ", r"T(\1)", text)
    text = text.replace("g′(", "slope(").replace("g(", "act(").replace("⊙", "*")
    text = re.sub(r"½‖(.+?)‖²", r"0.5*square(\1)", text)
    text = re.sub(r"log (\w+)", r"log(\1)", text)
    text = re.sub(r"(?<=[\])]) (?=[A-Za-z])", " @ ", text)
    text = re.sub(r"(?<=\w) Σ", " * Σ", text)
    return re.sub(r"Σ (.+)$", r"total(\1)", text)


def _indexed(match: re.Match[str]) -> str:
    return f"{match[1]}[{match[2] or match[3]}]"


# -- a row of the table ---------------------------------------------------------------------------


def check_row(row: Row) -> None:
    """Hold every equation and every call of a row to PyTorch, in every hidden layer.

    Raises
    ------
    AssertionError, or what evaluating a formula or a call raises.
    """
    calls = re.findall(r"`([^`]+)`", row.here)
    assert calls, f"no call in {row.here!r}"
    if "←" in row.lecture:
        _check_step(row.lecture, calls)
        return
    formula = row.lecture.rpartition(": ")[2]
    for layer in range(1, len(WIDTHS) - 1):
        lecture = Lecture(layer, squares="‖" in formula)
        named = [_check_equation(equation, lecture) for equation in formula.split(", ")]
        names = named[-1]
        found: set[str] = set()
        for call in calls:
            values = lecture.call(call)
            assert values.keys() & set(itertools.chain(*named)), f"{call} is of another row"
            for name, value in values.items():
                _equal(value, lecture.values[name], f"{call}: {name}")
            found |= values.keys()
        assert found & set(names), f"no call gives {names[0]}"
        _check_shape(row.shape, lecture.values[names[0]], layer)


def _check_equation(equation: str, lecture: Lecture) -> list[str]:
    """Hold "name = other name = formula" to PyTorch's value of each name; return the names."""
    *names, right = equation.split(" = ")
    assert names, f"{equation} is no equation"
    for name in names:
        _equal(lecture.formula(right), lecture.values[name], f"{name} = {right}")
    return names


def _equal(value: Any, wanted: Any, what: str) -> None:
    np.testing.assert_allclose(value, wanted, rtol=1e-10, atol=1e-12, err_msg=what)
    assert np.shape(value) == np.shape(wanted), what


def _check_shape(text: str, value: Any, layer: int) -> None:
    sizes = {f"D_{{l{k:+d}}}" if k else "D_l": WIDTHS[layer + k] for k in (-1, 0, 1)}
    sizes |= {"N": ROWS, "K": WIDTHS[-1]}
    wanted = tuple(sizes[part.strip()] for part in text.strip("()").split(",") if part.strip())
    assert np.shape(value) == wanted, f"{text} is {wanted}, not {np.shape(value)}"


def _check_step(formula: str, calls: list[str]) -> None:
    """Hold θ ← the new θ to one epoch of one batch."""
    left, _, right = formula.partition(" ← ")
    assert left == "θ"
    for call in calls:
        lecture = Lecture(1, squares=False)
        network = lecture.network
        g = network.gradients(lecture.x, lecture.targets)
        order = network.copy()
        for part, gradient in zip([*order.W, *order.b], [*g.W, *g.b], strict=True):
            part[...] = gradient
        names = {"theta": network.parameters.copy(), "eta": RATE, "grad": order.parameters}
        text = right.replace("−", "-").replace("∇θ", "grad").replace("θ", "theta")
        wanted = eval(text.replace("η ", "eta * "), {"__builtins__": {}}, names)
        names = {"Trainer": Trainer, "network": network, "optimizers": optimizers, "lr": RATE}
        eval(call, names).fit(lecture.x, lecture.targets, epochs=1)
        _equal(network.parameters, wanted, call)
