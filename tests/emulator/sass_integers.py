"""SASS instructions on integers, predicates and special registers; see `sass_instructions.py`."""

from __future__ import annotations

from tests.emulator.sass_operands import Operands

COMPARE = {"LT": "<", "LE": "<=", "GT": ">", "GE": ">=", "EQ": "==", "NE": "!="}
_COMBINE = {"AND": "and", "OR": "or", "XOR": "!="}


class Integers(Operands):
    """Integers, and what all instructions that set predicates share."""

    def _outputs(self) -> tuple[str, list[str], list[str]]:
        """Return the result's register, predicates that come out, and the other operands."""
        first, *rest = self.line.operands
        out = []
        while rest and self.is_predicate(rest[0]):
            out.append(rest.pop(0))
        return first, out, rest

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
            scaled = f"({self.integer(a.removeprefix('-'))} << {shift} & M)"
            if a.startswith("-"):  # as in `addend`
                scaled = f"(({scaled} ^ M) + 1)"
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
        compare = COMPARE[parts[0]]
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
