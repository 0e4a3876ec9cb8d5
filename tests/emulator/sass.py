"""SASS as nvdisasm prints it: basic blocks, loops, and what the main loops execute per element.

A kernel's text holds code that most elements do not meet: peeled heads and tails, paths for pointers
off 16 bytes, loops once with and once without an option. The count therefore follows one path through
each loop (and through the entry, as if it were one): the path with the most main loops on it, then
the most accesses of 16 bytes (or of an element's size, if there is none of 16), then the fewest
instructions. A main loop is one whose path has such accesses itself. If the next loop does the same
to an element (an unrolled loop and its remainder), the cheaper one stands for both. The figure of an
element is the sum, over the main loops on the entry's path, of instructions / elements of one
iteration. Other loops, and the code around the main loops, which runs once per row, are not counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

_SECTION = re.compile(r"^\.text\.(\w+):$", re.MULTILINE)
_LINE = re.compile(
    r"^(?P<label>[.$][\w$]+):"
    r"|/\*[0-9a-f]{4,}\*/\s+(?P<predicate>@!?U?P\w+\s+)?(?P<opcode>[A-Z][\w.]*)\s*(?P<operands>[^;]*);",
    re.MULTILINE,
)
_LABEL = re.compile(r"`\((\.L\w+)\)")
_ENDS = ("EXIT", "RET", "BRX", "JMX")
_VALUE = re.compile(r"\.(U8|S8|U16|S16|64|128|256)\b")
_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
SPACES = {"LDG": "load", "LDGSTS": "load", "STG": "store", "LDS": "shared", "STS": "shared",
          "LD": "shared", "ST": "shared"}  # generic: distributed shared memory  # fmt: skip
# The half-rate pipe: integer and logic work, comparisons, packing (64 results per clock on sm_90).
_ALU = {
    "FMNMX", "FMNMX3", "FSETP", "FSET", "FSEL", "FCHK", "IADD3", "VIADD", "VIADDMNMX", "VIMNMX",
    "LEA", "LOP3", "PLOP3", "SHF", "SHL", "SHR", "ISETP", "SEL", "PRMT", "IMNMX", "IABS", "MOV",
    "F2FP", "P2R", "R2P", "BMSK", "SGXT", "LOP", "PSETP",
}  # fmt: skip
_CONVERSIONS = {"F2F", "F2FP", "I2F", "F2I", "I2FP", "PRMT", "FRND"}


@dataclass(frozen=True)
class Instruction:
    opcode: str  # with its modifiers
    operands: str
    predicated: bool

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def width(self) -> int:
        """The bytes that a load or store moves."""
        match = _VALUE.search(self.opcode)
        return _BYTES[match[1]] if match else 4

    @property
    def classes(self) -> Iterator[str]:
        """The columns of the table in which it counts."""
        yield "total"
        if self.name in SPACES:
            yield SPACES[self.name]
        if self.opcode.startswith("MUFU"):
            yield "exp" if self.opcode.startswith("MUFU.EX2") else "mufu"
        if self.converts:
            yield "conversion"
        elif self.name in ("FFMA", "FMUL", "FADD", "FFMA2", "FMUL2", "FADD2"):
            yield "fma"
        elif self.name in ("DFMA", "DMUL", "DADD", "DSETP"):
            yield "fp64"
        elif self.name in ("FMNMX", "FMNMX3", "FSETP", "FSEL"):
            yield "compare"
        if self.name in _ALU:
            yield "alu"

    @property
    def converts(self) -> bool:
        """Whether it converts between 16 and 32 bits.

        It does so by an instruction of its own, by a half's product with one (HADD2.F32) or, from
        bfloat16 to float32, by a shift or a mask.
        """
        if self.name in _CONVERSIONS or self.opcode.startswith("HADD2.F32"):
            return True
        shifts = self.name in ("IMAD", "SHL", "SHF") and re.search(r", 0x10(000)?,", self.operands)
        return bool(shifts) or (self.name == "LOP3" and "0xffff0000" in self.operands)


@dataclass
class Block:
    instructions: list[Instruction] = field(default_factory=list)
    next: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Region:
    """A main loop: the instructions on its path, and the elements of a thread in an iteration."""

    path: tuple[Instruction, ...]
    elements: float

    @cached_property
    def counts(self) -> Counter[str]:
        return Counter(kind for instruction in self.path for kind in instruction.classes)

    @property
    def work(self) -> tuple[float, ...]:
        """What it does with an element: exponentials, float64; whether it loads, whether it stores."""
        counts = self.counts
        arithmetic = (round(counts[kind] / self.elements, 1) for kind in ("exp", "fp64"))
        return (*arithmetic, counts["load"] > 0, counts["store"] > 0)

    def cost(self) -> float:
        """The instructions for an element."""
        return len(self.path) / self.elements

    def widths(self, space: str) -> tuple[int, ...]:
        """The bytes of its accesses to "load", "store" (global) or "shared", each width once."""
        found = {i.width for i in self.path if SPACES.get(i.name) == space}
        return tuple(sorted(found, reverse=True))


def bodies(text: str) -> dict[str, str]:
    """Return the text of each entry in nvdisasm's output."""
    parts = _SECTION.split(text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def main_regions(body: str, itemsize: int) -> list[Region]:
    """Return the main loops of an entry whose elements have `itemsize` bytes, inner ones first."""
    blocks = _blocks(body)
    dominators = _dominators(blocks)
    wide = any(_is_access(i, 16) for b in dominators for i in blocks[b].instructions)
    done: dict[frozenset[int], _Walk] = {}
    loops = [*_loops(blocks, dominators), (0, frozenset(dominators))]
    for header, members in loops:
        inner = [loop for loop in done if loop < members]
        inner = [loop for loop in inner if not any(loop < other for other in inner)]
        hidden = {block for loop in inner for block in loop}
        walk = _Walk(header, {done[loop].header: done[loop] for loop in inner}, hidden)
        walk.follow(blocks, members, 16 if wide else itemsize)
        elements = _elements(walk.path, 16 if wide else itemsize, itemsize)
        if elements and (wide or not walk.regions):
            walk.regions.append(Region(walk.path, elements))
        done[members] = walk
    return walk.regions


def per_element(regions: Iterable[Region]) -> dict[str, float]:
    """Return the instructions of a thread for each element, by class."""
    sums: Counter[str] = Counter()
    for region in regions:
        for kind, count in region.counts.items():
            sums[kind] += count / region.elements  # type: ignore[assignment]
    return dict(sums)


def _is_access(instruction: Instruction, width: int) -> bool:
    return instruction.name in SPACES and instruction.width == width


def _elements(path: tuple[Instruction, ...], width: int, itemsize: int) -> float:
    """Return the elements of one iteration: those loaded or stored, whichever are fewer.

    There may be two arrays of either kind. In shared memory alone, the exponentials are counted.
    """
    own = [i for i in path if _is_access(i, width)]
    moved = [sum(i.width for i in own if SPACES[i.name] == s) for s in ("load", "store")]
    if any(moved):
        return min(m for m in moved if m) / itemsize
    return float(sum(i.opcode.startswith("MUFU.EX2") for i in path) if own else 0)


def _blocks(body: str) -> list[Block]:
    """Return the basic blocks in the order of the text; [0] is the entry."""
    blocks, labels, joins = [Block()], {}, {}
    jumps: list[tuple[int, str]] = []
    open_block = True  # the next instruction is reached by falling through
    for match in _LINE.finditer(body):
        if match["label"]:
            if match["label"].startswith("$"):
                break  # the functions that the entry calls follow here
            if blocks[-1].instructions:
                blocks.append(Block())
                if open_block:
                    blocks[-2].next.add(len(blocks) - 1)
            labels[match["label"]] = len(blocks) - 1
            open_block = True
            continue
        instruction = Instruction(match["opcode"], match["operands"], bool(match["predicate"]))
        target = _LABEL.search(instruction.operands)
        block = blocks[-1]
        block.instructions.append(instruction)
        barrier = re.match(r"B\d+", instruction.operands)
        if instruction.name == "BSSY" and barrier and target:
            joins[barrier[0]] = target[1]
            continue
        goal = target[1] if target and instruction.name == "BRA" else None
        if instruction.name == "BSYNC" and barrier:
            goal = joins.get(barrier[0])
        if goal is None and instruction.name not in _ENDS:
            continue
        if goal is not None:
            jumps.append((len(blocks) - 1, goal))
        conditional = instruction.predicated or (
            instruction.name == "BRA" and not instruction.operands.lstrip().startswith("`")
        )
        blocks.append(Block())
        open_block = conditional
        if conditional:
            blocks[-2].next.add(len(blocks) - 1)
    for source, label in jumps:
        if label in labels:
            blocks[source].next.add(labels[label])
    return blocks


def _dominators(blocks: list[Block]) -> dict[int, set[int]]:
    """Return, for each block that can be reached, the blocks that every path to it passes."""
    order = _reverse_postorder(blocks, 0, range(len(blocks)))
    before: dict[int, set[int]] = {block: set() for block in order}
    for block in order:
        for successor in blocks[block].next:
            before[successor].add(block)
    result = {block: set(order) for block in order}
    result[0] = {0}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            new = set.intersection(*(result[p] for p in before[block])) | {block}
            changed |= new != result[block]
            result[block] = new
    return result


def _loops(
    blocks: list[Block], dominators: dict[int, set[int]]
) -> list[tuple[int, frozenset[int]]]:
    """Return (header, blocks) of each natural loop, inner ones first; those of one header are joined."""
    before: dict[int, set[int]] = {block: set() for block in dominators}
    for block in dominators:
        for successor in blocks[block].next:
            before[successor].add(block)
    found: dict[int, set[int]] = {}
    for block in dominators:
        for header in blocks[block].next & dominators[block]:
            body = found.setdefault(header, {header})
            stack = [block]
            while stack:
                member = stack.pop()
                if member not in body:
                    body.add(member)
                    stack.extend(before[member])
    return sorted(((h, frozenset(b)) for h, b in found.items()), key=lambda loop: len(loop[1]))


class _Walk:
    """The path through a loop, from its header back to it, or from the entry to an end.

    Attributes
    ----------
    header : int
        The first block.
    inner : dict
        Finished loops directly inside, by header.
    hidden : set
        The blocks of these loops, which the path passes for nothing.
    path : list
        The path's own instructions.
    regions : list
        The main loops on the path, and the loop itself.
    """

    def __init__(self, header: int, inner: dict[int, _Walk], hidden: set[int]) -> None:
        self.header, self.inner, self.hidden = header, inner, hidden
        self.path: tuple[Instruction, ...] = ()
        self.regions: list[Region] = []

    def _weight(self, blocks: list[Block], block: int, width: int) -> tuple[float, float, float]:
        """Return main loops, accesses of `width` bytes, instructions (negative: fewer are better)."""
        if block in self.inner:
            regions = self.inner[block].regions
            return len(regions), 0, -sum(len(region.path) for region in regions)
        own = [] if block in self.hidden else blocks[block].instructions
        return 0, sum(_is_access(i, width) for i in own), -len(own)

    def follow(self, blocks: list[Block], members: frozenset[int], width: int) -> None:
        """Find the path; see the module."""
        order = _reverse_postorder(blocks, self.header, members)
        place = {block: n for n, block in enumerate(order)}
        start = self._weight(blocks, self.header, width)
        best: dict[int, tuple[tuple[float, ...], int | None]] = {self.header: (start, None)}
        for block in order:
            for successor in blocks[block].next:
                if place.get(successor, -1) <= place[block]:
                    continue  # this edge leaves the loop, or closes one
                own = self._weight(blocks, successor, width)
                value = tuple(a + b for a, b in zip(best[block][0], own, strict=True))
                if successor not in best or value > best[successor][0]:
                    best[successor] = value, block
        ends = [b for b in order if self.header in blocks[b].next or not blocks[b].next]
        at = max(ends, key=lambda b: best[b][0], default=None)
        chain: list[int] = []
        while at is not None:
            chain.append(at)
            at = best[at][1]
        chain.reverse()
        self.path = tuple(i for b in chain if b not in self.hidden for i in blocks[b].instructions)
        for block in chain:
            for region in self.inner[block].regions if block in self.inner else ():
                if (
                    self.regions and self.regions[-1].work == region.work
                ):  # the remainder of an unrolled loop
                    region = min(self.regions.pop(), region, key=Region.cost)
                self.regions.append(region)


def _reverse_postorder(blocks: list[Block], start: int, members: Container[int]) -> list[int]:
    """Return the blocks of `members` that can be reached, each after those before it."""
    order, seen = [], {start}
    stack = [(start, iter(sorted(blocks[start].next)))]
    while stack:
        block, successors = stack[-1]
        child = next((s for s in successors if s in members and s not in seen), None)
        if child is None:
            order.append(block)
            stack.pop()
        else:
            seen.add(child)
            stack.append((child, iter(sorted(blocks[child].next))))
    return order[::-1]
