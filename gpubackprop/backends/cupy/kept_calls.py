"""Unplanned losses on a GPU: the launches of a call are kept for the next call of the same form.

To plan and check the launches of a loss costs the host more than to issue them. Therefore a call is
recorded as a plan is, and kept under the shapes, dtypes and options on which it depends. The next
call of that form writes its own addresses into the records and issues them.

Working memory stays with a kept call. If threads call at once, one uses it and the others make
launches of their own. A call on another stream than the previous one waits for that one (`Plan`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, fields
from typing import Any

from gpubackprop.backends.cupy.arguments import Record
from gpubackprop.backends.cupy.recorded_calls import RecordedCalls
from gpubackprop.backends.loss import LossOptions

Arrays = dict[str, Any]
MOST_CALLS = 64
MOST_BYTES = 1 << 18  # the most working memory of a kept call: 16 MiB for all of them
OBSTACLE = "its arrays are exchanged"  # why it is no CUDA graph
_OPTIONS = tuple(item.name for item in fields(LossOptions) if item.name != "class_weight")


@dataclass
class KeptCall:
    """Recorded launches whose arrays are exchanged at each call.

    Attributes
    ----------
    replay : callable
        Issues the launches.
    patches : list of tuples
        Each is a record, its field, and the name of the call's array that goes there.
    """

    replay: Callable[[], None]
    patches: list[tuple[Record, str, str]]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, arrays: Arrays) -> bool:
        """Issue the launches on these arrays; return False if another thread is doing so."""
        if not self.lock.acquire(blocking=False):
            return False
        try:
            for record, name, which in self.patches:
                record.point_to(name, arrays[which])
            self.replay()
        finally:
            for record, name, _ in self.patches:  # keep no reference to the caller's arrays
                record.arrays.pop(name, None)
            self.lock.release()
        return True


UNKNOWN, ONCE, NEVER = "unknown", "once", "never"  # a form is new, was met once, cannot be kept
Kept = KeptCall | str


class KeptCalls:
    """The forms of calls that a backend met, the `MOST_CALLS` that were used last.

    A form is kept when it comes a second time, so that calls of ever new shapes cost nothing more.
    """

    def __init__(self) -> None:
        self._forms: OrderedDict[Hashable, Kept] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, key: Hashable) -> Kept:
        with self._lock:
            found = self._forms.get(key, UNKNOWN)
            if found is UNKNOWN:
                self._put(key, ONCE)
            else:
                self._forms.move_to_end(key)
            return found

    def keep(self, key: Hashable, call: Kept) -> None:
        with self._lock:
            self._put(key, call)

    def _put(self, key: Hashable, call: Kept) -> None:
        self._forms[key] = call
        if len(self._forms) > MOST_CALLS:
            self._forms.popitem(last=False)

    def __len__(self) -> int:
        return len(self._forms)


def key_of(
    name: Hashable,
    options: LossOptions,
    upstream: float | None,
    arrays: Arrays,
    cupy: Any,
    index: int,
) -> Hashable:
    """Return all that the launches of a loss depend on; None if they cannot be kept.

    `upstream` is the number, or None if it is one of the arrays.
    """
    if options.class_weight is not None:  # the host's numbers are copied at each call
        return None
    forms, addresses = [], []
    for role, array in arrays.items():
        if not isinstance(array, cupy.ndarray) or not array.size or array.device.id != index:
            return None
        address = array.data.ptr
        addresses.append(address)
        forms.append(
            (role, array.shape, array.strides, array.dtype, address % 16, addresses.index(address))
        )
    sign = None if upstream is None else upstream.hex()  # -0.0 is not 0.0
    return name, sign, tuple(forms), tuple(getattr(options, item) for item in _OPTIONS)


def patches_of(recorded: RecordedCalls, arrays: Arrays) -> list[tuple[Record, str, str]] | None:
    """Return which fields of the records hold which of the caller's arrays.

    None is returned if one of these is in no field of a record, or a field points into its middle.
    """
    begins: dict[int, str] = {}
    for role, array in arrays.items():
        begins.setdefault(int(array.data.ptr), role)
    patches = []
    for _, args in recorded.calls:
        given = [one for arg in args for one in (arg if isinstance(arg, tuple) else (arg,))]
        for one in given:
            held = one.arrays if isinstance(one, Record) else {"": one}
            for name, array in held.items():
                if not hasattr(array, "data") or not hasattr(array.data, "ptr"):
                    continue  # a number
                address = int(array.data.ptr)
                if name and address in begins:
                    patches.append((one, name, begins[address]))
                elif _inside(address, arrays):
                    return None
    return patches


def _inside(address: int, arrays: Arrays) -> bool:
    for array in arrays.values():
        begin = int(array.data.ptr)
        extent = sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True))
        if begin <= address < begin + extent + array.itemsize:
            return True
    return False
