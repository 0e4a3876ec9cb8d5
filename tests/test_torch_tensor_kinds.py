"""Tensors that the kernels do not read, under `patch` and in converted models: PyTorch computes
what it computes without this package, of the same type, and the report says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing._internal.two_tensor import TwoTensor

import gpubackprop.torch as gt

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*prototype", "ignore:Sparse", "ignore:.*deprecated"),
    pytest.mark.filterwarnings("ignore:Complex modules"),
]
Y = torch.tensor([0, 2])


def draw(*shape: int, **options: Any) -> Tensor:
    g = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=g).to(**options)


class Named(Tensor):
    """A subclass that only has a name; results are of it too."""


class Recorder(Tensor):
    """Looks functions up in a table, as libraries with tensors of their own do."""

    seen: list[Any] = []  # noqa: RUF012 (one for all)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # fmt: skip
        cls.seen.append((function, sorted(kwargs or {})))
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


class Scaled(Tensor):
    """A weight that is kept otherwise, as torchao's: int8 numbers and a scale."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=torch.float32)

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # fmt: skip
        if function is torch.ops.aten.detach.default:
            return cls(args[0].numbers)
        plain = [a.numbers.float() / 64 if isinstance(a, Scaled) else a for a in args]
        return function(*plain, **(kwargs or {}))


def layer(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    return network.to(**options) if options else network


def with_weight(weight: Tensor, bias: bool = True) -> nn.Sequential:
    network = layer()
    network[0].weight = nn.Parameter(weight, requires_grad=False)
    network[0].bias = network[0].bias if bias else None
    return network


def functional() -> Tensor:
    z, y = torch._to_functional_tensor(draw(2, 4)), torch._to_functional_tensor(Y)
    torch._enable_functionalization(reapply_views=True)
    try:
        return torch._from_functional_tensor(F.cross_entropy(z, y))
    finally:
        torch._disable_functionalization()


def fake() -> tuple[Any, ...]:
    with FakeTensorMode():
        out = layer()(torch.ones(2, 3))
        loss = F.cross_entropy(out, torch.zeros(2).long())
    return type(out).__name__, tuple(out.shape), type(loss).__name__


SCRIPTS: dict[str, Callable[[], Any]] = {
    "a subclass that only has a name": lambda: F.cross_entropy(draw(2, 4).as_subclass(Named), Y),
    "a named subclass as input of a layer": lambda: layer()(draw(2, 3).as_subclass(Named)),
    "two tensors": lambda: layer()(TwoTensor(draw(2, 3), draw(2, 3))).b,
    "two tensors in the loss": lambda: F.cross_entropy(TwoTensor(draw(2, 4), draw(2, 4)), Y).a,
    "class weights of a subclass": lambda: F.cross_entropy(
        draw(2, 4), Y, weight=torch.ones(4).as_subclass(Named)
    ),
    "an int8 weight": lambda: with_weight(Scaled(torch.ones(4, 3).to(torch.int8)))(draw(2, 3)),
    "linear_cross_entropy of an int8 weight": lambda: F.linear_cross_entropy(
        draw(2, 3), Scaled(torch.ones(4, 3).to(torch.int8)), Y
    ),
    "a sparse weight": lambda: with_weight(draw(4, 3).to_sparse_csr(), bias=False)(draw(2, 3)),
    "a sparse input": lambda: layer()(draw(2, 3).to_sparse()).to_dense(),
    "mkldnn": lambda: layer()(draw(2, 3)) + torch.zeros(1).to_mkldnn().to_dense(),
    "nested": lambda: layer()(torch.nested.nested_tensor([draw(2, 3), draw(1, 3)])).to_padded_tensor(0.0),
    "jagged": lambda: layer()(
        torch.nested.nested_tensor([draw(2, 3), draw(1, 3)], layout=torch.jagged)
    ).values(),
    "complex": lambda: nn.Linear(3, 4).to(torch.complex64)(torch.zeros(2, 3, dtype=torch.cfloat)).sum() * 0,
    "negated lazily": lambda: F.cross_entropy(torch.complex(draw(2, 4), draw(2, 4)).conj().imag, Y),
    "a layer on what is negated lazily": lambda: layer()(torch.complex(draw(2, 3), draw(2, 3)).conj().imag),
    "zeros without memory": lambda: layer()(torch._efficientzerotensor((2, 3))),
    "functional": functional,
    "fake": fake,
    "meta": lambda: layer(device="meta")(torch.ones(2, 3, device="meta")).shape,
    "quantized": lambda: F.linear(draw(2, 3), torch.quantize_per_tensor(draw(4, 3), 0.1, 0, torch.qint8).dequantize()),
    "int weight": lambda: with_weight(torch.ones(4, 3).long(), bias=False)[0](torch.ones(2, 3).long()),
    "float8": lambda: torch.ones(2, 3).to(torch.float8_e4m3fn).float() + layer()[0](draw(2, 3))[:, :3],
    "inference": lambda: torch.inference_mode()(lambda: layer()(draw(2, 3)))(),
    "vmap of the loss": lambda: torch.vmap(F.cross_entropy)(draw(3, 2, 4), Y.expand(3, 2)),
    "grad of the loss": lambda: torch.func.grad(F.cross_entropy)(draw(2, 4), Y),
    "jvp": lambda: torch.func.jvp(layer(), (draw(2, 3),), (torch.ones(2, 3),))[1],
    "hessian": lambda: torch.func.hessian(lambda z: F.cross_entropy(z, Y))(draw(2, 4)),
    "keywords": lambda: F.cross_entropy(target=Y, input=draw(2, 4).as_subclass(Named)),
}  # fmt: skip


def outcome(script: Callable[[], Any]) -> Any:
    try:
        return script()
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_with_other_tensors_runs_under_patch_as_without(name):
    wanted = outcome(SCRIPTS[name])
    with gt.patch():
        got = outcome(SCRIPTS[name])
    assert type(got) is type(wanted)
    if isinstance(wanted, Tensor):
        torch.testing.assert_close(got, wanted)
    else:
        assert got == wanted


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_converted_model_takes_other_tensors_as_the_plain_one(name, monkeypatch):
    wanted, plain, converted = outcome(SCRIPTS[name]), layer, []

    def convert(**options: Any) -> nn.Sequential:
        converted.append(gt.convert(plain(**options)))
        return converted[-1].module

    monkeypatch.setitem(globals(), "layer", convert)
    got = outcome(SCRIPTS[name])
    assert type(got) is type(wanted)
    if isinstance(wanted, Tensor):
        torch.testing.assert_close(got, wanted)
    else:
        assert got == wanted


def test_a_tensor_with_functions_of_its_own_is_handed_pytorchs_names():
    seen = []
    for patched in (False, True):
        Recorder.seen.clear()
        z, W = draw(2, 4).as_subclass(Recorder), draw(4, 4).as_subclass(Recorder)
        if patched:
            with gt.patch():
                F.cross_entropy(z, Y, reduction="sum"), F.linear_cross_entropy(z, W, Y)
        else:
            F.cross_entropy(z, Y, reduction="sum"), F.linear_cross_entropy(z, W, Y)
        seen.append(list(Recorder.seen))
    assert seen[0] == seen[1]
    assert seen[0][0][0] is F.cross_entropy


def test_the_report_names_the_kind_of_tensor():
    with gt.patch() as replaced:
        F.cross_entropy(draw(2, 4).as_subclass(Named), Y)
        layer()(torch.nested.nested_tensor([draw(2, 3)]))
    assert [line.split(": ", 1)[1] for line in replaced.left] == [
        "left to PyTorch (DtypeError: a Named may have operators of its own)",
        "left to PyTorch (DtypeError: a tensor is nested)",
    ]
    report = gt.convert(
        nn.Sequential(with_weight(Scaled(torch.ones(4, 3).to(torch.int8))), layer())
    )
    assert report.left == ["0.0: Linear (weight: a Scaled may have operators of its own)"]
    assert report.replaced == ["1.0: Linear, 1.1: ReLU -> linear_act"]
    left = gt.convert(layer(dtype=torch.complex64)).left
    assert left == ["0: Linear (weight: it is of torch.complex64)"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_loss_has_pytorchs_dtype_under_patch_and_after_convert(dtype, autocast):
    z, W = draw(2, 4, dtype=dtype), draw(4, 4, dtype=dtype)
    p = torch.softmax(draw(2, 4), 1)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((z, Y), {}),
        ((z, Y), {"reduction": "none"}),
        ((z, Y), {"weight": torch.ones(4, dtype=dtype), "label_smoothing": 0.1}),
        ((z, p.to(dtype)), {}),
        ((z, p), {}),
        ((z, p.double()), {}),
    ]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for args, options in calls:
            wanted = F.cross_entropy(*args, **options)
            with gt.patch():
                got = F.cross_entropy(*args, **options)
            criterion = gt.convert(nn.CrossEntropyLoss(**options)).module
            assert got.dtype == wanted.dtype
            assert criterion(*args).dtype == wanted.dtype
            bound = 2 * torch.finfo(min(dtype, wanted.dtype, key=lambda d: d.itemsize)).eps
            torch.testing.assert_close(got, wanted, rtol=bound, atol=bound)
        wanted = F.linear_cross_entropy(z, W, Y)
        with gt.patch():
            assert F.linear_cross_entropy(z, W, Y).dtype == wanted.dtype


@pytest.mark.parametrize("like", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_gradient_of_images_is_in_pytorchs_order(like):
    x, y = draw(2, 3, 2, 2).to(memory_format=like).requires_grad_(), torch.zeros(2, 2, 2).long()
    wanted = torch.autograd.grad(F.cross_entropy(x, y), x)[0]
    with gt.patch():
        got = [torch.autograd.grad(F.cross_entropy(x, y), x)[0]]
    got += torch.autograd.grad(gt.convert(nn.CrossEntropyLoss()).module(x, y), x)
    for gradient in got:
        assert gradient.stride() == wanted.stride()
        torch.testing.assert_close(gradient, wanted)


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    """One process, on its own."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def sharded(network: nn.Module, mesh: DeviceMesh) -> nn.Module:
    fully_shard(network[0], mesh=mesh)
    return fully_shard(network, mesh=mesh)


def sharded_whole(network: nn.Module, mesh: DeviceMesh) -> nn.Module:
    return fully_shard(network, mesh=mesh)


def in_parallel(network: nn.Module, mesh: DeviceMesh) -> nn.Module:
    return parallelize_module(network, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


@pytest.mark.parametrize("when", ["patched", "converted before", "converted after"])
@pytest.mark.parametrize("spread", [sharded, sharded_whole, in_parallel])
def test_sharded_and_parallel_models_train_as_without_this_package(spread, when, mesh):
    def trained(how: str) -> list[Tensor]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4))
        if how == "converted before":
            gt.convert(network)
        network = spread(network, mesh)
        if how == "converted after":
            gt.convert(network)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(network(draw(2, 3)), Y).backward()
            optimizer.step()
        return [p.full_tensor() for p in network.parameters()]

    wanted = trained("plain")
    if when == "patched":
        with gt.patch():
            got = trained("plain")
    else:
        got = trained(when)
    torch.testing.assert_close(got, wanted)


def test_losses_of_distributed_tensors_are_pytorchs(mesh):
    z, y = draw(2, 4), Y
    wanted = F.cross_entropy(z, y)
    for placement in (Shard(0), Replicate()):
        spread = distribute_tensor(z, mesh, [placement]).requires_grad_()
        with gt.patch() as replaced:
            loss = F.cross_entropy(spread, distribute_tensor(y, mesh, [placement]))
        loss.backward()
        assert isinstance(loss, DTensor)
        assert isinstance(spread.grad, DTensor)
        torch.testing.assert_close(loss.full_tensor(), wanted)
        assert "a DTensor may have operators of its own" in replaced.left[0]
