"""SASS instructions as Python statements; see `sass_code.py`.

A method has the name of an instruction. It returns statements; `self.line` is the instruction.
"""

from __future__ import annotations

import re

from tests.emulator.sass_floats import Floats
from tests.emulator.sass_memory import Accesses
from tests.emulator.sass_operands import UnsupportedError

# The instructions that end a block: branches, and those where threads wait for one another.
ENDS = {"BRA", "EXIT", "CALL", "RET", "SHFL", "BAR", "WARPSYNC", "UCGABAR_WAIT", "VOTE", "VOTEU"}
NOTHING = {"NOP", "YIELD", "BSSY", "BSYNC", "BREAK", "MEMBAR", "ERRBAR", "CGAERRBAR", "CCTL",
           "UCGABAR_ARV", "ENDCOLLECTIVE", "FENCE", "ACQBULK", "PREEXIT"}  # fmt: skip


class Statement(Floats, Accesses):
    """The Python text of one instruction: branches and barriers here, all others where it derives from."""

    def text(self) -> list[str]:
        line = self.line
        if line.name in NOTHING:
            return ["pass"]
        try:
            statements = getattr(self, "_" + line.name)()
        except (AttributeError, ValueError, IndexError, KeyError) as error:
            said = f"{line.opcode} {', '.join(line.operands)}"
            raise UnsupportedError(f"no translation of {said!r} ({error!r})") from None
        conditions = [*([line.predicate] if line.predicate else []), *self.conditions]
        if conditions:
            test = " and ".join(self.predicate(name) for name in conditions)
            statements = [f"if {test}: {'; '.join(statements)}"]
        if self.used:
            statements.insert(0, f"if w: t.wait({tuple(sorted(self.used))})")
        return statements

    # -- branches, and where threads wait for one another --------------------------------------

    def _label(self, text: str) -> int:
        match = re.search(r"`\(([^)]*)\)", text)
        if match is None:
            raise ValueError(text)
        return self.labels[match[1]]

    def _BRA(self) -> list[str]:
        if "DIV" in self.line.parts:  # taken where lanes are apart, to WARPSYNC: they come together
            return [f"t.sync = ('warp', {self.line.at})"]
        *conditions, to = self.line.operands
        jump = f"return {self._label(to)}"
        self.conditions += conditions
        return [jump]

    def _VOTEU(self) -> list[str]:
        """A uniform predicate of one that all lanes share: the compiler asks nothing else so."""
        out, condition = self.line.operands
        return [self.put_predicate(out, self.predicate(condition))]

    def _EXIT(self) -> list[str]:
        return ["return -1"]

    def _CALL(self) -> list[str]:
        return [f"return {self._label(self.line.operands[0])}"]

    def _RET(self) -> list[str]:
        return [f"return STARTS[{self.register(self.line.operands[0])}]"]

    def _SHFL(self) -> list[str]:
        out, result, value, lane, clamp = self.line.operands
        number = 255 if result == "RZ" else int(result.removeprefix("R"))
        self.register(result)
        how = (
            repr(self.line.parts[0]),
            self.integer(value),
            self.integer(lane),
            self.integer(clamp),
        )
        return [f"t.sync = ('shuffle', {self.line.at}, {', '.join(how)}, {number}, {out!r})"]

    def _VOTE(self) -> list[str]:
        *results, given = self.line.operands
        return [
            f"t.sync = ('vote', {self.line.at}, {self.predicate(given)}, {results!r}, {self._how()!r})"
        ]

    _VOTEU = _VOTE

    def _how(self) -> str:
        return next(part for part in self.line.parts if part in ("ANY", "ALL"))

    def _BAR(self) -> list[str]:
        if self.line.parts[0] != "SYNC":
            raise ValueError(self.line.opcode)
        return [f"t.sync = ('block', {self.line.at})"]

    def _WARPSYNC(self) -> list[str]:
        if self.line.parts == ["COLLECTIVE"]:  # behind a BRA.DIV
            return ["raise AssertionError('lanes are apart')"]
        return [f"t.sync = ('warp', {self.line.at})"]

    def _UCGABAR_WAIT(self) -> list[str]:
        return [f"t.sync = ('cluster', {self.line.at})"]
