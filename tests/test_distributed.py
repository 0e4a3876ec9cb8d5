"""Several ranks train as one process does: ranks that are threads, on the host.

`test_distributed_mpi` has real processes, `test_nccl` the path of GPUs.
"""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpubackprop
from gpubackprop import MLP, StopTraining, Trainer
from gpubackprop.distributed import Alone, Communicator, in_threads, join
from gpubackprop.distributed.launch import launcher
from gpubackprop.errors import (
    DataError,
    DistributedError,
    NonFiniteLossError,
    OptionError,
    StorageError,
)
from gpubackprop.training import progress
from gpubackprop.training.state import FitOptions
from tests.ranks_programs import CASES, EPOCHS, ROWS, figures, some_rows, trained

DEVICES = ["cpu:numpy", "cpu"]


def assert_close(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """The curves and weights of two trainings agree to 1e-12, their decisions exactly."""
    assert found["history"].keys() == wanted["history"].keys()
    assert (found["stopped"], found["best_epoch"]) == (wanted["stopped"], wanted["best_epoch"])
    for name, column in wanted["history"].items():
        np.testing.assert_allclose(found["history"][name], column, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found["parameters"], wanted["parameters"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [2, 5])
def test_ranks_learn_what_one_process_learns(case: str, size: int) -> None:
    device = DEVICES[size % 2]
    wanted = figures(trained(case, None, device))
    found = [figures(t) for t in in_threads(size, lambda ranks: trained(case, ranks, device))]
    assert all(other == found[0] for other in found), "the ranks differ"
    assert_close(found[0], wanted)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_networks_of_16_bits_differ_by_float32s_rounding_alone(precision: str) -> None:
    def work(ranks: Communicator | None) -> Any:
        network = MLP(
            [4, 8, 6, 3], "relu", seed=1, precision=precision, dropout=0.1, device="cpu:numpy"
        )  # fmt: skip
        trainer = Trainer(
            network, batch_size=32, l2=0.001, clip_norm=1.0, stochastic_rounding=True,
            distributed=ranks,
        )  # fmt: skip
        history = trainer.fit(*some_rows(), epochs=3, validation=0.2)
        return history["val_loss"], network.parameters.tobytes()

    wanted, _ = work(None)
    (found, first), *others = in_threads(3, work)
    assert all(other == (found, first) for other in others)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_the_versions_are_among_what_must_agree() -> None:
    from gpubackprop.training import shared_run

    trainer = trained("plain", None)
    options = FitOptions(1, None, 0.0, None, None, None, 0.0)
    record = shared_run._must_agree(trainer, trainer.state, trainer.state.step, None, options)
    assert record["numpy"] == np.__version__
    assert record["gpubackprop"] == gpubackprop.__version__
    assert {"python", "device", "seed", "training x", "training targets"} <= record.keys()


def test_as_many_ranks_end_with_the_same_bits_in_every_run() -> None:
    first, second = (
        in_threads(3, lambda ranks: figures(trained("dropout", ranks)))[0] for _ in range(2)
    )
    assert first == second


def test_a_communicator_gathers_adds_and_shares() -> None:
    def work(ranks: Communicator) -> Any:
        total, sent = np.arange(3.0) + ranks.rank, np.full(2, ranks.rank)
        ranks.allreduce(total)
        ranks.broadcast(sent, root=2)
        ranks.barrier()
        return ranks.gather(ranks.rank), total.tolist(), sent.tolist(), ranks.any(ranks.rank == 1)

    assert in_threads(3, work) == [([0, 1, 2], [3.0, 6.0, 9.0], [2, 2], True)] * 3


@pytest.mark.parametrize("count", [0, 1, 5, 12, 13])
def test_the_parts_of_the_ranks_are_all_rows_in_order_and_differ_by_one(count: int) -> None:
    parts = in_threads(5, lambda ranks: range(count)[ranks.part(count)])
    assert [row for part in parts for row in part] == list(range(count))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1


def test_evaluate_measures_all_rows_once(tmp_path: Path) -> None:
    def work(ranks: Communicator | None) -> Any:
        trainer = trained("plain", ranks)
        return trainer.evaluate(*some_rows())

    wanted = work(None)
    for found in in_threads(4, work):
        assert found == pytest.approx(wanted, rel=1e-12)


# -- what is found at the start -------------------------------------------------------------------


def network(seed: int = 1, **options: Any) -> MLP:
    return MLP([4, 8, 3], "tanh", seed=seed, dtype="float64", device="cpu:numpy", **options)


@pytest.mark.parametrize(
    ("differ", "message"),
    [
        ({"seed": 3}, "rank 1 of 2 has seed = 3 but rank 0 has 0"),
        ({"l2": 0.1}, "rank 1 of 2 has l2 = 0.1 but rank 0 has 0.0"),
        ({"batch_size": 9}, "rank 1 of 2 has batch_size = 9 but rank 0 has 103"),
    ],
)
def test_an_option_that_differs_is_named_on_all_ranks(differ: Any, message: str) -> None:
    said = in_threads(2, lambda ranks: _error(ranks, differ if ranks.rank else {}))
    assert all(message in text for text in said), said


def _error(ranks: Communicator, options: Any, seed: int = 1, rows: Any = None, **fit: Any) -> str:
    trainer = Trainer(network(seed), distributed=ranks, **options)
    with pytest.raises(DistributedError) as caught:
        trainer.fit(*(rows or some_rows()), epochs=1, **fit)
    return str(caught.value)


def test_other_data_other_weights_and_other_arguments_are_named() -> None:
    x, labels = some_rows()
    changed = np.where(np.arange(len(x)) == 7, (labels + 1) % 3, labels)
    for message, work in {
        "training targets": lambda ranks: _error(ranks, {}, rows=(x, changed if ranks.rank else labels)),
        "initial weights": lambda ranks: _error(ranks, {}, seed=1 + ranks.rank),
        "fit's patience": lambda ranks: _error(ranks, {}, patience=2 + ranks.rank),
    }.items():  # fmt: skip
        said = in_threads(2, work)
        assert all(f"rank 1 of 2 has {message}" in text for text in said), said


def test_bad_input_on_one_rank_stops_all_with_one_message() -> None:
    x, labels = some_rows()
    bad = labels.copy()
    bad[5] = 3
    said = in_threads(
        3, lambda ranks: _error(ranks, {}, rows=(x, bad if ranks.rank == 2 else labels))
    )
    assert len(set(said)) == 1
    assert "rank 2 of 3 stopped all ranks: TargetRangeError" in said[0]


def test_bad_input_on_all_ranks_is_the_error_of_one_process() -> None:
    def work(ranks: Communicator) -> None:
        with pytest.raises(DataError, match="has 0 rows"):
            Trainer(network(), distributed=ranks).fit(np.empty((0, 4)), np.empty(0, int))

    in_threads(2, work)


# -- during a training ----------------------------------------------------------------------------


def test_nan_in_a_row_of_one_rank_stops_all_at_the_same_step() -> None:
    x, labels = some_rows()
    x[50, 2] = np.nan

    def work(ranks: Communicator | None) -> tuple[str, int]:
        trainer = Trainer(network(), batch_size=32, distributed=ranks)
        with pytest.raises(NonFiniteLossError) as caught:
            trainer.fit(x, labels, epochs=3)
        return str(caught.value), caught.value.step

    wanted = work(None)
    assert "row 51" in wanted[0]
    assert in_threads(3, work) == [wanted] * 3


def test_a_callback_of_one_rank_stops_all() -> None:
    def stop(trainer: Trainer, row: Any) -> None:
        if row["epoch"] == 2:
            raise StopTraining

    def work(ranks: Communicator) -> Any:
        trainer = Trainer(network(), distributed=ranks, callbacks=[stop] if ranks.rank else [])
        return len(trainer.fit(*some_rows(), epochs=5)), trainer.history.stopped

    assert in_threads(2, work) == [(2, "callback")] * 2


def test_an_interrupt_of_one_rank_stops_all_after_the_same_step(monkeypatch: Any) -> None:
    from gpubackprop.training.interrupt import InterruptGuard

    def entered(guard: InterruptGuard) -> InterruptGuard:
        guard.requested = threading.current_thread().name == "rank 1"
        return guard

    monkeypatch.setattr(InterruptGuard, "__enter__", entered)

    def work(ranks: Communicator) -> Any:
        trainer = Trainer(network(), distributed=ranks, batch_size=10)
        return trainer.fit(*some_rows(), epochs=5).stopped, trainer.state.steps

    assert in_threads(3, work) == [("interrupted", 2)] * 3


def test_an_error_of_one_rank_within_a_step_ends_the_others_and_names_it(monkeypatch: Any) -> None:
    from gpubackprop.training.shared_step import SharedStep

    run = SharedStep.run

    def failing(self: SharedStep, *args: Any) -> Any:
        if self.ranks.rank == 1 and self.steps == 2:
            raise MemoryError("no room")
        return run(self, *args)

    monkeypatch.setattr(SharedStep, "run", failing)

    def work(ranks: Communicator) -> str:
        with pytest.raises(DistributedError) as caught:
            Trainer(network(), distributed=ranks, batch_size=10).fit(*some_rows(), epochs=2)
        return str(caught.value)

    assert all("rank 1 of 3" in said and "no room" in said for said in in_threads(3, work))


def test_weights_that_drift_apart_are_found_after_the_epoch() -> None:
    def work(ranks: Communicator) -> str:
        def change(trainer: Trainer, row: Any) -> None:
            trainer.network.W[0][0, 0] += ranks.rank

        with pytest.raises(DistributedError) as caught:
            Trainer(network(), distributed=ranks, callbacks=[change]).fit(*some_rows(), epochs=3)
        return str(caught.value)

    assert all("after epoch 2: rank 1 of 2 has weights" in said for said in in_threads(2, work))


def test_the_history_is_rank_0s_and_rank_0_alone_computes_metrics() -> None:
    def work(ranks: Communicator) -> Any:
        calls = []

        def metric(yhat: np.ndarray, targets: np.ndarray) -> float:
            calls.append(len(yhat))
            return float(yhat[0, 0])

        trainer = Trainer(network(), distributed=ranks, metrics={"first": metric})
        return trainer.fit(*some_rows(), epochs=2).rows, calls

    (rows, calls), (other, none) = in_threads(2, work)
    assert rows == other
    assert calls == [103, 103]
    assert none == []


def test_rank_0_alone_shows_a_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, tqdm = [], progress._tqdm

    def counted(*, notebook: bool) -> Any:
        shown.append(threading.current_thread() is threading.main_thread())
        return tqdm(notebook=notebook)

    monkeypatch.setattr(progress, "_tqdm", counted)

    def work(ranks: Communicator) -> None:
        Trainer(network(), distributed=ranks, progress=True).fit(*some_rows(), epochs=1)

    in_threads(3, work)
    assert shown == [True], "rank 0 is the main thread"


# -- checkpoints ----------------------------------------------------------------------------------


def test_another_number_of_ranks_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    wanted, file = figures(trained("dropout", None)), tmp_path / "checkpoint"
    in_threads(3, lambda ranks: trained("dropout", ranks, epochs=2, checkpoint=file))
    found = in_threads(2, lambda ranks: figures(trained("dropout", ranks, checkpoint=file)))
    assert_close(found[1], wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_checkpoint_that_rank_0_cannot_write_is_an_error_on_all(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def work(ranks: Communicator) -> str:
        with pytest.raises(StorageError) as caught:
            trained("plain", ranks, checkpoint=tmp_path / "file" / "checkpoint")
        return str(caught.value)

    assert len(set(in_threads(2, work))) == 1


def test_a_checkpoint_of_an_optimizer_in_parts_has_it_whole(tmp_path: Path) -> None:
    wanted, case = figures(trained("optimizer in parts", None)), "optimizer in parts"
    in_threads(3, lambda ranks: trained(case, ranks, epochs=2, checkpoint=tmp_path / "c"))
    (tmp_path / "again").write_bytes((tmp_path / "c").read_bytes())
    found = in_threads(2, lambda ranks: figures(trained(case, ranks, checkpoint=tmp_path / "c")))
    assert_close(found[0], wanted)
    assert_close(figures(trained(case, None, checkpoint=tmp_path / "again")), wanted)


def test_each_rank_has_its_part_of_the_optimizers_state_and_says_so() -> None:
    def work(ranks: Communicator) -> Any:
        trainer = trained("optimizer in parts", ranks)
        step = trainer.state.step
        with pytest.raises(OptionError, match="write a checkpoint"):
            copy.copy(trainer)
        estimate = trainer.memory_estimate(ROWS)
        return [slot.size for slot in step.slots], step.network.layout.size, estimate.optimizer

    found = in_threads(3, work)
    size = found[0][1]
    assert sum(sizes[0] for sizes, _, _ in found) == size
    assert max(sizes[0] for sizes, _, _ in found) <= size // 3 + 32
    assert all(estimate == 2 * max(sizes[0] for sizes, _, _ in found) * 8 for *_, estimate in found)


def test_what_an_optimizer_in_parts_cannot_do_is_refused() -> None:
    half = MLP([4, 8, 3], precision="bfloat16", device="cpu:numpy")
    for options in ({"stochastic_rounding": True}, {"devices": ["cpu:numpy"] * 2}):
        with pytest.raises(OptionError, match="shard_optimizer"):
            Trainer(half, shard_optimizer=True, **options)


# -- starting -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, "none"),
        ({"PMI_SIZE": "4", "PMI_RANK": "0"}, "mpi"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpi"),
        ({"SLURM_NTASKS": "8", "PMIX_RANK": "3"}, "mpi"),
        ({"SLURM_NTASKS": "8"}, "none"),  # a batch script: srun has not started this process
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "9"}, "torchrun"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "9"}, "none"),
    ],
)  # fmt: skip
def test_the_launcher_is_known_by_its_variables(variables: Any, wanted: str) -> None:
    assert launcher(variables) == wanted


def test_a_trainer_without_ranks_is_alone_and_copies_and_pickles_keep_that() -> None:
    trainer = trained("plain", None)
    for twin in (trainer, copy.deepcopy(trainer), join(None)):
        assert isinstance(getattr(twin, "ranks", twin), Alone)
    assert isinstance(pickle.loads(pickle.dumps(Alone())), Alone)
    assert len(trainer.history) == EPOCHS


def test_what_ranks_cannot_do_says_so() -> None:
    with pytest.raises(OptionError, match="'auto', 'mpi', 'torchrun'"):
        Trainer(network(), distributed="all")

    def work(ranks: Communicator) -> None:
        with pytest.raises(OptionError, match="profile times a step of one process"):
            Trainer(network(), distributed=ranks).profile(*some_rows())

    in_threads(2, work)
