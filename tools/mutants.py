"""Break the kernels one line at a time and see whether the kernel tests notice.

    python tools/mutants.py --sample 12 --seed 0     a seeded sample
    python tools/mutants.py --all                    every mutant; hours
    python tools/mutants.py --list [--only update]   the mutants, nothing is run

The tree is copied to a folder in the temporary directory and only the copy is broken. Each mutant
runs the fast tests of the kernels that include its file, up to the first that fails. Each test that
killed a mutant must pass on the copy without one; the run ends with an error otherwise.

Not mutated: lines for the GPU compilers alone (inline PTX: g++ never sees them), preprocessor
lines, the tables of entries. Mutants in `EQUIVALENT` are not run.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("gpubackprop", "kernels", "tests")
CACHE_LIMIT = 2 << 30  # bytes; the cache of compiled mutants is emptied beyond it
TEST_LIMIT = 60  # seconds for one test; longer is a deadlock or an endless loop

# The tests that look at the values of a kernel; traffic and sanitizers look at all kernels.
VALUE_TESTS = {
    "test_kernel_layers.py": ("activation_backward", "affine_epilogue", "column_sum", "dropout"),
    "test_kernel_losses.py": (
        "accumulate", "column_sum", "pointwise_loss", "row_weights", "softmax_cross_entropy",
    ),
    "test_kernel_updates.py": ("prepare_update", "sum_of_squares", "update"),
    "test_kernel_update_table.py": ("update_table",),
    "test_kernel_gather.py": ("gather_rows",),
}  # fmt: skip
OTHER_TESTS = (
    "test_kernel_survivors.py", "test_kernel_traffic.py", "test_kernel_launch.py",
    "test_kernel_sanitizers.py",
)  # fmt: skip

SAME = "both branches give the same where the two sides are equal"
SLOWER = "packs take the path of a tail: the same elements in the same accesses, less unrolled"
# (file, what the line says, what the mutant says): why no test can see it.
EQUIVALENT: dict[tuple[str, str, str], str] = {
    ("activation_backward.cu", "STRIP_ROWS < strip.last", "STRIP_ROWS <= strip.last"): SAME,
    ("activations.cuh", "x > C(40) ?", "x >= C(40) ?"): SAME,
    ("activations.cuh", "(a > C(0) ? a : C(0)) +", "(a >= C(0) ? a : C(0)) +"): SAME,
    ("column_sum.cu", "STRIP_ROWS < strip.last", "STRIP_ROWS <= strip.last"): SAME,
    ("gather_rows.cu", "j < 0 ?", "j <= 0 ?"): SAME,
    ("gather_rows.cu", "cols - j < E ?", "cols - j <= E ?"): SAME,
    ("update.cu", "i < 0 ?", "i <= 0 ?"): SAME,
    ("update.cu", "count - i < E ?", "count - i <= E ?"): SAME,
    ("update.cu", "::fabs(x) < smallest_normal", "::fabs(x) <= smallest_normal"):
        "2^-14 is exact on both paths",
    ("sum_of_squares.cu", "i < 0 ?", "i <= 0 ?"): SAME,
    ("sum_of_squares.cu", "count - i < E ?", "count - i <= E ?"): SAME,
    ("sum_of_squares.cu", "penalized - i < hi ?", "penalized - i <= hi ?"): SAME,
    ("sum_of_squares.cu", "SEQUENCE && i < count", "SEQUENCE && i <= count"):
        "a pack that begins at the end is empty: nothing is read, zeros are added",
    ("prepare_update.cu", "factor < 1.0 ?", "factor <= 1.0 ?"): SAME,
    ("prepare_update.cu", "blockIdx.x != 0", "blockIdx.y != 0"): "the grid is one block",
    ("include/strip.cuh", "first + chunk < all ?", "first + chunk <= all ?"): SAME,
    ("include/strip.cuh", "at >= 0 ?", "at > 0 ?"): SAME,
    ("include/strip.cuh", "at <= -E ?", "at < -E ?"): SAME,
    ("include/strip.cuh", "left >= E ?", "left > E ?"): SAME,
    ("include/strip.cuh", "left < 0 ?", "left <= 0 ?"): SAME,
    ("include/strip.cuh", "(count - 1) * STRIP_ROWS", "(count + 1) * STRIP_ROWS"): SLOWER,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One changed line. `file` is relative to kernels/; `line` counts from 1."""

    file: str
    line: int
    kind: str
    before: str
    after: str

    @property
    def reason(self) -> str:
        """Why it is equivalent, or ""."""
        for (file, old, new), reason in EQUIVALENT.items():
            if file == self.file and self.before.replace(old, new, 1) == self.after != self.before:
                return reason
        return ""


# -- making mutants -------------------------------------------------------------------------------

_VALUE = r"[\w:]+(?:<\w+>)?(?:\.\w+)*(?:\[[^\]]*\])?(?:\([^()]*\))?"
_ELEMENT = r"[a-z]\w*(?:\.\w+)?(?:\[[^;=\]]*\])+(?:\.v\[e\])?"
RULES: tuple[tuple[str, str, str], ...] = (  # kind, pattern, replacement
    ("operator", r" \+ ", " - "),
    ("operator", r" - ", " + "),
    ("operator", r" \* ", " / "),
    ("operator", r" / ", " * "),
    ("operator", r" \+= ", " -= "),
    ("operator", r" \*= ", " /= "),
    ("operator", r" < ", " <= "),
    ("operator", r" <= ", " < "),
    ("operator", r" > ", " >= "),
    ("operator", r" >= ", " > "),
    ("operator", r" == ", " != "),
    ("operator", r" != ", " == "),
    ("operator", r" && ", " || "),
    ("operator", r" \|\| ", " && "),
    ("operator", r" >> ", " << "),
    ("operator", r" << ", " >> "),
    ("operator", r" \^ ", " | "),
    ("minimum and maximum", r"(\w+) > (\w+) \? \1 : \2", r"\1 < \2 ? \1 : \2"),
    ("minimum and maximum", r"([\w.() +*-]+) < (\w+) \? (?=[^:]+ : \2)", r"\1 > \2 ? "),
    ("bound", r" < ([\w.]+);", r" < \1 - 1;"),
    ("bound", r" = threadIdx\.([xy]);", r" = threadIdx.\1 + 1;"),
    ("bound", r"(?<=[a-z0-9])\[0\]", "[1]"),
    ("bound", r"(?<=[a-z0-9])\[1\]", "[0]"),
    ("bound", r"(?<=[a-z0-9])\[2\](?! = \{)", "[1]"),
    ("bound", r"(?<=[a-z0-9])\[3\]", "[2]"),
    ("bound", r"(?<=[a-z0-9])\[4\]", "[3]"),
    ("barrier", r"__syncthreads\(\);", ";"),
    ("barrier", r"__syncwarp\([^()]*\);", ";"),
    ("lane", r"value, step, lanes", "value, step ^ 1, lanes"),
    ("lane", r"value, step, lanes", "value, step, 32"),
    ("lane", r"lanes / 2", "lanes / 4"),
    ("lane", r"% 32", "% 16"),
    ("lane", r"threadIdx\.x", "threadIdx.y"),
    ("lane", r"threadIdx\.y", "threadIdx.x"),
    ("lane", r"blockIdx\.x", "blockIdx.y"),
    ("lane", r"blockIdx\.y", "blockIdx.x"),
    ("lane", r"blockDim\.x", "blockDim.y"),
    ("lane", r"blockDim\.y", "blockDim.x"),
    ("lane", r"gridDim\.x", "gridDim.y"),
    ("lane", r"gridDim\.y", "gridDim.x"),
    ("scale", rf" \* {_VALUE}", ""),
    ("scale", rf" / {_VALUE}", ""),
    ("scale", rf"\b{_VALUE} \*= [^;]+;", ";"),
    ("store", r"\bstore(?:_part)?\([^;]*\);", ";"),
    ("store", rf"(?<![\w*] )\b{_ELEMENT} [-+*/]?= (?!\{{)[^;=]+;", ";"),
)  # fmt: skip


def mutants_of(file: str, text: str) -> Iterator[Mutant]:
    """Every mutant of a source, one changed place each, in the order of its lines."""
    seen = set()
    for number, line in _code_lines(file, text):
        code = line.partition("//")[0]
        for kind, pattern, replacement in RULES:
            for match in re.finditer(pattern, code):
                after = line[: match.start()] + match.expand(replacement) + line[match.end() :]
                if after != line and (number, after) not in seen:
                    seen.add((number, after))
                    yield Mutant(file, number, kind, line, after)


def _code_lines(file: str, text: str) -> Iterator[tuple[int, str]]:
    """Lines that the emulator compiles and that compute something."""
    gpu_only = in_define = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#"):
            gpu_only = line.startswith("#if") and "__CUDA_ARCH__" in line
        was_define = in_define
        in_define = line.endswith("\\") and (was_define or line.startswith("#define"))
        # rows.cuh has its loop over the rows in a macro; the other macros are tables
        skipped = line.startswith(("#", "//", "template", "struct", "static_assert", "using"))
        if skipped or gpu_only or (was_define and not file.endswith("rows.cuh")):
            continue
        if re.match(r"\s*(template <.*> )?struct ", line) or "__shared__" in line:
            continue
        yield number, line


def all_mutants(kernels: Path) -> list[Mutant]:
    files = sorted([*kernels.rglob("*.cu"), *kernels.rglob("*.cuh")])
    return [
        mutant
        for path in files
        for mutant in mutants_of(path.relative_to(kernels).as_posix(), path.read_text())
    ]


def sample(mutants: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """Those with the smallest hashes: an edit elsewhere in the kernels leaves the sample alone."""

    def rank(mutant: Mutant) -> bytes:
        text = f"{seed}\0{mutant.file}\0{mutant.before.strip()}\0{mutant.after.strip()}"
        return hashlib.sha256(text.encode()).digest()

    return sorted(mutants, key=rank)[:count]


# -- which tests ----------------------------------------------------------------------------------


def users(kernels: Path) -> dict[str, set[str]]:
    """For each source below kernels/, the stems of the .cu files whose text it is part of."""
    includes = {
        path: {
            (path.parent / name).resolve()
            for name in re.findall(r'#include "([^"]+)"', path.read_text())
        }
        for path in kernels.resolve().rglob("*.cu*")
    }
    result: dict[str, set[str]] = {}
    for kernel in (path for path in includes if path.suffix == ".cu"):
        reached, waiting = set(), [kernel]
        while waiting:
            path = waiting.pop()
            if path not in reached:
                reached.add(path)
                waiting += includes[path]
        for path in reached:
            name = path.relative_to(kernels.resolve()).as_posix()
            result.setdefault(name, set()).add(kernel.stem)
    return result


def tests_for(mutant: Mutant, kernels: set[str]) -> list[list[str]]:
    """Test files in two parts: what is likely to kill it, then the rest."""
    values = [name for name, stems in VALUE_TESTS.items() if kernels & set(stems)]
    if "ptx" in mutant.file or "types" in mutant.file:
        values.sort(key=lambda name: name != "test_kernel_gather.py")
    others = list(OTHER_TESTS)
    if mutant.kind == "barrier":  # values are right where threads switch at barriers only
        others.remove("test_kernel_sanitizers.py")
        values.insert(0, "test_kernel_sanitizers.py")
    return [[f"tests/{name}" for name in part] for part in (values, others)]


# -- running --------------------------------------------------------------------------------------


@dataclass
class Copy:
    """A copy of the tree. Its path is the same in the next run, so that the emulator's cache, whose
    keys contain paths, is still good then; the lock keeps two runs apart."""

    path: Path
    lock: TextIO

    @classmethod
    def make(cls, base: Path) -> Copy:
        for number in range(64):
            lock = (base / f"{number}.lock").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            path = base / str(number)
            shutil.rmtree(path, ignore_errors=True)
            ignored = shutil.ignore_patterns("__pycache__")
            for name in COPIED:
                shutil.copytree(ROOT / name, path / name, ignore=ignored)
            shutil.copy2(ROOT / "pyproject.toml", path)
            return cls(path, lock)
        raise SystemExit(f"error: all places for copies in {base} are taken")

    def set_line(self, mutant: Mutant, text: str) -> None:
        path = self.path / "kernels" / mutant.file
        lines = path.read_text().splitlines(keepends=True)
        lines[mutant.line - 1] = text + "\n"
        path.write_text("".join(lines))


@dataclass
class Run:
    """pytest in a process of its own, up to the first failure."""

    copy: Copy
    mutant: Mutant | None
    parts: Sequence[Sequence[str]]
    log: Path = field(init=False)
    pid: int = field(init=False)

    def start(self) -> int:
        """Start the first part of the tests; the process's id."""
        self.log = self.copy.path / "pytest.log"
        sys.stdout.flush()
        self.pid = os.fork()  # what takes seconds to import is imported once, before
        if self.pid:
            return self.pid
        try:
            os.setsid()
            os.chdir(self.copy.path)
            output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.environ["PYTHONPATH"] = str(self.copy.path)
            sys.path[0] = str(self.copy.path)
            here = [name for name in self.parts[0] if Path(name.partition("::")[0]).exists()]
            code = importlib.import_module("pytest").main(
                ["-x", "-v", "--tb=short", "-m", "not slow", "-p", "no:cacheprovider",
                 f"--timeout={TEST_LIMIT}", "--timeout-method=thread", *here]
            )  # fmt: skip
            sys.stdout.flush()
            os._exit(int(code))
        finally:
            os._exit(98)

    def outcome(self, status: int) -> str:
        """The test that failed and how, or "does not compile"; empty where all tests passed."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # a sanitizer's process that hangs
        text = self.log.read_text(errors="replace")
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return ""
        if re.search(r"EmulatorError: (g\+\+|\w+\.cuh?: )", text):
            return "does not compile"
        failed = re.search(r"^(?:FAILED|ERROR) (tests/.*?)(?: - |$)", text, re.MULTILINE)
        if failed:
            return failed[1]
        begun = re.findall(r"^(tests/\S+?::.*?) (?:PASSED|Fatal|\+\+\+|\s*$)", text, re.MULTILINE)
        if not begun:
            raise SystemExit(f"error: pytest ended with {code} before any test:\n{text[-3000:]}")
        return begun[-1] + (" (time limit)" if "Timeout" in text else f" (exit code {code})")


def run_all(mutants: Sequence[Mutant], jobs: int, stop: float) -> dict[Mutant, str]:
    """What came of each mutant: see `Run.outcome`. None is started after `stop` (time.time())."""
    base = Path(tempfile.gettempdir()) / f"gpubackprop-mutants-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    cache = base / "cache"
    if cache.is_dir() and sum(path.stat().st_size for path in cache.iterdir()) > CACHE_LIMIT:
        shutil.rmtree(cache)
    os.environ |= {"GPUBACKPROP_EMULATOR_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    for name in ("numpy", "ml_dtypes", "torch", "pytest"):
        importlib.import_module(name)
    free = [Copy.make(base) for _ in range(jobs)]
    copies = list(free)
    kernels = users(copies[0].path / "kernels")
    waiting, running, results = list(mutants), dict[int, Run](), dict[Mutant, str]()
    try:
        while running or (waiting and time.time() < stop):
            while free and waiting and time.time() < stop:
                chosen, copy = waiting.pop(0), free.pop()
                copy.set_line(chosen, chosen.after)
                run = Run(copy, chosen, tests_for(chosen, kernels[chosen.file]))
                running[run.start()] = run
            pid, status = os.wait()
            run = running.pop(pid)
            mutant, outcome = run.mutant, run.outcome(status)
            assert mutant is not None
            if not outcome and run.parts[1:]:
                run = Run(run.copy, mutant, run.parts[1:])
                running[run.start()] = run
                continue
            run.copy.set_line(mutant, mutant.before)
            free.append(run.copy)
            results[mutant] = outcome
            print(row(mutant, outcome), flush=True)
        check_killers(copies[0], results.values())
    finally:
        for run in running.values():
            os.killpg(run.pid, signal.SIGKILL)
            os.waitpid(run.pid, 0)
    return results


def check_killers(copy: Copy, outcomes: Iterable[str]) -> None:
    """Every test that killed a mutant passes without one; else its verdict is worth nothing."""
    killers = sorted({re.sub(r" \((time limit|exit code -?\d+)\)$", "", o) for o in outcomes})
    killers = [killer for killer in killers if "::" in killer]
    if not killers:
        return
    run = Run(copy, None, [killers])
    outcome = run.outcome(os.waitpid(run.start(), 0)[1])
    if outcome:
        raise SystemExit(f"error: without any mutant: {outcome}; see {run.log}")


# -- results --------------------------------------------------------------------------------------


def row(mutant: Mutant, outcome: str) -> str:
    changed = f"{mutant.before.strip()}  ->  {mutant.after.strip()}"
    return f"{mutant.file}:{mutant.line}  {mutant.kind}  {outcome or 'SURVIVED'}\n    {changed}"


def summary(results: dict[Mutant, str], equivalent: Sequence[Mutant]) -> tuple[str, float]:
    """The lines below the table, and the share of the mutants that compile that were killed."""
    compiling = {m: outcome for m, outcome in results.items() if outcome != "does not compile"}
    survivors = [m for m, outcome in compiling.items() if not outcome]
    killed = len(compiling) - len(survivors)
    share = killed / len(compiling) if compiling else 1.0
    lines = [
        f"{killed} of {len(compiling)} killed ({share:.1%}); "
        f"{len(results) - len(compiling)} more do not compile, {len(equivalent)} are equivalent"
    ]
    for kind in sorted({m.kind for m in compiling}):
        of_kind = [bool(outcome) for m, outcome in compiling.items() if m.kind == kind]
        lines.append(f"  {kind}: {sum(of_kind)} of {len(of_kind)}")
    files = Counter(o.partition("::")[0] for o in compiling.values() if o)
    lines += [f"  by {name}: {count}" for name, count in files.most_common()]
    lines += ["survivors:", *(f"  {row(m, '')}" for m in survivors)] if survivors else []
    lines += [f"equivalent: {row(m, m.reason)}" for m in equivalent]
    return "\n".join(lines), share


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="every mutant")
    parser.add_argument("--sample", type=int, default=12, metavar="N", help="so many of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="TEXT", help="files whose name contains it")
    parser.add_argument("--kind", default="", help="operator, bound, barrier, lane, scale, store")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--minutes", type=float, default=1e6, help="start none after so long")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    options = parser.parse_args(arguments)
    mutants = [
        m
        for m in all_mutants(ROOT / "kernels")
        if options.only in m.file and options.kind in m.kind
    ]
    found = len(mutants)
    if not options.all and options.sample < found:
        mutants = sample(mutants, options.sample, options.seed)
    if options.list:
        print("\n".join(row(m, m.reason or "-") for m in mutants))
        print(f"{len(mutants)} of {found} mutants")
        return 0
    equivalent = [m for m in mutants if m.reason]
    print(f"{len(mutants)} of {found} mutants, seed {options.seed}")
    stop = time.time() + 60 * options.minutes
    results = run_all([m for m in mutants if not m.reason], options.jobs, stop)
    text, share = summary(results, equivalent)
    print(text)
    return 0 if share >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
