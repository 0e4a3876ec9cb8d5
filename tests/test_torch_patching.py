"""`gpubackprop.torch.patch`: scripts run as they do without it, and afterwards all is as before."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)
from torch import nn

import gpubackprop.errors
import gpubackprop.torch as gt

PLACES = [
    (F, "cross_entropy"),
    (nn.Linear, "forward"),
    *((torch.optim, name) for name in ("SGD", "Adam", "AdamW")),
]


def places() -> list[Any]:
    return [getattr(place, name) for place, name in PLACES]


@pytest.fixture(autouse=True)
def _all_is_as_before():
    before = places()
    yield
    after = places()
    for (place, name), old in zip(PLACES, before, strict=True):
        setattr(place, name, old)
    assert after == before


def trained(
    values: torch.Tensor,
    gradient: Callable[[torch.Tensor], torch.Tensor],
    name: str,
    **options: Any,
) -> torch.Tensor:
    """`values` after three steps."""
    p = nn.Parameter(values)
    optimizer = getattr(torch.optim, name)([p], lr=0.1, **options)
    for _ in range(3):
        p.grad = gradient(p.detach())
        optimizer.step()
    return p.detach()


def like_values(p: torch.Tensor) -> torch.Tensor:
    return p + 1


def one_row(p: torch.Tensor) -> torch.Tensor:
    return torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.ones(2, p.shape[1]), p.shape)


def linear(**options: Any) -> torch.Tensor:
    torch.manual_seed(0)
    layer = nn.Linear(3, 4, **options)
    return layer(torch.ones(2, 3, **options))


def class_weights_with_gradient() -> torch.Tensor:
    weight = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    F.cross_entropy(torch.eye(3)[:2], torch.full((2, 3), 1 / 3), weight).backward()
    return weight.grad


def checkpoint_of_16_bits() -> torch.Tensor:
    """Loaded into an optimizer that has not made a step. The second parameter is not offered."""
    p = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    other = nn.Parameter(torch.ones(2, dtype=torch.cfloat))
    kept: dict[str, Any] = {}
    for _ in range(2):
        optimizer = torch.optim.Adam([p, other], lr=0.1)
        if kept:
            optimizer.load_state_dict(kept)
        p.grad, other.grad = p.detach() / 2, other.detach() * 1j
        optimizer.step()
        kept = copy.deepcopy(optimizer.state_dict())
    return p.detach()


def scaled_embedding() -> torch.Tensor:
    torch.manual_seed(0)
    layer = nn.Embedding(4, 3, sparse=True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((layer(torch.tensor([1, 1, 2])) ** 2).sum()).backward()
    scaler.step(optimizer)
    return layer.weight.detach()


# what a script computes, and the place that PyTorch's own took
LEFT: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "complex Linear": (lambda: linear(dtype=torch.complex64), "torch.nn.Linear.forward"),
    "Linear on meta": (lambda: linear(device="meta"), "torch.nn.Linear.forward"),
    "sparse Linear": (
        lambda: _sparse_layer()(torch.ones(2, 3)),
        "torch.nn.Linear.forward",
    ),
    "loss on meta": (
        lambda: F.cross_entropy(
            torch.zeros(2, 3, device="meta"), torch.zeros(2, device="meta").long()
        ),
        "torch.nn.functional.cross_entropy",
    ),
    "class weights with a gradient": (
        class_weights_with_gradient,
        "torch.nn.functional.cross_entropy",
    ),
    "a complex parameter beside one of 16 bits, loaded": (
        checkpoint_of_16_bits,
        "torch.optim.Adam",
    ),
    "sparse gradient": (lambda: trained(torch.ones(4, 4), one_row, "SGD"), "torch.optim.SGD"),
    "sparse gradient under a GradScaler": (scaled_embedding, "torch.optim.SGD"),
    "complex parameter": (
        lambda: trained(
            torch.ones(2, dtype=torch.cfloat), like_values, "SGD", momentum=0.9, dampening=0.5
        ),
        "torch.optim.SGD",
    ),
    "complex and real parameters": (
        lambda: mixed_with_complex("Adam"),
        "torch.optim.Adam",
    ),
}


def _sparse_layer() -> nn.Linear:
    layer = nn.Linear(3, 4)
    layer.weight = nn.Parameter(torch.eye(4)[:, :3].to_sparse_csr(), requires_grad=False)
    layer.bias = None
    return layer


def mixed_with_complex(name: str) -> torch.Tensor:
    """The complex one has no gradient in the first step."""
    real, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.cfloat))
    optimizer = getattr(torch.optim, name)([real, other], lr=0.1)
    for step in range(4):
        real.grad = real.detach() + 1
        other.grad = other.detach() * 1j if step % 2 else None
        optimizer.step()
    return torch.cat([real.detach(), other.detach()])


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:Sparse invariant checks")
@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_offered_is_computed_by_pytorch_and_reported(name):
    compute, place = LEFT[name]
    wanted = compute()
    with gt.patch() as replaced:
        got = compute()
        compute()
    assert [line.split(":")[0] for line in replaced.left] == [place], "once"
    assert "left to PyTorch" in str(replaced)
    assert (got.shape, got.dtype, got.device) == (wanted.shape, wanted.dtype, wanted.device)
    if got.device.type != "meta":
        torch.testing.assert_close(got, wanted)


def test_wrong_input_raises_pytorchs_own_error():
    with gt.patch():
        with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
            nn.Linear(3, 4)(torch.ones(2, 5))
        with pytest.raises(ValueError, match="Invalid learning rate"):
            torch.optim.SGD([torch.ones(1)], lr=-1.0)
        with pytest.raises(gt.LabelError):
            F.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 3]))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_hooks_of_a_step_that_pytorch_makes_run_once():
    torch.optim.SGD([torch.ones(1)])  # PyTorch wraps the step of its class at the first instance
    calls: list[int] = []
    with gt.patch():
        p = nn.Parameter(torch.ones(4, 4))
        optimizer = torch.optim.SGD([p], lr=0.1)
        optimizer.register_step_pre_hook(lambda *_: calls.append(1))
        optimizer.register_step_post_hook(lambda *_: calls.append(2))
        p.grad = one_row(p)
        optimizer.step()
    assert calls == [1, 2]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_a_copy_of_an_optimizer_that_went_over_to_pytorch_leaves_its_state_alone():
    for take in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
        with gt.patch():
            p = nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))
            optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9)
            p.grad = torch.ones_like(p).to_sparse()
            optimizer.step()
            optimizer.state[p]["momentum_buffer"] = torch.full((2, 2), 1 + 2.0**-20)
            p, optimizer = take((p, optimizer))
            p.grad = torch.zeros_like(p).to_sparse()
            optimizer.step()
            assert optimizer.state[p]["momentum_buffer"].dtype == torch.float32


def test_what_is_offered_goes_to_the_kernels():
    with gt.patch() as replaced:
        p = nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([p], lr=0.1, fused=True)
        p.grad = torch.ones(3)
        optimizer.step()
        assert isinstance(optimizer, gt.AdamW)
        loss = F.cross_entropy(nn.Linear(3, 4)(torch.ones(2, 3)), torch.tensor([0, 1]))
        assert "gpubackprop" in type(loss.grad_fn).__name__
    assert replaced.left == []


def test_contexts_that_overlap_restore_when_the_last_one_ends():
    before = places()
    first, second = gt.patch(), gt.patch()
    replaced = first.__enter__()
    assert second.__enter__() == replaced
    first.__exit__(None, None, None)
    assert all(new is not old for new, old in zip(places(), before, strict=True))
    second.__exit__(None, None, None)
    assert places() == before


def test_modules_imported_meanwhile_have_pytorchs_names_afterwards():
    before, helper = ModuleType("helper_before"), ModuleType("helper_meanwhile")
    sys.modules[before.__name__] = before
    try:
        exec("from torch.optim import Adam as Optimizer", before.__dict__)
        with gt.patch() as replaced:
            assert issubclass(before.Optimizer, gt.Adam), "under another name"
            assert "helper_before.Optimizer" in replaced
            sys.modules[helper.__name__] = helper
            source = "from torch.optim import SGD, Adam as A\nimport gpubackprop.torch as gt\n"
            exec(
                source + "from torch.nn.functional import cross_entropy\nours = gt.SGD",
                vars(helper),
            )
    finally:
        sys.modules.pop(before.__name__), sys.modules.pop(helper.__name__, None)
    assert before.Optimizer is helper.A is torch.optim.Adam
    assert (helper.SGD, helper.cross_entropy) == (torch.optim.SGD, F.cross_entropy)
    assert helper.ours is gt.SGD


def test_optimizers_are_instances_of_the_names_in_place():
    older = torch.optim.AdamW([torch.ones(1)])
    with gt.patch():

        class Own(torch.optim.Adam):
            pass

        newer = torch.optim.AdamW([torch.ones(1)])
        for optimizer in (older, newer):
            assert isinstance(optimizer, torch.optim.AdamW)
            assert isinstance(optimizer, torch.optim.Adam), "as PyTorch's AdamW is"
            assert not isinstance(optimizer, (torch.optim.SGD, Own))
        assert isinstance(Own([torch.ones(1)]), torch.optim.Adam)
        for kind in (torch.optim.AdamW, type(older), Own, gt.Adam):
            assert issubclass(kind, torch.optim.Adam)
            assert not issubclass(kind, (torch.optim.SGD, torch.optim.NAdam))
        assert not issubclass(torch.optim.Adam, (torch.optim.AdamW, Own))
    assert isinstance(newer, torch.optim.AdamW)
    for kept in (copy.deepcopy(newer), pickle.loads(pickle.dumps(newer))):
        assert type(kept) is type(newer)


def test_an_optimizer_left_to_pytorch_in_inference_mode_goes_on_outside_of_it():
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float16))
    with gt.patch():
        optimizer = torch.optim.Adam([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    p.grad = p.detach().to_sparse()
    with torch.inference_mode(), pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.state[p]["step"] == 2


def signs(base, name):
    """Return a subclass of PyTorch's optimizer that steps along the sign of each gradient."""

    class Signs(getattr(base, name)):
        def _init_group(self, group, params, grads, *lists):
            result = super()._init_group(group, params, grads, *lists)
            grads[:] = [grad.sign() for grad in grads]
            return result

    return Signs


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_an_optimizer_is_itself_where_pytorch_exchanges_a_method_of_its_own_class(
    name, monkeypatch
):
    """As `torch._dynamo` does in all of PyTorch's optimizers when it is imported."""
    for kind in (torch.optim.SGD, torch.optim.Adam):
        own = kind._init_group
        monkeypatch.setattr(kind, "_init_group", lambda *given, own=own: own(*given))
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    getattr(gt, name)([p], lr=0.1).step()
    assert (p < 1).all()


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_a_subclass_that_changes_gradients_as_pytorchs_step_collects_them_is_left_to_pytorch(name):
    def stepped():
        p = nn.Parameter(torch.arange(4.0) - 1.5)
        optimizer = signs(torch.optim, name)([p], lr=0.1)
        for _ in range(3):
            p.grad = p.detach() ** 3
            optimizer.step()
        return p.detach()

    plain = stepped()
    with gt.patch() as replaced:
        torch.testing.assert_close(stepped(), plain, rtol=0, atol=0)
    assert any("Signs has an _init_group of its own" in line for line in replaced.left)
    with pytest.raises(gpubackprop.errors.OptionError, match=r"^Signs has an _init_group"):
        signs(gt, name)([nn.Parameter(torch.ones(2))], lr=0.1)
