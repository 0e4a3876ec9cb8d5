"""SASS instructions that touch memory; see `sass_instructions.py`."""

from __future__ import annotations

from tests.emulator.sass_operands import Operands


class Accesses(Operands):
    """Loads, stores, asynchronous copies and atomic operations."""

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
        return [f"t.await_copies({int(left, 16)})"]

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
