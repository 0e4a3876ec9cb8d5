"""In 16 bits the bias of a layer is added in float32, and the sum is rounded once, on every path; as
PyTorch's F.linear does. The numbers are such that float32 holds products, sums and results exactly."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)

from gpubackprop import MLP
from gpubackprop.formulas import activation
from gpubackprop.torch import Linear, LinearAct, linear_act, linear_cross_entropy
from tests import references, ways
from tests.torch_paths import Path, array, path  # noqa: F401 (a fixture)

KINDS = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16}
NAMES = ("identity", "relu", "tanh", "elu", "gelu", "silu")
SHAPES = [(5, 3, 2), (33, 16, 24), (1, 7, 40), (64, 5, 1)]  # N, D_in, D_out


def operands(shape: tuple[int, int, int], dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, W and b in float64, exact in 16 bits; b takes away nearly all of the products of row 0."""
    rng, (rows, inputs, outputs) = np.random.default_rng(sum(shape)), shape
    x = rng.integers(-64, 65, (rows, inputs)) / 8
    W = rng.integers(-32, 33, (outputs, inputs)) / 16
    b = -(W @ x[0]).astype(KINDS[dtype]).astype(np.float64)
    return x, W, b


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    return values.astype(np.float32).astype(KINDS[dtype]).astype(np.float32)


def units(got: np.ndarray, exact: np.ndarray, dtype: str) -> float:
    """Largest error, in half the distance from the exact number to its neighbour, plus what float32
    adds."""
    got = np.asarray(got).astype(np.float64)
    epsilon = {"bfloat16": 2.0**-7, "float16": 2.0**-10}[dtype]
    return float((np.abs(got - exact) / np.maximum(np.abs(exact) * epsilon, 2.0**-24)).max())


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_layer_of_16_bits_rounds_the_sum_of_product_and_bias_once(shape, name, dtype):
    x, W, b = operands(shape, dtype)
    total, act = x @ W.T + b, activation(name)
    a = np.full(total.shape, np.nan, KINDS[dtype])
    h = a if act.saved == "h" else np.full_like(a, np.nan)
    ways.verb("affine_forward", *(v.astype(a.dtype) for v in (x, W, b)), act, a, h)
    exact = references.activation_oracle(name, total, act.parameter)[0]
    assert units(h, exact, dtype) <= 0.51
    if h is not a:
        assert np.array_equal(a.astype(np.float32), rounded(total, dtype))


@pytest.mark.parametrize("dtype", KINDS)
def test_a_network_of_16_bits_has_the_value_that_pytorch_has(dtype, device):
    """The case that was found: 100 + 0.3 - 100 was 0.5 in bfloat16."""
    network = MLP([2, 1, 1], ["relu"], output="linear", precision=dtype, device=device)
    for W, b, weight, bias in zip(
        network.W, network.b, ([[1, 1]], [[1]]), ([-100], [0]), strict=True
    ):
        ways.put(W, weight)
        ways.put(b, bias)
    x = np.array([[100, 0.3]], np.float32)
    found = float(ways.host(network.predict(x))[0, 0])
    layer = (
        torch.tensor([[1.0, 1.0]], dtype=TORCH[dtype]),
        torch.tensor([-100.0], dtype=TORCH[dtype]),
    )
    assert found == F.relu(F.linear(torch.tensor(x, dtype=TORCH[dtype]), *layer)).item()
    assert abs(found - 0.3) < 0.001


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_act_of_16_bits_is_pytorchs_linear_and_activation(shape, name, dtype, path: Path):  # noqa: F811
    kind = TORCH[dtype]
    x, W, b = (torch.tensor(v, dtype=kind, device=path.device) for v in operands(shape, dtype))
    h = linear_act(x, W, b, name)
    assert h.dtype == kind
    a = F.linear(x, W, b)
    exact = references.activation_oracle(
        name, array(a).astype(np.float64), activation(name).parameter
    )
    assert units(array(h).astype(np.float64), exact[0], dtype) <= 0.51
    if name in ("identity", "relu"):
        assert torch.equal(h, a if name == "identity" else F.relu(a))


@pytest.mark.parametrize("dtype", TORCH)
def test_layers_and_autocast_of_16_bits_add_the_bias_as_pytorch(dtype, path: Path):  # noqa: F811
    kind, device = TORCH[dtype], path.device
    x, W, b = (
        torch.tensor(v, dtype=torch.float32, device=device) for v in operands((9, 5, 3), dtype)
    )
    plain = torch.nn.Linear(5, 3, device=device)
    with torch.no_grad():
        plain.weight.copy_(W)
        plain.bias.copy_(b)
    for layer, wanted in (
        (Linear(5, 3, device=device), lambda a: a),
        (LinearAct(5, 3, "relu", device=device), F.relu),
    ):
        layer.load_state_dict(plain.state_dict())
        with torch.autocast(device, dtype=kind):
            assert torch.equal(layer(x), wanted(plain(x)))
        assert torch.equal(
            layer.to(kind)(x.to(kind)), wanted(F.linear(x.to(kind), W.to(kind), b.to(kind)))
        )


@pytest.mark.parametrize("dtype", TORCH)
def test_linear_cross_entropy_of_16_bits_adds_the_bias_in_float32(dtype, path: Path):  # noqa: F811
    kind = TORCH[dtype]
    values = operands((9, 5, 3), dtype)
    x, W, b = (torch.tensor(v, dtype=kind, device=path.device) for v in values)
    labels = torch.arange(9, device=path.device) % 3
    loss = linear_cross_entropy(x, W, labels, linear_bias=b)
    exact = F.cross_entropy(F.linear(*(torch.tensor(v) for v in values)), labels.cpu())
    assert loss.item() == pytest.approx(exact.item(), rel=2**-7 if dtype == "bfloat16" else 2**-10)


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("name", ["identity", "relu", "silu"])
def test_a_layer_of_16_bits_under_a_transform_has_the_value_that_it_has_without(name, dtype):
    x, W, b = (torch.tensor(v).to(TORCH[dtype]) for v in operands((9, 5, 3), dtype))

    def layer(rows):
        return linear_act(rows, W, b, name)

    wanted = layer(x).double().numpy()
    for got in (torch.vmap(layer)(x), torch.func.jvp(layer, (x,), (x,))[0]):
        assert got.dtype == x.dtype
        assert units(got.double().numpy(), wanted, dtype) <= 1.01


@pytest.mark.parametrize("dtype", TORCH)
def test_linear_cross_entropy_of_16_bits_has_the_same_value_under_a_transform(dtype):
    x, W, b = (torch.tensor(v).to(TORCH[dtype]) for v in operands((9, 5, 3), dtype))
    target = torch.arange(9) % 3
    wanted = F.cross_entropy(x.double() @ W.double().T + b.double(), target, reduction="none")

    def loss(row, label):
        return linear_cross_entropy(row, W, label, linear_bias=b)

    torch.testing.assert_close(torch.vmap(loss)(x, target).double(), wanted, rtol=1e-6, atol=1e-6)
