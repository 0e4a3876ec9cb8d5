"""`gpubackprop.torch` under `torch.compile`: the operators are in the graph, the values eager's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fw
from torch import Tensor

import gpubackprop.torch as gt
from tests.torch_paths import Path, path  # noqa: F401

LOSS = gt.CrossEntropyLoss(label_smoothing=0.1, z_loss=0.1)  # whose numbers `dynamic` makes symbols
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "softmax_cross_entropy": lambda x, W, y: LOSS(x, y),
    "linear_act": lambda x, W, y: gt.linear_act(x, W, None, "gelu").sum(),
    "linear_cross_entropy": lambda x, W, y: gt.linear_cross_entropy(x, W, y, z_loss=0.1),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def problem(rows: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(rows)
    x, W = (torch.randn(n, 5, generator=g, dtype=torch.float64).to(device) for n in (rows, 6))
    return x, W, torch.randint(5, (rows,), generator=g).to(device)


def compiled(
    function: Callable[..., Any], dynamic: bool | None = None
) -> tuple[Callable[..., Any], list[str]]:
    """`function` compiled, and the operators of this package in the graphs of its forward pass."""
    found: list[str] = []

    def backend(module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        targets = (str(node.target) for node in module.graph.nodes)
        found.extend(t.split(".")[1] for t in targets if t.startswith("gpubackprop."))
        return module

    return torch.compile(function, fullgraph=True, dynamic=dynamic, backend=backend), found


def gradients(function: Callable[..., Any], x: Tensor, W: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    leaves = [tensor.clone().requires_grad_() for tensor in (x, W)]
    loss = function(*leaves, y)
    return loss, *torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)


@every_function
@pytest.mark.parametrize("dynamic", [None, True])
def test_the_graph_holds_the_operator(name, dynamic, path: Path):  # noqa: F811
    function, found = compiled(FUNCTIONS[name], dynamic)
    x, W, y = problem(4, path.device)
    function(x.requires_grad_(), W, y)
    assert found == [name]


@every_function
def test_inside_a_transform_of_torch_func_the_graph_holds_none(name):
    x, W, y = problem(4)
    gradient = torch.func.grad(FUNCTIONS[name])
    function, found = compiled(lambda x: gradient(x, W, y))
    torch.testing.assert_close(function(x), gradient(x, W, y), rtol=1e-12, atol=1e-14)
    assert not found


@every_function
def test_a_graph_made_outside_is_not_used_inside_forward_mode(name):
    x, W, y = problem(4)
    function, found = compiled(FUNCTIONS[name])
    function(x, W, y)
    with fw.dual_level():
        tangent = fw.unpack_dual(function(fw.make_dual(x, torch.ones_like(x)), W, y)).tangent
    wanted = torch.func.grad(FUNCTIONS[name])(x, W, y).sum()
    torch.testing.assert_close(tangent, wanted, rtol=1e-12, atol=1e-14)
    assert found == [name]


@pytest.mark.slow
@every_function
@pytest.mark.parametrize("dynamic", [None, True])
def test_values_are_eagers_for_changing_numbers_of_rows(name, dynamic, path: Path):  # noqa: F811
    function = torch.compile(FUNCTIONS[name], fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (4, 7, 0, 1, 33):
        inputs = problem(rows, path.device)
        ours, wanted = (gradients(f, *inputs) for f in (function, FUNCTIONS[name]))
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-14, equal_nan=True)


class Classifier(torch.nn.Module):
    """Layers that `convert` has exchanged, a loss module, and functions by their names."""

    def __init__(self) -> None:
        super().__init__()
        layers = torch.nn.Linear(5, 6), torch.nn.GELU(), torch.nn.Linear(6, 5)
        self.layers = gt.convert(torch.nn.Sequential(*layers)).module
        self.loss = gt.CrossEntropyLoss()

    def forward(self, x: Tensor, W: Tensor, y: Tensor) -> Tensor:
        h = self.layers(x)
        whole = gt.linear_cross_entropy(gt.linear_act(h, W[:5]), W, y)
        return whole + self.loss(h, y) + gt.cross_entropy(h, y)


def test_a_converted_model_can_be_traced_symbolically(path: Path):  # noqa: F811
    model = Classifier().double().to(path.device)
    traced = torch.fx.symbolic_trace(model)
    called = [node.target.__name__ for node in traced.graph.nodes if node.op == "call_function"]
    modules = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert modules == ["layers.0", "layers.1", "layers.2"], "as the plain Sequential"
    assert called.count("linear_act") == 1
    assert called.count("cross_entropy") == 2
    assert called.count("linear_cross_entropy") == 1
    for rows in (4, 1):
        x, W, y = problem(rows, path.device)
        torch.testing.assert_close(traced(x, W, y), model(x, W, y), rtol=1e-12, atol=1e-14)


def test_a_compiled_converted_model_holds_the_operator_until_a_child_is_exchanged():
    layers = torch.nn.Linear(5, 6), torch.nn.GELU(), torch.nn.Linear(6, 5)
    model = gt.convert(torch.nn.Sequential(*layers)).module.double()
    function, found = compiled(model)
    x, _, _ = problem(4)
    torch.testing.assert_close(function(x), model(x), rtol=1e-12, atol=1e-14)
    assert found == ["linear_act"]
    model[1] = torch.nn.Tanh()
    model[0].register_forward_hook(lambda m, x, y: 2 * y)
    torch.testing.assert_close(function(x), model(x), rtol=1e-12, atol=1e-14)
    assert found == ["linear_act"]


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "linear_cross_entropy"])
def test_a_label_out_of_range_is_the_error_of_eager(name, path: Path):  # noqa: F811
    function, _ = compiled(FUNCTIONS[name])
    x, W, y = problem(4, path.device)
    y[1] = 9

    def checked() -> None:
        """On a CPU the first call raises, on a GPU the wait after it."""
        function(x, W, y)
        gt.check_labels()

    with pytest.raises(gt.LabelError, match=r"target\[1\] .* 9"):
        checked()


RULES: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9},
    "Adam": {"amsgrad": True},
    "AdamW": {},
}


def trained(module: Any, name: str, part: str, device: str) -> list[Tensor]:
    """Parameters after four steps of which `part` is compiled, and how often hooks were called."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 5)
    net = torch.nn.Sequential(*layers).double().to(device)
    optimizer = getattr(module, name)(net.parameters(), lr=0.1, **RULES[name])
    calls: list[int] = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    backend = "aot_eager"
    x, _, y = problem(7, device)

    def train() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), y)
        loss.backward()
        step()
        return loss

    step = torch.compile(optimizer.step, backend=backend) if part == "step" else optimizer.step
    whole = torch.compile(train, backend=backend) if part == "whole" else train
    losses = [whole().detach() for _ in range(4)]
    return [*net.parameters(), *losses, torch.tensor(len(calls))]


@pytest.mark.filterwarnings("ignore")  # of Dynamo itself, about hooks and its own profiler
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("part", ["step", "whole"])
def test_a_compiled_step_of_an_optimizer_has_the_values_of_eager(name, part, path: Path):  # noqa: F811
    """With several parameters. The step itself runs as it is, between the graphs."""
    wanted = trained(torch.optim, name, "nothing", path.device)
    torch.testing.assert_close(trained(gt, name, part, path.device), wanted, rtol=1e-11, atol=1e-12)
