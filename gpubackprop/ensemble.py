"""Networks whose outputs are averaged: an ensemble in the place of one network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpubackprop.backends import Backend
from gpubackprop.errors import OptionError
from gpubackprop.formulas import Activation
from gpubackprop.layout.fixed import assignable
from gpubackprop.network import MLP
from gpubackprop.ops import checks, display

Array = Any  # an array of the networks' device


class Ensemble:
    """Networks of one architecture; a prediction is the mean of theirs.

    A `Model` takes it in the place of a network. It is not trained as a whole: `fit_many` trains
    its members.

    Parameters
    ----------
    members : sequence of MLP
        At least one network. They differ in their parameters alone, and lie on one device.

    Attributes
    ----------
    members : tuple of MLP
        The networks themselves, no copies.

    Raises
    ------
    OptionError
        There is no network, or two of them differ in architecture, dtype or device.

    Examples
    --------
    >>> members = [MLP([2, 4, 2], seed=seed) for seed in (0, 1)]
    >>> ensemble, x = Ensemble(members), np.ones((3, 2))
    >>> mean = (members[0].predict(x) + members[1].predict(x)) / 2
    >>> bool((ensemble.predict(x) == mean).all())
    True
    """

    def __init__(self, members: Sequence[MLP]) -> None:
        self.members = members

    @assignable
    def members(self, members: Sequence[MLP]) -> tuple[MLP, ...]:
        """The networks themselves, no copies."""
        checked = tuple(members)
        if not checked or not all(isinstance(member, MLP) for member in checked):
            raise OptionError(f"an ensemble has at least one MLP, and nothing else: {members!r}")
        first = checked[0]
        for place, member in enumerate(checked[1:], 2):
            if (member.config(), member.device) != (first.config(), first.device):
                raise OptionError(
                    f"the networks of an ensemble differ in their parameters alone, but network "
                    f"{place} is {member!r} and the first is {first!r}"
                )
        return checked

    def check_members(self) -> None:
        """Check the members again: their activations and dropout may have been assigned.

        Raises
        ------
        OptionError
            Two of them differ.
        """
        self.members = self.members

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a copy or a pickle, also from before its members were checked."""
        self.members = state["_members" if "_members" in state else "members"]

    # -- what all members have --------------------------------------------------------------------

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers of inputs, hidden units of each layer, and output units."""
        return self.members[0].widths

    @property
    def activations(self) -> tuple[Activation, ...]:
        """The activation of each hidden layer."""
        return self.members[0].activations

    @property
    def output(self) -> str:
        """The output function, whose values are averaged."""
        return self.members[0].output

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the parameters and predictions."""
        return self.members[0].dtype

    @property
    def precision(self) -> np.dtype[Any]:
        """Dtype in which products are computed."""
        return self.members[0].precision

    @property
    def backend(self) -> Backend:
        """What computes."""
        return self.members[0].backend

    @property
    def device(self) -> str:
        """Where the networks lie."""
        return self.members[0].device

    def config(self) -> dict[str, Any]:
        """Return the architecture of each member.

        Returns
        -------
        dict
            As of `MLP.config`.
        """
        return self.members[0].config()

    # -- what they do together --------------------------------------------------------------------

    def check_inputs(self, x: Any, name: str = "x") -> Any:
        """Return `x` as (N, D_0) of any real dtype.

        Parameters
        ----------
        x : (N, D_0) array or data frame
            As for `MLP.check_inputs`.
        name : str
            What errors call it.

        Returns
        -------
        (N, D_0) array
            As of `MLP.check_inputs`.

        Raises
        ------
        ShapeError
            `x` has another shape.
        DtypeError
            `x` does not hold real numbers.
        """
        return self.members[0].check_inputs(x, name)

    def predict(self, x: Any, *, batch_rows: int = 4096) -> Array:
        """Compute the mean of the members' predictions, batch by batch.

        Parameters
        ----------
        x : (N, D_0) array or data frame
            Inputs.
        batch_rows : int
            Rows that are computed at a time.

        Returns
        -------
        (N, K) array
            The mean in the networks' dtype, on their device.

        Raises
        ------
        ShapeError
            `x` has another shape.
        DtypeError
            `x` does not hold real numbers.
        """
        x, size = self.check_inputs(x), int(checks.number(batch_rows, "batch_rows", 1, whole=True))
        result = self.backend.empty((len(x), self.widths[-1]), self.dtype)
        for start in range(0, len(x), size):
            batch = x[start : start + size]
            each = [member.predict(batch, batch_rows=size) for member in self.members]
            self.backend.copy(mean_of(each, self.backend), result[start : start + size])
        return result

    def copy(self, device: str | None = None) -> Ensemble:
        """Return an ensemble of copies.

        Parameters
        ----------
        device : str or None
            Where they lie; None is the device of these networks.

        Returns
        -------
        Ensemble
            The copy.
        """
        return Ensemble([member.copy(device) for member in self.members])

    def __len__(self) -> int:
        return len(self.members)

    def __repr__(self) -> str:
        return f"Ensemble of {len(self)}: {self.members[0]!r}"

    def _repr_html_(self) -> str:
        rows = [[place, repr(member)] for place, member in enumerate(self.members, 1)]
        return display.html_table(f"Ensemble of {len(self)}", ["member", "network"], rows)


def mean_of(outputs: Sequence[Array], backend: Backend | None) -> Array:
    """Return the mean of arrays (N, K) of one dtype, where they lie.

    Parameters
    ----------
    outputs : sequence of (N, K) arrays
        At least one.
    backend : Backend or None
        That of their device; None for NumPy arrays.

    Returns
    -------
    (N, K) array
        The mean, in their dtype.
    """
    first = outputs[0]
    if backend is None or isinstance(first, np.ndarray):
        return np.add.reduce(outputs) / first.dtype.type(len(outputs))
    mean, share = backend.zeros(first.shape, first.dtype), backend.zeros((), first.dtype)
    backend.fill(share, 1 / len(outputs))
    for output in outputs:
        backend.add_scaled(output.reshape(-1), share, mean.reshape(-1))
    return mean


def members_of(network: MLP | Ensemble) -> tuple[MLP, ...]:
    """Return the networks of an ensemble, or the one network.

    Parameters
    ----------
    network : MLP or Ensemble
        What a `Model` has.

    Returns
    -------
    tuple of MLP
        At least one.
    """
    return network.members if isinstance(network, Ensemble) else (network,)
