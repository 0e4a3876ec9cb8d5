"""How a card is timed: clocks and energy by NVML, warm rounds, filled queues, limits of every size.

On the stand-ins for CuPy and for nvidia-ml-py; not measured on a GPU.
"""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
import types
from dataclasses import asdict, replace

import numpy as np
import pytest

from gpubackprop.backends import devices
from gpubackprop.bench import harness, limits, operations, peer_timers, record, rows, timers, worker
from gpubackprop.bench.nvml import Meter, enough
from gpubackprop.bench.providers import COLD_CACHE, SAME_SIZE
from gpubackprop.bench.shapes import Case
from tests import emulator, nvml_stub
from tests.benchmark_records import InProcess
from tests.emulator import compilers, cupy_arrays
from tests.emulator.module import Module
from tests.emulator.traffic import count_traffic

needs_compiler = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
BUS = "0000:3b:00.0"
READ = timers.READ_KERNEL
RELU = Case("activation_forward", (9, 40), variant="relu")


@pytest.fixture
def nvml(monkeypatch):
    card = nvml_stub.Card()
    monkeypatch.setitem(sys.modules, "pynvml", nvml_stub.module(card))
    return card


@pytest.fixture
def gpu(monkeypatch):
    """The stand-in for CuPy with limits of small sizes."""
    for name in ("COPY_BYTES", "SQUARE"):
        monkeypatch.setattr(limits, name, {"cpu": 1 << 12, "cuda": 1 << 12})
    monkeypatch.setitem(limits.SQUARE, "cuda", 16)
    monkeypatch.setattr(worker, "SETS_OF_L2", 1)
    monkeypatch.setattr(worker, "MOST_SETS", 2)
    for name, value in (("warm_seconds", 0.0), ("busy_bytes", 1 << 10), ("sweep_bytes", 1 << 12)):
        monkeypatch.setattr(timers.BESIDE, name, value)
    monkeypatch.setattr(harness, "Process", InProcess)
    monkeypatch.setattr(devices, "choose", lambda device: (
        ("cpu", "") if device == "cpu" else ("cuda:0", "emulated")))  # fmt: skip
    with cupy_arrays.installed() as cupy:
        yield cupy


# -- NVML -----------------------------------------------------------------------------------------


def test_the_meter_reads_clocks_energy_and_facts_of_the_card_at_that_address(nvml):
    nvml.millijoules = lambda: 1_234_567
    meter = Meter(BUS)
    assert meter.why == ""
    assert meter.clocks() == (1980, 2619)
    assert meter.joules() == pytest.approx(1234.567)
    assert meter.facts() == {
        "driver_version": "580.65.06", "clocks.max.sm": 1980, "clocks.max.mem": 2619,
        "power.limit": 700.0, "temperature.gpu": 41,
    }  # fmt: skip


def test_what_a_card_or_its_driver_does_not_tell_is_none(nvml):
    nvml.lacks = {"nvmlDeviceGetTotalEnergyConsumption": 3, "nvmlDeviceGetEnforcedPowerLimit": 13}
    meter = Meter(BUS)
    assert meter.joules() is None
    assert meter.clocks() == (1980, 2619)
    assert "power.limit" not in meter.facts()
    nvml.lacks["nvmlDeviceGetClockInfo"] = 15  # lost while it was measured
    assert meter.clocks() is None


@pytest.mark.parametrize(
    ("init", "bus", "why"),
    [
        (9, BUS, "NVML: Driver Not Loaded"),
        (12, BUS, "NVML: NVML Shared Library Not Found"),
        (0, "0000:af:00.0", "NVML: Not Found"),
        (0, "", "the card's PCI address is not known"),
    ],
)
def test_a_meter_that_cannot_read_says_why_and_reads_nothing(nvml, init, bus, why):
    nvml.init = init
    meter = Meter(bus)
    assert meter.why == why
    assert (meter.clocks(), meter.joules(), meter.facts()) == (None, None, {})


def test_an_older_pynvml_with_fewer_functions_reads_what_it_has(nvml):
    del sys.modules["pynvml"].nvmlDeviceGetTotalEnergyConsumption
    meter = Meter(BUS)
    assert meter.joules() is None
    assert meter.clocks() == (1980, 2619)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    meter = Meter(BUS)
    assert meter.why.endswith('; run: pip install "gpubackprop[bench]"')
    assert meter.clocks() is None


def test_the_stand_in_has_the_names_and_parameters_of_nvidia_ml_py(monkeypatch):
    if importlib.util.find_spec("pynvml") is None:
        pytest.skip("nvidia-ml-py is not installed")
    real = importlib.import_module("pynvml")
    stand_in = nvml_stub.module(nvml_stub.Card())
    for name, thing in vars(stand_in).items():
        if name.startswith("NVML_"):
            assert getattr(real, name) == thing
        elif name.startswith("nvml"):
            theirs = inspect.unwrap(getattr(real, name))
            assert list(inspect.signature(theirs).parameters) == list(
                inspect.signature(thing).parameters
            )
    for value, text in nvml_stub.TEXTS.items():
        assert str(real.NVMLError(value)) == text


def test_rounds_below_95_percent_of_the_highest_clock_count_nowhere_and_are_counted():
    assert enough([(1000, 9), (949, 9), (950, 9), (1000, 8)]) == [True, False, True, False]
    ours = rows.Row("c", "op", "cupy_raw", "cuda:0", 1, rounds=[2.0, 9.0, 2.2, 2.4])
    ours.clocks = [1980, 345, 1975, 1980]
    theirs = rows.Row("c", "op", "torch eager", "cuda:0", 1, rounds=[4.0, 4.0, 4.4, 40.0])
    theirs.clocks = [1900, 1900, 1900, 900]
    limit = rows.Row("c", "op", "limit", "cuda:0", 1, rounds=[1.0, 0.1, 1.0, 1.0])
    limit.clocks = [1980, 1000, 1980, 1980]
    rows.summarise({row.provider: row for row in (ours, theirs, limit)}, "cupy_raw")
    assert (ours.dropped, theirs.dropped, limit.dropped) == (1, 1, 1)
    assert ours.seconds == 2.2
    assert theirs.seconds == 4.0
    # Of the two rounds that count for both.
    assert (theirs.ratio_p20, theirs.ratio, theirs.ratio_p80) == (0.5, 0.5, 0.5)
    assert ours.share == pytest.approx(1 / 2.2)  # and not of the round at 1000 MHz


def test_a_row_with_clocks_goes_through_a_file_and_is_summarised_again(tmp_path):
    row = rows.Row("c", "update", "cupy_raw", "cuda:0", 1, rounds=[2.0, 9.0, 2.2], bytes=8)
    row.clocks, row.memory_clocks, row.joules = [1980, 345, 1980], [2619, 2619, 405], 0.25
    rows.summarise({"cupy_raw": row}, "cupy_raw")
    assert row.dropped == 2  # the memory's clock counts too
    head = record.new("cpu", {"threads": [1]}) | {"device": "cuda:0", "gpu": {"name": "Card"}}
    record.write(tmp_path / "r.json", head | {"rows": [row.json()]})
    (again,) = record.rows_of(record.load(tmp_path / "r.json"))
    assert (again.seconds, again.dropped, again.joules) == (2.0, 2, 0.25)
    assert (again.clocks, again.memory_clocks) == (row.clocks, row.memory_clocks)


# -- clocks of a round ----------------------------------------------------------------------------


class Fake(timers.EventTimer):
    """A device whose host needs `launch` seconds for a call and itself `work`."""

    def __init__(self, launch, work):
        super().__init__()
        self.device, self.launch, self.work, self.log = "cuda:0", launch, work, []

    def event(self):
        return self

    def record(self):
        self.log.append("event")

    def synchronize(self):
        self.log.append("wait")

    def wait(self):
        self.log.append("wait")

    def reached(self, event):
        return False

    def copier(self, nbytes):
        return lambda: self.log.append("busy")

    def time(self, run, count):
        super().time(run, count)
        return max(self.launch, self.work), self.launch

    def milliseconds(self, begin, end):
        calls = self.log.count("call")
        self.log = [entry for entry in self.log if entry != "call"]
        return 1e3 * self.work * calls


def session_on(where, provider="torch eager", replay=True):
    session = worker.Session(provider, "cuda:0")
    session._timer = where
    call = lambda: where.log.append("call")  # noqa: E731
    session.work = timers.Work(call, dict, replay=call if replay else None)
    return session


def test_a_replay_that_is_shorter_than_its_launch_is_timed_with_the_queue_filled():
    where = Fake(launch=1e-5, work=2e-6)
    answer = session_on(where).do({"do": "round", "repeats": 8, "replay": True})
    assert answer["queued"]
    assert answer["seconds"] == pytest.approx(2e-6)
    assert answer["host"] == pytest.approx(1e-5)
    assert "busy" in where.log
    long = session_on(Fake(launch=1e-5, work=1e-3)).do(
        {"do": "round", "repeats": 8, "replay": True}
    )
    assert not long["queued"]
    plain = session_on(Fake(launch=1e-5, work=2e-6)).do({"do": "round", "repeats": 8})
    assert not plain["queued"], "plain calls are shown with the launches that they cost"
    assert plain["seconds"] == pytest.approx(1e-5)


def test_a_card_works_for_30_ms_before_a_timed_round_and_its_clocks_are_read_while_it_works(
    nvml, monkeypatch
):
    assert timers.BESIDE.warm_seconds == 0.03
    now = [0.0]
    monkeypatch.setattr(timers.time, "perf_counter", lambda: now[0])
    where = Fake(launch=1e-5, work=1e-3)
    session = session_on(where, replay=False)
    session._meter = Meter(BUS)

    def call():
        where.log.append("call")
        now[0] += 1e-3

    session.work.run = call
    done = []
    monkeypatch.setattr(nvml, "sm", [1965])
    real = session._meter.clocks
    monkeypatch.setattr(session._meter, "clocks", lambda: done.append(list(where.log)) or real())
    answer = session.do({"do": "round", "repeats": 4, "warm": True})
    assert answer["clocks"] == (1965, 2619)
    (log,) = done
    before, after = log[: log.index("event")], log[log.index("event") :]
    assert before.count("call") >= 30
    assert after == ["event", *["call"] * 4, "event"], "queued, and not yet waited for"
    where.log.clear()
    session.do({"do": "round", "repeats": 4})
    assert where.log.index("event") == 0


@pytest.mark.parametrize(("busy", "waited"), [(0.0, 0.012), (0.12, 0.132), (30.0, 1.008)])
def test_a_worker_answers_when_its_threads_sleep_and_after_a_second_at_the_latest(
    busy, waited, monkeypatch
):
    """`busy` seconds of one core are used, as by OpenBLAS's threads after a product."""
    now = [0.0]
    clock = types.SimpleNamespace(
        perf_counter=lambda: now[0],
        process_time=lambda: min(now[0], busy),
        sleep=lambda seconds: now.__setitem__(0, now[0] + seconds),
    )
    monkeypatch.setattr(worker, "time", clock)
    worker.wait_until_idle()
    assert now[0] == pytest.approx(waited)


def test_joules_are_counted_between_two_moves_of_the_counter(nvml, monkeypatch):
    """The counter of a card moves each 100 ms: 300 W and steps of 1 ms are 0.3 J each."""
    now = [0.0]
    monkeypatch.setattr(worker.time, "perf_counter", lambda: now[0])
    nvml.millijoules = lambda: 1000 + 300_000 * int(now[0] * 10 + 1e-9) // 10
    where = Fake(0.0, 0.0)
    session = session_on(where)
    session._meter = Meter(BUS)
    session.work.units = 4
    session.work.replay = lambda: now.__setitem__(0, now[0] + 4e-3)
    answer = session.do({"do": "joules", "repeats": 3, "replay": True})
    assert answer["joules"] == pytest.approx(0.3, rel=0.05)
    assert 0.5 < now[0] < 0.8
    nvml.lacks = {"nvmlDeviceGetTotalEnergyConsumption": 3}
    assert session.do({"do": "joules", "repeats": 3, "replay": True}) == {}
    nvml.lacks, nvml.millijoules = {}, lambda: 7  # one that never moves
    assert session.do({"do": "joules", "repeats": 3, "replay": True}) == {}


def test_the_work_of_jax_is_waited_for_before_its_energy_is_read(nvml, monkeypatch):
    """It queues without end otherwise: what was counted would not have been done."""
    waited = []
    where = peer_timers.JaxTimer.__new__(peer_timers.JaxTimer)
    where.device, where.jax = "cuda:0", types.SimpleNamespace(block_until_ready=waited.append)
    results = iter(range(100))
    where.finish(lambda: next(results), 3)
    assert waited == [2]
    monkeypatch.setattr(timers.BESIDE, "warm_seconds", 1e-9)
    where.warm(lambda: next(results))
    where.device = "cpu"
    where.warm(lambda: 1 / 0)


def test_pytorchs_queue_is_asked_by_its_events():
    torch = pytest.importorskip("torch", reason="the peer is PyTorch")
    where = peer_timers.TorchTimer.__new__(peer_timers.TorchTimer)
    timers.EventTimer.__init__(where)
    where.device, where.torch = "cpu", torch
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("event")

        def query(self):
            return log.count("busy") < 3

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return 4.0

    where.event = lambda: Event(enable_timing=True)
    copy = timers.EventTimer.copier
    assert type(where).copier is not copy
    where.copier(64)()
    where.copier = lambda nbytes: lambda: log.append("busy")
    assert where.queued_time(lambda: log.append("call"), 2)[0] == pytest.approx(2e-3)
    assert log.count("call") == 4, "the queue was not filled the first time"


# -- limits ---------------------------------------------------------------------------------------


@pytest.mark.emulated
@needs_compiler
@pytest.mark.parametrize("packs", [0, 1, 255, 256, 2049, 10_000])
@pytest.mark.parametrize("blocks", [1, 3])
def test_the_read_kernel_reads_every_word_once(packs, blocks):
    words = np.random.default_rng(packs).integers(0, 1 << 32, 4 * packs + 4, np.uint32)
    sums = np.zeros(blocks, np.uint32)
    module = Module(READ)
    module("read_16_bytes", (blocks,), (timers.READ_THREADS,), (words, np.int64(packs), sums))
    assert sums.sum(dtype=np.uint32) == words[: 4 * packs].sum(dtype=np.uint32)
    if packs >= 256 * blocks:
        assert (sums != 0).all()


@pytest.mark.emulated
@needs_compiler
def test_the_read_kernel_reads_16_bytes_at_a_time_and_writes_a_word_for_each_block():
    words, sums = np.ones(4 * 5000, np.uint32), np.zeros(2, np.uint32)
    arguments = (words, np.int64(words.size // 4), sums)
    module = Module(READ, "traffic")
    read, _, written = count_traffic(module, "read_16_bytes", (2,), (256,), arguments)
    assert (read.read, read.written, read.widest) == (words.nbytes, 0, 16)
    assert read.sectors_per_minimum < 1.1  # the array may begin within a sector
    assert (written.read, written.written) == (0, sums.nbytes)


def test_the_read_kernel_needs_no_cuda_header_and_compiles_without_spills():
    compiler = compilers.compiler()
    if compiler is None:
        pytest.skip("no NVRTC and no nvcc")
    for architecture in (75, 90):
        ptx, report = compiler.compile(str(READ), architecture)
        assert "ld.global.v4.u32" in ptx or "ld.global.nc.v4.u32" in ptx
        assert compilers.resources(report)["read_16_bytes"].spills == 0


@pytest.mark.emulated
@needs_compiler
def test_a_small_case_has_a_limit_of_its_own_size_and_a_large_one_has_not(gpu):
    with harness.Harness(harness.Plan(rounds=2, seconds=1e-6)) as measured:
        found = {row.provider: row for row in measured.run_case(RELU, "cuda:0", 1)}
        ours, own = found["cupy_raw"], found[SAME_SIZE]
        assert own.seconds
        assert own.share is None
        assert ours.share_same_size == pytest.approx(min(own.rounds) / ours.seconds)
        large = replace(RELU, shape=(90, 400))
        assert SAME_SIZE not in {row.provider for row in measured.run_case(large, "cuda:0", 1)}
    moved = operations.get(RELU.op).bytes(RELU)
    assert moved <= 2 * limits.same_size(RELU) < moved + 32
    reads = Case("sum_of_squares", (1000,))
    assert limits.same_size(reads) == 4000
    assert limits.same_size(Case("affine_layer", (5, 7, 6), variant="tanh")) == 0


@pytest.mark.emulated
@needs_compiler
def test_work_with_an_empty_second_level_cache_is_a_row_of_its_own(gpu, monkeypatch):
    swept = []
    real = timers.CupyTimer.cold_time
    monkeypatch.setattr(timers.CupyTimer, "cold_time", lambda self, run, count: (
        swept.append(run), real(self, run, count))[1])  # fmt: skip
    with harness.Harness(harness.Plan(rounds=2, seconds=1e-6)) as measured:
        found = {row.provider: row for row in measured.run_case(RELU, "cuda:0", 1)}
        cold, ours = found[COLD_CACHE], found["cupy_raw"]
        assert cold.seconds
        assert cold.graph
        assert cold.ratio is not None
        assert ours.ratio == 1.0
        assert (cold.plain, cold.host, cold.error) == (None, None, None)
        assert len(swept) == 5  # one to try it, two to find how many fit into a round
        cpu = measured.run_case(RELU, "cpu", 1)
        assert COLD_CACHE not in {row.provider for row in cpu}


@pytest.mark.emulated
@needs_compiler
def test_a_read_kernel_that_does_not_compile_costs_its_own_rows_and_no_others(gpu, monkeypatch):
    def fails(cupy, index, entry):
        raise RuntimeError("NVRTC refused it")

    monkeypatch.setattr(timers, "compiled", fails)
    with harness.Harness(harness.Plan(rounds=2, seconds=1e-6)) as measured:
        found = {row.provider: row for row in measured.run_case(RELU, "cuda:0", 1)}
        assert found["cupy_raw"].seconds
        assert found["cupy_raw"].remark == (
            "no row with a cold cache: RuntimeError: NVRTC refused it"
        )
        assert COLD_CACHE not in found
        sums = measured.run_case(Case("sum_of_squares", (1000,)), "cuda:0", 1)
        notes = {row.provider: row.note for row in sums}
        assert "NVRTC refused it" in notes["limit"]
        assert notes["cupy_raw"] == ""
        assert set(measured.machine("cuda:0", 1)) == {"copy", "product"}


def test_limits_and_cold_rows_are_no_peers_that_are_faster_than_we():
    from gpubackprop.bench.providers import LIMIT
    from tools.gpu.judging import _of_benchmarks

    made = [{"case": "c", "provider": name, "ratio": 2.0} for name in
            (LIMIT, SAME_SIZE, COLD_CACHE, "torch eager")]  # fmt: skip
    assert [text for _, text in _of_benchmarks(made)] == [
        "c, torch eager is 2.00 times as fast as ours"
    ]


@pytest.mark.emulated
@needs_compiler
def test_the_cache_is_emptied_before_each_call_and_not_timed(gpu):
    where = timers.CupyTimer("cuda:0")
    log = []
    where.reader = lambda words: lambda: log.append("sweep")
    seconds, issued = where.cold_time(lambda: log.append("call"), 100)
    assert log == ["sweep", "call"] * timers.COLD_CALLS
    assert seconds >= 0
    assert issued >= 0


def test_a_step_with_an_empty_cache_is_one_step_where_a_run_is_several():
    """The first of sixteen steps would have had the cold cache alone."""
    where = timers.CupyTimer.__new__(timers.CupyTimer)
    calls = []
    where.cold_time = lambda run, count: (run(), (3e-6, 1e-6))[1]
    session = worker.Session("cupy_raw", "cuda:0")
    session._timer = where
    session.work = timers.Work(
        lambda: calls.append("sixteen"), dict, 16, single=lambda: calls.append("one")
    )
    answer = session.do({"do": "round", "repeats": 8, "cold": True})
    assert (calls, answer["seconds"]) == (["one"], pytest.approx(3e-6))


@pytest.mark.emulated
@needs_compiler
def test_clocks_reach_the_rows_of_a_card_and_a_record_says_why_there_are_none(
    gpu, nvml, monkeypatch
):
    nvml.sm = [345, *[1980] * 200]
    with harness.Harness(harness.Plan(rounds=3, seconds=1e-6, card=BUS)) as measured:
        found = {row.provider: row for row in measured.run_case(RELU, "cuda:0", 1)}
    for row in found.values():
        assert len(row.clocks) == len(row.rounds) == 3
        assert row.memory_clocks == []
    monkeypatch.setattr(record, "bus_id", lambda device: BUS)
    assert record.new("cuda:0", {})["no_clocks"] == ""
    nvml.init = 9
    assert record.new("cuda:0", {})["no_clocks"] == "NVML: Driver Not Loaded"


@pytest.mark.emulated
@needs_compiler
def test_a_key_step_has_joules_and_other_work_has_not(gpu, nvml, monkeypatch):
    asked = []
    monkeypatch.setattr(worker.Session, "_joules", lambda self, message: (
        asked.append(self.provider), {"joules": 0.5})[1])  # fmt: skip
    step = Case("training_step", (4, 6, 5, 3), variant="adam", key=True)
    with harness.Harness(harness.Plan(rounds=1, seconds=1e-6, card=BUS)) as measured:
        found = {row.provider: row for row in measured.run_case(step, "cuda:0", 1)}
        measured.run_case(RELU, "cuda:0", 1)
    assert set(asked) == {"cupy_raw", "cupy_arrays"}
    assert found["cupy_raw"].json()["joules"] == 0.5
    assert asdict(found["limit"])["joules"] is None


def test_a_run_that_renewed_the_tables_does_not_mark_the_next_one_as_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "ROOT", tmp_path)
    assert record.commit() == ""

    def git(*words):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True)

    names = ("README.md", "gpubackprop/passes.py", "benchmarks/results/tables.md")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "all")
    clean = record.commit()
    assert len(clean) == 7
    for name in (names[0], names[2]):
        (tmp_path / name).write_text("after")
    assert record.commit() == clean
    (tmp_path / names[1]).write_text("after")
    assert record.commit() == f"{clean}-changed"


def test_cores_that_were_busy_are_counted_from_the_system_s_ticks(tmp_path, monkeypatch):
    """Of 400 ticks of two cores 90 + 5 + 3 + 2 are work; waiting for a disk is not, nor guests twice."""
    stat = tmp_path / "stat"
    stat.write_text("cpu  10 0 0 100 0 0 0 0 0 0\ncpu0 1 1 1 1\n")

    def later(seconds):
        stat.write_text("cpu  100 5 3 300 100 2 0 0 50 0\n")

    cores = types.SimpleNamespace(machine_cores=2)
    monkeypatch.setattr(record, "probe_cpu", lambda: cores)
    monkeypatch.setattr(record.time, "sleep", later)
    assert record.busy_cores(stat) == 0.5
    assert record.busy_cores(tmp_path / "none") is None
