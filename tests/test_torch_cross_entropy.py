"""`gpubackprop.torch.cross_entropy` against PyTorch's, judged in float64, three ways."""

from __future__ import annotations

import itertools
import math
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)

import gpubackprop.torch as gt
from tests.tolerances import Draws, assert_equal_in_float64, assert_same_pattern
from tests.torch_paths import Path, array, path  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch")
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(5,), (1, 5), (7, 3), (6, 40), (2, 5, 3), (2, 4, 2, 3)]
CLASS_WEIGHT, IGNORE, SMOOTH = "class weights", "ignored rows", "smoothing"


def problem(
    shape: tuple[int, ...], dtype: torch.dtype, kind: str, options: tuple[str, ...], seed: int
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Logits, targets and keyword arguments."""
    g = torch.Generator().manual_seed(seed)
    classes = shape[0] if len(shape) == 1 else shape[1]
    places = shape[:1] + shape[2:] if len(shape) > 1 else ()
    logits = (torch.randn(shape, generator=g, dtype=torch.float64) * 3).to(dtype)
    keywords: dict[str, Any] = {}
    if kind == "indices":
        target = torch.randint(classes, places, generator=g)
        if IGNORE in options:
            keywords["ignore_index"] = 1
            target = torch.where(torch.rand(places, generator=g) < 0.3, 1, target)
    else:
        target = torch.rand(shape, generator=g, dtype=torch.float64).to(dtype)
    if CLASS_WEIGHT in options:
        keywords["weight"] = (torch.rand(classes, generator=g, dtype=torch.float64) + 0.1).to(dtype)
    if SMOOTH in options:
        keywords["label_smoothing"] = 0.2
    return logits, target, keywords


def loss_and_gradient(
    function: Any, logits: torch.Tensor, target: torch.Tensor, keywords: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = logits.clone().requires_grad_()
    loss = function(leaf, target, **keywords)
    upstream = torch.linspace(0.5, 1.5, loss.numel(), dtype=torch.float64, device=loss.device)
    loss.backward(upstream.reshape(loss.shape).to(loss.dtype))
    return loss, leaf.grad


def wide(value: Any) -> Any:
    return (
        value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
    )


def judge(
    logits: torch.Tensor, target: torch.Tensor, keywords: dict[str, Any], draws: tuple[Draws, Draws]
) -> None:
    """Loss and gradient beside PyTorch's, and their errors against float64 to `draws`."""
    ours = loss_and_gradient(gt.cross_entropy, logits, target, keywords)
    theirs = loss_and_gradient(F.cross_entropy, logits, target, keywords)
    oracle = loss_and_gradient(
        F.cross_entropy, wide(logits), wide(target), {k: wide(v) for k, v in keywords.items()}
    )
    assert ours[0].shape == theirs[0].shape
    assert ours[0].dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
    assert (ours[1].shape, ours[1].dtype) == (logits.shape, logits.dtype)
    for got, torch_result, exact, errors in zip(ours, theirs, oracle, draws, strict=True):
        if logits.dtype == torch.float64:
            assert_equal_in_float64(array(got), array(exact))
        else:
            errors.add(array(got), array(torch_result.double()), array(exact))


ALL = (CLASS_WEIGHT, IGNORE, SMOOTH)
SUBSETS = [subset for n in range(4) for subset in itertools.combinations(ALL, n)]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_option_has_no_more_error_than_pytorch(dtype, kind, reduction, path: Path):  # noqa: F811
    draws = Draws(), Draws()
    subsets = SUBSETS
    if kind == "probabilities":  # nothing to ignore; twice, so that as many draws are judged
        subsets = 2 * [subset for subset in SUBSETS if IGNORE not in subset]
    for seed, (shape, options) in enumerate(itertools.product(SHAPES, subsets)):
        logits, target, keywords = problem(shape, dtype, kind, options, seed)
        here = {
            key: value.to(path.device) if isinstance(value, torch.Tensor) else value
            for key, value in keywords.items()
        }
        here["reduction"] = reduction
        judge(logits.to(path.device), target.to(path.device), here, draws)
    if dtype != torch.float64:
        for errors in draws:
            errors.check()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_random_cases_have_no_more_error_than_pytorch(dtype, path: Path):  # noqa: F811
    random = Random(7)
    draws = Draws(), Draws()
    for seed in range(12 if path.name == "emulated" else 60):
        shape = (random.randint(1, 40), random.randint(1, 60), random.randint(1, 3))
        kind = random.choice(["indices", "probabilities"])
        options = tuple(option for option in ALL if random.random() < 0.5)
        if kind == "probabilities":
            options = tuple(o for o in options if o != IGNORE)
        chosen = problem(shape[: random.randint(2, 3)], dtype, kind, options, 1000 + seed)
        logits, target, keywords = chosen
        if "ignore_index" in keywords and shape[1] == 1:
            keywords["ignore_index"] = -7
            target = target.clamp(max=0)
        here = {
            key: value.to(path.device) if isinstance(value, torch.Tensor) else value
            for key, value in keywords.items()
        }
        here["reduction"] = random.choice(["mean", "sum", "none"])
        judge(logits.to(path.device), target.to(path.device), here, draws)
    if dtype != torch.float64:
        for errors in draws:
            errors.check()


@pytest.mark.parametrize("target_type", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_class_indices_of_any_integer_type_are_taken(target_type, path: Path):  # noqa: F811
    logits, target, _ = problem((6, 5), torch.float32, "indices", (), 0)
    got = gt.cross_entropy(logits.to(path.device), target.to(path.device, target_type))
    assert got.item() == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_rows_and_rows_that_are_all_ignored_are_as_in_pytorch(reduction, path: Path):  # noqa: F811
    empty = torch.empty(0, 5), torch.empty(0, dtype=torch.long)
    ignored = torch.randn(3, 5), torch.full((3,), -100)
    for logits, target in (empty, ignored, (torch.randn(2, 5, 0), torch.zeros(2, 0).long())):
        keywords = {"reduction": reduction}
        ours, theirs = (
            loss_and_gradient(f, logits.to(path.device), target.to(path.device), keywords)
            for f in (gt.cross_entropy, F.cross_entropy)
        )
        assert_same_pattern(array(ours[0]), array(theirs[0]))
        assert torch.equal(ours[0].nan_to_num(), theirs[0].nan_to_num())
        assert torch.equal(ours[1], torch.zeros_like(logits, device=path.device))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_ignored_rows_have_no_gradient_where_the_upstream_one_is_nan(dtype, path: Path):  # noqa: F811
    for reduction in ("mean", "none"):
        x = torch.ones(2, 3, dtype=dtype, device=path.device).requires_grad_()
        labels = torch.full((2,), -100, device=path.device)
        loss = gt.cross_entropy(x, labels, reduction=reduction)
        (math.nan * loss * loss).sum().backward()
        assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("name", ["cross_entropy", "linear_cross_entropy"])
def test_second_derivatives_of_a_mean_over_nothing_are_zero_as_pytorchs(name, path: Path):  # noqa: F811
    for weight, target in ((None, [-100, -100]), (torch.tensor([0.0, 1.0, 1.0]), [-100, -100])):
        found = []
        for module in (gt, F):
            x, factor = torch.randn(2, 3, device=path.device).requires_grad_(), torch.ones(())
            factor = factor.to(path.device).requires_grad_()
            operands = (x, torch.ones(3, 3, device=path.device))[: 1 + name.startswith("linear")]
            w = None if weight is None else weight.to(path.device)
            labels = torch.tensor(target, device=path.device)
            loss = factor * getattr(module, name)(*operands, labels, weight=w)
            (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
            found.append(torch.autograd.grad(gradient.sum(), (x, factor)))
        assert torch.equal(found[0][0], torch.zeros_like(x))
        for ours, theirs in zip(*found, strict=True):
            assert_same_pattern(array(ours), array(theirs))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_infinite_and_extreme_logits_give_pytorchs_pattern(dtype, path: Path):  # noqa: F811
    top, inf = torch.finfo(dtype).max, math.inf
    rows = [
        [0.0, -inf, -inf], [-inf, -inf, 1.0], [-inf, -inf, -inf], [0.0, inf, 0.0],
        [0.0, math.nan, 0.0], [top, -top, 0.0], [top, top, top], [-top, 0.0, 0.0],
    ]  # fmt: skip
    logits = torch.tensor(rows, dtype=dtype, device=path.device)
    target = torch.tensor([0, 2, 1, 1, 0, 0, 2, 1], device=path.device)
    keywords = {"reduction": "none"}
    ours = loss_and_gradient(gt.cross_entropy, logits, target, keywords)
    theirs = loss_and_gradient(F.cross_entropy, logits.to(ours[0].dtype), target, keywords)
    for got, wanted in zip(ours, theirs, strict=True):
        assert_same_pattern(array(got), array(wanted.to(got.dtype)))


def test_a_common_offset_of_ten_thousand_costs_no_digit(path: Path):  # noqa: F811
    logits, target, _ = problem((50, 7), torch.float32, "indices", (), 3)
    draws = Draws(), Draws()
    judge((logits + 1e4).to(path.device), target.to(path.device), {}, draws)
    for errors in draws:
        errors.check()


def test_a_confident_prediction_keeps_its_gradient_in_16_bits(path: Path):  # noqa: F811
    """p - 1 is formed in float32: -9.1e-5 (upstream 0.5: half of it), where float16's p would be 1 and the gradient 0."""
    logits = torch.tensor([[9.3, 0.0]], dtype=torch.float16, device=path.device)
    _, grad = loss_and_gradient(
        gt.cross_entropy, logits, torch.zeros(1, device=path.device).long(), {"reduction": "sum"}
    )
    exact = -0.5 / (1.0 + math.exp(float(logits[0, 0])))
    assert grad[0, 0].item() == pytest.approx(exact, rel=1e-3)


def test_a_loss_scale_of_65536_meets_no_gradient_that_was_rounded_to_zero(path: Path):  # noqa: F811
    """A mean over 32,768 rows leaves float16 few digits; the scale comes before the rounding."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(32768, 3, generator=g).half().to(path.device)
    target = torch.randint(3, (32768,), generator=g).to(path.device)
    leaf, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    (gt.cross_entropy(leaf, target) * 65536).backward()
    (F.cross_entropy(exact, target) * 65536).backward()
    assert (leaf.grad.double() - exact.grad).abs().max() <= 2.0**-11 * exact.grad.abs().max()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_z_loss_and_lse_are_those_of_the_formula(reduction, path: Path):  # noqa: F811
    logits, target, _ = problem((6, 5), torch.float64, "indices", (), 1)
    logits, target = logits.to(path.device).requires_grad_(), target.to(path.device)
    loss, lse = gt.cross_entropy(logits, target, reduction=reduction, z_loss=0.3, return_lse=True)
    wanted_lse = torch.logsumexp(logits, 1)
    rows = F.cross_entropy(logits, target, reduction="none") + 0.3 * wanted_lse**2
    wanted = {"mean": rows.mean(), "sum": rows.sum(), "none": rows}[reduction]
    torch.testing.assert_close(loss, wanted, rtol=1e-13, atol=0)
    torch.testing.assert_close(lse, wanted_lse, rtol=1e-13, atol=0)
    ours, theirs = (
        torch.autograd.grad(one.sum() + 2 * other.sum(), logits)[0]
        for one, other in ((loss, lse), (wanted, wanted_lse))
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_strided_and_expanded_and_transposed_tensors_are_right(path: Path):  # noqa: F811
    base = torch.randn(20, 14, dtype=torch.float64).to(path.device)
    target = torch.randint(5, (7,)).to(path.device)
    for logits in (
        base[::2, 1:6][:7], base.t()[:7, :5], base[:1, :5].expand(7, 5), base[3:10, 5:10],
        base.as_strided((7, 5), (1, 1)), base[:7, ::2][:, :5],
    ):  # fmt: skip
        wanted = loss_and_gradient(F.cross_entropy, logits, target, {})
        leaf = logits.detach().requires_grad_()
        loss = gt.cross_entropy(leaf, target.flip(0).flip(0))
        (grad,) = torch.autograd.grad(0.5 * loss, leaf)
        torch.testing.assert_close(loss, wanted[0], rtol=1e-13, atol=0)
        torch.testing.assert_close(grad, wanted[1], rtol=1e-12, atol=1e-15)


def test_the_module_has_pytorchs_arguments_and_state(path: Path):  # noqa: F811
    weight = torch.rand(5)
    ours = gt.CrossEntropyLoss(weight, ignore_index=2, reduction="sum", label_smoothing=0.1)
    theirs = torch.nn.CrossEntropyLoss(weight, ignore_index=2, reduction="sum", label_smoothing=0.1)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    logits, target, _ = problem((6, 5), torch.float32, "indices", (), 2)
    got = ours.to(path.device)(logits.to(path.device), target.to(path.device))
    assert got.item() == pytest.approx(theirs(logits, target).item(), rel=1e-6)


def test_the_deprecated_arguments_choose_the_reduction_as_in_pytorch():
    logits, target, _ = problem((6, 5), torch.float32, "indices", (), 2)
    with pytest.warns(UserWarning, match="deprecated"):
        got = gt.cross_entropy(logits, target, size_average=False)
    assert got.item() == pytest.approx(F.cross_entropy(logits, target, reduction="sum").item())
