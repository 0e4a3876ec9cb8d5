"""The operators of `gpubackprop.torch` under PyTorch's own checks and transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fw
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)

import gpubackprop.torch as gt
from gpubackprop.formulas import ACTIVATIONS
from gpubackprop.torch import cross_entropy_ops, layer_ops, linear_cross_entropy_ops
from tests.torch_paths import Path, path  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch")
F64 = torch.float64


def made(path: Path, *shape: int, seed: int = 0) -> torch.Tensor:  # noqa: F811
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=F64).to(path.device).requires_grad_()


def functions(path: Path) -> dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]]:  # noqa: F811
    """Each public function with every option on, and its differentiable inputs, float64."""
    z, t = made(path, 4, 5), made(path, 4, 5, seed=1).detach().softmax(1).requires_grad_()
    x, W, b = made(path, 4, 3), made(path, 6, 3, seed=2), made(path, 6, seed=3)
    w = torch.rand(6, dtype=F64, device=path.device) + 0.1
    y = torch.tensor([0, 3, -100, 2], device=path.device)

    def with_all(reduction: str) -> Callable[..., Any]:
        return lambda z: gt.cross_entropy(
            z, y, w[:5], reduction=reduction, label_smoothing=0.1, z_loss=0.1, return_lse=True
        )

    cases = {f"cross_entropy {r}": (with_all(r), (z,)) for r in ("mean", "sum", "none")}
    cases["cross_entropy of probabilities"] = (
        lambda z, t: gt.cross_entropy(z, t, w[:5], label_smoothing=0.1, z_loss=0.1), (z, t)
    )  # fmt: skip
    cases |= {
        f"linear_cross_entropy {r}": (
            lambda x, W, b, r=r: gt.linear_cross_entropy(
                x, W, y, linear_bias=b, weight=w, reduction=r, label_smoothing=0.1, z_loss=0.1
            ),
            (x, W, b),
        )
        for r in ("mean", "none")
    }
    cases |= {
        f"linear_act {name}": (lambda x, W, b, n=name: gt.linear_act(x, W, b, n), (x, W, b))
        for name in (*ACTIVATIONS, "leaky_relu(0.3)")
    }
    return cases


CASES = list(functions(Path("numpy")))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_gradients_and_second_derivatives_are_those_of_differences(case, path: Path):  # noqa: F811
    function, inputs = functions(path)[case]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_second_derivatives_of_a_nearly_certain_row_have_no_more_error_than_pytorchs(path: Path):  # noqa: F811
    """v - sum_k p_k v_k of the certain class is a small difference, in PyTorch of large numbers."""
    logits = torch.tensor([[0.0, -9.0, 11.8], [88.0, 71.5, 0.25], [3.5, 3.25, -30.0]])
    targets = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.25, 0.5, 0.25]])
    v = torch.tensor([[1.0, -2.0, 3.0], [0.1, 0.7, -0.3], [5.0, 1.0, 0.3]])

    def second(function: Callable[..., Any], dtype: torch.dtype) -> list[torch.Tensor]:
        z, t, g, up = (x.to(path.device, dtype) for x in (logits, targets, torch.ones(3), v))
        leaves = [leaf.requires_grad_() for leaf in (z, t, g)]
        loss = (function(z, t, reduction="none") * g).sum()
        (first,) = torch.autograd.grad(loss, z, create_graph=True)
        return torch.autograd.grad(first, leaves, up)

    exact = second(F.cross_entropy, F64)
    ours, theirs = (second(f, torch.float32) for f in (gt.cross_entropy, F.cross_entropy))
    for mine, other, right in zip(ours, theirs, exact, strict=True):
        error, allowed = (((one - right) / right).abs() for one in (mine, other))
        # exp of a float32 number of 20 has a relative error of about 20 * 2^-24
        assert (error <= torch.clamp(allowed, min=16 * 2.0**-23)).all()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_transforms_of_torch_func_give_what_autograd_gives(case, path: Path):  # noqa: F811
    function, inputs = functions(path)[case]

    def total(*tensors: torch.Tensor) -> torch.Tensor:
        out = function(*tensors)
        return sum(o.square().sum() for o in (out if isinstance(out, tuple) else (out,)))

    numbers = tuple(range(len(inputs)))
    wanted = torch.autograd.grad(total(*inputs), inputs)
    plain = tuple(tensor.detach() for tensor in inputs)
    for ours, theirs in zip(torch.func.grad(total, numbers)(*plain), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    _, slope = torch.func.jvp(total, plain, plain)
    exact = sum((g * p).sum() for g, p in zip(wanted, plain, strict=True))
    torch.testing.assert_close(slope, exact, rtol=1e-10, atol=1e-12)


def test_per_sample_gradients_by_vmap_equal_a_loop(path: Path):  # noqa: F811
    z, y = made(path, 6, 5).detach(), torch.tensor([0, 3, 2, 4, 1, 0], device=path.device)

    def loss(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return gt.cross_entropy(z, y, label_smoothing=0.1)

    got = torch.vmap(torch.func.grad(loss))(z, y)
    for row, label, grad in zip(z, y, got, strict=True):
        leaf = row.clone().requires_grad_()
        loss(leaf, label).backward()
        torch.testing.assert_close(grad, leaf.grad, rtol=1e-12, atol=1e-15)
    assert torch.func.hessian(lambda z: gt.cross_entropy(z, y))(z).shape == (6, 5, 6, 5)


@pytest.mark.parametrize(
    "name", ["cross_entropy mean", "linear_cross_entropy none", "linear_act gelu"]
)
def test_forward_mode_has_the_tangent_of_reverse_mode(name, path: Path):  # noqa: F811
    function, inputs = functions(path)[name]
    plain = tuple(tensor.detach() for tensor in inputs)
    with fw.dual_level():
        out = function(*(fw.make_dual(tensor, tensor.cos()) for tensor in plain))
        tangent = fw.unpack_dual(out[0] if isinstance(out, tuple) else out).tangent
    out = function(*inputs)
    out = out[0] if isinstance(out, tuple) else out
    grads = torch.autograd.grad((out * out.detach().cos()).sum(), inputs)
    wanted = sum((g * t.cos()).sum() for g, t in zip(grads, plain, strict=True))
    torch.testing.assert_close((tangent * out.cos()).sum(), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "name", ["cross_entropy mean", "linear_cross_entropy mean", "linear_act relu"]
)
def test_gradients_for_a_batch_of_upstream_ones_are_those_one_by_one(name, path: Path):  # noqa: F811
    function, inputs = functions(path)[name]
    out = function(*inputs)
    out = out[0] if isinstance(out, tuple) else out
    upstream = torch.stack([torch.ones_like(out), out.detach().cos(), torch.zeros_like(out)])
    got = torch.autograd.grad(out, inputs, upstream, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(out, inputs, u, retain_graph=True) for u in upstream]
    for batch, *singles in zip(got, *one_by_one, strict=True):
        torch.testing.assert_close(batch, torch.stack(singles), rtol=1e-12, atol=1e-14)
    (last,) = torch.autograd.grad(out, inputs[:1], upstream, is_grads_batched=True)
    torch.testing.assert_close(last, got[0], rtol=0, atol=0)


def test_vmap_shows_a_label_out_of_range_as_nan():
    z, y = torch.randn(3, 5), torch.tensor([0, 7, 1])
    assert torch.vmap(gt.cross_entropy)(z, y).isnan().tolist() == [False, True, False]


LABEL_TYPES = [torch.int32, torch.int16, torch.uint8, torch.uint16]


@pytest.mark.parametrize("label_type", LABEL_TYPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_labels_of_every_integer_type_are_those_of_int64(label_type, weighted, path: Path):  # noqa: F811
    """156 is -100 in a uint8: no label that is ignored."""
    y = torch.tensor([156, 3, 156, 5], device=path.device)
    z, x, W = made(path, 4, 200), made(path, 4, 5), made(path, 200, 5)
    w = torch.rand(200, dtype=F64, device=path.device) + 0.1 if weighted else None

    def everything(y: torch.Tensor) -> list[Any]:
        def loss(z: torch.Tensor) -> torch.Tensor:
            return gt.cross_entropy(z, y, w)

        def whole(x: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
            return gt.linear_cross_entropy(x, W, y, weight=w)

        first = torch.autograd.grad(whole(x, W), (x, W), create_graph=True)
        by_row = torch.vmap(lambda z, y: gt.cross_entropy(z, y, w))
        return [
            loss(z), whole(x, W), by_row(z, y), torch.func.grad(loss)(z.detach()), *first,
            *torch.autograd.grad(first[1].square().sum(), (x, W)),
            torch.autograd.functional.hvp(loss, z, z.cos())[1],
        ]  # fmt: skip

    torch.testing.assert_close(everything(y.to(label_type)), everything(y), rtol=0, atol=0)


def ops(path: Path) -> dict[str, tuple[Any, tuple[Any, ...]]]:  # noqa: F811
    z, x, W = made(path, 4, 5), made(path, 4, 3), made(path, 6, 3)
    b, y = made(path, 6), torch.tensor([0, 3, -100, 2], device=path.device)
    nothing, lse = z.detach().new_empty((0, 0)), (x @ W.t() + b).logsumexp(1).detach()
    g, options = z.detach().new_tensor(0.7), ("mean", -100, 0.1, 0.1)
    entropy, linear = cross_entropy_ops, linear_cross_entropy_ops
    h = made(path, 4, 6, seed=5)
    return {
        "loss": (entropy.softmax_cross_entropy, (z, y, None, *options, True, True)),
        "loss alone": (entropy.softmax_cross_entropy, (z, y, None, *options, False, False)),
        "gradient": (
            entropy.softmax_cross_entropy_backward, (g, z, y, None, nothing, nothing.new_empty(0), *options)
        ),
        "gradient of a known divisor": (
            entropy.softmax_cross_entropy_backward, (g, z, y, None, nothing, g * 3, *options)
        ),
        "linear": (linear.linear_cross_entropy, (x, W, b, y, None, *options, True)),
        "linear gradient": (
            linear.linear_cross_entropy_backward, (g, x, W, b, y, None, lse, torch.stack([lse, lse]).exp(), *options)
        ),
        "layer": (layer_ops.linear_act, (x, W, b, "gelu")),
        "layer in place": (layer_ops.linear_act, (x, W, None, "relu")),
        "activation": (layer_ops.activation_backward, (h, made(path, 4, 6), "silu")),
        "sum": (layer_ops.column_sum, (h,)),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ops(Path("numpy"))))
def test_every_operator_passes_opcheck(name, path: Path):  # noqa: F811
    op, arguments = ops(path)[name]
    assert set(torch.library.opcheck(op, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize("dtype", [F64, torch.float16], ids=str)
def test_backward_twice_adds_up_and_leaves_the_graph_usable(dtype, path: Path):  # noqa: F811
    """The second and third pass must not see what was done to the first one's gradient."""
    z, y = made(path, 6, 5).detach().to(dtype).requires_grad_(), torch.arange(6) % 5
    loss = gt.cross_entropy(z, y.to(path.device))
    loss.backward(retain_graph=True)
    first = z.grad.clone()
    z.grad.zero_()
    for _ in range(2):
        loss.backward(retain_graph=True)
    assert torch.equal(z.grad, 2 * first)
    (loss * 3).backward()
    torch.testing.assert_close(z.grad, 5 * first)


def test_inputs_are_never_changed_and_are_guarded_against_change(path: Path):  # noqa: F811
    z, y = made(path, 6, 5), (torch.arange(6) % 5).to(path.device)
    before, version = z.detach().clone(), z._version
    logits = z * 1
    gt.cross_entropy(logits, y).backward()
    assert torch.equal(z, before)
    assert (z._version, logits._version) == (version, 0)
    logits = z * 1
    loss = gt.cross_entropy(logits, y)
    logits.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_gradient_that_was_handed_on_is_the_callers_own(path: Path):  # noqa: F811
    """loss.backward() of the last graph hands the kept gradient on; changing it hurts nobody."""
    z, y = made(path, 6, 5), (torch.arange(6) % 5).to(path.device)
    gt.cross_entropy(z, y).backward()
    wanted = z.grad.clone()
    z.grad.mul_(100)
    z.grad = None
    gt.cross_entropy(z, y).backward()
    assert torch.equal(z.grad, wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["cross_entropy mean", "linear_cross_entropy mean", "linear_act gelu"]
)
def test_a_compiled_function_is_one_graph_and_gives_the_same(case):
    function, inputs = functions(Path("numpy"))[case]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = []
    for f in (function, compiled):
        out = f(*inputs)
        out = out[0] if isinstance(out, tuple) else out
        results.append((out, *torch.autograd.grad((out * out).sum(), inputs)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_a_compiled_transform_of_torch_func_gives_what_the_transform_gives():
    function, inputs = functions(Path("numpy"))["linear_cross_entropy mean"]
    x, *others = (tensor.detach() for tensor in inputs)
    transform = torch.func.grad(lambda x: function(x, *others))
    compiled = torch.compile(lambda x: transform(x), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), transform(x), rtol=1e-12, atol=1e-14)


def test_autocast_gives_the_types_that_pytorch_gives(path: Path):  # noqa: F811
    x, y = made(path, 4, 3).detach().float(), torch.tensor([0, 3, 1, 2], device=path.device)
    theirs = torch.nn.Linear(3, 5).to(path.device)
    ours = gt.convert(theirs).module
    with torch.autocast(path.device, torch.bfloat16):
        a, b = ours(x), theirs(x)
        losses = gt.cross_entropy(a, y), F.cross_entropy(b, y)
        whole = gt.linear_cross_entropy(x, theirs.weight, y, linear_bias=theirs.bias)
    assert (a.dtype, losses[0].dtype, whole.dtype) == (b.dtype, losses[1].dtype, losses[1].dtype)
    torch.testing.assert_close(a, b, rtol=2**-7, atol=2**-7)
    losses[0].backward()
    assert theirs.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward outside"])
def test_autocast_rounds_the_operands_of_linear_cross_entropy_and_nothing_else(inside, path: Path):  # noqa: F811
    x, W, y = made(path, 64, 256), made(path, 50, 256, seed=1), torch.arange(64) % 50
    x, W = (tensor.detach().bfloat16() for tensor in (x, W))
    y = y.to(path.device)

    def results(dtype: torch.dtype, autocast: bool, inside: bool = False) -> list[torch.Tensor]:
        leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (x, W)]
        with torch.autocast(path.device, torch.bfloat16, enabled=autocast):
            loss = gt.linear_cross_entropy(*leaves, y, reduction="none")
            if inside:
                loss.sum().backward()
        if not inside:
            loss.sum().backward()
        return [loss, *(leaf.grad for leaf in leaves)]

    for got, wanted in zip(
        results(torch.float32, True, inside), results(torch.bfloat16, False), strict=True
    ):
        torch.testing.assert_close(got, wanted.float(), rtol=0, atol=0)
    exact = F.linear_cross_entropy(x.double(), W.double(), y, reduction="none")
    torch.testing.assert_close(results(torch.float32, True)[0].double(), exact, rtol=0, atol=2**-15)


@pytest.mark.parametrize("places", [(), (4,), (2, 2), (0,)], ids=str)
@pytest.mark.parametrize(("features", "units"), [(0, 4), (3, 0)])
def test_a_layer_of_no_features_or_no_units_is_pytorchs(features, units, places, path: Path):  # noqa: F811
    x, W, b = made(path, *places, features), made(path, units, features), made(path, units)
    for name, act in (("identity", lambda a: a), ("relu", F.relu), ("gelu", F.gelu)):
        ours, theirs = gt.linear_act(x, W, b, name), act(F.linear(x, W, b))
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)
        ours, theirs = (torch.autograd.grad(out.sum(), (x, W, b)) for out in (ours, theirs))
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("rows", [(), (4,), (0,)], ids=str)
def test_a_loss_of_no_features_is_pytorchs(rows, path: Path):  # noqa: F811
    x, W, b = made(path, *rows, 0), made(path, 6, 0), made(path, 6)
    y = torch.zeros(rows, dtype=torch.long, device=path.device)
    ours, theirs = (
        (loss := f(x, W, y, linear_bias=b), *torch.autograd.grad(loss, (x, W, b)))
        for f in (gt.linear_cross_entropy, F.linear_cross_entropy)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15, equal_nan=True)


def test_checkpointing_and_no_grad_and_inference_mode(path: Path):  # noqa: F811
    z, y = made(path, 6, 5), (torch.arange(6) % 5).to(path.device)
    wanted = gt.cross_entropy(z, y)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            loss = gt.cross_entropy(z, y)
        assert not loss.requires_grad
        assert loss.item() == wanted.item()
    again = torch.utils.checkpoint.checkpoint(gt.cross_entropy, z, y, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(again, z)[0], torch.autograd.grad(wanted, z)[0])
