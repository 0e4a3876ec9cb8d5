"""Programs that ranks run: ``mpiexec -n 2 python -m tests.ranks_programs NAME FILE [OPTION ...]``.

The tests start them and compare what rank 0 writes with one process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop import MLP, Trainer
from gpubackprop.data import table_rows
from gpubackprop.distributed import Communicator, join
from gpubackprop.losses import SoftmaxCrossEntropy, SquaredError
from gpubackprop.optimizers import Adam
from gpubackprop.schedules import ReduceOnPlateau

ROWS, EPOCHS = 103, 4  # a short last batch, and parts of different lengths

# Each option that decides how a batch is summed, averaged or drawn.
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "sums": {"loss": SoftmaxCrossEntropy(reduction="sum"), "optimizer": Adam(0.002), "l2": 0.01},
    "clipped": {"clip_norm": 0.1, "l2": 0.01},
    "dropout": {"dropout": 0.3},
    "batches of 3": {"batch_size": 3},
    "weighted": {"weighted": True},
    "class weights": {"loss": SoftmaxCrossEntropy(class_weight=[1.0, 3.0, 0.5])},
    "ignored rows": {"loss": SoftmaxCrossEntropy(ignore_index=-100), "ignored": True},
    "regression": {"loss": SquaredError(), "numbers": True, "weighted": True},
    "mean over units": {"loss": SquaredError(reduction="elementwise_mean"), "numbers": True},
    "early stopping": {"patience": 1, "optimizer": Adam(0.2), "schedule": ReduceOnPlateau(0.5, patience=0)},
    "scaled loss": {"loss_scale": "dynamic"},
    "optimizer whole": {"l2": 0.01, "dropout": 0.2},
    "optimizer in parts": {"shard_optimizer": True, "l2": 0.01, "dropout": 0.2},
    "optimizer in parts, clipped": {"shard_optimizer": True, "clip_norm": 0.1, "l2": 0.01, "loss_scale": "dynamic"},
}  # fmt: skip


def some_rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, ROWS)
    return rng.normal(size=(ROWS, 4)) * 0.5 + np.eye(3, 4)[labels], labels


def trained(
    case: str, ranks: str | Communicator | None, device: str = "cpu:numpy", **fit: Any
) -> Trainer:
    """Return the trainer of a case after its training."""
    options = dict(CASES[case])
    x, targets = some_rows()
    weights = np.random.default_rng(1).uniform(0, 3, ROWS) if options.pop("weighted", 0) else None
    if options.pop("ignored", False):
        targets = np.where(np.arange(ROWS) % 4 == 1, -100, targets)
    numbers = options.pop("numbers", False)
    if numbers:
        targets = np.stack([x[:, 0] * 2 - x[:, 1], x.sum(1), targets * 1.0], 1)
    network = MLP(
        [4, 8, 6, 3], "tanh", seed=1, dtype="float64", device=device,
        output="linear" if numbers else "softmax", dropout=options.pop("dropout", 0.0),
    )  # fmt: skip
    patience = options.pop("patience", None)
    settings = {"optimizer": Adam(0.01), "batch_size": 32} | options
    fit = {"epochs": EPOCHS} | fit
    metrics = {"largest": lambda yhat, targets: float(np.abs(yhat).max())}
    trainer = Trainer(network, distributed=ranks, metrics=metrics, **settings)
    trainer.fit(
        x, targets, validation=0.2, sample_weight=weights, patience=patience, **fit
    )  # fmt: skip
    return trainer


def figures(trainer: Trainer) -> dict[str, Any]:
    """Return what a training ends with, as JSON has it."""
    columns = [name for name in trainer.history.columns if "second" not in name]
    parameters = trainer.network.backend.to_host(trainer.network.parameters)
    return {
        "history": {name: trainer.history[name] for name in columns},
        "best_epoch": trainer.history.best_epoch,
        "stopped": trainer.history.stopped,
        "parameters": parameters.tolist(),
    }


def compare(file: str) -> None:
    """Train each case; what all ranks end with must be the same."""
    ranks, found = join("auto"), {}
    for case in CASES:
        own = figures(trained(case, "auto"))
        assert all(other == own for other in ranks.gather(own)), case
        found[case] = own
    if ranks.rank == 0:
        Path(file).write_text(json.dumps(found))


def scattered(ranks: Communicator) -> list[dict[str, Any]]:
    """Scatter sums of several lengths, in equal, uneven and empty parts; return how they came out."""
    found, uneven = [], np.random.default_rng(1)
    for size in (1, 100, 4000, 300_000):
        length = -(-size // ranks.size)
        equal = [length * rank for rank in range(1, ranks.size)]
        for ends in (
            equal,
            sorted(uneven.integers(0, size + 1, ranks.size - 1).tolist()),
            [0] * (ranks.size - 1),
        ):
            ends = [min(size, end) for end in (0, *ends, size)]
            parts = [slice(*pair) for pair in pairwise(ends)]
            for dtype in ("float32", "float64"):
                own = np.random.default_rng(ranks.rank).uniform(-1, 1, size).astype(dtype)
                total, first, second = own.copy(), own.copy(), own.copy()
                ranks.allreduce(total)
                for buffer in (first, second):
                    ranks.reduce_scatter(buffer, parts)
                part = parts[ranks.rank]
                found.append(
                    {
                        "dtype": dtype,
                        "repeats": first.tobytes() == second.tobytes(),
                        "bits as allreduce": first[part].tobytes() == total[part].tobytes(),
                        "largest difference": float(
                            np.abs(first[part] - total[part]).max(initial=0)
                        ),
                        "rest as before": bool(
                            (np.delete(first, np.r_[part]) == np.delete(own, np.r_[part])).all()
                        ),
                    }
                )
    return found


def scatter(file: str) -> None:
    """Write what `scattered` finds on every rank."""
    ranks = join("auto")
    found = ranks.gather(scattered(ranks))
    if ranks.rank == 0:
        Path(file).write_text(json.dumps(found))


def die(file: str, rank: str = "1") -> None:
    """Train with a checkpoint; one rank is killed after the second epoch."""
    ranks = join("auto")
    if ranks.rank == int(rank):
        Path(file).with_suffix(".pid").write_text(str(os.getpid()))

    def kill(trainer: Trainer, row: Any) -> None:
        if row["epoch"] == 2 and ranks.rank == int(rank):
            os.kill(os.getpid(), signal.SIGKILL)

    network = MLP([4, 8, 6, 3], "tanh", seed=1, dtype="float64", device="cpu:numpy")
    trainer = Trainer(network, batch_size=32, distributed="auto", callbacks=[kill])
    trainer.fit(*some_rows(), epochs=EPOCHS, checkpoint=file)


def resume(file: str) -> None:
    """Train to the end, from the checkpoint that `die` has left if there is one."""
    network = MLP([4, 8, 6, 3], "tanh", seed=1, dtype="float64", device="cpu:numpy")
    trainer = Trainer(network, batch_size=32, distributed="auto")
    trainer.fit(*some_rows(), epochs=EPOCHS, checkpoint=file)
    if join("auto").rank == 0:
        Path(file).with_suffix(".json").write_text(json.dumps(figures(trainer)))


MANY_ROWS, COLUMNS = 400_000, 40  # 64 MB in float32
ROOM = 40 << 20  # bytes that a rank may take beyond what it has before it sees the data
PARQUET_ROWS, PARQUET_COLUMNS, PARQUET_ROOM = 500_000, 160, 240 << 20  # 320 MB in float32


def learn_a_mapped_file(file: str) -> Trainer:
    """Train on a memory map, by the ranks that there are; the targets are a function of its rows."""
    x = np.load(file, mmap_mode="r")
    targets = np.arange(len(x)) % 2
    network = MLP([COLUMNS, 4, 2], seed=1, device="cpu:numpy")
    trainer = Trainer(network, batch_size=8192, distributed="auto")
    trainer.fit(x, targets, epochs=1, validation=0.1)
    return trainer


def leave_room(room: int = ROOM) -> None:
    """Limit the memory to what is taken now, and some room."""
    import resource

    status = Path("/proc/self/status").read_text()
    used = int(status.partition("VmData:")[2].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (used + room, used + room))


@contextmanager
def does_not_fit() -> Iterator[None]:
    """Hold the body to a MemoryError."""
    try:
        yield
    except MemoryError:
        return
    raise AssertionError("the whole file fits")


def small_memory(file: str) -> None:
    """Train on a file that does not fit into the memory that is left."""
    ranks = join("auto")
    trained("plain", "auto")  # what MPI and NumPy allocate once
    leave_room()
    with does_not_fit():
        np.load(file)
    found = figures(learn_a_mapped_file(file))
    if ranks.rank == 0:
        Path(file).with_suffix(".json").write_text(json.dumps(found))


def learn_a_parquet_file(file: str) -> Trainer:
    """Train on a Parquet file, by the ranks that there are."""
    rows = table_rows(file, "y", learn_rows=2000, validation=0.1)
    network = MLP([PARQUET_COLUMNS, 4, 2], seed=1, device="cpu:numpy")
    trainer = Trainer(network, batch_size=8192, distributed="auto")
    trainer.fit(rows.x, rows.targets, rows=rows.train, validation=rows.validation, epochs=1)
    return trainer


def small_memory_for_parquet(file: str) -> None:
    """Train on a Parquet file that does not fit into the memory that is left."""
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # its own pool has taken much beforehand
    ranks = join("auto")
    trained("plain", "auto")
    learn_a_parquet_file(str(Path(file).with_suffix(".small.parquet")))  # what Arrow allocates once
    leave_room(PARQUET_ROOM)
    with does_not_fit():
        bytearray(4 * PARQUET_ROWS * PARQUET_COLUMNS)
    found = figures(learn_a_parquet_file(file))
    if ranks.rank == 0:
        Path(file).with_suffix(".json").write_text(json.dumps(found))


def nan(file: str) -> None:
    """NaN in a row that one rank has."""
    x, labels = some_rows()
    x[50, 2] = np.nan
    network = MLP([4, 8, 3], seed=1, device="cpu:numpy")
    Trainer(network, batch_size=32, distributed="auto").fit(x, labels)


def raise_on_rank_1(file: str) -> None:
    """An exception that one rank has outside of `fit`, while the others are in it."""
    if join("auto").rank == 1:
        raise RuntimeError("this rank lost its way")
    trained("plain", "auto")


def end_apart(file: str, *seconds: str) -> None:
    """Train; then each rank works alone for its seconds, and says so."""
    ranks = join("auto")
    trained("plain", "auto", epochs=1)
    time.sleep(float(seconds[ranks.rank]))
    Path(f"{file}.{ranks.rank}").write_text("done")


def measure_alone(file: str, rank: str, before: str, after: str) -> None:
    """Train; then one rank alone measures, after some seconds; the others end after some."""
    own = join("auto").rank == int(rank)
    trainer = trained("plain", "auto", epochs=1)
    time.sleep(float(before if own else after))
    if own:
        trainer.evaluate(*some_rows())


def many(file: str) -> None:
    """Train five networks, of which each rank has a share; every rank writes all results."""
    from gpubackprop import fit_many
    from tests.test_many import LABELS, X, each, networks

    ranks, made, here = join("auto"), networks(), []

    def note(trainer: Trainer, row: Any) -> None:
        here.append([network is trainer.network for network in made].index(True))

    settings = each() | {"epochs": [4, 3, 9, 1, 30], "callbacks": (note,)}
    histories = fit_many(made, X, LABELS, distributed="auto", **settings)
    found = [
        {"parameters": network.parameters.tobytes().hex(), "loss": history["loss"]}
        for network, history in zip(made, histories, strict=True)
    ]
    own = {"networks": found, "trained here": sorted(set(here))}
    Path(f"{file}.{ranks.rank}").write_text(json.dumps(own))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
