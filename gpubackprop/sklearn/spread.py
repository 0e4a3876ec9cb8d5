"""Fits of scikit-learn's meta-estimators, spread over ranks: each rank computes its share.

joblib runs the jobs of searches, cross validations and ensembles. Here its backend is the ranks:
all of them run the same program and so have the same list of jobs, rank r of R computes jobs r,
r + R, r + 2 R and so on, and one exchange gives every rank the results of all.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import joblib
import numpy as np

from gpubackprop.backends.cuda_driver import probe_driver
from gpubackprop.distributed import Communicator, join
from gpubackprop.distributed.contract import agreed
from gpubackprop.errors import DistributedError, one_line
from gpubackprop.training.rounds import SHARED

PLAIN = str | bytes | int | float | complex | np.generic | None
Known = dict[int, tuple[Any, str]]  # by id: a value and its text
Outcome = tuple[Any, BaseException | None]  # the results of a job, or its error


class _Job:
    """What `RanksBackend.submit` returns: a job whose results are there after the exchange."""

    def __init__(
        self, backend: RanksBackend, work: Callable[[], Any], called: Callable[[Any], None] | None
    ) -> None:
        self.backend, self.work, self.called = backend, work, called
        self.outcome: Outcome | None = None

    def get(self, timeout: float | None = None) -> Any:
        """Return the job's results, after the exchange; raise its error."""
        if self.outcome is None:
            self.backend.exchange()
        assert self.outcome is not None
        value, error = self.outcome
        if error is not None:
            raise error
        return value

    def compute(self) -> None:
        try:
            self.outcome = self.work(), None
        except Exception as error:
            self.outcome = None, error


class RanksBackend(joblib.ParallelBackendBase):
    """A backend of joblib whose workers are the ranks.

    All ranks make the same calls of `joblib.Parallel`. Jobs within a job stay on its rank.

    Parameters
    ----------
    ranks : Communicator
        The ranks, at least two.
    """

    def __init__(self, ranks: Communicator) -> None:
        super().__init__(nesting_level=0)
        self.ranks, self._jobs = ranks, list[_Job]()

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        return 1 if n_jobs == 1 else self.ranks.size

    def submit(self, func: Callable[[], Any], callback: Any = None) -> _Job:
        self._jobs.append(_Job(self, func, callback))
        return self._jobs[-1]

    apply_async = submit  # its name before joblib 1.5

    def abort_everything(self, ensure_ready: bool = True) -> None:
        self._jobs = []

    def terminate(self) -> None:
        self._jobs = []

    def exchange(self) -> None:
        """Compute this rank's share of the jobs; give the outcomes of all jobs to all ranks.

        Raises
        ------
        DistributedError
            The ranks have come with different jobs.
        """
        for job in self._jobs:  # joblib hands out a few at first, and one for each that has ended
            if job.called is not None:
                job.called(None)
        jobs, ranks = self._jobs, self.ranks
        ranks.require_same(
            {"number of fits": len(jobs)} | _checksums(jobs),
            "fits spread over ranks (random_state must be a number, also of splitters)",
        )
        for job in jobs[ranks.rank :: ranks.size]:
            job.compute()
            if job.outcome is not None and job.outcome[1] is not None:
                break  # all ranks raise the first error; no earlier job is left out by this
        for rank, content in enumerate(ranks.gather(_pickled(jobs[ranks.rank :: ranks.size]))):
            theirs = pickle.loads(content)
            for job, outcome in zip(jobs[rank :: ranks.size], theirs, strict=False):
                if outcome[1] is not None:
                    job.outcome = None, agreed(outcome[1])
                elif rank != ranks.rank:
                    job.outcome = outcome


def _pickled(jobs: Sequence[_Job]) -> bytes:
    """Return the outcomes of the jobs that were computed; the last one may be an error."""
    outcomes: list[Outcome] = []
    for job in jobs:
        if job.outcome is None:
            break
        try:
            pickle.loads(pickle.dumps(job.outcome))
        except Exception as failure:
            job.outcome = None, _unsendable(job.outcome[1], failure)
        outcomes.append(job.outcome)
        if job.outcome[1] is not None:
            break
    return pickle.dumps(outcomes)


def _unsendable(error: BaseException | None, failure: Exception) -> DistributedError:
    if error is not None:
        return DistributedError(f"{type(error).__name__}: {one_line(error)}")
    return DistributedError(
        f"the result of a fit cannot go to the other ranks ({one_line(failure)}): what it holds "
        f"must be made of functions and classes of a module that can be imported"
    )


def _checksums(jobs: Sequence[_Job]) -> dict[str, str]:
    """Return a checksum of each job. What several of them have in common, as X, is read once."""
    known: Known = {}
    found = {}
    for place, job in enumerate(jobs, 1):
        calls = getattr(job.work, "items", ())  # of joblib's batches of calls
        said = [_said(each, known) for _, *arguments in calls for each in arguments]
        found[f"fit {place}"] = _digest(said)
    return found


def _digest(said: Sequence[str]) -> str:
    return hashlib.md5("\0".join(said).encode(), usedforsecurity=False).hexdigest()[:8]


def _said(value: Any, known: Known) -> str:
    """Return a text that is the same for the same data, settings and estimators.

    Of other objects it has the type alone: they may hold names of processes, times and so on.
    """
    if id(value) not in known:  # the value is kept too, so that no other one has its id
        known[id(value)] = value, _read(value, known)
    return known[id(value)][1]


def _read(value: Any, known: Known) -> str:
    if isinstance(value, dict):
        return _digest([f"{name}={_said(each, known)}" for name, each in value.items()])
    if isinstance(value, list | tuple) and not all(isinstance(each, PLAIN) for each in value):
        return _digest([_said(each, known) for each in value])
    if hasattr(value, "get_params") and not isinstance(value, type):
        return f"{type(value).__name__}({_said(value.get_params(deep=False), known)})"
    if isinstance(value, PLAIN | list | tuple | np.random.RandomState) or hasattr(value, "shape"):
        return str(joblib.hash(value))
    return type(value).__name__


@contextlib.contextmanager
def spread(distributed: str | Communicator | None = "auto") -> Iterator[Communicator]:
    """Spread the fits of meta-estimators over ranks: each computes its share, all get all results.

    All ranks run the same program. Inside the context what uses joblib (GridSearchCV,
    RandomizedSearchCV, cross_val_score, BaggingClassifier, OneVsRestClassifier, StackingClassifier)
    hands its fits to the ranks, by turns, of whatever estimator. They talk twice for each such
    call: to compare what they are about to fit, and to exchange the results. Results are those of
    one process. The last fit of a search, on all rows, is done by every rank. An error of a fit is
    raised on all ranks.

    One process alone computes as without this context, and so do meta-estimators with ``n_jobs=1``.
    Where a machine has several GPUs, each rank of MPI or torchrun takes its own for estimators of
    this package.

    Parameters
    ----------
    distributed : {"auto", "mpi", "torchrun"}, Communicator or None
        The ranks, as for `Trainer`.

    Yields
    ------
    Communicator
        The ranks.

    Raises
    ------
    DistributedError
        The ranks come with different fits: other data, options, or a random_state that is no
        number.

    Examples
    --------
    Started by ``mpirun -n 4 python search.py``, each of four ranks makes a quarter of the fits:

    >>> from sklearn.model_selection import GridSearchCV
    >>> from gpubackprop.sklearn import MLPRegressor
    >>> X, y = [[0.0], [1.0], [2.0], [3.0]], [1.0, 3.0, 5.0, 7.0]
    >>> net = MLPRegressor(hidden_layer_sizes=4, n_iter_no_change=2, tol=10.0, random_state=1)
    >>> with spread() as ranks:
    ...     search = GridSearchCV(net, {"alpha": [0.0, 0.1]}, cv=2).fit(X, y)
    >>> ranks.size, sorted(search.best_params_)
    (1, ['alpha'])
    """
    ranks = join(distributed)
    with contextlib.ExitStack() as stack:
        if ranks.size > 1:
            gpus = len(probe_driver().gpus)
            if gpus > 1 and ranks.kind != "threads":  # threads of one process share this choice
                stack.enter_context(SHARED.spread([f"cuda:{ranks.local_rank % gpus}"]))
            backend = RanksBackend(ranks)
            stack.enter_context(joblib.parallel_config(backend=backend, n_jobs=ranks.size))
        yield ranks
