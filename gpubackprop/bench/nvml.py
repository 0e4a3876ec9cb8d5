"""Clocks and energy of one card by NVML: the module `pynvml` of the package nvidia-ml-py.

Both are optional. Without them times are measured all the same, and the record says why there are
no clocks.
"""

from __future__ import annotations

import importlib
from typing import Any

Clocks = tuple[int, int]  # MHz of the multiprocessors and of the memory
ENOUGH = 0.95  # of the highest clock: a round below it was slowed down and does not count


class Meter:
    """What NVML says of the card at one PCI address.

    Parameters
    ----------
    bus_id : e.g. "0000:3B:00.0", as CUDA names it. "" gives a meter that reads nothing.

    Attributes
    ----------
    why : why nothing can be read; "" where something can.
    """

    def __init__(self, bus_id: str) -> None:
        self._nvml: Any = None
        self._card: Any = None
        self.why = ""
        if not bus_id:
            self.why = "the card's PCI address is not known"
            return
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError as error:
            self.why = f'{error}; run: pip install "gpubackprop[bench]"'
            return
        try:
            nvml.nvmlInit()
            self._card = nvml.nvmlDeviceGetHandleByPciBusId(bus_id)
            self._nvml = nvml
        except Exception as error:  # NVMLError, and what an older or another pynvml raises
            self.why = f"NVML: {error}"

    def clocks(self) -> Clocks | None:
        """The clocks at this moment."""
        sm = self._read("nvmlDeviceGetClockInfo", "NVML_CLOCK_SM")
        memory = self._read("nvmlDeviceGetClockInfo", "NVML_CLOCK_MEM")
        return None if sm is None or memory is None else (sm, memory)

    def joules(self) -> float | None:
        """Energy since the driver was loaded. The counter moves some ten times a second."""
        found = self._read("nvmlDeviceGetTotalEnergyConsumption")
        return None if found is None else found * 1e-3

    def facts(self) -> dict[str, Any]:
        """Driver, highest clocks (MHz), enforced power limit (W), temperature (°C): those that the
        card tells."""
        limit = self._read("nvmlDeviceGetEnforcedPowerLimit")
        found = {
            "driver_version": self._ask("nvmlSystemGetDriverVersion"),
            "clocks.max.sm": self._read("nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_SM"),
            "clocks.max.mem": self._read("nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_MEM"),
            "power.limit": None if limit is None else limit * 1e-3,
            "temperature.gpu": self._read("nvmlDeviceGetTemperature", "NVML_TEMPERATURE_GPU"),
        }
        return {key: value for key, value in found.items() if value is not None}

    def _read(self, function: str, constant: str = "") -> int | None:
        """A function of the card, and of one of NVML's constants."""
        more = [getattr(self._nvml, constant)] if constant and self._nvml else []
        found = self._ask(function, self._card, *more)
        return None if found is None else int(found)

    def _ask(self, function: str, *arguments: Any) -> Any:
        """None where this card, this driver or this pynvml does not tell."""
        if self._nvml is None:
            return None
        try:
            return getattr(self._nvml, function)(*arguments)
        except (self._nvml.NVMLError, AttributeError):  # an older pynvml has fewer functions
            return None


def enough(clocks: list[Clocks]) -> list[bool]:
    """Which rounds ran at 95 % or more of the highest clock of them all, memory's likewise."""
    highest = [max(values) for values in zip(*clocks, strict=True)]
    return [
        all(mhz >= ENOUGH * most for mhz, most in zip(one, highest, strict=True)) for one in clocks
    ]
