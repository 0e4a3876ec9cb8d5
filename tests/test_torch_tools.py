"""Tools for PyTorch models on a converted one: adapters, quantization, pruning, parametrizations,
graphs, checkpoints. Each gives what it gives on the model before."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from torch.utils.flop_counter import FlopCounterMode

import gpubackprop.torch as gt

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Dropout(0.0), nn.Linear(6, 3))
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh(), head)


class Lora(nn.Module):
    """As PEFT's: around the layer, which it calls, with a product of low rank beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))

    def merged(self) -> nn.Linear:
        self.base.weight.data += self.up.weight.data @ self.down.weight.data
        return self.base.requires_grad_()


def exchange(network: nn.Module, kind: type, new: Callable[[Any], nn.Module]) -> None:
    for name, child in list(network.named_children()):
        if isinstance(child, kind):
            setattr(network, name, new(child))
        else:
            exchange(child, kind, new)


def lora(network: nn.Sequential) -> Any:
    torch.manual_seed(1)
    exchange(network, nn.Linear, Lora)


def lora_merged(network: nn.Sequential) -> Any:
    lora(network)
    exchange(network, Lora, Lora.merged)


def lora_in_the_class(network: nn.Sequential) -> Any:
    """As torchao and unsloth do it: the layer gets another class."""

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    for m in network.modules():
        if type(m) is nn.Linear:
            m.__class__ = Doubled


def weight_norm(network: nn.Sequential) -> None:
    parametrizations.weight_norm(network[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older one, by a hook
        nn.utils.weight_norm(network[2])
    network[0].parametrizations.weight.original0.data *= 2
    network[2].weight_g.data *= 2


class Symmetric(nn.Module):
    def forward(self, W: Tensor) -> Tensor:
        return W.triu() + W.triu(1).mT


def parametrized(network: nn.Sequential) -> None:
    parametrize.register_parametrization(network[2], "weight", Symmetric())
    parametrizations.orthogonal(network[4][0])


def parametrized_and_back(network: nn.Sequential) -> None:
    parametrized(network)
    parametrize.remove_parametrizations(network[2], "weight")


def pruned(network: nn.Sequential) -> None:
    prune.l1_unstructured(network[0], "weight", 0.5)
    prune.ln_structured(network[4][0], "weight", 0.5, n=2, dim=0)


def made_sparse(network: nn.Sequential) -> None:
    pruned(network)
    prune.remove(network[0], "weight")


def frozen(network: nn.Sequential) -> None:
    for m in network[:3]:
        m.requires_grad_(False)


def tied(network: nn.Sequential) -> None:
    network[4][0].weight = network[2].weight


def initialised(network: nn.Sequential) -> None:
    torch.manual_seed(2)
    network.apply(lambda m: nn.init.normal_(m.weight) if type(m) is nn.Linear else None)


def saved_and_loaded(network: nn.Sequential) -> None:
    kept = copy.deepcopy(network.state_dict())
    initialised(network)
    network.load_state_dict(kept, assign=True)


def reset(network: nn.Sequential) -> None:
    torch.manual_seed(3)
    network.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)


def replaced_by_name(network: nn.Sequential) -> None:
    network.set_submodule("4.1", nn.ELU(0.5))
    network.get_submodule("4").insert(1, nn.BatchNorm1d(6).eval())


CHANGES = [
    lora, lora_merged, lora_in_the_class, weight_norm, parametrized, parametrized_and_back, pruned,
    made_sparse, frozen, tied, initialised, saved_and_loaded, reset, replaced_by_name,
]  # fmt: skip


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_a_model_that_a_tool_changes_computes_and_trains_as_without_convert(change, when):
    results = []
    for converted in (False, True):
        network = model()
        if converted and when == "after":
            gt.convert(network)
        change(network)
        if converted and when == "before":
            gt.convert(network)
        network.double()
        out = network(X.double())
        out.square().sum().backward()
        grads = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        results.append((out, grads, list(network.state_dict())))
    assert results[0][2] == results[1][2]
    torch.testing.assert_close(results[1][:2], results[0][:2], rtol=1e-10, atol=1e-12)


def quantized_dynamically(network: nn.Sequential) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(network, {nn.Linear}, dtype=torch.qint8)


def fused_for_quantization(network: nn.Sequential) -> nn.Module:
    pairs = [["0", "1"]]
    network.eval()
    return torch.ao.quantization.fuse_modules(network, pairs)


def observed(network: nn.Sequential) -> nn.Module:
    """Quantization that has to see what each module gives."""
    network.train().qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    prepared = torch.ao.quantization.prepare_qat(network)
    prepared(X)
    return prepared.eval()


def graph_mode(network: nn.Sequential) -> nn.Module:
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    mapping = torch.ao.quantization.get_default_qconfig_mapping("fbgemm")
    prepared = prepare_fx(network.eval(), mapping, (X,))
    prepared(X)
    return convert_fx(prepared)


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:Please use quant_min")
@pytest.mark.filterwarnings("ignore:.*reduce_range", "ignore:.*TypedStor")
@pytest.mark.parametrize(
    "quantize",
    [
        quantized_dynamically,
        fused_for_quantization,
        observed,
        pytest.param(graph_mode, marks=pytest.mark.slow),
    ],
    ids=lambda f: f.__name__,
)
def test_a_quantized_model_is_the_one_of_the_model_before(quantize):
    plain, converted = model(), gt.convert(model()).module
    wanted, got = quantize(plain), quantize(converted)
    assert [type(m).__name__ for m in got.modules()] == [type(m).__name__ for m in wanted.modules()]
    torch.testing.assert_close(got(X), wanted(X))


def test_a_batch_norm_is_folded_into_its_linear():
    from torch.nn.utils.fusion import fuse_linear_bn_eval

    network = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU()).eval()
    network[1].running_mean += 1
    wanted = network(X)
    gt.convert(network)
    network[0], network[1] = fuse_linear_bn_eval(network[0], network[1]), nn.Identity()
    torch.testing.assert_close(network(X), wanted)


class Log(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # fmt: skip
        self.names.append(getattr(function, "__name__", "?"))
        return function(*args, **(kwargs or {}))


def test_modes_see_the_operators_of_pytorch():
    plain, converted = model(), gt.convert(model()).module
    counts, logs = [], []
    for network in (plain, converted):
        with FlopCounterMode(display=False) as counter:
            network(X).sum().backward()
        counts.append(counter.get_flop_counts())
        with Log() as log:
            network(X)
        logs.append(log.names)
    assert counts[0] == counts[1]
    assert logs[0] == logs[1]
    with FlopCounterMode(display=False) as counter:
        for network in (plain, converted):
            with gt.patch():
                network(X).sum().backward()
    flops = {op: 2 * count for op, count in counts[0]["Global"].items()}
    assert counter.get_flop_counts()["Global"] == flops


def test_hooks_collect_the_pre_activations():
    seen: list[list[Tensor]] = []
    for network in (model(), gt.convert(model()).module):
        found: list[Tensor] = []
        for m in network.modules():
            if isinstance(m, nn.Linear):
                m.register_forward_hook(lambda m, x, y, found=found: found.append(y))
        network(X)
        seen.append(found)
    torch.testing.assert_close(seen[1], seen[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    "run",
    [
        lambda n, x: checkpoint(n, x, use_reentrant=False),
        lambda n, x: checkpoint(n, x, use_reentrant=True),
        lambda n, x: checkpoint_sequential(n, 2, x, use_reentrant=False),
        lambda n, x: torch.func.functional_call(n, dict(n.named_parameters()), (x,)),
        lambda n, x: torch.vmap(n)(x[:, None])[:, 0],
        lambda n, x: nn.Sequential(*n.children())(x),
        lambda n, x: (n[:2] + n[2:])(x),
        lambda n, x: torch.fx.symbolic_trace(n)(x),
        lambda n, x: copy.deepcopy(n).load_state_dict(n.state_dict()) and n(x),
    ],
    ids=[
        *("checkpoint", "reentrant", "checkpoint_sequential", "functional_call", "vmap"),
        *("children", "slices", "fx", "state_dict"),
    ],
)
def test_ways_to_run_a_model_give_what_they_give_without_convert(run):
    results = []
    for converted in (False, True):
        network = gt.convert(model()).module if converted else model()
        network, x = network.double(), X.double().requires_grad_()
        out = run(network, x)
        out.sum().backward()
        grads = [p.grad for p in network.parameters()]
        results.append((out, x.grad, grads))
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)


def test_an_ensemble_is_stacked_and_mapped():
    networks = [gt.convert(model()).module.double() for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(networks)
    base = copy.deepcopy(networks[0]).to("meta")

    def call(p: Any, b: Any, x: Tensor) -> Tensor:
        return torch.func.functional_call(base, (p, b), (x,))

    out = torch.vmap(call, (0, 0, None))(parameters, buffers, X.double())
    torch.testing.assert_close(out[1], model().double()(X.double()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "act", [nn.ReLU(), nn.Sigmoid(), nn.GELU(), nn.Softplus(), nn.ELU(), nn.SiLU()], ids=str
)
def test_autocast_gives_pytorchs_dtypes(act, dtype):
    network = nn.Sequential(nn.Linear(4, 4), act, nn.LayerNorm(4), nn.Linear(4, 4), act)
    results = []
    for converted in (False, True):
        if converted:
            gt.convert(network)
        with torch.autocast("cpu", dtype):
            out = network(X)
        results.append((out.dtype, network[:2].double()(X.double()).dtype))
        network.float()
    assert results[0] == results[1]


@pytest.fixture
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.usefixtures("default_device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_default_device_changes_no_result(dtype):
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cpu", dtype=dtype, requires_grad=True)

    y = torch.tensor([0, 1], device="cpu")
    weight = torch.ones(3, device="cpu", dtype=dtype)
    functions: list[tuple[Callable[..., Tensor], Callable[..., Tensor], int]] = [
        (gt.linear_act, lambda x, W, b: F.relu(F.linear(x, W, b)), 0),
        (
            lambda x, W, b: gt.cross_entropy(x, y, weight, label_smoothing=0.1),
            lambda x, W, b: F.cross_entropy(x, y, weight, label_smoothing=0.1),
            1,
        ),
        (
            lambda x, W, b: gt.linear_cross_entropy(x, W, y, linear_bias=b, weight=weight),
            lambda x, W, b: F.linear_cross_entropy(x, W, y, linear_bias=b, weight=weight),
            0,
        ),
    ]
    for ours, theirs, _ in functions:
        inputs = draw(2, 3), draw(3, 3), draw(3)
        grads = []
        for function in (ours, theirs):
            out = function(*inputs).sum()
            assert out.device.type == "cpu"
            found = torch.autograd.grad(out, inputs, allow_unused=True)
            grads.append([g for g in found if g is not None])
        bound = 2**-6 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(*grads, rtol=bound, atol=bound)


@pytest.mark.usefixtures("default_device")
def test_a_default_device_does_not_keep_from_fusing():
    with torch.device("cpu"):
        network = gt.convert(nn.Sequential(nn.Linear(4, 4), nn.SiLU())).module
        x = torch.ones(2, 4)
    assert "Backward" in type(network(x).grad_fn).__name__
    assert "Silu" not in type(network(x).grad_fn).__name__
    assert gt.linear_act(x, network[0].weight).device.type == "cpu"


@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.float64, torch.bfloat16, None])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_gradients_have_the_type_that_the_leaf_asks_for(dtype, grad_dtype):
    """`Tensor.grad_dtype`."""

    def gradients(module: Any) -> list[torch.dtype]:
        leaves = [
            torch.ones(shape, dtype=dtype, requires_grad=True) for shape in ((2, 3), (3, 3), (3,))
        ]
        for leaf in leaves:
            leaf.grad_dtype = grad_dtype
        x, W, b = leaves
        y = torch.tensor([0, 1])
        h = gt.linear_act(x, W, b) if module is gt else F.relu(F.linear(x, W, b))
        loss = module.cross_entropy(h, y) + module.cross_entropy(x, y)
        (loss + module.linear_cross_entropy(x, W, y)).backward()
        return [leaf.grad.dtype for leaf in leaves]

    assert gradients(gt) == gradients(F)


def test_the_import_does_not_load_the_compiler():
    """torch._dynamo takes as long as all of PyTorch. The first operator loads it, as PyTorch's
    optimizers do."""
    program = (
        "import sys, torch; before = set(sys.modules); import gpubackprop.torch; "
        "print(*sorted({'.'.join(m.split('.')[:2]) for m in set(sys.modules) - before}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = [name for name in run.stdout.split() if not name.startswith("gpubackprop")]
    assert loaded in ([], ["torch.utils"])
