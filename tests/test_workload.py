"""What "auto" means where the work is known: predicted seconds, the CPU for what is tiny."""

from __future__ import annotations

import pytest
from sklearn.datasets import load_digits

from gpubackprop.backends import devices, workload
from gpubackprop.backends.workload import Training
from gpubackprop.sklearn import MLPClassifier
from tests.cli_runs import run_cli

DIGITS = Training.of_epochs((64, 100, 10), 1797, 200, 200, 8)
LARGE = Training.of_epochs((784, 2048, 2048, 10), 60_000, 1024, 30)


@pytest.fixture
def card(monkeypatch):
    """A GPU that works, as far as anybody asks before the work begins."""

    def choose(device: str) -> tuple[str, str]:
        return ("cpu", "asked for") if device == "cpu" else ("cuda:0", "a card")

    monkeypatch.setattr(devices, "choose", choose)
    monkeypatch.setattr(workload, "available_cores", lambda: 2)


def test_a_small_training_stays_on_the_cpu_and_says_why_and_a_large_one_goes_to_the_gpu(card):
    name, reason = workload.choose(DIGITS)
    assert name == "cpu"
    assert reason.startswith("predicted ")
    assert 'on cuda:0, its first use included; device="cuda" takes it nevertheless' in reason
    assert workload.choose(LARGE) == ("cuda:0", "a card")


def test_without_a_gpu_the_reason_is_that_of_the_devices(monkeypatch):
    monkeypatch.setattr(devices, "choose", lambda device: ("cpu", "no NVIDIA driver found"))
    assert workload.choose(LARGE) == ("cpu", "no NVIDIA driver found")


def test_the_prediction_grows_with_every_part_of_the_work():
    smaller = (
        Training((784, 512, 10), 256, 1000), Training((784, 1024, 10), 128, 1000),
        Training((784, 1024, 10), 256, 500),
    )  # fmt: skip
    whole = Training((784, 1024, 10), 256, 1000)
    for part in smaller:
        assert all(a < b for a, b in zip(part.seconds(4), whole.seconds(4), strict=True))
    assert whole.seconds(8)[0] < whole.seconds(4)[0], "more cores"
    double = Training((784, 1024, 10), 256, 1000, itemsize=8)
    assert double.seconds(4)[0] > whole.seconds(4)[0]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_an_estimator_that_leaves_the_choice_fits_the_digits_on_the_cpu_and_says_why(card, capsys):
    x, y = load_digits(return_X_y=True)
    model = MLPClassifier(max_iter=2, verbose=True, random_state=0).fit(x[:200], y[:200])
    assert model.device_ == "cpu"
    assert "Computing on cpu (predicted " in capsys.readouterr().out
    assert model.predict(x[:5]).shape == (5,), "there too"
    model.partial_fit(x[:50], y[:50])
    assert model.device_ == "cpu"


def test_the_command_line_trains_the_demo_on_the_cpu_and_says_why(card, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_cli("train", "--epochs", "1", "--output", str(tmp_path / "run"))
    assert done.code == 0
    assert "cpu (predicted " in done.out
