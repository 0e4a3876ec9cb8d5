"""A stand-in for `pynvml` of nvidia-ml-py 13.615, with its rules, one made-up card.

From its source (pynvml.py): text of the caller is encoded (`convertStrBytes`); an address that is no
text or bytes is ctypes' TypeError; a handle is a `c_nvmlDevice_t`, a pointer; every call before
`nvmlInit` raises NVMLError_Uninitialized; clocks are int MHz, power int milliwatts, energy int
millijoules; what a card does not have raises NVMLError_NotSupported, what the driver does not know
NVMLError_FunctionNotFound. An error's text is in `_errcode_to_string`.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class c_nvmlDevice_t(ctypes.c_void_p):  # noqa: N801 (its name)
    pass


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        return TEXTS.get(self.value, f"NVML Error with code {self.value}")


TEXTS = {
    1: "Uninitialized", 2: "Invalid Argument", 3: "Not Supported", 6: "Not Found",
    9: "Driver Not Loaded", 12: "NVML Shared Library Not Found", 13: "Function Not Found",
    15: "GPU is lost",
}  # fmt: skip


@dataclass
class Card:
    """One card and its driver.

    Attributes
    ----------
    sm : list of int
        MHz of the processors at each reading; the last one stays.
    memory : list of int
        MHz of the memory, likewise.
    millijoules : callable
        Gives the energy counter.
    lacks : dict
        The functions that this card or driver does not have, with the error's number.
    init : int
        The error's number of nvmlInit; 0 for none.
    """

    bus_id: str = "00000000:3B:00.0"
    sm: list[int] = field(default_factory=lambda: [1980])
    memory: list[int] = field(default_factory=lambda: [2619])
    millijoules: Callable[[], int] = lambda: 0
    lacks: dict[str, int] = field(default_factory=dict)
    init: int = 0
    calls: list[str] = field(default_factory=list)


def module(card: Card) -> types.ModuleType:
    """Return the module, on which nvmlInit was not called yet."""
    nvml: Any = types.ModuleType("pynvml")
    state = {"count": 0}
    handle = c_nvmlDevice_t(0x7F00)
    nvml.NVMLError, nvml.c_nvmlDevice_t = NVMLError, c_nvmlDevice_t
    nvml.NVML_CLOCK_GRAPHICS, nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM = 0, 1, 2
    nvml.NVML_TEMPERATURE_GPU = 0

    def ready(name: str) -> None:
        card.calls.append(name)
        if not state["count"]:
            raise NVMLError(1)
        if name in card.lacks:
            raise NVMLError(card.lacks[name])

    def given(value: Any) -> None:
        if not isinstance(value, c_nvmlDevice_t):
            raise ctypes.ArgumentError(f"argument 1: <{type(value)}>: wrong type")
        if value.value != handle.value:
            raise NVMLError(2)

    def whole(kind: Any) -> int:
        return ctypes.c_uint(kind).value  # ctypes raises its TypeError for anything but an int

    def nvmlInit() -> None:
        if card.init:
            raise NVMLError(card.init)
        state["count"] += 1

    def nvmlShutdown() -> None:
        ready("nvmlShutdown")
        state["count"] -= 1

    def nvmlDeviceGetHandleByPciBusId(pciBusId: Any) -> c_nvmlDevice_t:
        ready("nvmlDeviceGetHandleByPciBusId")
        text = ctypes.c_char_p(pciBusId.encode() if isinstance(pciBusId, str) else pciBusId).value
        domain, _, rest = (text or b"").decode().lower().partition(":")
        if (int(domain or "0", 16), rest) != (0, card.bus_id.lower().partition(":")[2]):
            raise NVMLError(6)
        return c_nvmlDevice_t(handle.value)

    def _next(values: list[int]) -> int:
        return values.pop(0) if len(values) > 1 else values[0]

    def nvmlDeviceGetClockInfo(handle: Any, type: Any) -> int:
        ready("nvmlDeviceGetClockInfo")
        given(handle)
        clocks = {0: card.sm, 1: card.sm, 2: card.memory}
        if whole(type) not in clocks:
            raise NVMLError(2)
        return _next(clocks[whole(type)])

    def nvmlDeviceGetMaxClockInfo(handle: Any, type: Any) -> int:
        ready("nvmlDeviceGetMaxClockInfo")
        given(handle)
        return {0: 1980, 1: 1980, 2: 2619}[whole(type)]

    def nvmlDeviceGetTotalEnergyConsumption(handle: Any) -> int:
        ready("nvmlDeviceGetTotalEnergyConsumption")
        given(handle)
        return ctypes.c_uint64(card.millijoules()).value

    def nvmlDeviceGetEnforcedPowerLimit(handle: Any) -> int:
        ready("nvmlDeviceGetEnforcedPowerLimit")
        given(handle)
        return 700_000

    def nvmlDeviceGetTemperature(handle: Any, sensor: Any) -> int:
        ready("nvmlDeviceGetTemperature")
        given(handle)
        whole(sensor)
        return 41

    def nvmlSystemGetDriverVersion() -> str:
        ready("nvmlSystemGetDriverVersion")
        return "580.65.06"

    for function in list(locals().values()):
        if callable(function) and getattr(function, "__name__", "").startswith("nvml"):
            setattr(nvml, function.__name__, function)
    return nvml
