"""What is lent to the kernels stays the user's: `gpubackprop.torch` has no lasting effect on a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gpubackprop.torch as gt
from gpubackprop.errors import DtypeError
from gpubackprop.torch import bridge
from tests.torch_paths import Path, path  # noqa: F401

Tensors = dict[str, Tensor]


def inputs(dtype: torch.dtype, device: str) -> Tensors:
    g = torch.Generator().manual_seed(0)
    drawn = {"x": (4, 5), "W": (6, 5), "b": (6,), "logits": (4, 6)}
    made = {
        name: torch.randn(shape, generator=g).to(device, dtype) for name, shape in drawn.items()
    }
    made |= {"weight": torch.ones(6, device=device), "y": torch.arange(4, device=device)}
    made["probabilities"] = torch.full((4, 6), 1 / 6, device=device, dtype=dtype)
    for name in drawn:
        made[name].requires_grad_()
    return made


FUNCTIONS: dict[str, Callable[[Tensors], Tensor]] = {
    "cross_entropy": lambda t: gt.cross_entropy(t["logits"], t["y"]),
    "weighted cross_entropy": lambda t: gt.cross_entropy(
        t["logits"], t["y"], t["weight"], reduction="none"
    ),
    "cross_entropy of probabilities": lambda t: gt.cross_entropy(t["logits"], t["probabilities"]),
    "linear_act": lambda t: gt.linear_act(t["x"], t["W"], t["b"], "gelu"),
    "linear_cross_entropy": lambda t: gt.linear_cross_entropy(t["x"], t["W"], t["y"]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_inputs_outputs_and_gradients_of_a_function_can_be_resized(name, dtype, path: Path):  # noqa: F811
    tensors = inputs(dtype, path.device)
    before = {key: (t.data_ptr(), t._version, t.requires_grad) for key, t in tensors.items()}
    out = FUNCTIONS[name](tensors)
    out.sum().backward()
    after = {key: (t.data_ptr(), t._version, t.requires_grad) for key, t in tensors.items()}
    assert after == before
    tensors["out"] = out
    tensors |= {
        f"grad of {key}": t.grad for key, t in tensors.items() if t.is_leaf and t.grad is not None
    }
    assert len(tensors) > len(before) + 1
    for key, tensor in tensors.items():
        assert tensor.untyped_storage().resizable(), key
        tensor.detach().resize_(100)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {}),
        ("SGD", {"momentum": 0.9}),
        ("Adam", {"amsgrad": True}),
        ("AdamW", {"fused": True}),
    ],
)
def test_parameters_gradients_and_state_can_be_resized_after_a_step(
    name, options, dtype, path: Path  # noqa: F811
):  # fmt: skip
    p = nn.Parameter(torch.ones(3, 4, device=path.device, dtype=dtype).t())
    rate = torch.tensor(0.1, device=path.device)
    optimizer = getattr(gt, name)([p], lr=rate, **options)
    for order in (torch.Tensor.contiguous, torch.Tensor.t):
        p.grad = order(torch.ones(4, 3, device=path.device, dtype=dtype)).reshape(4, 3)
        optimizer.step()
    for tensor in (p, p.grad, rate, *optimizer.state[p].values()):
        assert tensor.untyped_storage().resizable()
    p.data.resize_(10)
    p.grad.resize_(10)


def test_a_model_can_be_resized_after_it_was_trained(path: Path):  # noqa: F811
    model = gt.convert(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))).module
    model.to(path.device)
    x = torch.ones(4, 5, device=path.device)
    optimizer = gt.Adam(model.parameters())
    gt.CrossEntropyLoss()(model(x), torch.tensor([0, 1, 2, 0], device=path.device)).backward()
    optimizer.step()
    for tensor in (x, *model.parameters(), *(p.grad for p in model.parameters())):
        assert tensor.untyped_storage().resizable()


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "whole": lambda t: t,
    "transposed": Tensor.t,
    "slice": lambda t: t[1:, ::2],
    "expanded": lambda t: t[:, :1].expand(-1, 3),
    "one number": lambda t: t[1, 2],
    "empty": lambda t: t[:0],
}


@pytest.mark.parametrize("dtype", [*bridge.FLOATS, *bridge.LABELS, torch.bool], ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_an_array_of_a_tensor_is_the_same_memory(view, dtype):
    tensor = VIEWS[view](torch.arange(12).reshape(3, 4).to(dtype))
    array = bridge.numpy_view(tensor)
    assert array.shape == tuple(tensor.shape)
    assert array.astype(np.float64).tolist() == tensor.double().tolist()
    array[...] = 1
    assert (tensor == 1).all()
    assert array.flags.writeable


def test_an_array_keeps_the_memory_of_its_tensor():
    array = bridge.numpy_view(torch.full((1000,), 7.0))
    others = [torch.zeros(1000) for _ in range(20)]
    assert (array == 7).all()
    assert not others[0].any()


def test_the_negative_view_of_a_complex_tensor_is_seen_with_its_sign(path: Path):  # noqa: F811
    """The sign is a bit of the tensor, not in its memory."""
    complex_ = torch.complex(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])).to(path.device)
    negative = complex_.conj().imag
    assert negative.is_neg()
    found = []
    for module in (gt, torch.optim):
        p, q = nn.Parameter(torch.ones(3, device=path.device)), nn.Parameter(negative.clone())
        q.data = complex_.clone().conj().imag
        optimizer = module.SGD([p, q], lr=1.0, momentum=0.5)
        for _ in range(2):
            p.grad = q.grad = negative
            optimizer.step()
        found.append((p.detach(), q.detach().resolve_neg()))
    torch.testing.assert_close(*found)
    logits = negative.reshape(1, 3)
    label = torch.tensor([2], device=path.device)
    torch.testing.assert_close(
        gt.cross_entropy(logits, label), nn.functional.cross_entropy(logits, label)
    )


def test_a_tensor_without_memory_is_refused_and_not_read():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.ones(3)
    for tensor in (fake, torch.ones(3, device="meta"), torch.ones(3, dtype=torch.cfloat)):
        with pytest.raises(DtypeError):
            bridge.numpy_view(tensor)


def test_what_is_refused_is_refused_by_a_step_too(path: Path):  # noqa: F811
    class Wrapper(torch.Tensor):
        @classmethod
        def __torch_dispatch__(
            cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            raise AssertionError(function)

    p = nn.Parameter(torch.ones(2, device=path.device))
    p.grad = torch.Tensor._make_subclass(Wrapper, torch.ones(2, device=path.device))
    with pytest.raises(DtypeError, match="a Wrapper wraps other tensors"):
        gt.SGD([p], lr=0.1).step()
