"""What only a GPU shows: streams, graphs, memory pools, waits, a second device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import gpubackprop.torch as gt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
]


def problem(device: str = "cuda") -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 10)).to(device)
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(128, 32, generator=g), torch.randint(10, (128,), generator=g)
    return gt.convert(network).module, x.to(device), y.to(device)


@contextmanager
def waits_are_errors() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_never_waits_for_the_device():
    network, x, y = problem()
    optimizer = gt.AdamW(network.parameters(), lr=0.01)
    for step in range(3):
        optimizer.zero_grad()
        if step == 0:  # compiles, allocates the flag
            gt.cross_entropy(network(x), y).backward()
            optimizer.step()
            continue
        with waits_are_errors():
            gt.cross_entropy(network(x), y).backward()
            optimizer.step()


def test_a_whole_step_is_captured_and_replays_as_eager_steps():
    """PyTorch's recipe: warm up on a side stream, gradients made inside the graph."""
    results = []
    for graphed in (False, True):
        network, x, y = problem()
        optimizer = gt.Adam(network.parameters(), lr=torch.tensor(0.01, device="cuda"))

        def step(network=network, optimizer=optimizer, x=x, y=y) -> torch.Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss = gt.cross_entropy(network(x), y)
            loss.backward()
            optimizer.step()
            return loss.detach()

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        losses = []
        if graphed:
            graph = torch.cuda.CUDAGraph()
            optimizer.zero_grad(set_to_none=True)
            with torch.cuda.graph(graph):
                loss = step()
            for _ in range(10):
                graph.replay()
                losses.append(loss.item())
        else:
            losses = [step().item() for _ in range(10)]
        results.append(losses)
    assert results[0] == results[1]


def test_memory_comes_from_pytorchs_allocator_alone():
    import cupy

    network, x, y = problem()
    cupy.get_default_memory_pool().free_all_blocks()
    before = cupy.get_default_memory_pool().total_bytes()
    gt.cross_entropy(network(x), y, torch.rand(10, device="cuda")).backward()
    gt.SGD(network.parameters(), lr=0.1).step()
    assert cupy.get_default_memory_pool().total_bytes() == before


def test_work_is_queued_on_the_callers_stream():
    z, y = (
        torch.randn(4096, 4096, device="cuda"),
        torch.zeros(4096, dtype=torch.long, device="cuda"),
    )
    wanted = nn.functional.cross_entropy(2 * z, y)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        loss = gt.cross_entropy(z.mul_(2), y)  # reads what the stream has yet to write
    stream.synchronize()
    torch.testing.assert_close(loss, wanted)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second GPU")
def test_a_second_gpu_is_worked_on_where_its_tensors_lie():
    network, x, y = problem("cuda:1")
    loss = gt.cross_entropy(network(x), y)
    loss.backward()
    gt.AdamW(network.parameters(), lr=0.01).step()
    assert loss.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0


def test_a_bad_label_leaves_the_context_alive_and_is_named():
    z, y = torch.zeros(4, 3, device="cuda"), torch.tensor([0, 1, 7, 0], device="cuda")
    loss = gt.cross_entropy(z, y, reduction="none")
    with pytest.raises(IndexError, match=r"target\[2\] .* was 7"):
        gt.check_labels()
    assert loss.isnan().tolist() == [False, False, True, False]


def test_two_runs_agree_bitwise():
    runs = []
    for _ in range(2):
        network, x, y = problem()
        gt.cross_entropy(network(x), y).backward()
        runs.append([p.grad.clone() for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_linear_cross_entropy_needs_an_eighth_of_pytorchs_memory():
    rows, features, classes = 1024, 1024, 32064
    x = torch.randn(rows, features, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    W = torch.randn(classes, features, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    y = torch.randint(classes, (rows,), device="cuda")
    extra = []
    for function in (
        gt.linear_cross_entropy,
        lambda x, W, y: nn.functional.cross_entropy(x @ W.t(), y),
    ):
        for _ in range(2):  # the gradients exist in the second round
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            function(x, W, y).backward()
            peak = torch.cuda.max_memory_allocated() - before
        extra.append(peak - x.nbytes - W.nbytes)  # new gradients, before they are added
    assert extra[0] <= (extra[1] + x.nbytes + W.nbytes) / 8
