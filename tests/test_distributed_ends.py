"""A rank may end before the others, but none waits for it for ever."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from gpubackprop.distributed import Communicator, in_threads, threads
from gpubackprop.distributed.calls import Calls
from gpubackprop.errors import DistributedError
from tests.ranks_programs import some_rows, trained
from tests.test_distributed_mpi import as_torchrun, mpiexec, with_mpi

SECONDS = 60.0  # for all: imports on a busy machine included
SAME_CALLS = "all ranks must make the same calls, such as fit and evaluate"


@pytest.mark.slow
@with_mpi
@pytest.mark.parametrize(("size", "waiting"), [(2, 0), (2, 1), (3, 2)])
@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 0)], ids=["waits", "comes later"])
def test_mpis_rank_that_alone_calls_evaluate_names_the_rank_that_has_ended(
    tmp_path: Path, size: int, waiting: int, before: float, after: float
) -> None:
    """Whether the other rank ends while this one waits, or has ended before."""
    result = mpiexec(
        size, "tests.ranks_programs", "measure_alone", tmp_path, waiting, before, after,
        seconds=SECONDS,
    )  # fmt: skip
    assert result.returncode != 0
    assert f"rank {0 if waiting else 1} of {size} (" in result.stderr
    assert "has ended its program, and this rank would wait for it for ever" in result.stderr
    assert SAME_CALLS in result.stderr


@pytest.mark.slow
@with_mpi
@pytest.mark.parametrize("seconds", [(2, 0, 0), (0, 1, 2), (0, 0, 0)])
def test_mpis_ranks_that_end_in_any_order_are_silent_and_end_none_that_works_alone(
    tmp_path: Path, seconds: tuple[float, ...]
) -> None:
    file = tmp_path / "rank"
    result = mpiexec(3, "tests.ranks_programs", "end_apart", file, *seconds, seconds=SECONDS)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.slow
@pytest.mark.parametrize("waiting", [0, 1])
def test_torchruns_rank_that_alone_calls_evaluate_says_that_the_other_has_ended(
    tmp_path: Path, waiting: int
) -> None:
    ended = as_torchrun(2, "tests.ranks_programs", "measure_alone", tmp_path, waiting, 0, 1)
    status, error = ended[waiting]
    assert status != 0
    assert f"rank {1 - waiting} of 2 has ended" in error
    assert SAME_CALLS in error
    assert ended[1 - waiting] == (0, "")


@pytest.mark.parametrize("early", [True, False])
def test_a_thread_that_alone_calls_evaluate_says_that_the_other_has_ended(
    early: bool, monkeypatch: Any
) -> None:
    monkeypatch.setattr(threads, "TIMEOUT", 20.0)

    def work(ranks: Communicator) -> Any:
        trainer = trained("plain", ranks, epochs=1)
        if (ranks.rank == 1) == early:
            time.sleep(0.2)
        if ranks.rank == 0:
            trainer.evaluate(*some_rows())

    with pytest.raises(DistributedError, match=f"rank 1 of 2 has ended .*{SAME_CALLS}"):
        in_threads(2, work)


def test_a_thread_that_comes_after_another_failed_and_left_hears_of_the_failure() -> None:
    group = threads.Group(2)
    with pytest.raises(DistributedError, match="no room"):
        threads.Threads(group, 1).abort("no room")
    group.leave(1)
    with pytest.raises(DistributedError, match=r"another rank has ended: rank 1 of 2 .*: no room"):
        threads.Threads(group, 0).gather(None)


def test_a_rank_that_has_made_as_many_calls_may_end_while_another_is_still_in_the_last() -> None:
    calls = Calls()
    for _ in range(3):
        calls.begin()
    assert calls.ended("rank 1", 3) == ""
    assert calls.ended("rank 2", 4) == ""
    assert "rank 4 has ended" in calls.ended("rank 4", 2)
