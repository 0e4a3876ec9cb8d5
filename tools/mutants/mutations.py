"""The mutants: the lines of the kernels that are changed, and how."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels"


@dataclass(frozen=True)
class Mutant:
    """One changed line.

    `file` is relative to kernels/, and `line` counts from 1. If a file has a line twice, `nth`
    tells the two equal changes apart.
    """

    file: str
    line: int
    kind: str
    before: str
    after: str
    nth: int = 0

    @property
    def key(self) -> str:
        """Return a key that stays the same after an edit elsewhere in the file."""
        text = "\0".join((self.file, self.before.strip(), self.after.strip(), str(self.nth)))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


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
    ("barrier", r"\b(?:ptx::|__)?cluster_(?:barrier_)?(?:arrive|wait|sync)\(\);", ";"),
    ("barrier", r"\bptx::copy_async_(?:commit|wait<\d+>)\(\);", ";"),
    ("barrier", r"\b__pipeline_(?:commit|wait_prior)\([^()]*\);", ";"),
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
    ("store", r"\b(?:global::)?store(?:_part)?\([^;]*\);", ";"),
    ("store", rf"(?<![\w*] )\b{_ELEMENT} [-+*/]?= (?!\{{)[^;=]+;", ";"),
)  # fmt: skip


def mutants_of(file: str, text: str) -> Iterator[Mutant]:
    """Return every mutant of a source, with one changed place each, in the order of its lines."""
    seen: set[tuple[int, str]] = set()
    like: Counter[tuple[str, str]] = Counter()
    for number, line in _code_lines(file, text):
        code = line.partition("//")[0]
        for kind, pattern, replacement in RULES:
            for match in re.finditer(pattern, code):
                after = line[: match.start()] + match.expand(replacement) + line[match.end() :]
                if after == line or (number, after) in seen:
                    continue
                seen.add((number, after))
                pair = line.strip(), after.strip()
                yield Mutant(file, number, kind, line, after, like[pair])
                like[pair] += 1


def _code_lines(file: str, text: str) -> Iterator[tuple[int, str]]:
    """Return the lines that the emulator compiles and that compute something.

    Inline PTX (g++ never sees it), preprocessor lines and tables of entries are excluded.
    """
    gpu_only = in_define = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#"):
            gpu_only = line.startswith(("#if", "#elif")) and bool(
                re.search(r"(?<!!)defined\(__CUDA_ARCH__\)|#ifdef __CUDA_ARCH__", line)
            )
        was_define = in_define
        in_define = line.endswith("\\") and (was_define or line.startswith("#define"))
        # rows.cuh has its loop over the rows in a macro; the other macros are tables
        skipped = line.startswith(("#", "//", "template", "struct", "using"))
        if skipped or gpu_only or (was_define and not file.endswith("rows.cuh")):
            continue
        if re.match(r"\s*((template <.*> )?struct|static_assert)\b", line) or "__shared__" in line:
            continue
        yield number, line


def kernel_tests(root: Path = ROOT) -> list[Path]:
    """Return the files whose tests may kill."""
    named = (root / "tests").glob("test_kernel_*.py")
    return sorted([*named, root / "tests" / "test_batch_gather.py"])


def all_mutants(kernels: Path = KERNELS) -> list[Mutant]:
    files = sorted([*kernels.rglob("*.cu"), *kernels.rglob("*.cuh")])
    return [
        mutant
        for path in files
        for mutant in mutants_of(path.relative_to(kernels).as_posix(), path.read_text())
    ]


def sample(mutants: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """Return the mutants with the smallest hashes: an edit elsewhere does not change the sample."""

    def rank(mutant: Mutant) -> bytes:
        return hashlib.sha256(f"{seed}\0{mutant.key}".encode()).digest()

    return sorted(mutants, key=rank)[:count]


def users(kernels: Path, others: Iterable[Path] = ()) -> dict[str, list[str]]:
    """Return for each source below kernels/ the .cu files that include it.

    They are names, shortest first. The files of `others` follow, as paths from the root.
    """
    kernels = kernels.resolve()
    own = sorted(kernels.glob("*.cu"), key=lambda path: path.stat().st_size)
    result: dict[str, list[str]] = {}
    for source in (*own, *others):
        reached: set[Path] = set()
        waiting = [source.resolve()]
        while waiting:
            path = waiting.pop()
            if path not in reached:
                reached.add(path)
                waiting += _included(path, kernels)
        name = source.name if source in own else str(source.relative_to(kernels.parent))
        for path in reached:
            if path.is_relative_to(kernels):
                result.setdefault(path.relative_to(kernels).as_posix(), []).append(name)
    return result


def _included(path: Path, kernels: Path) -> list[Path]:
    """Return the headers beside the file or below kernels/, as the emulator's compiler finds
    them."""
    names = re.findall(r'^#include "([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE)
    places = [(path.parent / name, kernels / name) for name in names]
    return [(own if own.exists() else below).resolve() for own, below in places]
