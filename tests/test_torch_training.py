"""Whole trainings with `gpubackprop.torch` beside PyTorch: curves, conversion, patching, the
example, and what importing it brings along."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path as File
from types import ModuleType

import pytest
import torch
from torch import nn

import gpubackprop.torch as gt
from tests.torch_paths import Path, path  # noqa: F401

ROOT = File(__file__).resolve().parents[1]


class Net(nn.Module):
    """Everything that can be exchanged, and some that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 8), nn.Dropout(0.0))
        self.tied = nn.Linear(8, 8)
        self.again = self.tied
        self.norm = nn.LayerNorm(8)
        self.head = nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU(0.2), nn.Linear(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.again(self.tied(self.body(x)))))


def curve(network: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    """50 steps on one batch; the batch is 2 x 9 places, so the loss has a K-dimensional input."""
    p = next(network.parameters())
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 9, 6, generator=g).to(p.device, p.dtype)
    y = torch.randint(4, (2, 9), generator=g).to(p.device)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        value = loss(network(x).movedim(-1, 1), y)
        value.backward()
        optimizer.step()
        losses.append(value.detach())
    return torch.stack(losses).double().tolist()


def fresh(dtype: torch.dtype, device: str, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().to(device, dtype)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_50_steps_in_float64_are_those_of_pytorch(name, path: Path):  # noqa: F811
    options = {"lr": 0.05, "momentum": 0.9} if name == "SGD" else {"lr": 0.01}
    theirs, ours = (fresh(torch.float64, path.device) for _ in range(2))
    wanted = curve(
        theirs, nn.CrossEntropyLoss(label_smoothing=0.1),
        getattr(torch.optim, name)(theirs.parameters(), **options),
    )  # fmt: skip
    ours = gt.convert(ours).module
    got = curve(
        ours, gt.CrossEntropyLoss(label_smoothing=0.1), getattr(gt, name)(ours.parameters(), **options)
    )  # fmt: skip
    assert got == pytest.approx(wanted, rel=1e-9)
    assert wanted[-1] < 0.7 * wanted[0]
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_50_steps_in_float32_stay_as_near_to_float64_as_pytorchs(path: Path):  # noqa: F811
    """In the mean of some draws, within a half: after 50 steps it is chance which one is nearer; a
    wrong formula is off by orders of magnitude."""

    def losses(module: ModuleType, dtype: torch.dtype, seed: int) -> list[float]:
        network = fresh(dtype, path.device, seed)
        network = gt.convert(network).module if module is gt else network
        criterion = (gt if module is gt else nn).CrossEntropyLoss()
        return curve(network, criterion, module.Adam(network.parameters(), lr=0.01))

    distances: list[list[float]] = [[], []]
    for seed in range(1 if path.name == "emulated" else 4):
        exact = losses(torch.optim, torch.float64, seed)
        for module, found in zip((gt, torch.optim), distances, strict=True):
            got = losses(module, torch.float32, seed)
            found.append(max(abs(a - b) for a, b in zip(got, exact, strict=True)))
    assert sum(distances[0]) <= 1.5 * sum(distances[1])


def test_convert_keeps_parameters_names_and_outputs_and_reports_what_it_left(path: Path):  # noqa: F811
    network = fresh(torch.float64, path.device)
    x = torch.randn(3, 6, dtype=torch.float64, device=path.device)
    before, parameters = network(x), list(network.named_parameters())
    keys = list(network.state_dict())
    report = gt.convert(network)
    assert report.module is network
    torch.testing.assert_close(network(x), before, rtol=1e-12, atol=1e-14)
    assert list(network.state_dict()) == keys
    for (name, p), (other, q) in zip(parameters, network.named_parameters(), strict=True):
        assert (name, id(p)) == (other, id(q))
    assert network.tied is network.again
    assert str(report).splitlines() == [
        "replaced 2:",
        "  body.0: Linear, body.1: GELU -> linear_act",
        "  head.0: Linear, head.1: LeakyReLU -> linear_act",
        "left 4:",
        "  body.2: Linear (no activation follows it in a Sequential)",
        "  tied: Linear (no activation follows it in a Sequential)",
        "  norm: LayerNorm (no counterpart)",
        "  head.2: Linear (no activation follows it in a Sequential)",
    ]
    again = gt.convert(network)
    assert again.replaced == []


def test_convert_leaves_what_somebody_watches_and_what_may_differ():
    class Special(nn.Linear):
        pass

    watched, shared = nn.Linear(3, 3), nn.Linear(3, 3)
    watched.register_forward_hook(lambda *_: None)
    network = nn.Sequential(watched, nn.ReLU(), Special(3, 3), shared, nn.ReLU(), shared)
    report = gt.convert(network)
    assert report.left == [
        "0: Linear (has hooks)",
        "2: Special (a subclass, whose forward may differ)",
    ]
    assert report.replaced == ["3: Linear, 4: ReLU -> linear_act"]
    assert network[3] is network[5] is shared
    assert isinstance(gt.convert(nn.CrossEntropyLoss()).module, gt.CrossEntropyLoss)


def test_patch_concerns_scripts_and_their_own_names_and_ends():
    script = ModuleType("somebodys_script")
    source = "from torch.optim import Adam\nfrom torch.nn.functional import cross_entropy\n"
    exec(source, script.__dict__)
    sys.modules["somebodys_script"] = script
    originals = torch.optim.Adam, torch.nn.functional.cross_entropy, nn.Linear.forward
    try:
        with gt.patch() as replaced:
            assert issubclass(script.Adam, gt.Adam)
            assert script.cross_entropy is torch.nn.functional.cross_entropy
            assert script.cross_entropy is not originals[1]
            assert {"torch.optim.AdamW", "torch.nn.Linear.forward", "somebodys_script.Adam"} <= set(
                replaced
            )
            loss = nn.CrossEntropyLoss()(nn.Linear(3, 4)(torch.ones(2, 3)), torch.tensor([0, 1]))
            assert "gpubackprop" in type(loss.grad_fn).__name__
            raise KeyError
    except KeyError:
        pass
    finally:
        del sys.modules["somebodys_script"]
    assert (torch.optim.Adam, torch.nn.functional.cross_entropy, nn.Linear.forward) == originals
    assert script.Adam is originals[0]


@pytest.mark.slow
def test_the_example_runs_and_its_three_curves_agree(capsys):
    where = ROOT / "examples" / "torch_training_loop.py"
    specification = importlib.util.spec_from_file_location("torch_training_loop", where)
    example = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(example)
    assert example.main(["--steps", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    curves = [[float(word) for word in line.split()[1:] if word != "..."] for line in lines[-3:]]
    assert [line.split()[0] for line in lines[-3:]] == ["before", "after", "patched"]
    assert curves[1] == pytest.approx(curves[0], abs=2e-6)
    assert curves[2] == pytest.approx(curves[0], abs=2e-6)
    assert curves[0][-1] < curves[0][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "absent"),
    [("import gpubackprop", "torch"), ("import gpubackprop.torch", "cupy")],
)
def test_importing_brings_no_more_than_is_needed(statement, absent):
    program = f"import sys; {statement}; sys.exit({absent!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_without_pytorch_the_error_names_the_extra():
    program = "import sys; sys.modules['torch'] = None; import gpubackprop.torch"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (
        'torch is needed to use gpubackprop.torch; install it with: pip install "gpubackprop[torch]"'
        in done.stderr
    )
