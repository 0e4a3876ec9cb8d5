"""Exports of converted models, and of models under `patch`, hold PyTorch's operators only and
compute what the exports of the plain model compute."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)
from torch import Tensor, nn

import gpubackprop.torch as gt
from gpubackprop.errors import OptionError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*is deprecated")


class Classifier(nn.Module):
    """Sequentials in a Sequential, a loss module, the loss as a function."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Linear(6, 6), nn.LeakyReLU(0.2), nn.Dropout(0.1), nn.Linear(6, 3))
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.LayerNorm(6), inner)
        self.loss = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.1)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = self.layers(x)
        return z, self.loss(z, y) + F.cross_entropy(z, y, reduction="sum")


def problem(rows: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 4, generator=g), torch.randint(3, (rows,), generator=g)


def model() -> Classifier:
    torch.manual_seed(0)
    return Classifier().eval()


@pytest.fixture(params=["converted", "patched"])
def there(request: pytest.FixtureRequest) -> Iterator[Classifier]:
    network = model()
    if request.param == "converted":
        yield gt.convert(network).module
        return
    with gt.patch():
        yield network


def dynamic(strict: bool) -> Callable[[nn.Module], Any]:
    rows = torch.export.Dim("rows", min=2)
    shapes = {"x": {0: rows}, "y": {0: rows}}
    return lambda m: torch.export.export(m, problem(4), dynamic_shapes=shapes, strict=strict)


def operators(program: Any) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_torch_export_with_a_dynamic_batch_gives_the_plain_models_program(strict, there):
    exported = dynamic(strict)(there)
    assert operators(exported) == operators(dynamic(False)(model()))
    kept = io.BytesIO()
    torch.export.save(exported, kept)
    kept.seek(0)
    loaded = torch.export.load(kept).module()
    for rows in (2, 4, 7):
        torch.testing.assert_close(loaded(*problem(rows)), model()(*problem(rows)))


def test_a_program_that_is_exported_for_training_trains(there):
    exported = torch.export.export(there.train(), problem(4)).module()
    plain = torch.export.export(model().train(), problem(4)).module()
    for m in (exported, plain):
        torch.manual_seed(1)
        m(*problem(4))[1].backward()
    for p, q in zip(exported.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def kinds(graph: Any) -> list[str]:
    return sorted(n.kind() for n in graph.nodes() if n.kind().startswith(("aten", "gpubackprop")))


def test_a_trace_is_the_plain_models(there):
    got = torch.jit.trace(there, problem(4))
    wanted = torch.jit.trace(model(), problem(4))
    assert kinds(got.inlined_graph) == kinds(wanted.inlined_graph)
    for rows in (1, 7):
        torch.testing.assert_close(got(*problem(rows)), model()(*problem(rows)))


def test_a_script_is_the_plain_models(there):
    got, wanted = torch.jit.script(there), torch.jit.script(model())
    assert got.layers.code == wanted.layers.code
    kept = io.BytesIO()
    torch.jit.save(got, kept)
    kept.seek(0)
    got = torch.jit.freeze(torch.jit.load(kept))
    for rows in (1, 7):
        torch.testing.assert_close(got(*problem(rows)), model()(*problem(rows)))
    assert kinds(got.inlined_graph) == kinds(torch.jit.freeze(wanted).inlined_graph)


def test_the_model_computes_as_before_after_an_export(there):
    before = there(*problem(4))
    dynamic(False)(there), torch.jit.trace(there, problem(4)), torch.jit.script(there)
    torch.testing.assert_close(there(*problem(4)), before, rtol=0, atol=0)


def test_fx_and_make_fx_see_pytorchs_operators(there):
    from torch.fx.experimental.proxy_tensor import make_fx

    symbolic = torch.fx.symbolic_trace(there.layers)
    assert not operators(symbolic)
    assert [n.target for n in symbolic.graph.nodes if n.op == "call_module"][:2] == ["0", "1"]
    for options in ({}, {"tracing_mode": "symbolic", "_allow_non_fake_inputs": True}):
        found = [operators(make_fx(m, **options)(*problem(4))) for m in (there, model())]
        assert found[0] == found[1]


def test_the_layers_and_losses_of_this_package_are_exported_as_pytorchs_operators():
    class Ours(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(gt.LinearAct(4, 6, "silu"), gt.Linear(6, 3))
            self.loss = gt.CrossEntropyLoss(z_loss=0.1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            W = self.layers[1].weight
            return self.loss(self.layers(x), y) + gt.linear_cross_entropy(
                x @ W[:, :4].T, W[:, :3], y
            )

    ours = Ours()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(ours, problem(4))
    exported = dynamic(False)(ours)
    assert not any("gpubackprop" in name for name in operators(exported))
    for rows in (2, 7):
        torch.testing.assert_close(exported.module()(*problem(rows)), ours(*problem(rows)))
    torch.testing.assert_close(traced(*problem(4)), ours(*problem(4)))


def test_an_onnx_file_is_the_plain_models(there, monkeypatch):
    """By the older exporter, which needs no package. With onnx 1.23 and onnxscript installed, the
    newer one gives the same nodes too (run by hand: neither is a dependency of the tests)."""
    from torch.onnx._internal.torchscript_exporter import onnx_proto_utils

    monkeypatch.setattr(onnx_proto_utils, "_add_onnxscript_fn", lambda model, _: model)
    files = []
    for network in (there, model()):
        kept = io.BytesIO()
        axes = {"x": {0: "rows"}}
        torch.onnx.export(
            network.layers, (problem(4)[0],), kept, dynamo=False, input_names=["x"], dynamic_axes=axes
        )  # fmt: skip
        files.append(kept.getvalue())
    assert files[0] == files[1]


class Own(nn.Module):
    """The modules of this package in a module of the program's own."""

    def __init__(self, loss: nn.Module, *between: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(gt.Linear(4, 6), *between, gt.Linear(6, 3, bias=False))
        self.loss = loss

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = self.layers(x)
        return z, self.loss(z, y)


def test_torch_jit_script_takes_the_modules_of_this_package_as_pytorchs():
    weight = torch.tensor([1.0, 2.0, 3.0])
    own = Own(gt.CrossEntropyLoss(weight, label_smoothing=0.1, ignore_index=1, reduction="sum"))
    kept = io.BytesIO()
    torch.jit.save(torch.jit.script(own), kept)
    kept.seek(0)
    scripted = torch.jit.load(kept)
    assert list(scripted.state_dict()) == list(own.state_dict())
    for rows in (1, 7):
        torch.testing.assert_close(scripted(*problem(rows)), own(*problem(rows)))
    assert type(own.layers[0]) is gt.Linear  # PyTorch would exchange it for what is compiled


def test_what_torch_jit_script_cannot_take_says_what_to_use():
    with pytest.raises(OptionError, match=r"z_loss is not offered.*use torch\.jit\.trace"):
        torch.jit.script(Own(gt.CrossEntropyLoss(z_loss=0.1)))
    with pytest.raises(OptionError, match=r"LinearAct; use torch\.export or torch\.jit\.trace"):
        torch.jit.script(Own(nn.CrossEntropyLoss(), gt.LinearAct(6, 6)))
