"""A process that trains networks: requests come by stdin, results go to stdout.

A request is the pickle of a `Training`, a result the pickle of (trainer, error or None). Each has
its length before it.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import sys
from typing import IO, Any

from gpubackprop.errors import GpubackpropError, OptionError
from gpubackprop.many.settings import Training
from gpubackprop.many.shared import Place, Unpickler

LENGTH = struct.Struct("<Q")


def send(pipe: IO[bytes], content: bytes) -> None:
    """Write one message."""
    pipe.write(LENGTH.pack(len(content)))
    pipe.write(content)
    pipe.flush()


def receive(pipe: IO[bytes]) -> bytes | None:
    """Read one message; None if the other side has closed the pipe."""
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack(head)
    content = pipe.read(size)
    return content if len(content) == size else None


def main() -> None:
    """Train what comes until stdin is closed."""
    requests, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what callbacks print must not come among the results
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    opened: dict[Place, Any] = {}
    while (request := receive(requests)) is not None:
        send(results, _answer(request, opened))


def _answer(request: bytes, opened: dict[Place, Any]) -> bytes:
    try:
        training: Training = Unpickler(request, opened).load()
    except (AttributeError, ImportError) as error:
        return pickle.dumps((None, unsendable(error)))
    outcome = training.trainer, _train(training)
    try:
        return pickle.dumps(outcome, pickle.HIGHEST_PROTOCOL)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        return pickle.dumps((None, unsendable(error)))


def _train(training: Training) -> BaseException | None:
    """Train; return the error, if there was one, in a form that can be pickled."""
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            training.run()
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except BaseException as error:
        return portable(error)
    return None


def portable(error: BaseException) -> BaseException:
    """Return the error, or if it cannot be pickled one of the same words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception class with arguments of its own
        return GpubackpropError(f"{type(error).__name__}: {error}")
    return error


def unsendable(error: BaseException) -> OptionError:
    """Return the error of a trainer that cannot go to another process and back."""
    return OptionError(
        f"a trainer cannot go to another process ({error}): metrics, callbacks and schedules must "
        "be functions and classes of a module that can be imported; or use n_jobs=1"
    )
