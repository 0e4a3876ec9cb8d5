"""Clocks and energy of one card, read by NVML: module `pynvml` of the package nvidia-ml-py.

Both are optional. Without them times are still measured, and the record says why there are no
clocks.
"""

from __future__ import annotations

import importlib
from typing import Any

Clocks = tuple[int, int]  # MHz: multiprocessors, memory
ENOUGH = 0.95  # share of the highest clock; a slower round does not count


class Meter:
    """NVML's readings of the card at one PCI address.

    Parameters
    ----------
    bus_id : e.g. "0000:3B:00.0", as CUDA names it. "" gives a meter that reads nothing.

    Attributes
    ----------
    why : why nothing can be read; "" if something can.
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
        except Exception as error:  # NVMLError, or an error of an older or another pynvml
            self.why = f"NVML: {error}"

    def clocks(self) -> Clocks | None:
        """Return the clocks at this moment."""
        sm = self._read("nvmlDeviceGetClockInfo", "NVML_CLOCK_SM")
        memory = self._read("nvmlDeviceGetClockInfo", "NVML_CLOCK_MEM")
        return None if sm is None or memory is None else (sm, memory)

    def joules(self) -> float | None:
        """Return the energy since the driver was loaded. The counter moves some ten times a
        second."""
        found = self._read("nvmlDeviceGetTotalEnergyConsumption")
        return None if found is None else found * 1e-3

    def facts(self) -> dict[str, Any]:
        """Return driver, highest clocks (MHz), enforced power limit (W) and temperature (°C).

        What the card does not report is missing.
        """
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
        """Call a function with the card and one of NVML's constants."""
        more = [getattr(self._nvml, constant)] if constant and self._nvml else []
        found = self._ask(function, self._card, *more)
        return None if found is None else int(found)

    def _ask(self, function: str, *arguments: Any) -> Any:
        """Call a function; None if this card, driver or pynvml does not support it."""
        if self._nvml is None:
            return None
        try:
            return getattr(self._nvml, function)(*arguments)
        except (self._nvml.NVMLError, AttributeError):  # an older pynvml has fewer functions
            return None


def enough(clocks: list[Clocks]) -> list[bool]:
    """Say which rounds ran at 95 % or more of their highest clock, for processor and memory."""
    highest = [max(values) for values in zip(*clocks, strict=True)]
    return [
        all(mhz >= ENOUGH * most for mhz, most in zip(one, highest, strict=True)) for one in clocks
    ]
