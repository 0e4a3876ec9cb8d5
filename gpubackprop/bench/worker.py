"""A worker runs one provider in its own process; lines of JSON on its input tell it what to do.

``python -m gpubackprop.bench.worker NAME DEVICE [--small]`` sets up, checks and times;
``cold_main`` times the first steps in a process that has imported only the provider.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

import numpy as np

from gpubackprop.bench import limits, operations, problems, steps
from gpubackprop.bench.nvml import Clocks, Meter
from gpubackprop.bench.providers import LIMIT, OURS, SAME_SIZE, module_name
from gpubackprop.bench.shapes import Case
from gpubackprop.bench.timers import L2_TIMES, CupyTimer, EventTimer, Run, Timer, Work, rotated

SETS_OF_L2 = L2_TIMES  # inputs rotate over more than this many times the L2 cache
MOST_SETS = 64
JOULE_SECONDS = 0.5  # seconds of work to measure the energy of a step
# A worker is idle if in so many seconds (more than a tick of the system's clock) it used at most
# this share of one core. One that is busy for longer than IDLE_SECONDS answers all the same.
IDLE_STEP, IDLE_SHARE, IDLE_SECONDS = 0.012, 0.1, 1.0
HOST_BOUND = 0.5  # share of a replay's time: a longer launch may distort it


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("provider")
    parser.add_argument("device")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    out, sys.stdout = sys.stdout, sys.stderr  # libraries may print; the pipe is for answers
    if args.small:
        limits.make_small()
    session = Session(args.provider, args.device)
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):  # the parent reports it
        for line in sys.stdin:
            answer = session.do(json.loads(line))
            if args.device == "cpu" and os.environ.get("OMP_NUM_THREADS") != "1":
                wait_until_idle()
            _answer(out, answer)


def wait_until_idle() -> None:
    """Wait until this process's threads sleep, so that the next provider has all cores.

    OpenBLAS's threads spin after a product: for 120 ms on the machine where this was measured.
    """
    end = time.perf_counter() + IDLE_SECONDS
    while time.perf_counter() < end:
        start, used = time.perf_counter(), time.process_time()
        time.sleep(IDLE_STEP)
        if time.process_time() - used <= IDLE_SHARE * (time.perf_counter() - start):
            return


def _answer(out: TextIO, values: dict[str, Any]) -> None:
    print(json.dumps(values), file=out, flush=True)


class Session:
    """Carry out each message and answer it with a dict."""

    def __init__(self, provider: str, device: str) -> None:
        self.provider, self.device = provider, device
        self.work: Work | None = None
        self._meter: Meter | None = None
        self._timer: Timer | None = None

    def do(self, message: dict[str, Any]) -> dict[str, Any]:
        """Carry out a message; an exception becomes {"missing": its text}."""
        try:
            action = {
                "prepare": self._prepare, "round": self._round, "drop": self._drop,
                "machine": lambda message: limits.machine(self.device), "oracle": self._oracle,
                "joules": self._joules,
            }[message["do"]]  # fmt: skip
            return action(message)
        except Exception as error:  # one provider's trouble must not end the run
            self._drop({})
            return {"missing": explain(error)}

    @property
    def timer(self) -> Timer:
        if self._timer is None:
            module = importlib.import_module(module_name(self.provider))
            self._timer = module.timer(self.device, self.provider)
        return self._timer

    def _prepare(self, message: dict[str, Any]) -> dict[str, Any]:
        case = Case.from_json(message["case"])
        if self._meter is None and self.device != "cpu":
            self._meter = Meter(message.get("card", ""))
        if message.get("losses"):
            steps.ORACLES[case.name] = np.array(message["losses"])
        module = importlib.import_module(module_name(self.provider))
        works = [module.setup(case, self.timer, self.provider)]
        answer: dict[str, Any] = {}
        if self.provider == SAME_SIZE:
            works += [module.setup(case, self.timer, self.provider) for _ in self._more(case)]
        elif self.provider != LIMIT:
            ratio, error = operations.get(case.op).check(case, works[0].outputs())
            answer["error"] = error
            if not ratio <= 1:
                self._drop({})
                return {"wrong": f"WRONG: differs from the oracle by {error:.1e}", "error": error}
            works += [module.setup(case, self.timer, self.provider) for _ in self._more(case)]
        for work in works:
            if work.capture is not None:
                work.replay, work.uncaptured = work.capture()
        self.work = rotated(works)
        answer["replay"] = self.work.replay is not None
        answer["uncaptured"] = self.work.uncaptured
        self.work.run()
        self.timer.wait()
        answer["remark"] = self.work.remark()
        answer["cold"] = self._fits_a_cache(case) and self._can_be_cold(answer)
        return answer

    def _oracle(self, message: dict[str, Any]) -> dict[str, Any]:
        """Compute the oracle's losses; they take time and memory, so one process does it for
        all."""
        case = Case.from_json(message["case"])
        problem = operations.get(case.op)
        assert isinstance(problem, steps.HeldToLosses)
        return {"losses": problem.losses(case).tolist()}

    def _more(self, case: Case) -> Iterator[int]:
        """Number further sets of arrays, until all sets exceed a GPU's cache."""
        moved = operations.get(case.op).bytes(case)
        l2 = self.timer.l2_bytes()
        if not l2 or case.op in ("training_step", "transfer", "fit", "fit_many"):
            return iter(())
        return iter(range(min(MOST_SETS - 1, SETS_OF_L2 * l2 // max(moved, 1))))

    def _fits_a_cache(self, case: Case) -> bool:
        """Say whether the time with an empty cache deserves a row."""
        if self.provider != OURS["cuda"] or case.op == "transfer":
            return False
        l2 = self.timer.l2_bytes()
        return isinstance(self.timer, CupyTimer) and operations.get(case.op).bytes(case) < (
            SETS_OF_L2 * l2
        )

    def _can_be_cold(self, answer: dict[str, Any]) -> bool:
        """Try the work with an empty cache before timing: if it fails, only that row is missing."""
        assert self.work is not None
        assert isinstance(self.timer, CupyTimer)
        try:
            self.timer.cold_time(self.work.single or self.work.run, 1)
            return True
        except Exception as error:
            why = f"no row with a cold cache: {explain(error)}"
            answer["remark"] = "; ".join(filter(None, (answer["remark"], why)))
            return False

    def _run(self, message: dict[str, Any]) -> Run:
        """Return the timed function: the plain calls, or the replay of a graph."""
        assert self.work is not None
        run = self.work.replay if message.get("replay") else self.work.run
        assert run is not None
        return run

    def _round(self, message: dict[str, Any]) -> dict[str, Any]:
        """Time a round: `seconds` of one piece of work, and `raw` of one run.

        `clocks` were read in the middle of it. `queued` says that a GPU's queue was filled first.
        """
        run, count, queued = self._run(message), message["repeats"], False
        assert self.work is not None
        clocks: list[Clocks | None] = []
        if message.get("warm"):
            self.timer.warm(run)
        if self._meter is not None:
            meter = self._meter
            self.timer.watch = lambda: clocks.append(meter.clocks())
        if message.get("cold"):
            assert isinstance(self.timer, CupyTimer)
            seconds, issued = self.timer.cold_time(self.work.single or run, count)
            units = 1 if self.work.single else self.work.units
        elif self.work.launches and isinstance(self.timer, EventTimer):
            seconds, issued = self.timer.queued_time(run, count, self.work.launches)
            units, queued = self.work.units, True
        else:
            seconds, issued = self.timer.time(run, count)
            units = self.work.units
            short = bool(message.get("replay")) and issued > HOST_BOUND * seconds
            if short and isinstance(self.timer, EventTimer):
                queued = True
                seconds, _ = self.timer.queued_time(run, count)
        factor = self.work.scale / units
        answer = {"seconds": seconds * factor, "host": issued * factor, "raw": seconds}
        return answer | {"clocks": clocks[-1] if clocks else None, "queued": queued}

    def _joules(self, message: dict[str, Any]) -> dict[str, Any]:
        """Measure the whole card's energy for one piece of work; {} if the card does not report it.

        The counter moves some ten times a second. So the work runs from its first move to its last,
        and counts between these two.
        """
        run = self._run(message)
        assert self.work is not None
        if self._meter is None or self._meter.joules() is None:
            return {}
        moves: list[tuple[float, int]] = []  # counter, and calls until it moved
        calls, before = 0, self._meter.joules()
        start = time.perf_counter()
        while (passed := time.perf_counter() - start) < 4 * JOULE_SECONDS:
            self.timer.finish(run, message["repeats"])
            calls += message["repeats"]
            now = self._meter.joules()
            if now is not None and now != before:
                moves.append((now, calls))
                before = now
                if passed > JOULE_SECONDS and len(moves) > 1:
                    break
        if len(moves) < 2:
            return {}
        (first, from_call), (last, to_call) = moves[0], moves[-1]
        return {"joules": (last - first) / ((to_call - from_call) * self.work.units)}

    def _drop(self, message: dict[str, Any]) -> dict[str, Any]:
        self.work = None
        if self._timer is not None:
            self._timer.release()
        return {}


def explain(error: BaseException) -> str:
    """Say in one line why a provider was not measured."""
    if isinstance(error, (ImportError, problems.Unsupported)):
        return str(error).splitlines()[0]
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def cold_main(imported: float) -> None:
    """Answer with `imported`, the seconds that the provider's import took, and with those of its
    steps.

    The command line names provider, device and case.
    """
    out, sys.stdout = sys.stdout, sys.stderr
    provider, device, case = sys.argv[1:]
    answer = cold_start(Case.from_json(json.loads(case)), provider, device)
    _answer(out, {"import": imported, **answer})


def cold_start(case: Case, provider: str, device: str) -> dict[str, Any]:
    """Time the first steps with everything before them except the import."""
    try:
        module = importlib.import_module(module_name(provider))
        step = Case("training_step", case.shape, case.dtype, case.variant)
        start = time.perf_counter()
        timer = module.timer(device, provider)
        work = module.setup(step, timer, provider)
        found = work.outputs()
        timer.wait()
        seconds = time.perf_counter() - start
        ratio, error = operations.get("training_step").check(step, found)
        if not ratio <= 1:
            return {"wrong": f"WRONG: differs from the oracle by {error:.1e}"}
        return {"first": seconds, "error": error}
    except Exception as error:
        return {"missing": explain(error)}


if __name__ == "__main__":
    main()
