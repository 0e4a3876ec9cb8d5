"""Judge many mutants, some at a time."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from tools.mutants.copies import Copy
from tools.mutants.judge import Judge, Order, killer_of
from tools.mutants.mutations import Mutant
from tools.mutants.record import Record
from tools.mutants.worker import Reply


class Crew:
    """Copies of the tree with a worker each.

    Parameters
    ----------
    jobs : mutants at a time. tests : only those whose name contains this.
    """

    def __init__(self, jobs: int, tests: str = "") -> None:
        self.copies = [Copy() for _ in range(jobs)]
        self.tests = [test for test in self.copies[0].worker.tests if tests in test]

    def baseline(self) -> Reply:
        """All tests without a mutant: what each takes and compiles. They must pass."""
        return self._must_pass(self.tests)

    def check_killers(self, verdicts: Sequence[str]) -> None:
        """Tests that killed must pass without a mutant; else their verdicts are worth nothing."""
        self._must_pass(sorted({killer_of(verdict) for verdict in verdicts} - {""}))

    def judge(
        self,
        mutants: Sequence[Mutant],
        record: Record,
        *,
        baseline: Reply | None = None,
        stop: float = float("inf"),
    ) -> Iterator[tuple[Mutant, str]]:
        """Each mutant with its verdict, as they come; none is begun after `stop` (time.time())."""
        order = Order(self.tests, baseline)
        free: queue.Queue[Judge] = queue.Queue()
        for copy in self.copies:
            free.put(Judge(copy, order))

        def one(mutant: Mutant) -> tuple[Mutant, str] | None:
            if time.time() > stop:
                return None
            judge = free.get()
            try:
                return mutant, judge.verdict(mutant, killer_of(record.verdict(mutant)))
            finally:
                free.put(judge)

        with ThreadPoolExecutor(len(self.copies)) as pool:
            waiting = [pool.submit(one, mutant) for mutant in mutants]
            try:
                for future in as_completed(waiting):
                    if (result := future.result()) is not None:
                        yield result
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        for copy in self.copies:
            copy.worker.close()

    def _must_pass(self, tests: Sequence[str]) -> Reply:
        reply = self.copies[0].worker.run(tests, to_the_end=True)
        if reply.failed:
            raise SystemExit(
                f"error: without a mutant: {reply.failed} {reply.how}\n{reply.message}"
            )
        return reply


def shown(mutant: Mutant, verdict: str) -> str:
    """Two lines for the terminal."""
    changed = f"{mutant.before.strip()}  ->  {mutant.after.strip()}"
    return f"{mutant.file}:{mutant.line}  {mutant.kind}  {verdict}\n    {changed}"
