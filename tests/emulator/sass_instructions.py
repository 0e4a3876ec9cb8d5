"""SASS instructions as Python statements; see `sass_code.py`.

A method has the name of an instruction. It returns statements; `self.line` is the instruction.
"""

from __future__ import annotations

import re

import numpy as np

from tests.emulator.sass_operands import Operands, UnsupportedError

# The instructions that end a block: branches, and those where threads wait for one another.
ENDS = {"BRA", "EXIT", "CALL", "RET", "SHFL", "BAR", "WARPSYNC", "UCGABAR_WAIT", "VOTE"}
NOTHING = {"NOP", "YIELD", "BSSY", "BSYNC", "BREAK", "MEMBAR", "ERRBAR", "CGAERRBAR", "CCTL",
           "UCGABAR_ARV", "ENDCOLLECTIVE", "FENCE"}  # fmt: skip
_COMPARE = {"LT": "<", "LE": "<=", "GT": ">", "GE": ">=", "EQ": "==", "NE": "!="}
_COMBINE = {"AND": "and", "OR": "or", "XOR": "!="}


class Statement(Operands):
    """The Python text of one instruction."""

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
            statements.insert(0, f"if w: t.wait({tuple(sorted(self.used))}, {line.at})")
        return statements

    def _outputs(self) -> tuple[str, list[str], list[str]]:
        """Return the result's register, predicates that come out, and the other operands."""
        first, *rest = self.line.operands
        out = []
        while rest and self.is_predicate(rest[0]):
            out.append(rest.pop(0))
        return first, out, rest

    # -- integers ------------------------------------------------------------------------------

    def _MOV(self) -> list[str]:
        return [self.put(self.line.operands[0], self.integer(self.line.operands[1]))]

    _UMOV = _R2UR = _MOV

    def _IADD3(self) -> list[str]:
        result, out, rest = self._outputs()
        terms = [self.addend(text) for text in rest[:3]]
        terms += [self.predicate(text) for text in rest[3:] if text not in ("!PT", "!UPT")]
        statements = [f"v = {' + '.join(terms)}", self.put(result, "v & M")]
        for n, name in enumerate(out):
            statements.append(self.put_predicate(name, f"v >> 32 > {n}"))
        return statements

    _UIADD3 = _IADD3

    def _VIADD(self) -> list[str]:
        result, a, b = self.line.operands
        return [self.put(result, f"{self.integer(a)} + {self.integer(b)} & M")]

    _UVIADD = _VIADD

    def _IMAD(self) -> list[str]:
        parts = self.line.parts
        result, out, (a, b, c, *carry) = self._outputs()
        carry = [self.predicate(text) for text in carry if text not in ("!PT", "!UPT")]
        plus = "".join(f" + {text}" for text in carry)
        if "WIDE" in parts or "HI" in parts:
            read = self.integer if "U32" in parts else self.signed
            total = f"v = {read(a)} * {read(b)} + {self.pair(c)}{plus}"
            statements = [total]
            if "WIDE" in parts:
                statements += self.put_pair(result, "v")
            else:
                statements.append(self.put(result, "v >> 32 & M"))
            return statements + [self.put_predicate(name, "v >> 64 > 0") for name in out]
        total = f"{self.integer(a)} * {self.integer(b)} + {self.addend(c)}{plus}"
        statements = [f"v = {total}", self.put(result, "v & M")]
        return statements + [self.put_predicate(name, "v >> 32 > 0") for name in out]

    _UIMAD = _IMAD

    def _LEA(self) -> list[str]:
        parts = self.line.parts
        result, out, (a, b, *rest) = self._outputs()
        carry = self.predicate(rest.pop()) if self.is_predicate(rest[-1]) else "0"
        shift = int(rest.pop(), 16)
        if "HI" not in parts:
            scaled = f"({self.integer(a)} << {shift} & M)"
        elif "SX32" in parts:
            scaled = f"({self.signed(a)} << {shift} >> 32 & M)"
        else:
            scaled = f"(({self.integer(rest[0])} << 32 | {self.integer(a)}) << {shift} >> 32 & M)"
        statements = [f"v = {scaled} + {self.addend(b)} + {carry}", self.put(result, "v & M")]
        return statements + [self.put_predicate(name, "v >> 32 > 0") for name in out]

    _ULEA = _LEA

    def _SHF(self) -> list[str]:
        parts, (result, low, shift, high) = self.line.parts, self.line.operands
        wide = f"({self.integer(high)} << 32 | {self.integer(low)})"
        most = 63 if "U64" in parts or "S64" in parts else 32
        amount = self.integer(shift)
        amount = f"min({amount}, {most})" if not amount.isdigit() else amount
        if "L" in parts:
            value = f"{wide} << {amount}"
        else:
            value = f"{f's64({wide})' if {'S32', 'S64'} & set(parts) else wide} >> {amount}"
        return [self.put(result, f"{f'({value}) >> 32' if 'HI' in parts else value} & M")]

    _USHF = _SHF

    def _LOP3(self) -> list[str]:
        operands = list(self.line.operands)
        out = operands.pop(0) if self.is_predicate(operands[0]) else ""
        result, a, b, c, table, *chain = operands
        terms = []
        for bits in range(8):
            if int(table, 16) >> bits & 1:
                signs = [bits >> 2 & 1, bits >> 1 & 1, bits & 1]
                names = [n if s else f"~{n}" for n, s in zip("abc", signs, strict=True)]
                terms.append("&".join(names))
        statements = [
            f"{n} = {self.integer(text)}" for n, text in zip("abc", (a, b, c), strict=True)
        ]
        statements += [f"v = ({' | '.join(terms) or '0'}) & M", self.put(result, "v")]
        if out:
            more = (
                f" or {self.predicate(chain[0])}"
                if chain and chain[0] not in ("!PT", "!UPT")
                else ""
            )
            statements.append(self.put_predicate(out, f"v != 0{more}"))
        return statements

    _ULOP3 = _LOP3

    def _PLOP3(self) -> list[str]:
        first, second, a, b, c, *tables = self.line.operands
        statements = [
            f"v = {self.predicate(a)} * 4 + {self.predicate(b)} * 2 + {self.predicate(c)}"
        ]
        for name, table in zip((first, second), tables, strict=True):
            statements.append(self.put_predicate(name, f"bool({int(table, 16)} >> v & 1)"))
        return statements

    _UPLOP3 = _PLOP3

    def _PRMT(self) -> list[str]:
        result, low, selector, high = self.line.operands
        value = f"permuted({self.integer(low)}, {self.integer(selector)}, {self.integer(high)})"
        return [self.put(result, value)]

    _UPRMT = _PRMT

    def _SEL(self) -> list[str]:
        result, a, b, choice = self.line.operands
        value = f"{self.integer(a)} if {self.predicate(choice)} else {self.integer(b)}"
        return [self.put(result, value)]

    _USEL = _SEL

    def _VIMNMX(self) -> list[str]:
        result, a, b, least = self.line.operands
        read = self.integer if "U32" in self.line.parts else self.signed
        value = f"(min if {self.predicate(least)} else max)({read(a)}, {read(b)}) & M"
        return [self.put(result, value)]

    _IMNMX = _UVIMNMX = _VIMNMX

    def _VIADDMNMX(self) -> list[str]:
        result, a, b, c, least = self.line.operands
        first = f"{self.integer(a)} + {self.integer(b)} & M"
        if "U32" not in self.line.parts:
            first, third = f"s32({first})", self.signed(c)
        else:
            third = self.integer(c)
        return [
            self.put(result, f"(min if {self.predicate(least)} else max)({first}, {third}) & M")
        ]

    def _IABS(self) -> list[str]:
        return [self.put(self.line.operands[0], f"abs({self.signed(self.line.operands[1])})")]

    def _ISETP(self) -> list[str]:
        parts, (first, second, a, b, chain, *low) = self.line.parts, self.line.operands
        read = self.integer if "U32" in parts else self.signed
        compare = _COMPARE[parts[0]]
        test = f"{read(a)} {compare} {read(b)}"
        if low:  # the upper words; `low` is the result for the lower ones
            more = self.predicate(low[0])
            strict, equal = compare[0], f"{read(a)} == {read(b)}"
            test = (
                f"({equal}) and {more}" if compare == "==" else
                f"({test}) or {more}" if compare == "!=" else
                f"{read(a)} {strict} {read(b)} or ({equal}) and {more}"
            )  # fmt: skip
        return self._set(first, second, test, chain)

    _UISETP = _ISETP

    def _set(self, first: str, second: str, test: str, chain: str) -> list[str]:
        how = next(_COMBINE[part] for part in self.line.parts if part in _COMBINE)
        with_ = self.predicate(chain)
        statements = [f"v = bool({test})", f"c = {with_}", self.put_predicate(first, f"v {how} c")]
        if not second.endswith("PT"):
            statements.append(self.put_predicate(second, f"(not v) {how} c"))
        return statements

    def _P2R(self) -> list[str]:
        result, _, keep, mask = self.line.operands
        bits = " | ".join(f"p[{n}] << {n}" for n in range(7))
        value = f"({bits}) & {int(mask, 16)} | {self.integer(keep)} & ~{int(mask, 16)} & M"
        return [self.put(result, value)]

    def _R2P(self) -> list[str]:
        _, word, mask = self.line.operands
        bits = [n for n in range(7) if int(mask, 16) >> n & 1]
        return [f"p[{n}] = bool({self.integer(word)} >> {n} & 1)" for n in bits]

    def _S2R(self) -> list[str]:
        return [self.put(self.line.operands[0], f"t.special[{self.line.operands[1]!r}]")]

    _S2UR = _S2R

    def _CS2R(self) -> list[str]:
        if self.line.operands[1] != "SRZ":
            raise ValueError(self.line.operands[1])
        if "32" in self.line.parts:
            return [self.put(self.line.operands[0], "0")]
        return self.put_pair(self.line.operands[0], "0")

    def _LDC(self) -> list[str]:
        result, place = self.line.operands
        if self.line.width == 8:
            return self.put_pair(result, self.pair(place))
        if self.line.width != 4:
            raise ValueError(place)
        return [self.put(result, self.integer(place))]

    _ULDC = _LDC

    # -- floating point ------------------------------------------------------------------------

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
            test = f"{x} != {x} or {y} != {y} or {x} {_COMPARE[how[:-1]]} {y}"
        else:  # ordered: NaN is not even unequal
            test = f"{x} == {x} and {y} == {y} and {x} {_COMPARE[how]} {y}"
        return self._set(first, second, test, chain)

    def _FSETP(self) -> list[str]:
        return self._floats(self.single)

    def _DSETP(self) -> list[str]:
        return self._floats(self.double)

    def _FSET(self) -> list[str]:
        result, a, b, chain = self.line.operands
        test = f"{self.single(a)} {_COMPARE[self.line.parts[1]]} {self.single(b)}"
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

    # -- memory --------------------------------------------------------------------------------

    def _data(self, text: str) -> str:
        """Return a word, or a tuple of the words of a store."""
        if self.line.width <= 4:
            return self.integer(text)
        words = [self.register(text, n) for n in range(self.line.width // 4)]
        return f"({', '.join(words)})"

    def _target(self, text: str) -> int:
        """Return the number of a load's register, 255 for none; all of its registers are used."""
        for n in range(max(1, self.line.width // 4)):
            self.register(text, n)
        return 255 if text == "RZ" else int(text.removeprefix("R"))

    def _loaded(self, function: str, address: str) -> list[str]:
        number, line = self._target(self.line.operands[0]), self.line
        signed = bool({"S8", "S16"} & set(line.parts))
        return [f"t.{function}({line.at}, {address}, {line.width}, {number}, {signed})"]

    def _LDG(self) -> list[str]:
        return self._loaded("load", self.address(self.line.operands[1]))

    def _LD(self) -> list[str]:
        return self._loaded("load_generic", self.address(self.line.operands[1]))

    def _LDS(self) -> list[str]:
        return self._loaded("load_shared", self.address(self.line.operands[1]))

    def _stored(self, function: str) -> list[str]:
        place, data = self.address(self.line.operands[0]), self._data(self.line.operands[1])
        return [f"t.{function}({self.line.at}, {place}, {self.line.width}, {data})"]

    def _STG(self) -> list[str]:
        return self._stored("store")

    def _ST(self) -> list[str]:
        return self._stored("store_generic")

    def _STS(self) -> list[str]:
        return self._stored("store_shared")

    def _LDGSTS(self) -> list[str]:
        to, source, *wanted = self.line.operands
        target, address, width = self.address(to), self.address(source), self.line.width
        test = self.predicate(wanted[0]) if wanted else "True"
        return [f"t.copy({self.line.at}, {target}, {address}, {width}, {test})"]

    def _LDGDEPBAR(self) -> list[str]:
        return ["t.commit()"]

    def _DEPBAR(self) -> list[str]:
        left = self.line.operands[1] if len(self.line.operands) > 1 else "0x0"
        return [f"t.await_copies({int(left, 16)}, {self.line.at})"]

    def _ATOMG(self) -> list[str]:
        _, result, place, *values = self.line.operands
        how = next(
            part for part in self.line.parts if part in ("CAS", "ADD", "INC", "EXCH", "MAX", "MIN")
        )
        width = 8 if "64" in self.line.parts else 4
        read = self.pair if width == 8 else self.integer
        number = 255 if result == "RZ" else int(result.removeprefix("R"))
        for n in range(width // 4):
            self.register(result, n)
        place = place if ".64" in place else place.replace("]", ".64]")
        given = ", ".join(read(value) for value in values)
        return [
            f"t.atomic({self.line.at}, {how!r}, {self.address(place)}, {width}, {number}, ({given},))"
        ]

    def _RED(self) -> list[str]:
        how = next(part for part in self.line.parts if part in ("ADD", "INC", "MAX", "MIN"))
        place, value = self.line.operands
        width = 8 if "64" in self.line.parts else 4
        given = self.pair(value) if width == 8 else self.integer(value)
        return [
            f"t.atomic({self.line.at}, {how!r}, {self.address(place)}, {width}, 255, ({given},))"
        ]

    # -- branches, and where threads wait for one another --------------------------------------

    def _label(self, text: str) -> int:
        match = re.search(r"`\(([^)]*)\)", text)
        if match is None:
            raise ValueError(text)
        return self.labels[match[1]]

    def _BRA(self) -> list[str]:
        if (
            "DIV" in self.line.parts
        ):  # taken where the lanes of a warp are apart: they come together
            return ["pass"]
        *conditions, to = self.line.operands
        jump = f"return {self._label(to)}"
        self.conditions += conditions
        return [jump]

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
