"""A rank that waits for one which has ended is told so, and does not wait for ever.

Each rank counts the calls that all ranks make together. One that ends leaves its number. Another
rank that has begun more calls than that waits in vain. To have ended early is no error by itself.
"""

from __future__ import annotations

import threading

from gpubackprop.errors import DistributedError


class Calls:
    """The calls of one rank, and with how many of them the others have ended.

    Attributes
    ----------
    begun : int
        Number of this rank's calls.

    Examples
    --------
    >>> calls = Calls()
    >>> calls.begin()
    >>> calls.ended("rank 1", 1)
    ''
    >>> calls.begin()  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    gpubackprop.errors.DistributedError: rank 1 has ended its program, and this rank ...
    """

    def __init__(self) -> None:
        self.begun = 0
        self._ended: dict[str, int] = {}
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Count a call, before this rank waits in it.

        Raises
        ------
        DistributedError
            A rank has ended that does not make this call.
        """
        with self._lock:
            for name, count in self._ended.items():
                if count <= self.begun:
                    raise DistributedError(_in_vain(name))
            self.begun += 1

    def ended(self, name: str, count: int) -> str:
        """Note that another rank has ended; a thread that does not wait calls this.

        Parameters
        ----------
        name : str
            What that rank is called in messages.
        count : int
            Number of its calls.

        Returns
        -------
        str
            What is wrong if this rank waits for it just now, else "".
        """
        with self._lock:
            self._ended[name] = count
            return _in_vain(name) if self.begun > count else ""


def _in_vain(name: str) -> str:
    return (
        f"{name} has ended its program, and this rank would wait for it for ever: all ranks must "
        f"make the same calls, such as fit and evaluate"
    )
