"""Real ranks: processes that mpiexec starts, and processes with torchrun's variables.

The wheel `mpich` brings mpiexec and the library, mpi4py the binding (the extra `mpi`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cli_runs import flowers, write_table
from tests.ranks_programs import (
    CASES,
    COLUMNS,
    MANY_ROWS,
    PARQUET_COLUMNS,
    PARQUET_ROWS,
    figures,
    learn_a_mapped_file,
    learn_a_parquet_file,
    trained,
)
from tests.test_distributed import assert_close

ROOT = Path(__file__).resolve().parents[1]
MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")  # fmt: skip
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"
}  # fmt: skip
DEATH_SECONDS = 30.0  # within which a dead rank must have ended all
pytestmark = pytest.mark.slow
with_mpi = pytest.mark.skipif(
    MPIEXEC is None or importlib.util.find_spec("mpi4py") is None,
    reason='needs mpiexec and mpi4py: pip install "gpubackprop[mpi]"',
)


def mpiexec(size: int, *command: Any, options: tuple[str, ...] = (), seconds: float = 240) -> Any:
    """Run a program of `ranks_programs`, or another module, on so many ranks."""
    assert MPIEXEC is not None
    parts = [MPIEXEC, *options, "-n", size, sys.executable, "-m", *command]
    return subprocess.run(
        [str(part) for part in parts], env=ENVIRONMENT, cwd=ROOT, text=True, capture_output=True,
        timeout=seconds, check=False,
    )  # fmt: skip


def as_torchrun(size: int, *command: Any) -> list[tuple[int, str]]:
    """Run a module on so many ranks; return the exit status and the errors of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(size):
        own = {
            "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port - 1),
        }  # fmt: skip
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-m", *map(str, command)], env=ENVIRONMENT | own, cwd=ROOT,
                text=True, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    said = [process.communicate(timeout=240)[1] for process in ranks]
    return [(process.returncode, error) for process, error in zip(ranks, said, strict=True)]


@with_mpi
@pytest.mark.parametrize("size", [2, 4])
def test_mpis_ranks_learn_what_one_process_learns_and_repeat_it_bit_for_bit(
    tmp_path: Path, size: int
) -> None:
    found = []
    for number in range(2):
        file = tmp_path / f"{number}.json"
        result = mpiexec(size, "tests.ranks_programs", "compare", file)
        assert result.returncode == 0, result.stderr
        found.append(json.loads(file.read_text()))
    assert found[0] == found[1]
    if size == 2:  # two terms have one sum in any order
        assert found[0]["optimizer in parts"] == found[0]["optimizer whole"]
    for case in CASES:
        assert_close(found[0][case], json.loads(json.dumps(figures(trained(case, None)))))


@with_mpi
def test_a_killed_rank_ends_all_is_named_and_fewer_ranks_go_on_from_the_checkpoint(
    tmp_path: Path,
) -> None:
    file = tmp_path / "checkpoint"
    began = time.monotonic()
    result = mpiexec(3, "tests.ranks_programs", "die", file)
    assert time.monotonic() - began < DEATH_SECONDS + 60  # imports on a busy machine included
    assert result.returncode != 0
    pid = file.with_suffix(".pid").read_text()
    # mpiexec is sometimes faster than the ranks. It names a process, now and then one that it has
    # ended itself; the next test is about what the ranks say.
    said = result.stdout + result.stderr
    assert f"pid {pid}) has died" in said or re.search(r"PID \d+ RUNNING", said)
    result = mpiexec(2, "tests.ranks_programs", "resume", file)
    assert result.returncode == 0, result.stderr
    resumed = json.loads(file.with_suffix(".json").read_text())
    again = tmp_path / "again"
    assert mpiexec(1, "tests.ranks_programs", "resume", again).returncode == 0
    assert_close(resumed, json.loads(again.with_suffix(".json").read_text()))


@with_mpi
@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_end_by_themselves_and_name_the_dead_one_if_the_launcher_does_nothing(
    tmp_path: Path, rank: int
) -> None:
    options = ("-disable-auto-cleanup",)
    file, began = tmp_path / "checkpoint", time.time()
    result = mpiexec(3, "tests.ranks_programs", "die", file, rank, options=options)
    assert result.returncode != 0
    pid = file.with_suffix(".pid").read_text()
    assert f"rank {rank} of 3 ({socket.gethostname()}, pid {pid}) has died; all ranks end" in (
        result.stdout + result.stderr
    )
    # The checkpoint of the second epoch's end was not written: the first one's was the last.
    assert time.time() - max(began, file.stat().st_mtime) < DEATH_SECONDS


@with_mpi
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_ranks_train_on_a_file_that_does_not_fit_into_their_memory(tmp_path: Path) -> None:
    file = tmp_path / "x.npy"
    rows = np.lib.format.open_memmap(file, "w+", np.float32, (MANY_ROWS, COLUMNS))
    rows[:] = np.random.default_rng(0).normal(size=(100, COLUMNS)).repeat(MANY_ROWS // 100, 0)
    rows[:, 0] += np.arange(MANY_ROWS) % 2
    result = mpiexec(2, "tests.ranks_programs", "small_memory", file)
    assert result.returncode == 0, result.stderr
    found = json.loads(file.with_suffix(".json").read_text())
    wanted = figures(learn_a_mapped_file(str(file)))
    assert found["history"]["val_loss"] == pytest.approx(wanted["history"]["val_loss"], rel=1e-4)


def write_parquet(file: Path, rows: int) -> None:
    """Write columns of numbers and a label, in 40 row groups."""
    count, labels = rows // 40, np.arange(rows // 40) % 2
    values = np.random.default_rng(0).normal(size=(PARQUET_COLUMNS, 100)).astype("f4")
    columns = {f"x{j}": np.resize(values[j], count) for j in range(PARQUET_COLUMNS)}
    columns["x0"] += labels
    table = pa.table(columns | {"y": np.array(["no", "yes"])[labels]})
    with pq.ParquetWriter(file, table.schema) as writer:
        for _ in range(40):
            writer.write_table(table)


@with_mpi
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_ranks_train_on_a_parquet_file_that_does_not_fit_into_their_memory(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    write_parquet(file, PARQUET_ROWS)
    write_parquet(file.with_suffix(".small.parquet"), 2000)
    result = mpiexec(2, "tests.ranks_programs", "small_memory_for_parquet", file)
    assert result.returncode == 0, result.stderr
    found = json.loads(file.with_suffix(".json").read_text())
    wanted = figures(learn_a_parquet_file(str(file)))
    assert found["history"]["val_loss"] == pytest.approx(wanted["history"]["val_loss"], rel=1e-4)


@with_mpi
def test_nan_in_one_ranks_row_is_one_traceback(tmp_path: Path) -> None:
    result = mpiexec(3, "tests.ranks_programs", "nan", tmp_path)
    assert result.returncode == 1
    assert result.stderr.count("Traceback") == 1
    assert "NonFiniteLossError: the loss became NaN" in result.stderr
    assert "row 51" in result.stderr


@with_mpi
def test_ctrl_c_stops_all_ranks_of_the_command_line_after_a_step_and_they_go_on_later(
    tmp_path: Path,
) -> None:
    table = write_table(tmp_path / "flowers.csv", flowers())
    arguments = [
        "gpubackprop", "train", table, "--target", "kind", "--hidden", "8", "--device",
        "cpu:numpy", "--output", tmp_path / "run", "--epochs",
    ]  # fmt: skip
    assert MPIEXEC is not None
    command = [MPIEXEC, "-n", "2", sys.executable, "-m", *map(str, arguments), "1000000"]
    with subprocess.Popen(
        command, env=ENVIRONMENT, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:  # fmt: skip
        while not (tmp_path / "run" / "checkpoint.safetensors").exists():
            time.sleep(0.05)
            assert process.poll() is None, process.communicate()
        time.sleep(1)  # that file is there before the first step
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert said.count("interrupted: stopping after this step") == 1, said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["stopped"] == "interrupted"
    result = mpiexec(2, *arguments, summary["epochs"] + 3)
    assert "going on from" in result.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["resumed"]


@with_mpi
def test_an_exception_of_one_rank_ends_the_others_with_its_traceback(tmp_path: Path) -> None:
    result = mpiexec(2, "tests.ranks_programs", "raise_on_rank_1", tmp_path / "none")
    assert result.returncode != 0
    assert "this rank lost its way" in result.stderr
    assert "rank 1 of 2" in result.stderr


@with_mpi
def test_the_command_line_trains_on_several_ranks_and_rank_0_alone_writes_and_prints(
    tmp_path: Path,
) -> None:
    table = write_table(tmp_path / "flowers.csv", flowers())
    losses = []
    for size in (2, 1):
        output = tmp_path / str(size)
        result = mpiexec(
            size, "gpubackprop", "train", table, "--target", "kind", "--hidden", "8", "--epochs",
            "4", "--dtype", "float64", "--device", "cpu:numpy", "--output", output,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("network ") == 1
        assert ("ranks      2 ranks by MPI" in result.stdout) == (size == 2)
        summary = json.loads((output / "summary.json").read_text())
        losses.append((summary["train_loss"], summary["test_loss"]))
        assert not list(output.glob("checkpoint*"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@with_mpi
def test_the_command_line_trains_on_a_parquet_file_that_its_ranks_read_together(
    tmp_path: Path,
) -> None:
    table = pa.table({name: np.array(column) for name, column in flowers().items()})
    pq.write_table(table, tmp_path / "flowers.parquet", row_group_size=20)
    losses = []
    for size in (2, 1):
        output = tmp_path / str(size)
        result = mpiexec(
            size, "gpubackprop", "train", tmp_path / "flowers.parquet", "--target", "kind",
            "--hidden", "8", "--epochs", "4", "--dtype", "float64", "--device", "cpu:numpy",
            "--output", output, *(["--low-memory"] if size > 1 else []),
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        summary = json.loads((output / "summary.json").read_text())
        assert any("read in batches" in note for note in summary["notes"]) == (size > 1)
        losses.append((summary["train_loss"], summary["test_loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@with_mpi
def test_ranks_share_the_networks_of_folds_and_members_and_the_model_has_the_same_bits(
    tmp_path: Path,
) -> None:
    table = write_table(tmp_path / "flowers.csv", flowers())
    found = []
    for size in (3, 1):
        output = tmp_path / str(size)
        result = mpiexec(
            size, "gpubackprop", "train", table, "--target", "kind", "--hidden", "8", "--epochs",
            "3", "--device", "cpu:numpy", "--output", output, "--folds", "3", "--members", "2",
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("network ") == 1
        folds = json.loads((output / "summary.json").read_text())["folds"]
        found.append(((output / "model.safetensors").read_bytes(), folds))
        assert not list(output.glob("checkpoint*"))
    assert found[0] == found[1]


@with_mpi
def test_a_member_that_diverges_on_another_rank_is_one_line_of_all(tmp_path: Path) -> None:
    table = write_table(tmp_path / "flowers.csv", flowers())
    result = mpiexec(
        2, "gpubackprop", "train", table, "--target", "kind", "--hidden", "8", "--lr", "1e30",
        "--activation", "identity", "--device", "cpu:numpy", "--output", tmp_path / "run",
        "--members", "2",
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.count("gpubackprop train: error: member 1 of 2: the loss became") == 1
    assert not list((tmp_path / "run").glob("*.safetensors"))


@with_mpi
def test_an_error_of_the_command_line_is_one_line_and_wrong_usage_ends_all(tmp_path: Path) -> None:
    result = mpiexec(2, "gpubackprop", "train", tmp_path / "none.csv", "--target", "kind")
    assert result.returncode == 1
    assert result.stderr.count("gpubackprop train: error:") == 1


@with_mpi
def test_a_launcher_of_another_mpi_than_mpi4pys_is_an_error_that_says_so() -> None:
    variables = {"OMPI_COMM_WORLD_SIZE": "2"}
    program = "from gpubackprop.distributed import join; join('auto')"
    result = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT | variables, cwd=ROOT, text=True,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode != 0
    assert "2 processes were started, but mpi4py has found only this one" in result.stderr


def test_torchruns_variables_are_enough_and_sums_are_in_the_order_of_the_ranks(
    tmp_path: Path,
) -> None:
    file = tmp_path / "found.json"
    for status, error in as_torchrun(2, "tests.ranks_programs", "compare", file):
        assert status == 0, error
    found = json.loads(file.read_text())
    for case in CASES:
        assert_close(found[case], json.loads(json.dumps(figures(trained(case, None)))))
