"""The benchmarks: what is measured, that it is checked before it is timed, and what is made of it.

No time is asserted. Workers run in this process here; test_benchmarks_run has the real ones.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import __main__ as whole_run
from gpubackprop.backends import NumpyBackend
from gpubackprop.backends.native import host_path
from gpubackprop.bench import (
    cases,
    cells,
    expressions,
    harness,
    losses,
    notes,
    operations,
    ours,
    parity,
    problems,
    process,
    providers,
    record,
    shapes,
    steps,
    tables,
    timers,
    worker,
)
from gpubackprop.bench import run as runs
from gpubackprop.bench.harness import Harness, Plan, Row, summarise
from gpubackprop.bench.shapes import Case
from gpubackprop.errors import OptionError
from tests.benchmark_records import InProcess

ENTROPY = Case("softmax_cross_entropy", (9, 41))
STEP = Case("training_step", (4, 6, 5, 3), variant="adam")
SMALL = Plan(rounds=3, seconds=1e-4, small=True)


@pytest.fixture
def here(monkeypatch):
    """Workers in this process, limits of small sizes."""
    monkeypatch.setattr(harness, "Process", InProcess)
    for name in ("COPY_BYTES", "SQUARE"):
        monkeypatch.setattr(worker.limits, name, dict.fromkeys(("cpu", "cuda"), 1 << 8))
    monkeypatch.setitem(worker.limits.COPY_BYTES, "cpu", 1 << 14)


def rows_of(case, **plan):
    with Harness(replace(SMALL, **plan)) as measured:
        return {row.provider: row for row in measured.run_case(case, "cpu", 1)}


# -- the registry ---------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("size", cases.SIZES)
def test_cases_have_names_of_their_own_and_problems(size, device):
    found = cases.cases(size, device)
    names = [case.name for case in found]
    assert len(names) == len(set(names)) > 5
    assert all(device in case.devices for case in found)
    assert {case.op for case in found} <= {*operations.PROBLEMS, "cold_start"}


def test_the_shapes_that_were_asked_for_are_there():
    found = cases.cases("full", "cuda")
    on_gpu = {case.name for case in found}
    for network in shapes.NETWORKS.values():
        assert any(network == case.shape[1:] for case in found), network
    for classes in (10, 1000, 32_000, 50_257, 128_256, 262_144):
        assert any(name.endswith(f"x{classes}") and "softmax" in name for name in on_gpu)
    batches = {case.shape[0] for case in cases.cases("full", "cuda") if case.op == "training_step"}
    assert {1, 1 << 20} <= batches
    assert {case.op for case in cases.cases("full", "cuda")} >= set(operations.PROBLEMS)


def test_smoke_has_every_operation_and_variant_of_full():
    full, smoke = ({(c.op, c.variant, c.dtype) for c in cases.cases(size, "cuda")}
                   for size in ("full", "smoke"))  # fmt: skip
    assert full == smoke
    assert max(np.prod(case.shape) for case in cases.cases("smoke", "cuda")) < 6000


def test_a_case_goes_through_json():
    case = cases.cases("full", "cuda")[3]
    assert Case.from_json(json.loads(json.dumps(asdict(case)))) == case


def test_a_network_of_l_layers_has_3_l_minus_1_products():
    sizes = shapes.products(Case("training_step", (7, 5, 4, 3), variant="adam"))
    assert sizes == [(7, 5, 4), (7, 4, 3), (4, 7, 5), (3, 7, 4), (7, 3, 4)]


def test_an_unknown_size_operation_or_peer_says_what_there_is():
    with pytest.raises(OptionError, match="quick"):
        cases.cases("huge", "cpu")
    with pytest.raises(OptionError, match="softmax_cross_entropy"):
        runs.work(runs.Settings(op="nonsense"))
    with pytest.raises(OptionError, match=r"no peer 'tensorflow'; valid are all, none, torch"):
        providers.peer_groups("torch,tensorflow")


@pytest.mark.slow
def test_the_row_of_numpy_alone_runs_without_the_compiled_kernels(monkeypatch):
    if host_path().library is None:
        pytest.skip(host_path().reason)
    monkeypatch.delenv("GPUBACKPROP_NATIVE", raising=False)
    text = (
        "from gpubackprop.bench import ours\nfrom gpubackprop.backends.native.library import host_path\n"
        "ours.timer('cpu', {!r})\nprint(host_path().library is None)"
    )
    for name, alone in (("numpy", "False"), (providers.NUMPY_ALONE, "True")):
        run = [sys.executable, "-c", text.format(name)]
        assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.split() == [
            alone
        ]


# -- oracles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", losses.ENTROPIES)
def test_the_oracle_of_softmax_cross_entropy_is_pytorchs(variant):
    torch = pytest.importorskip("torch", reason="the reference is PyTorch")
    case = replace(ENTROPY, variant=variant, dtype="float64")
    problem, options = operations.get(case.op), losses.entropy_options(case)
    inputs = {name: torch.tensor(array) for name, array in problem.inputs(case).items()}
    z, cap, weight = inputs["logits"], options["soft_cap"], inputs.get("class_weight")
    z.requires_grad_()
    capped = cap * torch.tanh(z / cap) if cap else z
    y = inputs.get("labels", inputs.get("probabilities"))
    ignored = -100 if options["ignore_index"] is None else options["ignore_index"]
    row = torch.nn.functional.cross_entropy(
        capped, y, weight=weight, ignore_index=ignored, reduction="none",
        label_smoothing=options["label_smoothing"],
    )  # fmt: skip
    each = inputs.get("sample_weight", torch.ones(len(z), dtype=torch.float64))
    if "labels" in inputs:
        each = each * (y != ignored)
    row = each * (row + options["z_loss"] * capped.logsumexp(1) ** 2)
    counted = each if weight is None else weight[y.clamp_min(0)] * each
    loss = row.sum() / (counted.sum() if options["reduction"] == "mean" else 1)
    loss.backward()
    found = {"loss": loss.item(), "delta": z.grad.numpy(), "row_loss": row.detach().numpy()}
    ratio, error = problem.check(case, found)
    assert ratio <= 1
    assert error < 1e-13


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_numpy_computes_what_the_oracle_of_every_case_says(dtype):
    """Where it does not, nothing that a GPU computes would be too far from it."""
    for row in parity.results(NumpyBackend(), names=(dtype,)):
        limit = max(row.limit, 0.01 if dtype == "float64" else 1.0)
        assert row.numpy <= limit, row
        assert row.passed, row


@pytest.mark.parametrize("variant", ["", "later"])
def test_a_variant_is_compared_and_measured_and_run_small_without_another_edit(
    variant, monkeypatch
):
    """A case is added in one place: to the variants of its problem."""

    class More(operations.ColumnSum):
        variants = ("", "later")

    monkeypatch.setitem(operations.PROBLEMS, "column_sum", More())
    for found in (
        cases.compared(short=True), cases.compared(), cases.cases("smoke", "cpu"),
        cases.cases("full", "cpu"), cases.cases("smoke", "cuda"), cases.cases("full", "cuda"),
    ):  # fmt: skip
        assert variant in {case.variant for case in found if case.op == "column_sum"}


def test_what_is_compared_is_measured_unless_a_problem_says_that_its_time_means_nothing():
    measured = {(case.op, case.variant) for case in cases.cases("full", "cuda")}
    for case in cases.compared():
        only = case.variant in operations.get(case.op).compared_only
        assert only != ((case.op, case.variant) in measured), case


def test_the_oracle_of_a_step_is_pytorchs():
    torch = pytest.importorskip("torch", reason="the reference is PyTorch")
    data = steps.StepData(STEP)
    W, b = data.weights()
    x, y = data.data()
    params = [torch.tensor(p, dtype=torch.float64, requires_grad=True) for p in (*W, *b)]
    adam = torch.optim.Adam(params, steps.LEARNING_RATE, eps=steps.EPS)
    found = []
    for number in range(data.steps_checked):
        rows = data.rows(number)
        h = torch.tensor(x[rows], dtype=torch.float64)
        h = torch.relu(h @ params[0].T + params[2]) @ params[1].T + params[3]
        loss = torch.nn.functional.cross_entropy(h, torch.tensor(y[rows]))
        adam.zero_grad()
        loss.backward()
        adam.step()
        found.append(loss.item())
    assert found == pytest.approx(list(steps.TrainingStep().losses(STEP)), rel=1e-12)
    assert len(found) == 10


def test_a_large_batch_repeats_its_rows_and_its_oracle_does_not():
    large = steps.StepData(Case("training_step", (5000, 6, 5, 3), variant="adam"))
    rows = large.rows(1)
    assert len(rows) == 5000
    assert len(np.unique(rows)) == large.distinct == 250
    assert set(np.bincount(rows)[np.unique(rows)]) == {20}
    some = Case("training_step", (3 * 256, 6, 5, 3), variant="adam")
    data = steps.StepData(some)
    step = steps.by_hand(np, data, np.float64, data.batch)
    whole = [float(step(data.rows(number))) for number in range(3)]
    assert whole == pytest.approx(list(steps.TrainingStep().losses(some)[:3]), rel=1e-12)
    case = Case("training_step", (5000, 6, 5, 3), variant="adam")  # more than different rows
    assert large.batches * large.distinct < 5000
    work = ours.setup(case, timers.Timer(), "numpy")
    assert operations.get(case.op).check(case, work.outputs())[0] <= 1
    work.run()


def test_an_input_of_many_rows_is_a_block_over_and_over_and_all_of_it_is_compared():
    case = Case("activation_backward", (2600, 1024), variant="tanh")
    problem = operations.get(case.op)
    tiling = problem.tiling(case)
    assert tiling == problems.Tiling(2600, 1023)
    inputs = problem.inputs(case)
    np.testing.assert_array_equal(inputs["grad_h"][1023], inputs["grad_h"][0])
    found = problem.expressions(np, case, inputs)
    assert problem.check(case, found)[0] <= 1
    found["delta"][2599, 7] += 0.01  # in the last block, which is not whole
    assert problem.check(case, found)[0] > 1


@pytest.mark.parametrize("fault", ["nan", "shape", "small"])
def test_a_fault_in_one_element_is_seen(fault):
    problem = operations.get(ENTROPY.op)
    found = problem.expressions(np, ENTROPY, problem.inputs(ENTROPY))
    assert problem.check(ENTROPY, found)[0] <= 1
    if fault == "shape":
        found["delta"] = found["delta"][:-1]
    else:
        found["delta"][8, 40] += np.nan if fault == "nan" else 1e-4
    assert not problem.check(ENTROPY, found)[0] <= 1


# -- checking and timing --------------------------------------------------------------------------


def test_every_provider_gets_time_share_ratio_bytes_and_flops(here):
    rows = rows_of(ENTROPY)
    assert set(rows) == {"numpy", "limit", "NumPy by hand", "NumPy by hand, two exps"}
    ours = rows["numpy"]
    assert ours.ratio == 1.0
    assert ours.bytes == 2 * 9 * 41 * 4 + 8 * 9
    assert ours.share is not None
    assert ours.limit == "copy"
    for row in rows.values():
        assert len(row.rounds) == 3
        assert row.p20 <= row.seconds <= row.p80
    assert rows["NumPy by hand"].error < 1e-6


def test_a_wrong_provider_is_reported_as_wrong_and_never_timed(here, monkeypatch):
    right = expressions.setup

    def wrong(case, where, provider):
        work = right(case, where, provider)
        outputs = work.outputs
        work.outputs = lambda: outputs() | {"loss": outputs()["loss"] * 1.001}
        work.run = lambda: pytest.fail("it was timed")
        return work

    monkeypatch.setattr(expressions, "setup", wrong)
    row = rows_of(ENTROPY)["NumPy by hand"]
    assert row.wrong
    assert row.note.startswith("WRONG: differs from the oracle by 1.0e-03")
    assert row.seconds is None
    assert row.rounds == []


@pytest.mark.parametrize("fault", ["nan", "shape"])
def test_a_result_without_a_finite_error_is_wrong_and_goes_into_json(
    here, monkeypatch, tmp_path, fault
):
    right = expressions.setup

    def wrong(case, where, provider):
        work = right(case, where, provider)
        outputs = work.outputs
        work.outputs = lambda: (
            outputs() | {"delta": np.full(case.shape, np.nan) if fault == "nan" else np.zeros(3)}
        )
        return work

    monkeypatch.setattr(expressions, "setup", wrong)
    monkeypatch.setitem(runs.ROUNDS, "smoke", (1, 1e-5))
    monkeypatch.setattr(runs, "cases", lambda *size: [ENTROPY])
    measured = runs.measure(runs.Settings("smoke", threads=(1,)))

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    record.write(tmp_path / "result.json", measured)
    for text in (json.dumps(measured), (tmp_path / "result.json").read_text()):
        json.loads(text, parse_constant=refuse)
    (row,) = (row for row in record.rows_of(record.load(tmp_path / "result.json"))
              if row.provider == "NumPy by hand")  # fmt: skip
    assert row.wrong
    assert row.error is None


def test_what_is_not_installed_or_fails_is_a_note_and_the_others_are_timed(here, monkeypatch):
    def broken(case, where, provider):
        raise MemoryError("no more\nto be had")

    monkeypatch.setattr(expressions, "setup", broken)
    monkeypatch.setitem(worker.sys.modules, "jax", None)
    rows = rows_of(ENTROPY, peers=frozenset({"jax"}))
    assert rows["NumPy by hand"].note == "not measured: MemoryError: no more"
    assert rows["JAX jit"].note.startswith("not measured: import of jax halted")
    assert rows["numpy"].seconds


@pytest.mark.parametrize("round_of_failure", [0, 2])
def test_one_that_fails_while_it_is_timed_is_a_note_and_the_others_have_ratios(
    here, monkeypatch, round_of_failure
):
    real, rounds = worker.Session.do, []

    def fails(self, message):
        if self.provider == "NumPy by hand" and message["do"] == "round":
            rounds.append(message)
            if len(rounds) > round_of_failure:
                return {"missing": "its process ended with code -9; see above"}
        return real(self, message)

    monkeypatch.setattr(worker.Session, "do", fails)
    done = []
    with Harness(SMALL) as measured:
        jobs = [runs.Job(ENTROPY, "cpu", 1)]
        left = runs.run_all(measured, jobs, 1e9, lambda text: None, done.extend)
    assert left == []
    rows = {row.provider: row for row in done}
    failed = rows.pop("NumPy by hand")
    assert failed.note.startswith("not measured: failed while it was timed: its process ended")
    assert (failed.seconds, failed.ratio, failed.rounds) == (None, None, [])
    assert len(rounds) == round_of_failure + 1
    assert rows["numpy"].share
    for row in rows.values():
        assert len(row.rounds) == 3
        assert row.ratio


def test_a_training_step_is_timed_by_the_step(here, monkeypatch):
    monkeypatch.setattr(timers.Timer, "time", lambda self, run, count: (run(), (1.6, 1.6))[1])
    rows = rows_of(STEP)
    assert rows["numpy"].seconds == pytest.approx(0.1)  # sixteen batches
    assert rows["limit"].seconds == 1.6  # products of one step


def test_the_limit_of_products_has_the_threads_that_are_fastest(here, monkeypatch):
    class Slower(InProcess):
        """The more threads, the longer."""

        def __init__(self, provider, device, threads, **options):
            super().__init__(provider, device, threads, **options)
            self.threads = threads

        def answer(self):
            found = super().answer()
            return found | {"seconds": 0.1 * self.threads} if "seconds" in found else found

    monkeypatch.setattr(harness, "Process", Slower)
    with Harness(replace(SMALL, threads=4)) as measured:
        rows = {row.provider: row for row in measured.run_case(STEP, "cpu", 4)}
        limit, ours = rows["limit"], rows["numpy"]
        assert (limit.seconds, limit.workers, limit.threads) == (0.1, 1, 4)
        assert (ours.seconds, ours.workers) == (0.4, None)
        assert ours.share == pytest.approx(0.25)
        copied = {row.provider: row for row in measured.run_case(ENTROPY, "cpu", 4)}["limit"]
        assert (copied.seconds, copied.workers) == (0.4, None)


def test_a_product_of_the_limit_is_taken_in_the_best_layout(monkeypatch):
    seen = []
    monkeypatch.setattr(worker.limits, "_quick_time", lambda where, run: seen.append(run) or 1.0)
    out = []
    monkeypatch.setattr(np, "matmul", lambda x, y, out: seen.append((x.flags.f_contiguous,
                                                                     y.flags.f_contiguous)))  # fmt: skip
    worker.limits.product_run(timers.Timer(), "float32", [(3, 4, 5)])
    ways, seen[:] = seen[:], out
    for way in ways:
        way()
    assert sorted(seen) == [(False, False), (False, True), (True, False)]


def test_a_share_above_one_is_marked():
    row = Row("step", "training_step", "numpy", "cpu", 1, seconds=1.0, share=1.02, limit="products")
    assert tables.lines([row])[1].endswith("1.02 ! products")
    assert tables.lines([replace(row, share=1.001)])[1].endswith("1.00 products")


def test_ratios_are_medians_within_a_round_and_a_limit_is_its_fastest_one():
    ours = Row("case", "op", "numpy", "cpu", 1, rounds=[1.0, 2.0, 9.0])
    theirs = Row("case", "op", "peer", "cpu", 1, rounds=[2.0, 4.0, 3.0])
    limit = Row("case", "op", "limit", "cpu", 1, rounds=[0.5, 0.6, 0.9])
    absent = Row("case", "op", "absent", "cpu", 1, note="not measured: no module")
    every = {row.provider: row for row in (ours, theirs, limit, absent)}
    summarise(every, "numpy")
    assert theirs.ratio == 0.5  # of 0.5, 0.5, 3.0
    assert theirs.ratio_p80 == pytest.approx(2.0)
    assert ours.share == 0.25  # of 0.5, 0.25, 0.5 / 9
    assert limit.share is None
    assert absent.seconds is None


def test_slow_peers_take_part_in_key_cases_only():
    compiled = providers.BY_NAME["torch.compile"]
    peers = providers.peer_groups("all")
    assert not compiled.takes_part(STEP, "cpu", peers)
    assert compiled.takes_part(replace(STEP, key=True), "cpu", peers)
    assert not compiled.takes_part(replace(STEP, key=True), "cpu", frozenset({"torch"}))


def test_the_budget_leaves_cases_out_and_names_them(here):
    work = [runs.Job(ENTROPY, "cpu", 1), runs.Job(STEP, "cpu", 1)]
    done = []
    with Harness(SMALL) as measured:
        left = runs.run_all(measured, work, -1.0, lambda text: None, done.append)
    assert left == [f"{ENTROPY.name} on cpu", f"{STEP.name} on cpu"]
    assert done == []


def test_a_machine_without_a_gpu_measures_the_key_cases_with_each_number_of_threads():
    work = runs.work(runs.Settings("quick", threads=(1, 2)))
    counts: dict[str, list[int]] = {}
    for job in work:
        counts.setdefault(job.case.name, []).append(job.threads)
    assert all(counts[job.case.name] == ([2, 1] if job.case.key else [2]) for job in work)
    assert {job.device for job in work} == {"cpu"}


def test_a_gpu_comes_before_the_cpu_and_its_goals_before_all_else_first_beside_pytorch_eager():
    peers = providers.peer_groups("all")
    work = runs.work(runs.Settings("full", "cuda:0", peers=peers, threads=(2,)))
    devices = [job.device for job in work]
    assert devices == sorted(devices, reverse=True)  # "cuda:0" before "cpu"
    first = [job for job in work if job.device != "cpu" and job.peers == {"torch"}]
    later = [job for job in work if job.device != "cpu" and job.peers == peers]
    assert work[: len(first)] == first, "everything is measured once before a compiler starts"
    assert len({job.case.name for job in first}) == len(first)
    assert {job.case.name for job in later} < {job.case.name for job in first}
    names = [job.case.name for job in first]
    assert names[0] == "softmax_cross_entropy/bf16/8192x128256"
    for goal in ("update/adam", "training_step/adam/f32/784-320-160-10/batch64"):
        assert next(n for n, name in enumerate(names) if name.startswith(goal)) < 16
    assert names[-1].startswith("cold_start")
    alone = runs.work(runs.Settings("full", "cuda:0", peers=peers, threads=(2,), cpu=False))
    assert {job.device for job in alone} == {"cuda:0"}


def test_a_worker_that_does_not_answer_is_ended_alone(monkeypatch):
    hangs = "import sys, time; sys.stdin.readline(); time.sleep(600)"
    monkeypatch.setattr(process, "PYTHON", [sys.executable, "-c", hangs])
    monkeypatch.setattr(process, "PATIENCE", {"prepare": 1.0, "round": 1.0})
    hung = process.Process("numpy", "cpu", 1)
    answer = hung.ask("round", repeats=1)
    assert answer == {"missing": "no answer to 'round' in 1 s; its process was ended"}
    assert hung.ask("round")["missing"].startswith("its process ended")
    assert hung.ended
    hung.close()


# -- record and table -----------------------------------------------------------------------------


@pytest.fixture
def measured(here, monkeypatch):
    monkeypatch.setitem(runs.ROUNDS, "smoke", (2, 1e-5))
    settings = runs.Settings("smoke", op="tanh", threads=(1,), device_reason="no driver")
    return runs.measure(settings)


def test_a_record_says_where_with_what_and_how(measured, tmp_path):
    assert {"date", "commit", "cpu", "versions", "settings", "limits", "load_before"} <= set(
        measured
    )
    assert measured["versions"]["numpy"] == np.__version__
    assert set(measured["limits"]["cpu"]) == {"copy", "read", "product"}
    path = tmp_path / "result.json"
    record.write(path, measured)
    loaded = record.load(path)
    for row, kept in zip(measured["rows"], loaded["rows"], strict=True):
        assert row.keys() == kept.keys()
        for key, value in row.items():
            numeric = isinstance(value, (float, list))
            assert kept[key] == (pytest.approx(value, rel=2e-3) if numeric else value)
    assert {k: v for k, v in loaded.items() if k != "rows"} == {
        k: v for k, v in json.loads(json.dumps(measured)).items() if k != "rows"
    }
    assert path.read_text().count('"case":') == len({row["case"] for row in measured["rows"]})
    path.write_text('{"format": 1}')
    with pytest.raises(ValueError, match="format 2 is wanted"):
        record.load(path)


def test_a_partial_run_replaces_its_cases_and_keeps_the_others(measured):
    old = measured | {"left_out": ["column_sum/f32/9x40 on cpu", "x on cpu"]}
    again = [row | {"seconds": 7.0} for row in measured["rows"] if row["op"] == "affine_layer"]
    other = {"case": "column_sum/f32/9x40", "op": "column_sum", "provider": "numpy",
             "device": "cpu", "threads": 1, "seconds": 1.0}  # fmt: skip
    new = measured | {"rows": [*again, other], "left_out": []}
    both = record.merged(old, new)
    assert len(both["rows"]) == len(measured["rows"]) + 1
    changed = {row["op"] for row in both["rows"] if row.get("seconds") == 7.0}
    assert changed == {"affine_layer"}
    assert both["left_out"] == ["x on cpu"]
    assert [run["commit"] for run in both["earlier_runs"]] == [old["commit"]]


def test_the_card_of_a_record_is_the_one_that_cuda_sees(monkeypatch):
    """CUDA_VISIBLE_DEVICES=1: CUDA's first card is nvidia-smi's second."""
    asked = []

    class Device:
        def __init__(self, index):
            self.pci_bus_id = {0: "0000:3B:00.0", 1: "0000:AF:00.0"}[index]

    def nvidia_smi(*command):
        asked.append(command)
        (query,) = (part for part in command if part.startswith("--query-gpu="))
        buses = ("00000000:18:00.0", "00000000:3b:00.0")
        cards = [{"pci.bus_id": bus, "name": f"card {i}"} for i, bus in enumerate(buses)]
        names = query.partition("=")[2].split(",")
        return "\n".join(", ".join(card.get(name, "?") for name in names) for card in cards)

    monkeypatch.setattr(record, "import_cupy", lambda: SimpleNamespace(
        cuda=SimpleNamespace(Device=Device)))  # fmt: skip
    monkeypatch.setattr(record, "_output", nvidia_smi)
    assert record.gpu("cuda:0")["name"] == "card 1"
    assert record.gpu("cuda:1") == {"name": "unknown card"}
    assert record.gpu("cpu") is None
    assert asked[0][0] == "nvidia-smi"


@pytest.mark.parametrize("threads", ["0", "-3", "two"])
def test_a_number_of_threads_below_one_is_refused(threads, capsys):
    with pytest.raises(SystemExit) as stopped:
        whole_run.main(["--size", "smoke", "--threads", threads])
    assert stopped.value.code == 2
    assert f"'{threads}' is not a whole number of at least 1" in capsys.readouterr().err


def test_a_worker_has_its_threads_and_a_jax_that_leaves_memory_to_the_others(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
    found = process.environment(3)
    assert {found[name] for name in process.THREAD_VARIABLES} == {"3"}
    assert found["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"


def test_the_folder_of_a_machine_is_its_card_or_processor():
    cpu = {"device": "cpu", "cpu": {"model": "AMD EPYC (tm)", "cores": 2}}
    assert record.card(cpu) == "cpu-amd-epyc-tm-2-cores"
    assert record.card({"device": "cuda:0", "gpu": {"name": "NVIDIA H200"}}) == "nvidia-h200"


def test_the_table_has_both_devices_their_ratio_and_the_peers():
    def row(provider, device, **values):
        return Row("step", "training_step", provider, device, 2, limit="products", **values)

    rows = [
        row("numpy", "cpu", seconds=2e-3, share=0.7),
        row("NumPy by hand", "cpu", seconds=2e-3, ratio=0.98),
        row("cupy_raw", "cuda:0", seconds=1e-4, share=0.91),
        row("torch eager", "cuda:0", seconds=5e-4, ratio=0.2),
        row("JAX jit", "cuda:0", note="WRONG: differs from the oracle by 1.0e+00"),
    ]
    head, line = tables.lines(rows)
    for title, cell in (("CPU", "2 ms"), ("GPU", "100 us"), ("speed-up", "20"),
                        ("of limit", "0.91 products")):  # fmt: skip
        assert line[: head.index(title) + len(title)].endswith(cell)
    assert line.endswith("torch eager 0.20, JAX jit WRONG; on the CPU NumPy by hand 0.98")
    assert tables.lines(rows[:2])[1].endswith("0.70 products   NumPy by hand 0.98")


def test_the_table_has_every_peer_and_who_beats_us_first():
    def row(provider, **values):
        return Row("step", "training_step", provider, "cpu", 2, seconds=1e-3, **values)

    names = [one.name for one in providers.PROVIDERS if "cpu" in one.kinds][2:]
    rows = [row("numpy"), *(row(name, ratio=0.1 * i) for i, name in enumerate(names, 3))]
    _, line = tables.lines(rows)
    assert len(names) >= 8
    assert all(f"{name} " in line for name in names)
    assert line.rpartition("   ")[2].startswith(f"{names[-1]} 1.")


def test_the_summary_is_one_line_with_machine_limits_and_headlines(measured):
    step = {"case": notes.HEADLINES[0][0], "op": "training_step", "provider": "numpy",
            "device": "cpu", "threads": 1, "seconds": 0.0123, "share": 0.5, "limit": "products"}  # fmt: skip
    line = notes.summary(measured | {"rows": [step]})
    assert "\n" not in line
    assert "1 thread |" in line
    assert "step 784-512-512-10, batch 256: 12.3 ms (0.50 of products)" in line
    assert "copy " in line


def test_what_is_left_out_is_told_once_for_each_reason(measured):
    missing = {"op": "o", "provider": "Liger", "device": "cpu", "threads": 1, "note": "not there"}
    rows = [missing | {"case": f"case {number}"} for number in range(3)]
    lines = notes.left_out(measured | {"rows": rows, "left_out": ["late on cpu"]})
    assert lines == [
        "Liger: not there (case 0 and 2 more)", "no time was left for late on cpu",
        "the GPU: no driver",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.5, "2.5 s"), (1.0, "1 s"), (0.0123456, "12.3 ms"), (1e-3, "1 ms"), (15e-6, "15 us")],
)
def test_times_have_three_digits_and_a_unit(seconds, text):
    assert cells.time_text(seconds) == text


def test_percentiles_are_in_order_in_every_row(measured):
    timed = [row for row in record.rows_of(measured) if not row.note]
    assert len(timed) > 8
    for row in timed:
        for low, high in pairwise((row.p20, row.seconds, row.p80)):
            assert low <= high
