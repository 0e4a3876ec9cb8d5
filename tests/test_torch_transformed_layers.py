"""A layer of 16 bits under the transforms of torch.func, beside PyTorch's own layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)

import gpubackprop.torch as gt
from gpubackprop.torch.affine import affine


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def operands(request) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x (5, 3), W (4, 3), b (4,): small integers, of which every product and sum is exact."""
    draw = torch.Generator().manual_seed(0)
    shapes = (5, 3), (4, 3), (4,)
    drawn = (torch.randint(-3, 4, shape, generator=draw) for shape in shapes)
    return tuple(tensor.to(request.param).requires_grad_() for tensor in drawn)


def leaves(operands):
    return [tensor.detach().clone().requires_grad_() for tensor in operands]


LAYERS = {
    "layer": (lambda x, W, b: gt.linear_act(x, W, b, "identity"), F.linear),
    "loss": (
        lambda x, W, b: gt.linear_cross_entropy(x, W, torch.tensor(2), linear_bias=b),
        lambda x, W, b: F.cross_entropy(F.linear(x, W, b).float(), torch.tensor(2)),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_parameter_changed_after_vmap_has_pytorchs_effect_on_the_gradient(name, operands):
    grads = []
    for function in LAYERS[name]:
        x, W, b = leaves(operands)
        out = torch.vmap(lambda row, W=W, b=b, f=function: f(row, W, b))(x)
        W.data.mul_(2)
        out.float().sum().backward()
        grads.append((x.grad, W.grad, b.grad))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", LAYERS)
def test_a_parameter_changed_in_place_after_vmap_is_an_error_as_in_pytorch(name, operands):
    for function in LAYERS[name]:
        x, W, b = leaves(operands)
        out = torch.vmap(lambda row, W=W, b=b, f=function: f(row, W, b))(x)
        with torch.no_grad():
            W.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.float().sum().backward()


def test_an_affine_map_differentiates_alike_forwards_backwards_and_twice(operands):
    x, W, b = (tensor.detach() for tensor in operands)
    functions = (lambda x: affine(x, W, b), lambda W: affine(x, W, b), lambda b: affine(x, W, b))
    for function, at in zip(functions, (x, W, b), strict=True):
        reverse, forward = torch.func.jacrev(function)(at), torch.func.jacfwd(function)(at)
        torch.testing.assert_close(reverse.float(), forward.float(), rtol=0, atol=0)
    twice = torch.func.hessian(lambda W: (affine(x[0], W, b) ** 2).sum() / 2)(W)
    block = torch.outer(x[0], x[0])  # d^2/dW_k^2 of (W_k x + b_k)^2 / 2
    for k in range(4):
        torch.testing.assert_close(twice[k, :, k], block, rtol=0, atol=0)


def test_a_layer_under_vmap_rounds_the_sum_with_the_bias_once():
    x, W = torch.tensor([[100.0, 0.3]]).bfloat16(), torch.tensor([[1.0, 1.0]]).bfloat16()
    b = torch.tensor([-100.0]).bfloat16()
    assert torch.vmap(lambda row: gt.linear_act(row, W, b, "relu"))(x).item() == 0.30078125


@pytest.mark.parametrize("name", LAYERS)
def test_maps_of_maps_over_rows_and_networks_equal_a_loop(name, operands):
    x, W, b = (tensor.detach() for tensor in operands)
    Ws = torch.stack([W * k for k in (1, 2, -1)])
    function = LAYERS[name][0]

    def of(row, weight):
        return function(row, weight, b)

    wanted = torch.stack([torch.stack([of(row, V) for row in x]) for V in Ws])
    by_networks = torch.vmap(torch.vmap(of, (0, None)), (None, 0))(x, Ws)
    by_rows = torch.vmap(torch.vmap(of, (None, 0)), (0, None))(x, Ws).transpose(0, 1)
    torch.testing.assert_close(by_networks, wanted)
    torch.testing.assert_close(by_rows, wanted)
    grads = torch.vmap(torch.vmap(torch.func.grad(lambda V, row: of(row, V).float().sum()),
                                  (None, 0)), (0, None))(Ws, x)  # fmt: skip
    one_by_one = [[torch.func.grad(lambda V, row=row: of(row, V).float().sum())(V) for row in x]
                  for V in Ws]  # fmt: skip
    torch.testing.assert_close(grads, torch.stack([torch.stack(row) for row in one_by_one]))


def test_a_gradient_over_mapped_rows_is_summed_before_it_is_rounded():
    x = torch.tensor([[3000.0], [-3000.0]]).half()  # each row's share is beyond 65504
    W, b = torch.tensor([[1.0]]).half().requires_grad_(), torch.zeros(1).half()
    out = torch.vmap(lambda row: gt.linear_act(row, W, b, "identity"))(x)
    (out * torch.tensor([[300.0], [299.0]]).half()).sum().backward()
    assert W.grad.item() == 3000


def test_forward_mode_along_x_has_pytorchs_infinities_where_a_weight_is_infinite(operands):
    x, W, b = (tensor.detach() for tensor in operands)
    W[0, 0] = torch.inf
    tangents = [torch.func.jvp(lambda x, f=f: f(x, W, b), (x,), (torch.ones_like(x),))[1]
                for f in (affine, F.linear)]  # fmt: skip
    assert tangents[0][0, 0] == torch.inf
    torch.testing.assert_close(tangents[0].to(W.dtype), tangents[1])
