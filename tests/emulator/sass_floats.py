"""SASS instructions on floating-point numbers; see `sass_instructions.py`."""

from __future__ import annotations

import re

import numpy as np

from tests.emulator.sass_integers import COMPARE, Integers

_REGISTER = re.compile(r"U?R(\d+|Z)")


class Floats(Integers):
    """Arithmetic, comparisons and conversions."""

    def _FADD(self) -> list[str]:
        _, a, b = self.line.operands
        return self.put_single(f"{self.single(a)} + {self.single(b)}")

    def _FMUL(self) -> list[str]:
        _, a, b = self.line.operands
        scale = " * 0.5" if "D2" in self.line.parts else ""
        return self.put_single(f"{self.single(a)} * {self.single(b)}{scale}")

    def _FFMA(self) -> list[str]:
        _, a, b, c = self.line.operands
        return self.put_single(f"{self.single(a)} * {self.single(b)} + {self.single(c)}")

    def _FSEL(self) -> list[str]:
        _, a, b, choice = self.line.operands
        value = f"{self.single(a)} if {self.predicate(choice)} else {self.single(b)}"
        return self.put_single(value)

    def _minmax(self, read, parts: list[str]) -> str:
        _, a, b, least = self.line.operands
        return f"smaller({read(a)}, {read(b)}, {self.predicate(least)}, {'NAN' in parts})"

    def _FMNMX(self) -> list[str]:
        return self.put_single(self._minmax(self.single, self.line.parts))

    def _floats(self, read) -> list[str]:
        first, second, a, b, chain = self.line.operands
        x, y, how = read(a), read(b), self.line.parts[0]
        if how in ("NAN", "NUM"):
            test = f"({x} != {x} or {y} != {y}) == {how == 'NAN'}"
        elif how in ("MIN", "MAX"):
            test = f"{x} {'<' if how == 'MIN' else '>'} {y}"
        elif how.endswith("U"):
            test = f"{x} != {x} or {y} != {y} or {x} {COMPARE[how[:-1]]} {y}"
        else:  # ordered: NaN is not even unequal
            test = f"{x} == {x} and {y} == {y} and {x} {COMPARE[how]} {y}"
        return self._set(first, second, test, chain)

    def _FSETP(self) -> list[str]:
        return self._floats(self.single)

    def _DSETP(self) -> list[str]:
        return self._floats(self.double)

    def _FSET(self) -> list[str]:
        result, a, b, chain = self.line.operands
        test = f"{self.single(a)} {COMPARE[self.line.parts[1]]} {self.single(b)}"
        return [self.put(result, f"0x3f800000 if {test} and {self.predicate(chain)} else 0")]

    def _FCHK(self) -> list[str]:
        result, a, b = self.line.operands
        test = f"needs_slow_division({self.single(a)}, {self.single(b)})"
        return [self.put_predicate(result, test)]

    def _MUFU(self) -> list[str]:
        result, x = self.line.operands
        function = {"RCP": "reciprocal", "EX2": "exp2", "LG2": "log2", "RSQ": "rsqrt",
                    "SQRT": "root", "RCP64H": "reciprocal", "RSQ64H": "rsqrt"}[self.line.parts[0]]  # fmt: skip
        if self.line.parts[0].endswith("64H"):
            return [self.put(result, f"high_of({function}, {self.integer(x)})")]
        return self.put_single(f"{function}({self.single(x)})")

    def _FRND(self) -> list[str]:
        how = {"FLOOR": "math.floor", "CEIL": "math.ceil", "TRUNC": "math.trunc"}
        function = next((how[part] for part in self.line.parts if part in how), "round")
        x = self.single(self.line.operands[1])
        return self.put_single(f"float({function}({x})) if math.isfinite({x}) else {x}")

    def _DADD(self) -> list[str]:
        _, a, b = self.line.operands
        return self.put_double(f"{self.double(a)} + {self.double(b)}")

    def _DMUL(self) -> list[str]:
        _, a, b = self.line.operands
        return self.put_double(f"{self.double(a)} * {self.double(b)}")

    def _DFMA(self) -> list[str]:
        _, a, b, c = self.line.operands
        return self.put_double(f"fused({self.double(a)}, {self.double(b)}, {self.double(c)})")

    # -- conversions ---------------------------------------------------------------------------

    def _I2F(self) -> list[str]:
        parts, (result, x) = self.line.parts, self.line.operands
        if "U64" in parts or "S64" in parts:
            value = self.pair(x) if "U64" in parts else f"s64({self.pair(x)})"
        elif "U16" in parts:
            value = f"({self.integer(x)} & 0xffff)"
        else:
            value = self.integer(x) if "U32" in parts else self.signed(x)
        if "F64" in parts:
            return self.put_double(f"float({value})")
        return [self.put(result, f"up({value})" if "RP" in parts else f"b32(float({value}))")]

    _I2FP = _I2F

    def _F2I(self) -> list[str]:
        parts, (result, x) = self.line.parts, self.line.operands
        bits, sign = 64 if {"U64", "S64"} & set(parts) else 32, not {"U64", "U32"} & set(parts)
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if sign else (0, (1 << bits) - 1)
        read = self.double if "F64" in parts else self.single
        value = f"truncated({read(x)}, {low}, {high})"
        return self.put_pair(result, value) if bits == 64 else [self.put(result, f"{value} & M")]

    def _F2F(self) -> list[str]:
        result, x = self.line.operands
        to, source = [part for part in self.line.parts if part in ("F16", "BF16", "F32", "F64")]
        read = {"F32": self.single, "F64": self.double}[source](x)
        if to == "F64":
            return self.put_double(read)
        function = {"F32": "b32", "F16": "half_bits", "BF16": "bfloat_bits"}[to]
        return [self.put(result, f"{function}({read})")]

    def _F2FP(self) -> list[str]:
        parts, (result, high, low) = self.line.parts, self.line.operands
        function = "bfloat_bits" if "BF16" in parts else "half_bits"
        values = [self.single(high), self.single(low)]
        if "RELU" in parts:
            values = [f"max({value}, 0.0)" for value in values]
        return [self.put(result, f"{function}({values[0]}) << 16 | {function}({values[1]})")]

    def _HADD2(self) -> list[str]:
        if "F32" not in self.line.parts or self.line.operands[1] != "-RZ":
            raise ValueError(self.line.opcode)
        x = self.line.operands[2]
        word = self.integer(re.sub(r"\.H\d_H\d", "", x))
        return self.put_single(f"half({word}{' >> 16' if 'H1' in x else ''})")

    def _HFMA2(self) -> list[str]:
        result, a, b, high, low = self.line.operands  # two constants: -0 * 0 + c
        if (a, b) != ("-RZ", "RZ"):
            raise ValueError(self.line.opcode)
        words = [
            int(np.float16(text.replace("QNAN", "nan")).view(np.uint16)) for text in (high, low)
        ]
        return [self.put(result, str(words[0] << 16 | words[1]))]

    def _VHMNMX(self) -> list[str]:
        """The smallest or largest of three, in each half of a word; one may be two constants."""
        result, *given, least = self.line.operands
        brain = any(part.startswith("BF16") for part in self.line.parts)
        read, write = ("bfloat", "bfloat_bits") if brain else ("half", "half_bits")
        choice, nan = self.predicate(least), "NAN" in self.line.parts
        words: list[tuple[str, str]] = []  # upper half, lower half
        while given:
            text = given.pop(0)
            if _REGISTER.match(text):
                word = self.integer(text)
                words.append((f"{read}({word} >> 16)", f"{read}({word})"))
            else:
                words.append((f"float('{text}')", f"float('{given.pop(0)}')"))
        a, b, c = words
        halves = [
            f"{write}(smaller(smaller({a[n]}, {b[n]}, {choice}, {nan}), {c[n]}, {choice}, {nan}))"
            for n in (0, 1)
        ]
        return [self.put(result, f"{halves[0]} << 16 | {halves[1]}")]

    def _HMNMX2(self) -> list[str]:
        result, a, b, least = self.line.operands
        brain = any(part.startswith("BF16") for part in self.line.parts)
        read, write = ("bfloat", "bfloat_bits") if brain else ("half", "half_bits")
        nan, choice = "NAN" in self.line.parts, self.predicate(least)
        x, y = (self.integer(re.sub(r"\.H\d_H\d", "", text)) for text in (a, b))
        both = [
            f"{write}(smaller({read}({x} >> {s}), {read}({y} >> {s}), {choice}, {nan}))"
            for s in (16, 0)
        ]
        return [self.put(result, f"{both[0]} << 16 | {both[1]}")]
