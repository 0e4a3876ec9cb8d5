"""Parameters that are held once: a flat buffer, and what is derived from it."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from gpubackprop.backends import Backend
from gpubackprop.errors import ReadOnlyError
from gpubackprop.layout.arrays import LayerArrays, write
from gpubackprop.layout.fixed import assignable

Array = np.ndarray


class HeldParameters:
    """A flat buffer on a backend's device, with the layers' views into it.

    The buffer and its views are never replaced, so a reference to one of them stays a reference to
    the parameters that are trained. An assignment writes into that memory. A copy or a pickle has
    memory of its own.
    """

    layout: Any
    dtype: Any

    def allocate(self) -> None:
        """Allocate the flat buffer, filled with zeros, and make the views into it."""
        self._parameters = self.backend.zeros(self.layout.size, self.dtype)
        W, b = self.layout.views(self._parameters)
        self._W = LayerArrays.of(W, "W", self.backend)
        self._b = LayerArrays.of(b, "b", self.backend)
        self._half_copy: Array | None = None

    @assignable
    def parameters(self, values: Any) -> Array:
        """All weights and biases in one flat buffer, (layout.size,); see `ParameterLayout`."""
        write(self.backend, ["parameters"], [self._parameters], [values])
        self.clear_gaps()
        return self._parameters

    def clear_gaps(self) -> None:
        """Set the gaps between the parameters to 0, after an assignment to the whole buffer."""
        for gap in self.layout.gaps:
            self.backend.fill(self._parameters[gap], 0)

    @assignable
    def W(self, values: Any) -> LayerArrays:
        """Weights of each layer: W[l] is a view of shape (D_{l+1}, D_l)."""
        if values is not self._W:
            self._W[...] = values
        return self._W

    @assignable
    def b(self, values: Any) -> LayerArrays:
        """Biases of each layer: b[l] is a view of shape (D_{l+1},)."""
        if values is not self._b:
            self._b[...] = values
        return self._b

    @assignable
    def backend(self, backend: Backend) -> Backend:
        """The backend that computes; another one may be assigned if its device is the same."""
        if "_backend" in vars(self) and backend.device != self.device:
            self.device = backend.device
        return backend

    @property
    def device(self) -> str:
        """The device of the parameters: "cpu", or a GPU such as "cuda:0"."""
        return str(self.backend.device)

    @device.setter
    def device(self, value: Any) -> None:
        raise ReadOnlyError(
            f"the device of a network cannot be changed; network.copy({value!r}) makes one there"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies and pickles: the parameters, on the host, once."""
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
