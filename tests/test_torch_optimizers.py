"""SGD, Adam and AdamW of `gpubackprop.torch` against PyTorch's, judged in float64, three ways."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch

import gpubackprop.torch as gt
from gpubackprop.errors import DtypeError, OptionError
from tests.emulator import cupy_stub
from tests.emulator.module import missing_compiler
from tests.tolerances import Draws, assert_equal_in_float64
from tests.torch_paths import Path, array, emulated, path  # noqa: F401

SHAPES = [(3, 4), (5000,), (0,), (1,), (), (2, 3, 4, 5)]
CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1, "maximize": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("Adam", {"lr": 0.01}),
    (
        "Adam",
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1, "maximize": True},
    ),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.01, "betas": (0.8, 0.6), "weight_decay": 0.1, "amsgrad": True}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}),
]
NAMES = [f"{name} {' '.join(options)}" for name, options in CASES]


def parameters(dtype: torch.dtype, device: str, seed: int = 0) -> list[torch.nn.Parameter]:
    """Of every kind: large, empty, 0-d, channels last; starting values that float16 holds."""
    g = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=g).half().to(device, dtype) for shape in SHAPES]
    made[-1] = made[-1].to(memory_format=torch.channels_last)
    return [torch.nn.Parameter(tensor) for tensor in made]


def set_gradients(groups: list[list[torch.nn.Parameter]], step: int) -> None:
    """The same numbers to all; the first parameter is frozen for two steps."""
    g = torch.Generator().manual_seed(100 + step)
    for number, same in enumerate(zip(*groups, strict=True)):
        values = torch.randn(same[0].shape, generator=g).half()
        for p in same:
            p.grad = None if number == 0 and step < 2 else values.to(p.device, p.dtype)


def run(name: str, options: dict[str, Any], dtype: torch.dtype, device: str) -> list[Any]:
    """Parameters after six steps: ours, PyTorch's, PyTorch's in float64."""
    groups = [
        parameters(dtype, device),
        parameters(dtype, device),
        parameters(torch.float64, device),
    ]
    optimizers = [
        getattr(module, name)(group, **options)
        for module, group in zip((gt, torch.optim, torch.optim), groups, strict=True)
    ]
    for step in range(6):
        set_gradients(groups, step)
        for optimizer in optimizers:
            optimizer.step()
    return groups


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", range(len(CASES)), ids=NAMES)
def test_steps_have_no_more_error_than_pytorchs(case, dtype, path: Path):  # noqa: F811
    draws = Draws()
    for ours, theirs, exact in zip(*run(*CASES[case], dtype, path.device), strict=True):
        if dtype == torch.float64:
            assert_equal_in_float64(array(ours), array(exact))
        else:
            draws.add(array(ours), array(theirs.double()), array(exact))
    if dtype != torch.float64:
        draws.check()


@pytest.mark.parametrize("case", range(len(CASES)), ids=NAMES)
def test_state_goes_from_pytorch_and_back(case, path: Path):  # noqa: F811
    """Two steps there, two here, two there: the same as six there."""
    name, options = CASES[case]
    groups = [parameters(torch.float32, path.device) for _ in range(2)]
    mixed, alone = groups
    theirs, reference = (getattr(torch.optim, name)(group, **options) for group in groups)
    ours = getattr(gt, name)(mixed, **options)
    for step in range(6):
        set_gradients(groups, step)
        if step == 2:
            ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
        if step == 4:
            theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
        (ours if 2 <= step < 4 else theirs).step()
        reference.step()
    for a, b in zip(mixed, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for key, state in reference.state_dict()["state"].items():
        kept = ours.state_dict()["state"][key]
        assert list(kept) == list(state)
        for a, b in zip(kept.values(), state.values(), strict=True):
            assert b is None or (a.shape, a.dtype) == (b.shape, b.dtype)


def test_16_bit_parameters_keep_float32_state_through_a_checkpoint(path: Path):  # noqa: F811
    group = parameters(torch.bfloat16, path.device)
    ours = gt.Adam(group, lr=0.1)
    set_gradients([group], 5)
    ours.step()
    kept = copy.deepcopy(ours.state_dict())
    other = gt.Adam(parameters(torch.bfloat16, path.device))
    other.load_state_dict(kept)
    for p, q in zip(group, other.param_groups[0]["params"], strict=True):
        assert other.state[q]["exp_avg"].dtype == torch.float32
        assert torch.equal(other.state[q]["exp_avg"], ours.state[p]["exp_avg"])


def test_groups_closures_schedulers_and_hooks_work_as_in_pytorch(path: Path):  # noqa: F811
    results = []
    for module in (gt, torch.optim):
        a, b, *_ = parameters(torch.float64, path.device)
        optimizer = module.Adam([{"params": [a], "lr": 0.1}, {"params": [b]}], lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        calls: list[int] = []
        optimizer.register_step_post_hook(lambda *_, calls=calls: calls.append(1))

        def closure(a=a, b=b, optimizer=optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = (a**2).sum() + (b**2).sum()
            loss.backward()
            return loss

        losses = []
        for _ in range(5):
            losses.append(optimizer.step(closure).item())
            scheduler.step()
        results.append((losses, a.tolist(), b.tolist(), len(calls)))
    assert results[0][3] == results[1][3] == 5
    for ours, theirs in zip(results[0][:3], results[1][:3], strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_backward_pass_through_parameters_that_a_step_has_changed_raises(name, path: Path):  # noqa: F811
    for dtype in (torch.float32, torch.bfloat16):
        w = torch.nn.Parameter(torch.full((2,), 2.0, device=path.device, dtype=dtype))
        x = torch.ones_like(w, requires_grad=True)
        optimizer = getattr(gt, name)([w], lr=1.0)
        for _ in range(2):  # the second step has the table of the first
            loss = (x * w).sum()
            w.grad = torch.ones_like(w)
            optimizer.step()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
        for slot in optimizer.state[w].values():
            assert slot._version > 0


def test_a_gradient_that_is_not_finite_skips_the_step_where_a_scaler_says_so(path: Path):  # noqa: F811
    p = torch.nn.Parameter(torch.ones(3, device=path.device))
    optimizer = gt.AdamW([p], lr=0.1)
    optimizer.grad_scale = torch.tensor(4.0, device=path.device)
    optimizer.found_inf = torch.tensor(1.0, device=path.device)
    p.grad = torch.full_like(p, torch.inf)
    optimizer.step()
    assert torch.equal(p.cpu(), torch.ones(3))
    assert optimizer.state[p]["step"].item() == 0
    optimizer.found_inf.zero_()
    p.grad = torch.full_like(p, 8.0)
    optimizer.step()
    q = torch.nn.Parameter(torch.ones(3))
    reference = torch.optim.AdamW([q], lr=0.1)
    q.grad = torch.full_like(q, 2.0)
    reference.step()
    torch.testing.assert_close(p.detach().cpu(), q.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_are_left_unscaled_by_a_scalers_step(dtype, fused, path: Path):  # noqa: F811
    found = []
    for module in (gt, torch.optim):
        p, unused = (
            torch.nn.Parameter(torch.ones(3, device=path.device, dtype=dtype)) for _ in "ab"
        )
        q = torch.nn.Parameter(p.detach().clone()[:0])  # empty
        optimizer = module.Adam([p, unused, q], lr=0.1, fused=fused)
        scaler = torch.amp.GradScaler(path.device, init_scale=1024.0)
        scaler.scale((p * p).sum() + q.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        found.append((p.detach(), p.grad))
        assert unused.grad is None
    torch.testing.assert_close(found[0], found[1])
    assert found[0][1].tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("fused", [None, True])
def test_a_scaled_step_without_gradients_does_nothing(fused, path: Path):  # noqa: F811
    p = torch.nn.Parameter(torch.ones(2, device=path.device))
    optimizer = gt.SGD([p], lr=0.1, fused=fused)
    optimizer.grad_scale = torch.tensor(4.0, device=path.device)
    optimizer.step()
    assert p.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_a_scaler_hands_over_its_scale_to_a_fused_optimizer_alone(name):
    """What Lightning and accelerate look at: the attribute, and whether `step` was called."""
    for fused in (None, False, True):
        p = torch.nn.Parameter(torch.ones(2))
        optimizer = getattr(gt, name)([p], lr=0.1, fused=fused)
        twin = getattr(torch.optim, name)([p], lr=0.1, fused=fused)
        claims = [getattr(o, "_step_supports_amp_scaling", False) for o in (optimizer, twin)]
        assert claims == [bool(fused)] * 2
        if not fused:
            calls: list[int] = []
            step = optimizer.step
            optimizer.step = lambda *args, calls=calls, step=step: calls.append(1) or step(*args)
            scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
            for factor in (1.0, torch.inf, 1.0):
                optimizer.zero_grad()
                scaler.scale(p.sum() * factor).backward()
                scaler.step(optimizer)
                scaler.update()
            assert len(calls) == 2


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_subclass_may_clip_in_its_step_under_a_scaler(name, path: Path):  # noqa: F811
    found = []
    for module in (gt, torch.optim):

        class Clipping(getattr(module, name)):
            def step(self, closure: Any = None) -> Any:
                torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 0.5)
                return super().step(closure)

        p = torch.nn.Parameter(torch.tensor([3.0, -4.0, 0.1], device=path.device))
        optimizer = Clipping([p], lr=0.1)
        scaler = torch.amp.GradScaler(path.device, init_scale=1024.0)
        for factor in (1.0, 0.01, torch.inf, 2.0):
            optimizer.zero_grad()
            scaler.scale((p * p * factor).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        found.append((p.detach(), p.grad, torch.tensor(scaler.get_scale())))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


def test_hooks_of_load_state_dict_are_honoured_as_in_pytorch(path: Path):  # noqa: F811
    results = []
    for module in (gt, torch.optim):
        group = parameters(torch.float32, path.device)
        optimizer = module.Adam(group, lr=0.1)
        set_gradients([group], 5)
        optimizer.step()
        saved = copy.deepcopy(optimizer.state_dict())
        p, q = (torch.nn.Parameter(group[0].detach().clone()) for _ in "ab")
        other = module.Adam([p, q], lr=0.1)

        def crop(_, loaded: dict[str, Any]) -> dict[str, Any]:
            """The first two of six, by other numbers."""
            state = {7: copy.deepcopy(loaded["state"][0]), 9: loaded["state"][0]}
            state[7]["exp_avg"].zero_()
            return {
                "state": state,
                "param_groups": [loaded["param_groups"][0] | {"params": [7, 9]}],
            }

        def restart(optimizer: torch.optim.Optimizer, q=q) -> None:
            optimizer.state[q]["step"].zero_()

        other.register_load_state_dict_pre_hook(crop)
        other.register_load_state_dict_post_hook(restart)
        for _ in range(2):  # nothing of the first call is left for the second
            other.load_state_dict(copy.deepcopy(saved))
        results.append([other.state[t][key] for t in (p, q) for key in ("step", "exp_avg")])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs.cpu(), rtol=1e-6, atol=0)
    assert results[0][2].item() == 0


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_signatures_are_those_of_pytorch(name):
    ours, theirs = (inspect.signature(getattr(module, name)) for module in (gt, torch.optim))
    assert ours == theirs


@pytest.mark.emulated
@pytest.mark.skipif(bool(missing_compiler()), reason=missing_compiler() or "-")
def test_thousands_of_small_tensors_are_one_launch_and_one_for_their_coefficients():
    with emulated() as counts:
        group = [torch.nn.Parameter(torch.ones(3)) for _ in range(3000)]
        optimizer = gt.SGD(group, lr=0.5)
        for p in group:
            p.grad = torch.ones(3)
        optimizer.step()
        counts.clear()
        optimizer.step()
        rule = "gradient_descent_f32"
        assert counts.kernels == [f"prepare_table_{rule}", f"update_table_{rule}"]
        assert (counts.waits, counts.uploads) == (0, 0)
        assert all(torch.equal(p, torch.zeros(3)) for p in group)


@pytest.mark.emulated
@pytest.mark.skipif(bool(missing_compiler()), reason=missing_compiler() or "-")
def test_a_captured_step_follows_gradients_step_count_and_a_learning_rate_that_is_a_tensor():
    with emulated():
        # without the last: a gradient in another order is copied by PyTorch, which is no launch here
        groups = [parameters(torch.float32, "cpu")[:-1] for _ in range(2)]
        rate = torch.tensor(0.1)
        ours, theirs = gt.Adam(groups[0], lr=rate), torch.optim.Adam(groups[1], lr=0.1)
        set_gradients(groups, 5)
        ours.step(), theirs.step()
        set_gradients(groups, 6)  # at other addresses, as backward in a graph has them
        with cupy_stub.Stream(non_blocking=True) as stream:
            stream.begin_capture()
            ours.step()
            graph = stream.end_capture()
        for step in range(4):
            rate.fill_(0.1 / (step + 1))
            theirs.param_groups[0]["lr"] = 0.1 / (step + 1)
            for a, b in zip(*groups, strict=True):
                a.grad.copy_(b.grad.mul_(0.9))
            graph.launch()
            theirs.step()
            for a, b in zip(*groups, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)


@pytest.mark.emulated
@pytest.mark.skipif(bool(missing_compiler()), reason=missing_compiler() or "-")
def test_a_capture_without_a_step_before_it_says_what_to_do():
    with emulated():
        p = torch.nn.Parameter(torch.ones(3))
        p.grad = torch.ones(3)
        with cupy_stub.Stream(non_blocking=True) as stream:
            stream.begin_capture()
            try:
                with pytest.raises(RuntimeError, match="run a few steps"):
                    gt.SGD([p], lr=0.1).step()
            finally:
                stream.end_capture()


@pytest.mark.parametrize("case", range(len(CASES)), ids=NAMES)
def test_a_step_in_inference_mode_leaves_nothing_that_a_later_one_cannot_write(case, path: Path):  # noqa: F811
    name, options = CASES[case]
    groups = [parameters(torch.float64, path.device)[:-1] for _ in range(2)]
    ours, theirs = (
        getattr(module, name)(group, **options)
        for module, group in zip((gt, torch.optim), groups, strict=True)
    )
    with path():
        for step, mode in enumerate((True, False, True, False)):
            set_gradients(groups, step)
            theirs.step()  # PyTorch raises in the second step, but where it has no state
            with torch.inference_mode(mode):
                ours.step()
        for a, b in zip(*groups, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.emulated
@pytest.mark.skipif(bool(missing_compiler()), reason=missing_compiler() or "-")
def test_a_capture_may_follow_a_step_in_inference_mode():
    with emulated():
        p = torch.nn.Parameter(torch.ones(3))
        p.grad = torch.ones(3)
        optimizer = gt.SGD([p], lr=0.25)
        with torch.inference_mode():
            optimizer.step()
        p.grad = 2 * torch.ones(3)  # at another address: a new table
        with cupy_stub.Stream(non_blocking=True) as stream:
            stream.begin_capture()
            optimizer.step()
            graph = stream.end_capture()
        graph.launch()
        assert torch.equal(p, torch.full((3,), 0.25))


def test_what_is_not_offered_says_so(path: Path):  # noqa: F811
    p = torch.nn.Parameter(torch.ones(4, 4, device=path.device))
    with pytest.raises(OptionError, match=r"not offered; use the optimizer of torch\.optim"):
        gt.Adam([p], differentiable=True)
    optimizer = gt.SGD([p], lr=0.1)
    with pytest.raises(OptionError, match="differentiable"):
        optimizer.add_param_group({"params": [torch.ones(1)], "differentiable": True})
    optimizer = gt.SGD([p], lr=0.1)
    p.grad = torch.ones(4, 4, device=path.device).to_sparse()
    with pytest.raises(DtypeError, match="sparse"):
        optimizer.step()
    with pytest.raises(ValueError, match="Invalid learning rate"):
        gt.Adam([p], lr=-1.0)
