"""The state of `gpubackprop.torch`'s optimizers, however it came about: other orders in memory, casts,
checkpoints of old, other defaults. PyTorch's single-tensor optimizers are the reference."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gpubackprop.torch as gt
from gpubackprop.errors import DtypeError, StateError
from tests.torch_paths import Path, path  # noqa: F401

RULES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("Adam", {"lr": 0.1, "amsgrad": True}),
    ("AdamW", {"lr": 0.1}),
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=[f"{n} {' '.join(o)}" for n, o in RULES])
MODULES = (gt, torch.optim)
Reorder = Callable[[Tensor], Tensor]


def channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def permuted(t: Tensor) -> Tensor:
    return t.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2)


def with_gaps(t: Tensor) -> Tensor:
    return torch.stack([t, t], -1)[..., 0]


def turned(t: Tensor) -> Tensor:
    """A view of the same memory in another order: only the strides say so."""
    return t.contiguous().view(-1).as_strided(t.shape, [1, 2, 6, 24])


ORDERS: dict[str, Reorder] = {
    "contiguous": Tensor.contiguous,
    "channels last": channels_last,
    "permuted": permuted,
    "gaps": with_gaps,
    "turned": turned,
}


def draw(step: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def made(
    module: Any, rule: tuple[str, dict[str, Any]], device: str, dtype: torch.dtype = torch.float64
) -> tuple[nn.Parameter, Any]:
    p = nn.Parameter(draw(99, 2, 3, 4, 5).to(device, dtype))
    return p, getattr(module, rule[0])([p], **rule[1])


def step(p: nn.Parameter, optimizer: Any, number: int, order: Reorder = Tensor.contiguous) -> None:
    p.grad = order(draw(number, *p.shape).to(p.device, p.dtype))
    optimizer.step()


def assert_same(ours: Any, theirs: Any, rtol: float = 1e-11) -> None:
    """Parameters and state of two pairs."""
    (p, a), (q, b) = ours, theirs
    torch.testing.assert_close(p, q, rtol=rtol, atol=rtol)
    assert p.stride() == q.stride()
    assert a.state[p].keys() == b.state[q].keys()
    for key, value in b.state[q].items():
        torch.testing.assert_close(a.state[p][key].to(value), value, rtol=rtol, atol=rtol)


@every_rule
@pytest.mark.parametrize("order", ORDERS)
def test_a_parameter_may_change_its_order_in_memory_between_steps(rule, order, path: Path):  # noqa: F811
    pairs = [made(module, rule, path.device) for module in MODULES]
    for p, optimizer in pairs:
        step(p, optimizer, 0)
        p.data = ORDERS[order](p.data)
        step(p, optimizer, 1)
        step(p, optimizer, 2, channels_last)
        p.data = p.data.contiguous()
        step(p, optimizer, 3, with_gaps)
    assert_same(*pairs)


@every_rule
def test_a_module_may_be_moved_to_channels_last_after_a_step(rule, path: Path):  # noqa: F811
    found = []
    for module in MODULES:
        torch.manual_seed(0)
        net = nn.Conv2d(3, 4, 3).double().to(path.device)
        optimizer = getattr(module, rule[0])(net.parameters(), **rule[1])
        for number in range(4):
            if number == 2:
                net.to(memory_format=torch.channels_last)
            optimizer.zero_grad()
            net(draw(number, 2, 3, 5, 5).to(path.device)).square().mean().backward()
            optimizer.step()
        found.append((net.weight, net.bias))
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)


@every_rule
@pytest.mark.parametrize("order", ORDERS)
def test_slots_may_have_another_order_and_stay_the_same_tensors(rule, order, path: Path):  # noqa: F811
    """Put there by hand, or loaded."""
    for way in ("by hand", "loaded"):
        pairs = [made(module, rule, path.device) for module in MODULES]
        for p, optimizer in pairs:
            step(p, optimizer, 0)
            kept = optimizer.state_dict()
            for state in kept["state"].values():
                slots = {k: ORDERS[order](v) for k, v in state.items() if k != "step"}
                (optimizer.state[p] if way == "by hand" else state).update(slots)
            if way == "loaded":
                optimizer.load_state_dict(kept)
            before = dict(optimizer.state[p])
            for number in (1, 2):
                step(p, optimizer, number)
            assert all(optimizer.state[p][key] is slot for key, slot in before.items())
        assert_same(*pairs)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_elements_that_share_memory_are_pytorchs_error_and_change_nothing(name, path: Path):  # noqa: F811
    for module in MODULES:
        whole = nn.Parameter(torch.ones(2, device=path.device))
        shared = nn.Parameter(torch.ones(1, device=path.device).expand(4))
        optimizer = getattr(module, name)([whole, shared], lr=0.1)
        whole.grad = None if module is torch.optim else torch.ones_like(whole)
        shared.grad = torch.ones(4, device=path.device)
        with pytest.raises(RuntimeError, match="more than one"):
            optimizer.step()
        assert whole.tolist() == [1.0, 1.0]


def cast(dtype: torch.dtype) -> Callable[[nn.Parameter], None]:
    def change(p: nn.Parameter) -> None:
        p.data = p.data.to(dtype)

    return change


def shrink(p: nn.Parameter) -> None:
    p.data = p.data[:1]


def grow(p: nn.Parameter) -> None:
    p.data = torch.cat([p.data, p.data])


def reshape(p: nn.Parameter) -> None:
    p.data = p.data.reshape(5, 4, 3, 2)


CHANGES = {
    "double": cast(torch.float64),
    "shrunk": shrink,
    "grown": grow,
    "of another shape": reshape,
}


@pytest.mark.parametrize("rule", RULES[1:], ids=lambda rule: rule[0])
@pytest.mark.parametrize("change", CHANGES)
def test_state_that_no_longer_fits_its_parameter_raises_where_pytorch_raises(
    rule, change, path: Path  # noqa: F811
):  # fmt: skip
    pairs = [made(module, rule, path.device, torch.float32) for module in MODULES]
    raised = []
    for p, optimizer in pairs:
        step(p, optimizer, 0)
        CHANGES[change](p)
        before = p.detach().clone()
        try:
            step(p, optimizer, 1)
        except RuntimeError as error:
            raised.append(error)
            assert optimizer is not pairs[0][1] or torch.equal(p, before)
    assert len(raised) in (0, 2)
    assert [type(error) for error in raised[:1]] in ([], [StateError])
    if not raised:  # SGD goes on with the buffer in its own type
        assert_same(*pairs, rtol=1e-6)
        assert pairs[0][1].state[pairs[0][0]]["momentum_buffer"].dtype == torch.float32


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_first_momentum_along_a_gradient_older_than_the_cast_has_pytorchs_dtype(
    dtype, decay, path: Path  # noqa: F811
):  # fmt: skip
    """A parameter is cast to float64, and its gradient is not; state of 16 bits is float32 here."""
    rule = ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": decay})
    pairs = [made(module, rule, path.device, dtype) for module in MODULES]
    for p, optimizer in pairs:
        p.grad = draw(0, *p.shape).to(p.device, dtype)
        p.data = p.data.double()
        optimizer.step()
        p.grad = None
        step(p, optimizer, 1)
    (p, ours), (q, theirs) = pairs
    wanted = theirs.state[q]["momentum_buffer"].dtype
    wider = {torch.float64: torch.float64}.get(wanted, torch.float32)
    assert ours.state[p]["momentum_buffer"].dtype == wider
    assert wanted == (torch.float64 if decay else dtype)
    rtol = 1e-11 if decay else 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(p, q, rtol=rtol, atol=rtol)


def test_state_of_a_float32_parameter_serves_it_in_16_bits_and_back(path: Path):  # noqa: F811
    """PyTorch's raises there; here the state of 16-bit parameters is float32 anyway."""
    p, optimizer = made(gt, ("Adam", {"lr": 0.1}), path.device, torch.float32)
    q, theirs = made(torch.optim, ("Adam", {"lr": 0.1}), path.device, torch.float32)
    for number, dtype in enumerate((torch.float32, torch.bfloat16, torch.float32)):
        p.data, q.data = p.data.to(dtype), q.data.to(dtype).float()
        p.grad = draw(number, *p.shape).to(p.device, dtype)
        q.grad = p.grad.float()
        optimizer.step(), theirs.step()
        torch.testing.assert_close(p.float(), q.to(dtype).float(), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(
        optimizer.state[p]["exp_avg"], theirs.state[q]["exp_avg"], rtol=1e-6, atol=1e-7
    )


def test_state_in_bfloat16_is_taken_where_pytorchs_fused_step_takes_it(path: Path):  # noqa: F811
    found = []
    for fused in (None, True):
        p, optimizer = made(gt, ("Adam", {"lr": 0.1, "fused": fused}), path.device, torch.float32)
        step(p, optimizer, 0)
        optimizer.state[p]["exp_avg"] = optimizer.state[p]["exp_avg"].bfloat16()
        if not fused:
            with pytest.raises(StateError, match="bfloat16"):
                step(p, optimizer, 1)
            optimizer.state[p]["exp_avg"] = optimizer.state[p]["exp_avg"].float()
        step(p, optimizer, 1)
        found.append(p.detach())
        assert optimizer.state[p]["exp_avg"].dtype == (torch.bfloat16 if fused else torch.float32)
    torch.testing.assert_close(*found)


COUNTS: dict[str, Callable[[Tensor], Any]] = {
    "int": lambda t: int(t),
    "float": lambda t: float(t),
    "float64": Tensor.double,
    "int64": Tensor.long,
    "one element": lambda t: t.reshape(1),
}


@contextmanager
def defaults(dtype: torch.dtype, device: str) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("kind", COUNTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_step_count_of_any_kind_is_counted_on(kind, dtype, device, path: Path):  # noqa: F811
    """Loaded, unpickled and put there by hand; under any default dtype and device."""
    rule = "Adam", {"lr": 0.1, "betas": (0.5, 0.9)}
    q, theirs = made(torch.optim, rule, path.device)
    for number in range(4):
        step(q, theirs, number)
    for way in ("by hand", "loaded", "unpickled"):
        p, optimizer = made(gt, rule, path.device)
        step(p, optimizer, 0), step(p, optimizer, 1)
        with defaults(dtype, device):
            kept = optimizer.state_dict()
            count = COUNTS[kind](kept["state"][0]["step"].cpu())
            if way == "by hand":
                optimizer.state[p]["step"] = count
            elif way == "loaded":
                kept["state"][0]["step"] = count
                optimizer.load_state_dict(kept)
            else:
                optimizer.state[p]["step"] = count
                p, optimizer = pickle.loads(pickle.dumps((p, optimizer)))
        step(p, optimizer, 2)
        with defaults(dtype, device):
            gradient = draw_on_cpu(3, p)
        p.grad = gradient
        optimizer.step()
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-11)
        assert float(optimizer.state[p]["step"]) == 4


def draw_on_cpu(number: int, p: Tensor) -> Tensor:
    with torch.device("cpu"):
        return draw(number, *p.shape).to(p.device)


def test_a_step_count_of_several_elements_is_an_error(path: Path):  # noqa: F811
    p, optimizer = made(gt, RULES[3], path.device)
    step(p, optimizer, 0)
    optimizer.state[p]["step"] = torch.ones(2, device=path.device)
    with pytest.raises(StateError, match=r"state\['step'\] has the shape \(2,\)"):
        step(p, optimizer, 1)


@every_rule
@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_default_dtype_and_device_change_neither_values_nor_the_kinds_of_state(
    rule, fused, dtype, path: Path  # noqa: F811
):  # fmt: skip
    with_option = rule[0], rule[1] | {"fused": fused}
    pairs = [made(module, with_option, path.device) for module in MODULES]
    for module, (p, optimizer) in zip(MODULES, pairs, strict=True):
        for number in range(3):
            p.grad = draw(number, *p.shape).to(p.device)
            with defaults(dtype, "meta" if module is gt else path.device):
                optimizer.step()
    assert_same(*pairs)
    (p, ours), (q, theirs) = pairs
    for key, value in theirs.state[q].items():
        assert (ours.state[p][key].dtype, ours.state[p][key].shape) == (value.dtype, value.shape)
        assert ours.state[p][key].device == p.device


@pytest.mark.parametrize("p_dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("g_dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("rule", [RULES[0], RULES[1], RULES[4]], ids=lambda rule: rule[0])
def test_gradients_may_have_a_type_of_their_own(rule, p_dtype, g_dtype, path: Path):  # noqa: F811
    """`grad_dtype`. The update is made in the wider type, and rounded once."""
    p, optimizer = made(gt, rule, path.device, p_dtype)
    q, theirs = made(torch.optim, rule, path.device)
    q.data = p.data.double()
    p.grad_dtype = g_dtype
    for number in range(3):
        q.data = p.data.double()
        p.grad = draw(number, *p.shape).to(path.device, g_dtype)
        q.grad = p.grad.double()
        optimizer.step(), theirs.step()
        assert p.grad.dtype == g_dtype
        torch.testing.assert_close(p, q.to(p_dtype), rtol=torch.finfo(p_dtype).eps, atol=1e-6)


def test_a_learning_rate_may_turn_from_a_tensor_into_a_number_and_back(path: Path):  # noqa: F811
    p = nn.Parameter(torch.zeros(2, device=path.device))
    optimizer = gt.SGD([p], lr=torch.tensor(0.5, device=path.device))
    for rate in (0.0, torch.tensor(0.25, device=path.device), torch.tensor(1), 0.0, 0.125):
        p.grad = torch.ones_like(p)
        optimizer.step()
        optimizer.param_groups[0]["lr"] = rate
    assert p.tolist() == [-1.75, -1.75]


def test_a_rate_without_memory_is_pytorchs_error_and_changes_no_parameter(path: Path):  # noqa: F811
    # the second is updated in a launch of its own
    parameters = [nn.Parameter(draw(1, 3).to(path.device, n)) for n in (torch.float32, torch.half)]
    before = [p.detach().clone() for p in parameters]
    rates = 0.1, torch.tensor(0.1, device="meta")
    optimizer = gt.Adam([{"params": p, "lr": lr} for p, lr in zip(parameters, rates, strict=True)])
    for p in parameters:
        p.grad = torch.ones_like(p)
    with path(), pytest.raises(RuntimeError, match="meta tensor"):
        optimizer.step()
    for p, old in zip(parameters, before, strict=True):
        assert torch.equal(p, old)
        assert optimizer.state[p]["step"] == 0


def test_sgd_makes_no_buffer_where_a_rate_without_memory_stops_its_step_as_in_pytorch():
    for module in (torch.optim, gt):
        p = nn.Parameter(torch.ones(3))
        p.grad = torch.ones(3)
        optimizer = module.SGD([p], momentum=0.9)
        optimizer.param_groups[0]["lr"] = torch.tensor(0.1, device="meta")
        with pytest.raises(RuntimeError, match="meta tensor"):
            optimizer.step()
        assert not optimizer.state.get(p)


def test_a_group_that_lacks_a_setting_raises_before_state_is_made():
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    for adam in (gt.Adam([p]), torch.optim.Adam([p])):
        adam.load_state_dict(torch.optim.SGD([p]).state_dict())
        with pytest.raises(KeyError, match="betas"):
            adam.step()
        assert not adam.state


@pytest.mark.parametrize("cast", [torch.float16, torch.float32], ids=str)
def test_an_old_gradient_and_state_of_its_type_update_a_parameter_that_was_cast(cast, path: Path):  # noqa: F811
    parameters = []
    with path():
        for module in MODULES:
            p, optimizer = made(module, ("Adam", {"lr": 0.1}), path.device)
            step(p, optimizer, 1)
            p.data = p.data.to(cast)
            optimizer.step()
            parameters.append(p)
    unit = torch.finfo(cast).eps
    torch.testing.assert_close(*parameters, rtol=unit, atol=unit)


def test_parameters_listed_twice_or_sharing_memory_or_counts_are_updated_in_turn(path: Path):  # noqa: F811
    """As PyTorch's loop does; on a GPU one launch would let threads race for them."""
    found = []
    for module in MODULES:
        a = nn.Parameter(torch.ones(3, dtype=torch.float64, device=path.device))
        b = nn.Parameter(a.data)
        c = nn.Parameter(torch.full_like(a.data, 2.0))
        with pytest.warns(UserWarning, match="duplicate parameters"):
            optimizer = module.Adam([a, a, b, c], lr=0.1, betas=(0.5, 0.5))
        for p in (a, b, c):
            p.grad = torch.arange(1.0, 4.0, dtype=torch.float64, device=path.device)
        optimizer.step()
        optimizer.state[b]["step"] = optimizer.state[c]["step"]
        optimizer.step()
        found.append((a, c, *(float(optimizer.state[p]["step"]) for p in (a, b, c))))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sparse_momentum_is_loaded_and_refused_by_a_step_that_changes_nothing(dtype):
    p = nn.Parameter(torch.ones(3, 2, dtype=dtype))
    theirs, ours = (module.SGD([p], lr=0.1, momentum=0.9) for module in (torch.optim, gt))
    p.grad = torch.ones_like(p).to_sparse()
    theirs.step()
    ours.load_state_dict(theirs.state_dict())
    before, p.grad = p.detach().clone(), torch.ones_like(p)
    with pytest.raises(DtypeError, match="sparse"):
        ours.step()
    assert torch.equal(p, before)


@every_rule
def test_copies_and_pickles_go_on_by_themselves(rule, path: Path):  # noqa: F811
    for take in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
        pairs = [made(module, rule, path.device) for module in MODULES]
        copies = []
        for p, optimizer in pairs:
            step(p, optimizer, 0)
            copies.append(take((p, optimizer)))
            step(p, optimizer, 1)
            for number in (2, 3):
                step(*copies[-1], number)
        assert_same(*pairs)
        assert_same(*copies)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_the_largest_second_moment_of_amsgrad_is_in_the_state_as_pytorchs(name, path: Path):  # noqa: F811
    rule = name, {"lr": 0.1, "amsgrad": True, "betas": (0.5, 0.5)}
    pairs = [made(module, rule, path.device) for module in MODULES]
    for p, optimizer in pairs:
        step(p, optimizer, 0)
        p.grad = torch.zeros_like(p)  # v falls, the largest stays
        optimizer.step()
    assert_same(*pairs)
    p, ours = pairs[0]
    state = ours.state_dict()["state"][0]
    assert list(state) == ["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
    torch.testing.assert_close(state["max_exp_avg_sq"], 2 * state["exp_avg_sq"])
    pairs[1][1].load_state_dict(copy.deepcopy(ours.state_dict()))
    for pair in pairs:
        step(*pair, 2)
    torch.testing.assert_close(p, pairs[1][0], rtol=1e-11, atol=1e-11)


def test_a_gradient_that_is_nan_stays_in_the_largest_second_moment(path: Path):  # noqa: F811
    for module in MODULES:
        p, optimizer = made(module, ("Adam", {"lr": 0.1, "amsgrad": True}), path.device)
        for number in range(2):
            p.grad = draw(number, *p.shape).to(p.device)
            p.grad[0, 0, 0, 0] = torch.nan if number == 0 else 1.0
            optimizer.step()
        largest = optimizer.state[p]["max_exp_avg_sq"]
        assert largest.isnan().sum() == p.isnan().sum() == 1


@pytest.mark.parametrize("rule", [RULES[1], RULES[3]], ids=lambda rule: rule[0])
def test_parameters_of_fsdp2_are_updated_on_their_local_shards(rule):
    """One rank; their state is a DTensor too and goes through a checkpoint."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh, found = init_device_mesh("cpu", (1,)), []
        for module in MODULES:
            torch.manual_seed(0)
            net = fully_shard(nn.Linear(5, 4).double(), mesh=mesh)
            optimizer = getattr(module, rule[0])(net.parameters(), **rule[1])
            for number in range(4):
                net(draw(number, 3, 5)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            found.append([p.full_tensor() for p in net.parameters()])
            slots = [
                s for state in optimizer.state.values() for k, s in state.items() if k != "step"
            ]
            assert {type(slot).__name__ for slot in slots} == {"DTensor"}
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    finally:
        dist.destroy_process_group()
