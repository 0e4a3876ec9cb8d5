"""Searches and ensembles whose fits are spread over ranks, beside the same in one process."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier, StackingClassifier, VotingClassifier
from sklearn.exceptions import FitFailedWarning
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV, cross_val_score
from sklearn.multiclass import OneVsRestClassifier

from gpubackprop.distributed import Communicator, in_threads
from gpubackprop.distributed.contract import is_agreed
from gpubackprop.distributed.threads import Threads
from gpubackprop.errors import DistributedError
from gpubackprop.sklearn import MLPClassifier, spread
from tests.ranks_programs import some_rows
from tests.spread_programs import Noting, searched, without_times
from tests.test_distributed_mpi import as_torchrun, mpiexec, with_mpi

pytestmark = pytest.mark.filterwarnings("ignore:.*Maximum iterations")
OWN = threading.local()


@pytest.fixture(autouse=True)
def _ranks_are_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Noting, "here", {})
    monkeypatch.setattr(Noting, "rank", staticmethod(lambda: getattr(OWN, "rank", 0)))


def on_ranks(size: int, work: Any) -> list[Any]:
    """Return ``work(ranks)`` of each rank, within `spread`."""

    def within(ranks: Communicator) -> Any:
        OWN.rank = ranks.rank
        with spread(ranks) as same:
            assert same is ranks
            return work(ranks)

    return in_threads(size, within)


@pytest.mark.parametrize("size", [2, 3])
def test_a_search_finds_on_every_rank_what_one_process_finds(size: int) -> None:
    wanted = searched(None)
    assert in_threads(size, searched) == [wanted] * size


@pytest.mark.parametrize("size", [2, 4])
def test_each_rank_makes_its_share_of_the_fits_alone(size: int) -> None:
    values = [float(i) for i in range(30)]  # more than joblib hands out at first

    def work(ranks: Communicator) -> Any:
        search = GridSearchCV(Noting(), {"value": values}, cv=2, refit=False).fit(*some_rows())
        return without_times(search.cv_results_)

    found = on_ranks(size, work)
    fits = np.repeat(values, 2)
    assert [Noting.here[rank] for rank in range(size)] == [
        fits[rank::size].tolist() for rank in range(size)
    ]
    wanted = GridSearchCV(Noting(), {"value": values}, cv=2, refit=False).fit(*some_rows())
    assert found == [without_times(wanted.cv_results_)] * size


def net() -> MLPClassifier:
    return MLPClassifier(4, max_iter=3, random_state=0, device="cpu")


@pytest.mark.parametrize(
    "meta",
    [
        OneVsRestClassifier(net()),
        VotingClassifier([("a", net()), ("b", Noting(0.2))]),
        StackingClassifier([("a", net()), ("b", net())], final_estimator=net(), cv=2),
        RandomForestClassifier(5, random_state=0),  # its prediction writes into common memory
    ],
    ids=lambda meta: type(meta).__name__,
)
def test_ensembles_learn_on_every_rank_what_they_learn_in_one_process(meta: Any) -> None:
    X, y = some_rows()
    wanted = clone(meta).fit(X, y).predict(X).tolist()
    assert on_ranks(2, lambda ranks: clone(meta).fit(X, y).predict(X).tolist()) == [wanted] * 2


def test_a_search_within_a_fit_stays_on_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered, gather = [], Threads.gather

    def counted(ranks: Threads, record: Any) -> list[Any]:
        gathered.append(ranks.rank)
        return gather(ranks, record)

    monkeypatch.setattr(Threads, "gather", counted)
    inner = GridSearchCV(Noting(), {"value": [0.0, 1.0, 2.0]}, cv=2, n_jobs=2)
    wanted = cross_val_score(inner, *some_rows(), cv=3).tolist()
    assert not gathered
    assert on_ranks(2, lambda ranks: cross_val_score(inner, *some_rows(), cv=3).tolist()) == (
        [wanted] * 2
    )
    assert sorted(gathered) == [0, 0, 1, 1], "one comparison and one exchange"


def test_one_job_at_a_time_and_one_process_alone_compute_as_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"value": [0.0, 1.0]}
    on_ranks(2, lambda r: GridSearchCV(Noting(), settings, cv=2, n_jobs=1).fit(*some_rows()))
    assert len(Noting.here[0]) == len(Noting.here[1]) == 4 + 1  # and the fit on all rows
    before = joblib.parallel.get_active_backend()[0]
    with spread(None) as ranks:
        assert ranks.size == 1
        assert type(joblib.parallel.get_active_backend()[0]) is type(before)


# -- what goes wrong ------------------------------------------------------------------------------


def raised(work: Any) -> tuple[str, bool, str]:
    with pytest.raises((ValueError, DistributedError)) as caught:
        work()
    return type(caught.value).__name__, is_agreed(caught.value), str(caught.value)


def test_an_error_of_one_fit_is_raised_on_all_ranks_and_the_ranks_go_on_afterwards() -> None:
    settings = {"value": [0.0, -1.0, 1.0]}  # fit 3 is rank 0's and fit 4 rank 1's

    def work(ranks: Communicator) -> Any:
        search = GridSearchCV(Noting(), settings, cv=2, error_score="raise")
        said = raised(lambda: search.fit(*some_rows()))
        return said, GridSearchCV(Noting(), {"value": [1.0, 2.0]}, cv=2).fit(*some_rows()).n_splits_

    assert on_ranks(2, work) == [(("ValueError", True, "-1.0 is no value"), 2)] * 2


def test_a_failed_fit_is_nan_on_all_ranks_where_the_search_goes_on() -> None:
    settings = {"value": [0.0, -1.0, 1.0]}

    def work(ranks: Communicator) -> Any:
        search = GridSearchCV(Noting(), settings, cv=2, refit=False).fit(*some_rows())
        return np.isnan(search.cv_results_["mean_test_score"]).tolist()

    with pytest.warns(FitFailedWarning), pytest.warns(UserWarning, match="non-finite"):
        assert on_ranks(2, work) == [[False, True, False]] * 2


class Sealed(Noting):
    """A classifier that cannot be pickled once it is fitted."""

    def __getstate__(self) -> Any:
        if hasattr(self, "classes_"):
            raise TypeError("this stays here")
        return super().__getstate__()


def test_a_result_that_cannot_be_sent_is_an_error_that_says_so_on_all_ranks() -> None:
    def work(ranks: Communicator) -> Any:
        voting = VotingClassifier([("a", Noting()), ("b", Sealed())])
        return raised(lambda: voting.fit(*some_rows()))

    first, second = on_ranks(2, work)
    assert first == second
    assert "the result of a fit cannot go to the other ranks (this stays here)" in first[2]


@pytest.mark.parametrize("differs", ["settings", "data", "number"])
def test_ranks_that_come_with_other_fits_are_named_before_any_is_made(differs: str) -> None:
    def work(ranks: Communicator) -> Any:
        X, y = some_rows()
        values = list(np.linspace(0, 1, 20))
        if differs == "data" and ranks.rank:
            X = X + 1e-9
        if differs == "number" and ranks.rank:
            values.append(2.0)
        state = ranks.rank if differs == "settings" else 0
        search = RandomizedSearchCV(Noting(), {"value": values}, n_iter=5, cv=2, random_state=state)
        if differs == "number":
            search = GridSearchCV(Noting(), {"value": values}, cv=2)
        return raised(lambda: search.fit(X, y))

    first, second = on_ranks(2, work)
    assert first == second
    wanted = "number of fits = 42 but rank 0 has 40" if differs == "number" else "has fit 1 = "
    assert wanted in first[2]
    assert "random_state must be a number" in first[2]
    assert not Noting.here


def test_what_cannot_be_compared_is_left_out_of_the_comparison() -> None:
    def work(ranks: Communicator) -> Any:
        jobs = (joblib.delayed(lambda value: value * 2)(value) for value in range(7))
        return joblib.Parallel()(jobs)

    assert on_ranks(3, work) == [[0, 2, 4, 6, 8, 10, 12]] * 3


# -- processes ------------------------------------------------------------------------------------


def check_processes(tmp_path: Path, size: int) -> None:
    found = [json.loads((tmp_path / f"found.{rank}").read_text()) for rank in range(size)]
    fits = np.repeat([0.0, 1.0, 2.0], 2)
    assert [each.pop("fitted here") for each in found] == [
        fits[rank::size].tolist() for rank in range(size)
    ]
    wanted = json.loads(json.dumps(searched(None)))
    assert wanted.pop("alone")
    assert not any(each.pop("alone") for each in found)
    assert found == [wanted] * size


@pytest.mark.slow
@with_mpi
@pytest.mark.parametrize("size", [2, 3])
def test_mpis_ranks_search_together_and_each_makes_its_share(tmp_path: Path, size: int) -> None:
    result = mpiexec(size, "tests.spread_programs", "search", tmp_path / "found")
    assert result.returncode == 0, result.stderr
    check_processes(tmp_path, size)


@pytest.mark.slow
def test_torchruns_ranks_search_together(tmp_path: Path) -> None:
    for status, error in as_torchrun(2, "tests.spread_programs", "search", tmp_path / "found"):
        assert status == 0, error
    check_processes(tmp_path, 2)


@pytest.mark.slow
@with_mpi
def test_an_error_of_a_fit_ends_mpis_ranks_with_one_traceback_and_nothing_hangs(
    tmp_path: Path,
) -> None:
    began = time.monotonic()
    result = mpiexec(2, "tests.spread_programs", "fail", tmp_path, seconds=60)
    assert result.returncode == 1
    assert result.stderr.count("ValueError: -1.0 is no value") == 1
    assert time.monotonic() - began < 60


@pytest.mark.slow
@with_mpi
def test_a_rank_that_does_not_search_is_named(tmp_path: Path) -> None:
    result = mpiexec(2, "tests.spread_programs", "one_searches", tmp_path, seconds=60)
    assert result.returncode != 0
    assert "has ended its program, and this rank would wait for it for ever" in result.stderr
