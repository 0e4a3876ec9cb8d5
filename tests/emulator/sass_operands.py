"""The operands of a SASS instruction as Python expressions, for `sass_code.py`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_REGISTER = re.compile(r"\b(R|UR)(\d+|Z)\b")
_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


class UnsupportedError(Exception):
    """An instruction that has no translation."""


@dataclass(frozen=True)
class Line:
    at: int
    predicate: str  # "", "P0", "!P0", "UP0"
    opcode: str
    operands: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def parts(self) -> list[str]:
        return self.opcode.split(".")[1:]

    @property
    def width(self) -> int:
        """The bytes that a load or store moves."""
        return next((_BYTES[part] for part in self.parts if part in _BYTES), 4)


class Operands:
    """Names the operands of one instruction, and notes the registers on which it has to wait."""

    def __init__(self, line: Line, block: int, labels: dict[str, int]) -> None:
        self.line, self.block, self.labels = line, block, labels
        self.used: set[int] = set()  # registers that it reads or writes: it waits for them
        self.conditions: list[str] = []  # predicates beside that in front of it

    # -- operands ------------------------------------------------------------------------------

    def predicate(self, text: str) -> str:
        name = text.removeprefix("!").strip()
        array = "q" if name.startswith("U") else "p"
        number = name.removeprefix("U")[1:]
        value = "True" if number == "T" else f"{array}[{number}]"
        return f"(not {value})" if text.startswith("!") else value

    def register(self, text: str, offset: int = 0) -> str:
        match = _REGISTER.search(text)
        if match is None:
            raise ValueError(text)
        if match[2] == "Z":
            return "0"
        number = int(match[2]) + offset
        if match[1] == "R":
            self.used.add(number)
        return f"{'r' if match[1] == 'R' else 'u'}[{number}]"

    def integer(self, text: str, offset: int = 0) -> str:
        """Return an unsigned word; `offset` 1 is the second of a pair."""
        sign, name = (text[0], text[1:]) if text[0] in "-~" else ("", text)
        constant = re.fullmatch(r"c\[0x0\]\[(0x[0-9a-f]+|RZ)\]", name)
        if constant:
            place = 0 if constant[1] == "RZ" else int(constant[1], 16)
            value = f"K[{place // 4 + offset}]"
        elif name.startswith("0x"):
            number = int(text, 16) if sign != "~" else ~int(name, 16)
            return str((number >> 32 * offset) & 0xFFFFFFFF)
        else:
            value = self.register(name, offset)
        if sign == "-":
            return f"(-{value} & M)"
        return f"({value} ^ M)" if sign == "~" else value

    def addend(self, text: str) -> str:
        """Return a word of a sum with a carry, where -x is ~x + 1 and -0 carries."""
        if text.startswith("-") and not text.startswith("-0x"):
            return f"(({self.integer(text[1:])} ^ M) + 1)"
        return self.integer(text)

    def pair(self, text: str) -> str:
        if text.startswith("-") and not text.startswith("-0x"):
            return f"(-{self.pair(text[1:])} & A)"
        return f"({self.integer(text)} | {self.integer(text, 1)} << 32)"

    def signed(self, text: str) -> str:
        return f"s32({self.integer(text)})"

    def _floating(self, text: str, convert: Callable[[str], str]) -> str:
        text = text.strip()
        if text.startswith("-") and not re.match(r"-\d|-INF|-QNAN", text):
            return f"(-{self._floating(text[1:], convert)})"
        if text.startswith("|"):
            return f"abs({self._floating(text[1:-1], convert)})"
        if re.match(r"[+-]?(\d|INF|QNAN)", text) and not text.startswith("0x"):
            return f"float('{text.replace('QNAN', 'nan')}')"
        return convert(text)

    def single(self, text: str) -> str:
        return self._floating(text, lambda name: f"f32({self.integer(name)})")

    def double(self, text: str) -> str:
        return self._floating(
            text, lambda name: f"f64({self.integer(name)}, {self.integer(name, 1)})"
        )

    def address(self, text: str) -> str:
        """Return the address in the last brackets, e.g. desc[UR8][R20.64+0x4] or [R3+UR4+0x10]."""
        inside = text[text.rindex("[") + 1 : text.rindex("]")]
        wide = ".64" in inside or ".U32" in inside
        parts = []
        for part in re.findall(r"[+-]?[^+-]+", inside):
            name = re.sub(r"\.64|\.U32", "", part.removeprefix("+"))
            if name.lstrip("-").startswith("0x"):
                parts.append(str(int(name, 16)))
            else:
                paired = ".64" in part or (wide and name.startswith("UR"))
                parts.append(self.pair(name) if paired else self.integer(name))
        return f"({' + '.join(parts)} & {'A' if wide else 'M'})"

    # -- results -------------------------------------------------------------------------------

    def put(self, text: str, value: str, offset: int = 0) -> str:
        place = self.register(text, offset)
        return "pass" if place == "0" else f"{place} = {value}"

    def put_pair(self, text: str, value: str) -> list[str]:
        low, high = self.register(text), self.register(text, 1) if "RZ" not in text else "0"
        if low == "0":
            return ["pass"]
        return [f"v = {value}", f"{low} = v & M", f"{high} = v >> 32 & M"]

    def put_double(self, value: str) -> list[str]:
        return self.put_pair(self.line.operands[0], f"b64({value})")

    def put_single(self, value: str) -> list[str]:
        value = f"min(max({value}, 0.0), 1.0)" if "SAT" in self.line.parts else value
        return [self.put(self.line.operands[0], f"b32({value})")]

    def put_predicate(self, text: str, value: str) -> str:
        name = text.removeprefix("U")
        array = "q" if text.startswith("U") else "p"
        return "pass" if name == "PT" else f"{array}[{name[1:]}] = {value}"

    @staticmethod
    def is_predicate(text: str) -> bool:
        return re.fullmatch(r"!?U?P[\dT]", text) is not None
