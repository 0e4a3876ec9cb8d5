"""Processes that train networks side by side on the CPU.

They are started by a command of their own and not by a fork or by `multiprocessing`: a fork in a
program with threads may hang, and `multiprocessing` would run the caller's script again.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gpubackprop.backends.numpy import get_num_threads
from gpubackprop.errors import GpubackpropError
from gpubackprop.many.settings import Training
from gpubackprop.many.shared import Shared
from gpubackprop.many.worker import receive, send, unsendable
from gpubackprop.training.interrupt import InterruptGuard

_BOOT = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from gpubackprop.many.worker import main; main()"
)
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_WAIT = 0.05  # seconds between two looks at Ctrl-C
Errors = list[BaseException | None]


def train_in_processes(trainings: Sequence[Training], processes: int) -> Errors:
    """Train each in one of so many processes; return the error of each, or None.

    The trainers and their networks are then as if they had been trained here. Ctrl-C ends each
    training after its step; those that have not begun do not begin.

    Parameters
    ----------
    trainings : sequence of Training
        Trainings of networks on the CPU.
    processes : int
        The number of processes.
    """
    with tempfile.TemporaryDirectory(prefix="gpubackprop-") as folder:
        data = [(t.x, t.targets, tuple(_data_of(t))) for t in trainings]
        pool = _Pool(trainings, processes, Shared(Path(folder), data))
        try:
            pool.run()
        finally:
            pool.close()
    for training in trainings[pool.begun :]:
        training.trainer.history.stopped = "interrupted"
    return pool.errors


def _data_of(training: Training) -> Iterator[Any]:
    for name in ("rows", "validation", "sample_weight", "standardizer"):
        value = training.arguments.get(name)
        if not callable(value):
            yield value


class _Pool:
    """Processes, a thread here for each, and the trainings that they take in turn."""

    def __init__(self, trainings: Sequence[Training], processes: int, shared: Shared) -> None:
        self.trainings, self.shared = trainings, shared
        self.errors: Errors = [None] * len(trainings)
        self.begun = 0  # they are taken in their order
        self._lock, self._stopped = threading.Lock(), False
        threads = max(1, get_num_threads() // processes)
        self._environment = dict.fromkeys(_THREADS, str(threads)) | dict(os.environ)
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._threads = [
            threading.Thread(target=self._serve, daemon=True) for _ in range(processes)
        ]

    def run(self) -> None:
        for thread in self._threads:
            thread.start()
        with InterruptGuard() as guard:
            for thread in self._threads:
                while thread.is_alive():
                    thread.join(_WAIT)
                    if guard.requested and not self._stopped:
                        self._interrupt()

    def _interrupt(self) -> None:
        """Hand out nothing more; end what runs after its step."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """End the processes, also those that train still."""
        with self._lock:
            self._stopped = True
            processes = [*self._processes]
        for process in processes:
            process.kill()
        for thread in self._threads:
            thread.join()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOT], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=self._environment, process_group=0 if os.name == "posix" else None,
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(pickle.dumps(sys.path))
        with self._lock:
            self._processes.add(process)
        return process

    def _next(self) -> int | None:
        """Return the number of the next training, or None."""
        with self._lock:
            if self._stopped or self.begun == len(self.trainings):
                return None
            self.begun += 1
            return self.begun - 1

    def _serve(self) -> None:
        """Have a process train one network after another."""
        process = None
        while (number := self._next()) is not None:
            try:
                process = process or self._start()
                self.errors[number] = self._train(process, self.trainings[number])
            except OSError as error:  # no more processes, or no room for the files
                self.errors[number] = error
            if process is not None and process.poll() is not None:
                self._end(process)
                process = None
        if process is not None:
            self._end(process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._processes.discard(process)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # it has ended with a request unread
                    pipe.close()
        process.wait()

    def _train(self, process: subprocess.Popen[bytes], training: Training) -> BaseException | None:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            request = self.shared.dumps(training)
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            return unsendable(error)
        try:
            send(process.stdin, request)
            answer = receive(process.stdout)
        except OSError:
            answer = None
        if answer is None:
            code = process.wait()
            return GpubackpropError(
                f"the process that trained this network has ended (exit status {code}), which is "
                "what happens if memory runs out; use fewer jobs"
            )
        trained, failure = pickle.loads(answer)
        if trained is not None:
            _take_over(training.trainer, trained)
        if isinstance(failure, KeyboardInterrupt):  # Ctrl-C came before the first step
            training.trainer.history.stopped, failure = "interrupted", None
        found: BaseException | None = failure
        return found


def _take_over(trainer: Any, trained: Any) -> None:
    """Give the trainer and its network what was trained elsewhere."""
    network, moved = trainer.network, vars(trained)
    network.backend.copy(trained.network.parameters, network.parameters)
    own = {name: value for name, value in moved.items() if value is not trained.network}
    vars(trainer).update(own)
