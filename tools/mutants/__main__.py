"""python -m tools.mutants --all          run mutants with no verdict or an old one; write tables
python -m tools.mutants --all --sample 20   run a seeded sample of them, the next ones each time
python -m tools.mutants --sample 20     kill a seeded sample of the record again
python -m tools.mutants                 show the record, and how much of it is out of date

--only and --kind choose files and kinds. Ctrl-C loses nothing: the next --all continues there.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import time
from collections.abc import Sequence

from tools.mutants import report
from tools.mutants.equivalent import reason_of, stale
from tools.mutants.judge import SURVIVED, killer_of
from tools.mutants.mutations import Mutant, all_mutants, sample
from tools.mutants.record import Record, Sources
from tools.mutants.running import Crew, shown

WANTED = 0.95  # share of the mutants that are not equivalent


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    everything = all_mutants()
    if wrong := stale(everything):
        raise SystemExit("error: tools/mutants/equivalent.py:\n" + "\n".join(wrong))
    mutants = [m for m in everything if re.search(options.only, m.file) and options.kind in m.kind]
    record = Record()
    if options.write:
        record.forget_all_but(everything)
        report.write(record)
        return 0
    if options.sample and not options.all:
        known = [mutant for mutant in mutants if record.verdict(mutant)]
        return _sample(sample(known or mutants, options.sample, options.seed), record, options)
    if not options.all:
        print(_status(mutants, record))
        return 0
    return _all(mutants, everything, record, options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.mutants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--all", action="store_true", help="run and put on record")
    parser.add_argument("--again", action="store_true", help="with --all: all are out of date")
    parser.add_argument(
        "--gone", action="store_true", help="with --all: whose killer is no test now"
    )
    parser.add_argument("--sample", type=int, default=0, metavar="N",
                        help="run so many; without --all no record")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="REGEX", help="files of this name")
    parser.add_argument("--kind", default="", help="operator, bound, barrier, lane, scale, store")
    parser.add_argument("--tests", default="", metavar="REGEX", help="these only; keep no survivor")
    parser.add_argument("--first", type=int, default=0, metavar="N",
                        help="the N likeliest tests only; keep no survivor")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument("--minutes", type=float, default=1e6, help="start none after so long")
    parser.add_argument(
        "--write",
        action="store_true",
        help="run none; drop what is no mutant any more, write the tables",
    )
    return parser.parse_args(arguments)


def _status(mutants: Sequence[Mutant], record: Record) -> str:
    sources = Sources()
    waiting = [m for m in mutants if not record.standing(m, sources)]
    return report.table(record) + f"{len(waiting)} of {len(mutants)} mutants are not on record\n"


def _sample(mutants: Sequence[Mutant], record: Record, options: argparse.Namespace) -> int:
    """Kill the sample's killed mutants again; the others keep their verdict on record.

    Each of the others would take all tests.
    """
    recorded = {mutant: record.verdict(mutant) for mutant in mutants}
    verdicts = {m: v for m, v in recorded.items() if v and "::" not in v}
    with Crew(options.jobs, options.tests) as crew:
        for mutant, verdict in crew.judge([m for m in mutants if m not in verdicts], record):
            verdicts[mutant] = verdict
        crew.check_killers(list(verdicts.values()))
    print("\n".join(shown(mutant, verdicts[mutant]) for mutant in mutants))
    return _outcome(verdicts)


def _all(
    mutants: Sequence[Mutant],
    everything: Sequence[Mutant],
    record: Record,
    options: argparse.Namespace,
) -> int:
    stop = time.time() + 60 * options.minutes
    some = bool(options.tests or options.first)
    with Crew(options.jobs, options.tests, options.first) as crew:
        sources = Sources(crew.copies[0].path)
        waiting = _waiting(mutants, record, sources, crew.all_tests, options)
        print(f"{len(waiting)} of {len(mutants)} mutants to run", flush=True)
        known = crew.baseline(sources, waiting) if waiting else None
        for mutant, verdict in crew.judge(waiting, record, baseline=known, stop=stop):
            if verdict != SURVIVED or not some or (reason_of(mutant) and not options.first):
                record.keep(mutant, verdict, sources)
            print(shown(mutant, verdict), flush=True)
    record.forget_all_but(everything)
    report.write(record)
    return _outcome({mutant: record.verdict(mutant) for mutant in mutants})


def _waiting(
    mutants: Sequence[Mutant],
    record: Record,
    sources: Sources,
    tests: frozenset[str],
    options: argparse.Namespace,
) -> list[Mutant]:
    """Return what is to be run, mutants that no test is thought to kill last."""
    killers = {mutant: killer_of(record.verdict(mutant)) for mutant in mutants}
    gone = {mutant for mutant, killer in killers.items() if killer and killer not in tests}
    waiting = [m for m in mutants if options.again or m in gone or not record.standing(m, sources)]
    if options.gone:
        waiting = [m for m in waiting if m in gone]
    if options.sample:
        waiting = sample(waiting, options.sample, options.seed)
    return sorted(waiting, key=lambda m: bool(reason_of(m)))  # these take all tests


def _outcome(verdicts: dict[Mutant, str]) -> int:
    """Print the sum; return 0 if enough mutants were killed."""
    for mutant, verdict in verdicts.items():
        if report.outcome(mutant, verdict) == "survivors":
            print(shown(mutant, verdict.upper()))
        if "::" in verdict and reason_of(mutant):
            raise SystemExit(f"error: listed as equivalent, but killed:\n{shown(mutant, verdict)}")
    counts = report.count(verdicts)
    print(f"{counts.killed} killed, {counts.survivors} survived: {counts.share:.1%} of those that "
          f"are not equivalent ({counts.equivalent})")  # fmt: skip
    return 0 if counts.share >= WANTED else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
