"""Recorded calls and the threads that replay them: errors, interrupts, forks, many callers."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gpubackprop.backends import NumpyBackend
from gpubackprop.backends.numpy.blocks import Scratch, for_row_blocks, row_ranges
from gpubackprop.backends.numpy.recorded_calls import (
    RecordedCalls,
    Workers,
    get_num_threads,
    run_now,
    set_num_threads,
)
from gpubackprop.errors import OptionError
from gpubackprop.formulas import ACTIVATIONS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = get_num_threads()
    yield
    set_num_threads(before)


def fail(message: str) -> None:
    raise ZeroDivisionError(message)


def run_python(code: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True,
        timeout=timeout, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip


# -- recorded calls ------------------------------------------------------------------------------


def test_recorded_calls_replay_in_order_as_often_as_asked() -> None:
    recorded, seen = RecordedCalls(), []
    for number in range(3):
        recorded(seen.append, number)
    assert seen == []
    recorded.run()
    recorded.run()
    assert seen == [0, 1, 2, 0, 1, 2]


def test_replay_and_direct_run_silence_float_warnings_and_leave_the_settings() -> None:
    before = np.geterr(), np.getbufsize()
    out, zero = np.ones(3), np.zeros(3)
    recorded = RecordedCalls()
    recorded(np.divide, out, zero, out)
    recorded.run()  # pytest turns a RuntimeWarning into an error
    run_now(np.divide, out, zero, out)
    assert np.isinf(out).all()
    assert (np.geterr(), np.getbufsize()) == before


def test_a_replay_within_a_replay_is_quiet_too_and_so_is_the_one_after_an_error() -> None:
    out, zero = np.ones(3), np.zeros(3)
    inner, outer, failing = RecordedCalls(), RecordedCalls(), RecordedCalls()
    inner(np.divide, out, zero, out)
    outer(inner.run)
    outer(inner.run)
    failing(outer.run)
    failing(fail, "in the middle")
    with np.errstate(all="raise"):
        for _ in range(2):
            with pytest.raises(ZeroDivisionError, match="in the middle"):
                failing.run()
        outer.run()
        assert set(np.geterr().values()) == {"raise"}
    assert np.isinf(out).all()


# -- workers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_workers_run_every_part_once(parts: int) -> None:
    workers, seen = Workers(), []
    for _ in range(50):
        seen.clear()
        work = [[(seen.append, (number,)), (seen.append, (-number,))] for number in range(parts)]
        workers.run(work)
        assert sorted(seen) == sorted([*range(parts), *(-n for n in range(parts))])
        assert all(len(part) == 2 for part in work)  # a recorded plan runs again


def test_parts_run_side_by_side() -> None:
    meet = threading.Barrier(2, timeout=20)
    Workers().run([[(meet.wait, ())], [(meet.wait, ())]])


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_an_error_in_any_part_reaches_the_caller_and_does_not_hang(bad: int) -> None:
    workers, done = Workers(), []
    # Each part waits for the others, so that three threads really are at it.
    meet = threading.Barrier(3, timeout=20)
    parts = [[(meet.wait, ()), (done.append, (number,))] for number in range(3)]
    parts[bad] = [(meet.wait, ()), (fail, ("the bad part",))]
    with pytest.raises(ZeroDivisionError, match="the bad part"):
        workers.run(parts)
    assert sorted(done) == sorted({0, 1, 2} - {bad})
    seen: list[int] = []
    workers.run([[(seen.append, (number,))] for number in range(3)])
    assert sorted(seen) == [0, 1, 2]


def test_where_no_thread_can_be_started_the_caller_does_every_part(monkeypatch) -> None:
    """As in a container with a limit on its processes."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    workers, seen = Workers(), list[int]()
    for _ in range(2):
        workers.run([[(seen.append, (number,))] for number in range(3)])
    assert sorted(seen) == [0, 0, 1, 1, 2, 2]
    assert workers._inbox.empty(), "nothing is left for workers that never come"


def test_the_caller_returns_only_when_no_worker_is_active_after_an_error() -> None:
    finished = threading.Event()
    meet = threading.Barrier(2, timeout=20)
    slow = [(meet.wait, ()), (time.sleep, (0.2,)), (finished.set, ())]
    with pytest.raises(ZeroDivisionError):
        Workers().run([[(meet.wait, ()), (fail, ("",))], slow])
    assert finished.is_set()


def test_a_worker_keeps_no_array_alive() -> None:
    workers = Workers()
    meet = threading.Barrier(2, timeout=20)
    array = np.zeros(10)
    alive = weakref.ref(array)
    workers.run([[(meet.wait, ()), (array.fill, (1.0,))], [(meet.wait, ()), (array.fill, (1.0,))]])
    del array
    deadline = time.monotonic() + 10
    while alive() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
        gc.collect()
    assert alive() is None


def test_concurrent_callers_each_get_their_own_result() -> None:
    set_num_threads(3)
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(2000, 200)) for _ in range(4)]
    wanted = [np.maximum(x, 0) for x in inputs]
    wrong: list[int] = []

    def work(number: int) -> None:
        out = np.empty_like(inputs[number])
        plan = NumpyBackend().plan(
            lambda verbs: verbs.activation_forward(inputs[number], ACTIVATIONS["relu"], out)
        )
        for _ in range(20):
            out.fill(-1)
            plan()
            if out.tobytes() != wanted[number].tobytes():
                wrong.append(number)

    callers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert not any(caller.is_alive() for caller in callers)
    assert wrong == []


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_repeated_ctrl_c_neither_hangs_nor_leaves_a_worker_writing() -> None:
    result = run_python(
        """
        import random, signal, threading, time
        from gpubackprop.backends.numpy.recorded_calls import Workers
        main, active, armed = threading.get_ident(), [], 0

        def interrupt(number, frame):
            global armed
            if armed:
                armed -= 1
                raise KeyboardInterrupt

        def work():
            if threading.get_ident() == main:
                return time.sleep(0.001)
            active.append(1)
            time.sleep(0.003)
            active.pop()

        def attempt():
            global armed
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 4e-3), 1e-3)
            armed = 3
            for _ in range(2):
                workers.run([[(work, ())] for _ in range(3)])

        def settle():
            global armed
            while True:  # the last of the three may come here
                try:
                    left = len(active)
                    armed = 0
                    return left
                except KeyboardInterrupt:
                    pass

        signal.signal(signal.SIGALRM, interrupt)
        workers, rng, caught, writing = Workers(), random.Random(0), 0, 0
        for _ in range(200):
            try:
                try:
                    attempt()
                finally:
                    writing += settle() > 0
            except KeyboardInterrupt:
                caught += 1
            deadline = time.monotonic() + 5
            while active and time.monotonic() < deadline:
                pass
        signal.setitimer(signal.ITIMER_REAL, 0)
        seen = []
        workers.run([[(seen.append, (n,))] for n in range(3)])
        assert sorted(seen) == [0, 1, 2]
        print(caught, writing)
        """
    )
    assert result.returncode == 0, result.stderr
    caught, writing = map(int, result.stdout.split())
    assert caught > 100
    assert writing <= 4  # an interrupt in the microsecond between two guards is not caught


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_threads_of_its_own() -> None:
    result = run_python(
        """
        import os, threading
        from gpubackprop.backends.numpy.recorded_calls import WORKERS
        def both(meet): return [[(meet.wait, ())], [(meet.wait, ())]]
        WORKERS.run(both(threading.Barrier(2, timeout=20)))
        child = os.fork()
        WORKERS.run(both(threading.Barrier(2, timeout=20)))  # fails unless two threads meet
        if child == 0:
            os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "7"


# -- settings and blocks --------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, -1, 1.5, "2", None, True, float("nan")])
def test_a_number_of_threads_that_is_none_is_refused(bad: object) -> None:
    before = get_num_threads()
    with pytest.raises(OptionError, match="whole number of at least 1"):
        set_num_threads(bad)  # type: ignore[arg-type]
    assert get_num_threads() == before


def test_numpy_integers_are_numbers_of_threads() -> None:
    set_num_threads(np.int64(3))
    assert get_num_threads() == 3


@pytest.mark.parametrize(("variable", "cores"), [("1", 1), ("1,2", 1), ("0", 1)])
def test_omp_num_threads_limits_the_default(
    variable: str, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpubackprop.backends.numpy.recorded_calls import usable_cores

    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert usable_cores() == cores
    monkeypatch.setenv("OMP_NUM_THREADS", "nonsense")
    assert usable_cores() == available


@pytest.mark.parametrize("rows", [0, 1, 7, 1000])
@pytest.mark.parametrize("row_bytes", [0, 1, 1000, 1 << 20])
def test_blocks_cover_every_row_once(rows: int, row_bytes: int) -> None:
    covered = [row for block in row_ranges(rows, row_bytes) for row in range(rows)[block]]
    assert covered == list(range(rows))


def test_parts_of_a_split_never_share_scratch_memory() -> None:
    set_num_threads(3)
    scratch, taken = Scratch(), []
    recorded: list[tuple[object, tuple[object, ...]]] = []

    def emit(call: object, rows: slice, slot: int) -> None:
        taken.append((slot, scratch.take(slot, 0, (4, 5), np.float32)))

    for_row_blocks(lambda f, *args: recorded.append((f, args)), 64, 1 << 14, emit)
    assert len(recorded) == 1  # one call that replays three parts
    assert {slot for slot, _ in taken} == {0, 1, 2}
    for slot, a in taken:
        assert all(np.shares_memory(a, b) == (slot == other) for other, b in taken)
