"""Rounds: fits of several threads share launches, whoever comes, fails, lingers or is stopped."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from gpubackprop.training import rounds
from gpubackprop.training.rounds import SHARED, Rounds


class Counter:
    """A launch that adds 1 to the numbers of each work, and notes who was in it."""

    def __init__(self) -> None:
        self.launches: list[list[str]] = []

    def __call__(self, works: Sequence[dict[str, Any]]) -> None:
        self.launches.append(sorted(work["name"] for work in works))
        if any(work.get("bad") for work in works):
            raise ValueError(f"bad among {len(works)}")
        for work in works:
            work["epochs"] += 1


def fits(own: Rounds, launch: Any, epochs: dict[str, int], delay: float = 0.0) -> dict[str, Any]:
    """Run a fit of so many epochs for each name, in threads; return their works and errors."""
    works = {name: {"name": name, "epochs": 0} for name in epochs}
    errors: dict[str, BaseException] = {}
    begin = threading.Barrier(len(epochs))

    def fit(name: str) -> None:
        with own.fit():
            begin.wait()
            try:
                for _ in range(epochs[name]):
                    own.train(works[name], launch)
                    time.sleep(delay)
            except BaseException as error:
                errors[name] = error

    run_all([lambda name=name: fit(name) for name in epochs])
    return {"works": works, "errors": errors}


def run_all(functions: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=function, daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads), "a fit waits for ever"


def test_all_fits_share_each_launch_until_they_end_and_none_waits_for_one_that_has() -> None:
    launch = Counter()
    found = fits(Rounds(), launch, {"a": 3, "b": 3, "c": 1})
    assert launch.launches == [["a", "b", "c"], ["a", "b"], ["a", "b"]]
    assert [work["epochs"] for work in found["works"].values()] == [3, 3, 1]
    assert not found["errors"]


def test_a_fit_that_does_something_else_for_long_misses_a_round_and_holds_up_none() -> None:
    own, launch = Rounds(), Counter()
    work = {"name": "a", "epochs": 0}
    with own.fit(), own.fit():  # the other one never asks
        began = time.monotonic()
        own.train(work, launch)
    assert work["epochs"] == 1
    assert rounds.LINGER <= time.monotonic() - began < 5


def test_a_work_that_fails_is_found_and_the_others_are_done() -> None:
    own, launch = Rounds(), Counter()
    works = [{"name": name, "epochs": 0} for name in "abc"]
    works[1]["bad"] = True
    errors: dict[str, str] = {}

    def fit(work: dict[str, Any]) -> None:
        with own.fit():
            begin.wait()
            try:
                own.train(work, launch)
            except ValueError as error:
                errors[work["name"]] = str(error)

    begin = threading.Barrier(3)
    run_all([lambda work=work: fit(work) for work in works])
    assert errors == {"b": "bad among 1"}
    assert [work["epochs"] for work in works] == [1, 0, 1]
    assert launch.launches[0] == ["a", "b", "c"]


def test_works_of_different_launches_have_a_launch_each_within_one_round() -> None:
    own, one, other = Rounds(), Counter(), Counter()
    works = {name: {"name": name, "epochs": 0} for name in "abcd"}
    begin = threading.Barrier(4)

    def fit(name: str) -> None:
        with own.fit():
            begin.wait()
            own.train(works[name], one if name in "ab" else other)

    run_all([lambda name=name: fit(name) for name in works])
    assert one.launches == [["a", "b"]]
    assert other.launches == [["c", "d"]]


def test_ctrl_c_in_a_launch_stops_the_fit_of_its_thread_alone_and_loses_no_epoch() -> None:
    own, done = Rounds(), threading.Event()
    works = [{"name": name, "epochs": 0} for name in "ab"]
    inner = Counter()

    def launch(batch: Sequence[Any]) -> None:
        if len(batch) == 2:
            signal.raise_signal(signal.SIGINT)
        inner(batch)

    def other() -> None:
        with own.fit():
            asked.set()
            own.train(works[1], launch)
            own.train(works[1], launch)
        done.set()

    asked = threading.Event()
    thread = threading.Thread(target=other, daemon=True)
    with own.fit():  # this is the main thread, which gets the signal
        thread.start()
        asked.wait(5)
        while not own._waiting:
            time.sleep(0.001)
        with pytest.raises(KeyboardInterrupt):
            own.train(works[0], launch)
    assert done.wait(10)
    assert [work["epochs"] for work in works] == [1, 2]


def test_contexts_may_overlap_and_the_rounds_end_with_the_last() -> None:
    assert SHARED.rounds is None
    first, second = SHARED.together(), SHARED.together()
    own = first.__enter__()
    assert second.__enter__() is own is SHARED.rounds
    first.__exit__(None, None, None)
    assert SHARED.rounds is own
    second.__exit__(None, None, None)
    assert SHARED.rounds is None
