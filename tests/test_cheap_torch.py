"""`gpubackprop.torch.cross_entropy` of plain CPU tensors: its short way shows nowhere but in time."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy as reference
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.bench_calls import way_of
from gpubackprop import torch as gt
from gpubackprop.torch import cross_entropy_ops as operators
from gpubackprop.torch import host_loss
from tests.threads import run_in_threads

OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum", "label_smoothing": 0.1},
    {"reduction": "none"},
    {"weight": torch.tensor([1.0, 2.0, 0.5, 3.0])},
    {"ignore_index": 2},
    {"ignore_index": 2, "weight": torch.tensor([1.0, 2.0, 0.5, 3.0]), "label_smoothing": 0.2},
]


def problem(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 4, generator=generator, dtype=dtype, requires_grad=True)
    return z, torch.tensor([0, 1, 2, 3, 2, 1])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_short_way_gives_what_the_operator_gives_bit_for_bit(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    results = []
    for plain in (True, False):
        z, y = problem(dtype)
        with pytest.MonkeyPatch.context() as patch:
            if not plain:
                patch.setattr(operators, "_is_plain", lambda *_: False)
            loss, lse = gt.cross_entropy(z, y, return_lse=True, **options)
            first = loss.grad_fn
            (loss.sum() * 0.7 + lse.sum() * 0.3).backward()
        results.append((loss.detach(), lse.detach(), z.grad))
        assert plain == (type(first).__name__ == "gpubackprop_softmax_cross_entropyBackward")
    for mine, its in zip(*results, strict=True):
        assert torch.equal(mine, its)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_small_batch_that_is_copied_gives_what_a_batch_in_place_gives_bit_for_bit(
    options: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for copied_bytes in (host_loss.COPIED_BYTES, 0, host_loss.COPIED_BYTES):
        monkeypatch.setattr(host_loss, "COPIED_BYTES", copied_bytes)
        z, y = problem(dtype)
        loss, lse = gt.cross_entropy(z, y, return_lse=True, **options)
        loss.sum().backward()
        results.append((loss.detach(), lse.detach(), z.grad))
    for mine, its, again in zip(*results, strict=True):
        assert torch.equal(mine, its)
        assert torch.equal(mine, again)
        assert mine.stride() == its.stride()


def test_the_results_of_a_small_batch_are_the_callers_and_no_later_call_changes_them() -> None:
    z, y = problem()
    first, lse = gt.cross_entropy(z, y, reduction="none", return_lse=True)
    first.sum().backward()
    kept = [t.detach().clone() for t in (first, lse, z.grad)]
    other = (3 * z.detach()).requires_grad_()
    later, _ = gt.cross_entropy(other, y.flip(0), reduction="none", return_lse=True)
    later.sum().backward()
    for now, before in zip((first, lse, z.grad), kept, strict=True):
        assert torch.equal(now, before)
    addresses = {t.data_ptr() for t in (first, lse, later, z.grad, other.grad)}
    assert len(addresses) == 5


@pytest.mark.parametrize("order", ["as it is", "transposed", "with gaps", "expanded", "negated"])
def test_a_small_batch_in_any_memory_order_is_pytorchs(order: str) -> None:
    z, y = problem()
    z = z.detach()
    if order == "transposed":
        z = z.t().contiguous().t()
    elif order == "with gaps":
        z = torch.stack([z, z + 1], 2)[:, :, 0]
    elif order == "expanded":
        z = z[:1].expand(6, 4)
    elif order == "negated":
        z = torch.complex(z, z).conj().imag
        assert z.is_neg()
    found = []
    for function in (gt.cross_entropy, reference):
        leaf = z.detach().requires_grad_()
        loss = function(leaf, y.flip(0).repeat(2)[::2])
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(*found)


def test_a_kind_of_batch_first_met_in_inference_mode_is_trained_with_after_it() -> None:
    z = torch.randn(5, 3, requires_grad=True)
    y = torch.tensor([0, 1, 2, 1, 0])
    with torch.inference_mode():
        first = gt.cross_entropy(z, y)
        assert first.is_inference()
    loss = gt.cross_entropy(z.detach(), y)
    assert not loss.is_inference()
    gt.cross_entropy(z, y).backward()
    with torch.inference_mode():
        again = gt.cross_entropy(z, y)
    assert first.item() == again.item() == loss.item()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_second_derivatives_of_the_short_way_are_pytorchs(options: dict[str, Any]) -> None:
    z, y = problem(torch.float64)
    options = {k: v.double() if k == "weight" else v for k, v in options.items()}
    found = []
    for function in (gt.cross_entropy, reference):
        (first,) = torch.autograd.grad(function(z, y, **options).sum(), z, create_graph=True)
        found.append(torch.autograd.grad((first * torch.arange(4.0)).sum(), z)[0])
    assert torch.allclose(*found, rtol=1e-10, atol=1e-13)


def test_gradients_of_probability_targets_alone_are_pytorchs() -> None:
    z, _ = problem(torch.float64)
    found = []
    for function in (gt.cross_entropy, reference):
        tau = torch.full((6, 4), 0.25, dtype=torch.float64, requires_grad=True)
        function(z.detach(), tau).backward()
        found.append(tau.grad)
    assert torch.allclose(*found, rtol=1e-12)


def test_a_mode_that_watches_operators_sees_the_loss() -> None:
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    z, y = problem()
    with Watch():
        gt.cross_entropy(z, y).backward()
    assert any("gpubackprop.softmax_cross_entropy" in name for name in seen)


def test_the_loss_lies_where_the_logits_lie_whatever_the_default_device_is() -> None:
    z, y = problem()
    with torch.device("meta"):
        loss = gt.cross_entropy(z, y)
    assert loss.device.type == "cpu"
    assert torch.allclose(loss, reference(z, y))


def test_storages_of_logits_loss_and_gradient_may_still_be_resized() -> None:
    z, y = problem()
    loss = gt.cross_entropy(z, y)
    loss.backward()
    assert all(t.untyped_storage().resizable() for t in (z, y, loss, z.grad))


def test_threads_that_train_at_once_each_get_their_own_gradient() -> None:
    z, y = problem()
    inputs = [(z.detach() * (i + 1)).requires_grad_() for i in range(4)]
    wanted = [torch.autograd.grad(reference(x, y), x)[0] for x in inputs]
    wrong, begin = list[int](), threading.Barrier(4)

    def work(number: int) -> None:
        begin.wait()
        for _ in range(100):
            (grad,) = torch.autograd.grad(gt.cross_entropy(inputs[number], y), inputs[number])
            if not torch.allclose(grad, wanted[number], atol=1e-6):
                wrong.append(number)

    run_in_threads(work)
    assert wrong == []


def test_tensors_of_a_call_are_freed_after_it() -> None:
    z, y = problem()
    z = z.detach().clone().requires_grad_()
    gt.cross_entropy(z, y).backward()
    gone = weakref.ref(z)
    del z
    gc.collect()
    assert gone() is None


def test_a_label_out_of_range_is_named_on_the_short_way() -> None:
    z, _ = problem()
    y = torch.tensor([0, 1, 2, 3, 4, 1])
    with pytest.raises(gt.LabelError, match=r"^target\[4\] is 4 but labels must be in \[0, 4\)"):
        gt.cross_entropy(z, y)
    y[4] = -7
    with pytest.raises(gt.LabelError, match=r"^target\[4\] is -7"):
        gt.cross_entropy(z, y, ignore_index=-8)
    assert gt.cross_entropy(z, y, ignore_index=-7).isfinite()


def test_the_way_to_the_formula_does_not_grow() -> None:
    z, y = problem()
    assert len(way_of(lambda: gt.cross_entropy(z, y))) <= 20
