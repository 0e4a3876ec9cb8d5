"""One contestant in a process of its own, told what to do by lines of JSON on its input.

``python -m gpubackprop.bench.worker NAME DEVICE [--small]`` sets up, checks and times;
``cold_main`` shows what a first call costs, to a process that has imported the contestant alone.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

import numpy as np

from gpubackprop.bench import limits, problems, steps
from gpubackprop.bench.contestants import LIMIT, module_name
from gpubackprop.bench.places import Place, Work, rotated
from gpubackprop.bench.shapes import Case

SETS_OF_L2 = 3  # inputs rotate over more than this many times the second-level cache
MOST_SETS = 64


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("contestant")
    parser.add_argument("device")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    out, sys.stdout = sys.stdout, sys.stderr  # libraries may print; the pipe is for answers
    if args.small:
        limits.make_small()
    session = Session(args.contestant, args.device)
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):  # the parent says what happened
        for line in sys.stdin:
            _answer(out, session.do(json.loads(line)))


def _answer(out: TextIO, values: dict[str, Any]) -> None:
    print(json.dumps(values), file=out, flush=True)


class Session:
    """Does what the messages ask, and answers each with a dict."""

    def __init__(self, contestant: str, device: str) -> None:
        self.contestant, self.device = contestant, device
        self.work: Work | None = None
        self._place: Place | None = None

    def do(self, message: dict[str, Any]) -> dict[str, Any]:
        """One of prepare, round, drop, machine, oracle; an exception is {"missing": its text}."""
        try:
            action = {
                "prepare": self._prepare, "round": self._round, "drop": self._drop,
                "machine": lambda message: limits.machine(self.device), "oracle": self._oracle,
            }[message["do"]]  # fmt: skip
            return action(message)
        except Exception as error:  # one contestant's trouble must not end the run
            self._drop({})
            return {"missing": explain(error)}

    @property
    def place(self) -> Place:
        if self._place is None:
            module = importlib.import_module(module_name(self.contestant))
            self._place = module.place(self.device, self.contestant)
        return self._place

    def _prepare(self, message: dict[str, Any]) -> dict[str, Any]:
        case = Case.from_json(message["case"])
        if message.get("losses"):
            steps.ORACLES[case.name] = np.array(message["losses"])
        module = importlib.import_module(module_name(self.contestant))
        works = [module.setup(case, self.place, self.contestant)]
        answer: dict[str, Any] = {}
        if self.contestant != LIMIT:
            ratio, error = problems.get(case.op).check(case, works[0].outputs())
            answer["error"] = error
            if not ratio <= 1:
                self._drop({})
                return {"wrong": f"WRONG: differs from the oracle by {error:.1e}", "error": error}
            works += [module.setup(case, self.place, self.contestant) for _ in self._more(case)]
        for work in works:
            if work.capture is not None:
                work.replay, work.uncaptured = work.capture()
        self.work = rotated(works)
        answer["replay"] = self.work.replay is not None
        answer["uncaptured"] = self.work.uncaptured
        self.work.run()
        self.place.wait()
        answer["remark"] = self.work.remark()
        return answer

    def _oracle(self, message: dict[str, Any]) -> dict[str, Any]:
        """A step's losses, which take time and memory to find: once for all processes."""
        return {"losses": steps.oracle_losses(Case.from_json(message["case"])).tolist()}

    def _more(self, case: Case) -> Iterator[int]:
        """Further sets of arrays, until they exceed a GPU's cache."""
        moved = problems.get(case.op).bytes(case)
        l2 = self.place.l2_bytes()
        if not l2 or case.op in ("training_step", "transfer"):
            return iter(())
        return iter(range(min(MOST_SETS - 1, SETS_OF_L2 * l2 // max(moved, 1))))

    def _round(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self.work is not None
        run = self.work.replay if message.get("replay") else self.work.run
        assert run is not None
        clock = self.work.clock or functools.partial(self.place.time, run)
        seconds, issued = clock(message["repeats"])
        factor = self.work.scale / self.work.units
        return {"seconds": seconds * factor, "host": issued * factor, "raw": seconds}

    def _drop(self, message: dict[str, Any]) -> dict[str, Any]:
        self.work = None
        if self._place is not None:
            self._place.release()
        return {}


def explain(error: BaseException) -> str:
    """One line: why a contestant was not measured."""
    if isinstance(error, (ImportError, problems.Unsupported)):
        return str(error).splitlines()[0]
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def cold_main(imported: float) -> None:
    """In a process that took `imported` seconds to import the contestant that it is given, with
    device and case: answers with those and with the seconds of the first steps."""
    out, sys.stdout = sys.stdout, sys.stderr
    contestant, device, case = sys.argv[1:]
    answer = cold_start(Case.from_json(json.loads(case)), contestant, device)
    _answer(out, {"import": imported, **answer})


def cold_start(case: Case, contestant: str, device: str) -> dict[str, Any]:
    """Seconds of the first steps with all that precedes them but the import."""
    try:
        module = importlib.import_module(module_name(contestant))
        step = Case("training_step", case.shape, case.dtype, case.variant)
        start = time.perf_counter()
        place = module.place(device, contestant)
        work = module.setup(step, place, contestant)
        found = work.outputs()
        place.wait()
        seconds = time.perf_counter() - start
        ratio, error = problems.get("training_step").check(step, found)
        if not ratio <= 1:
            return {"wrong": f"WRONG: differs from the oracle by {error:.1e}"}
        return {"first": seconds, "error": error}
    except Exception as error:
        return {"missing": explain(error)}


if __name__ == "__main__":
    main()
