"""One command runs everything that a machine with an NVIDIA GPU can show.

    python3 -m tools.gpu OUT [--stages environment,compile,...] [--minutes 8]

The most important stages run first. Each has its own process and its own limit; a stage that fails,
hangs or crashes does not stop the next. A stage over its limit gets SIGINT, and is killed 15
seconds later, so that its report survives. OUT gets stages.json and summary.md after each stage,
and a log and a JSON file for each. The exit code is 1 if a stage failed, hung or crashed. A stage
without a GPU, or without its tool, is "skipped" and never "ok". ``--minutes N`` scales all limits,
which sum up to 8 minutes. Not measured on a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from tools.gpu.judging import Outcome, judge, summary
from tools.gpu.running import GRACE, run
from tools.gpu.stages import MORE, STAGES, Stage

MINUTES = 8.0
SHORTEST = 2.0  # seconds; a stage does not start with less time left


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("out", type=Path)
    parser.add_argument("--stages", default="", help="names with commas; default: the first eight")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all stages together")
    args = parser.parse_args(arguments)
    if args.minutes <= 0:
        parser.error(f"--minutes is {args.minutes} but must be more than 0")
    names = [name for name in args.stages.split(",") if name]
    known = [stage.name for stage in (*STAGES, *MORE)]
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"no stage {unknown[0]!r}; there are {', '.join(known)}")
    out = args.out.resolve()
    chosen = [s for s in (*STAGES, *MORE) if s.name in names] if names else list(STAGES)
    outcomes = run_all(chosen, out, args.minutes)
    print((out / "summary.md").read_text(encoding="utf-8"), flush=True)
    return int(any(one.bad for one in outcomes))


def run_all(stages: list[Stage], out: Path, minutes: float = MINUTES) -> list[Outcome]:
    """Run the stages one after another, and write the outcomes after each.

    All limits are scaled by `minutes` / 8. The time that a stage leaves unused goes to the next.
    """
    out.mkdir(parents=True, exist_ok=True)
    scale = minutes / MINUTES
    end = time.monotonic() + scale * sum(stage.seconds for stage in stages)
    outcomes: list[Outcome] = []
    for number, stage in enumerate(stages):
        later = scale * sum(other.seconds for other in stages[number + 1 :])
        limit = max(scale * stage.seconds, end - time.monotonic() - later)
        limit = min(limit, end - time.monotonic())
        print(f"== {stage.name}, at most {max(limit, 0):.0f} s ...", flush=True)
        outcomes.append(run_stage(stage, out, limit))
        last = outcomes[-1]
        print(f"== {last.name}: {last.status}, {last.seconds:.0f} s. {last.note}", flush=True)
        write(out, outcomes, stages)
    return outcomes


def run_stage(stage: Stage, out: Path, limit: float) -> Outcome:
    """Run one stage; `limit` includes the time for writing its report."""
    if limit < SHORTEST:
        return Outcome(stage.name, "skipped", 0.0, "no time was left")
    grace = min(GRACE, limit / 4)
    (out / f"{stage.name}.json").unlink(missing_ok=True)  # an earlier run's
    command = stage.command(out, limit - grace)
    if isinstance(command, str):
        return Outcome(stage.name, "skipped", 0.0, command)
    log = out / f"{stage.name}.log"
    return judge(stage.name, run(command, log, limit - grace, grace=grace), log, out)


def write(out: Path, outcomes: list[Outcome], stages: list[Stage]) -> None:
    rows = [asdict(outcome) for outcome in outcomes]
    (out / "stages.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    (out / "summary.md").write_text(
        summary(outcomes, {s.name: s.shows for s in stages}), encoding="utf-8"
    )


if __name__ == "__main__":
    sys.exit(main())
