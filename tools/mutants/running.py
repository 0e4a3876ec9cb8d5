"""Judge many mutants, several at a time."""

from __future__ import annotations

import json
import queue
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from tools.mutants.copies import Copy
from tools.mutants.judge import Judge, Order, killer_of
from tools.mutants.mutations import Mutant, all_mutants
from tools.mutants.record import Record, Sources
from tools.mutants.worker import CPU_LIMIT, WHOLE_LIMIT, Reply, source_of

PORTION = 40  # tests


class Crew:
    """Copies of the tree, each with a worker; the workers end with this context.

    Parameters
    ----------
    jobs : mutants at a time.
    tests : a pattern; only tests whose name contains it run.
    most : the number of tests for each mutant; 0: all.

    Attributes
    ----------
    all_tests : every test that may kill.
    tests : those that run.
    """

    def __init__(self, jobs: int, tests: str = "", most: int = 0) -> None:
        self.most = most
        self.copies = [Copy() for _ in range(jobs)]
        self.all_tests = frozenset(self.copies[0].worker.tests)
        self.tests = [test for test in self.copies[0].worker.tests if re.search(tests, test)]

    def baseline(self, sources: Sources, mutants: Iterable[Mutant]) -> Reply:
        """Run tests without a mutant, and return what each takes and uses. They must pass.

        A test is left out if its last run used none of the kernels that have these mutants. It runs
        again only if its own file or a kernel that it used has changed since.
        """
        kept = self.copies[0].cache.parent / "tests.json"
        known = json.loads(kept.read_text()) if kept.exists() else {}
        wanted = {source for mutant in mutants for source in sources.users[mutant.file]}

        def is_new(test: str) -> bool:
            mark, _, builds = known.get(test, ("", 0.0, ()))
            used = set(map(source_of, builds))
            return not (mark and used.isdisjoint(wanted)) and mark != sources.behind(test, used)

        new = [test for test in self.tests if is_new(test)]
        for first in range(0, len(new), PORTION):  # what has passed is kept if the run is stopped
            print(f"{first} of {len(new)} tests have passed without a mutant", flush=True)
            reply = self._must_pass(new[first : first + PORTION])
            for test, seconds in reply.seconds.items():
                builds = reply.builds[test]
                known[test] = [sources.behind(test, set(map(source_of, builds))), seconds, builds]
            kept.write_text(json.dumps(known))
        return Reply(
            seconds={test: known[test][1] for test in self.tests},
            builds={test: known[test][2] for test in self.tests},
        )

    def check_killers(self, verdicts: Sequence[str]) -> None:
        """Check that tests that killed pass without a mutant; else their verdicts are worthless."""
        by_time = {killer_of(v) for v in verdicts if v.endswith("(time limit)")}
        others = {killer_of(v) for v in verdicts} - by_time - {""}
        self._must_pass(sorted(by_time), CPU_LIMIT)  # the limit at which they killed
        self._must_pass(sorted(others))

    def judge(
        self,
        mutants: Sequence[Mutant],
        record: Record,
        *,
        baseline: Reply | None = None,
        stop: float = float("inf"),
    ) -> Iterator[tuple[Mutant, str]]:
        """Yield each mutant with its verdict; none starts after `stop` (time.time())."""
        order = Order(self.tests, baseline)
        for mutant in all_mutants():
            order.note(mutant, killer_of(record.verdict(mutant)))
        free: queue.Queue[Judge] = queue.Queue()
        for copy in self.copies:
            free.put(Judge(copy, order, self.most))

        def one(mutant: Mutant) -> tuple[Mutant, str] | None:
            if time.time() > stop:
                return None
            judge = free.get()
            try:
                return mutant, judge.verdict(mutant, killer_of(record.verdict(mutant)))
            finally:
                free.put(judge)

        with ThreadPoolExecutor(len(self.copies)) as pool:
            try:
                for future in as_completed([pool.submit(one, mutant) for mutant in mutants]):
                    if (result := future.result()) is not None:
                        yield result
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self._kill()
                raise

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None:
            self._kill()
        for copy in self.copies:
            copy.worker.close()

    def _kill(self) -> None:
        for copy in self.copies:
            copy.worker.kill()

    def _must_pass(self, tests: Sequence[str], limit: float = WHOLE_LIMIT) -> Reply:
        reply = self.copies[0].worker.run(tests, limit, to_the_end=True)
        if reply.failed:
            raise SystemExit(
                f"error: without a mutant: {reply.failed} {reply.how}\n{reply.message}"
            )
        return reply


def shown(mutant: Mutant, verdict: str) -> str:
    """Return two lines for the terminal."""
    changed = f"{mutant.before.strip()}  ->  {mutant.after.strip()}"
    return f"{mutant.file}:{mutant.line}  {mutant.kind}  {verdict}\n    {changed}"
