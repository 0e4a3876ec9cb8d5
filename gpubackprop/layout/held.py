"""Parameters that are held once: a flat buffer, and what is derived from it."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from gpubackprop.backends import Backend
from gpubackprop.errors import ReadOnlyError
from gpubackprop.layout.arrays import LayerArrays, write

Array = np.ndarray


class HeldParameters:
    """A flat buffer on a backend's device, with the layers' views into it.

    Whoever holds the buffer or a view holds what is trained: neither is ever replaced. An
    assignment writes into that memory, and a copy or a pickle has memory of its own.
    """

    layout: Any
    dtype: Any

    def allocate(self) -> None:
        """The flat buffer, of zeros, and the views into it, which are held nowhere else."""
        self._parameters = self.backend.zeros(self.layout.size, self.dtype)
        W, b = self.layout.views(self._parameters)
        self._W = LayerArrays.of(W, "W", self.backend)
        self._b = LayerArrays.of(b, "b", self.backend)
        self._half_copy: Array | None = None

    @property
    def parameters(self) -> Array:
        return self._parameters

    @parameters.setter
    def parameters(self, values: Any) -> None:
        write(self.backend, ["parameters"], [self._parameters], [values])
        self.clear_gaps()

    def clear_gaps(self) -> None:
        """0 between the parameters, where an assignment to the whole buffer may have written."""
        for gap in self.layout.gaps:
            self.backend.fill(self._parameters[gap], 0)

    @property
    def W(self) -> LayerArrays:
        return self._W

    @W.setter
    def W(self, values: Any) -> None:
        if values is not self._W:
            self._W[...] = values

    @property
    def b(self) -> LayerArrays:
        return self._b

    @b.setter
    def b(self, values: Any) -> None:
        if values is not self._b:
            self._b[...] = values

    @property
    def backend(self) -> Backend:
        return self._backend

    @backend.setter
    def backend(self, backend: Backend) -> None:
        """Another one that computes on the same device."""
        if "_backend" in vars(self) and backend.device != self.device:
            self.device = backend.device
        self._backend = backend

    @property
    def device(self) -> str:
        return str(self.backend.device)

    @device.setter
    def device(self, value: Any) -> None:
        raise ReadOnlyError(
            f"the device of a network cannot be changed; network.copy({value!r}) makes one there"
        )

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: the parameters once, on the host, and nothing that is derived."""
        derived = ("_W", "_b", "_half_copy")
        state = {name: value for name, value in vars(self).items() if name not in derived}
        return state | {"_parameters": self.backend.to_host(self._parameters)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.allocate()
        self.backend.from_host(state["_parameters"], self._parameters)

    def __copy__(self) -> Self:
        twin = object.__new__(type(self))
        twin.__setstate__(self.__getstate__())
        return twin
