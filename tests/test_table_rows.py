"""`table_rows`: a Parquet or CSV file as rows of a mapped file, by one process and by several ranks."""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from gpubackprop import MLP, Model, Trainer
from gpubackprop.cli import build_parser, train_table
from gpubackprop.cli.train_data import prepare
from gpubackprop.cli.train_folds import settle
from gpubackprop.cli.train_rows import TrainingData
from gpubackprop.data import TablePreprocessor, TableRows, table_rows
from gpubackprop.data.coded import CodedInputs
from gpubackprop.data.table_file import row_groups
from gpubackprop.distributed import Communicator, in_threads
from gpubackprop.errors import DataError, DistributedError, OptionError

ROWS, GROUP = 1000, 100


def some_table(rows: int = ROWS, categories: int = 3, seed: int = 7) -> pa.Table:
    rng = np.random.default_rng(seed)
    colours = [None, *(f"colour {j}" for j in range(categories))]
    days = np.datetime64("2020-01-01") + rng.integers(0, 900, rows)
    gaps = rng.uniform(size=rows) < 0.1
    return pa.table({
        "a": pa.array(rng.normal(5, 3, rows), mask=gaps),
        "colour": [colours[j] for j in rng.integers(0, categories + 1, rows)],
        "count": rng.integers(0, 9, rows),
        "day": pa.array(days),
        "good": [("no", "yes", None)[j] for j in rng.integers(0, 3, rows)],
        "size": rng.normal(size=rows),
    })  # fmt: skip


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    file = tmp_path / "rows.parquet"
    pq.write_table(some_table(), file, row_group_size=GROUP)
    return file


def by_ranks(size: int, path: Path, target: Any, **options: Any) -> list[TableRows]:
    return in_threads(size, lambda ranks: table_rows(path, target, distributed=ranks, **options))


def same(ours: TableRows, theirs: TableRows) -> None:
    for name in ("x", "targets", "train", "validation", "file_rows"):
        mine, other = (getattr(rows, name) for rows in (ours, theirs))
        if isinstance(mine, CodedInputs):
            mine, other = mine.toarray(), other.toarray()
        np.testing.assert_array_equal(mine, other)
    assert ours.preprocessor.state() == theirs.preprocessor.state()
    assert (ours.task, ours.learnt_rows) == (theirs.task, theirs.learnt_rows)
    if ours.classes is not None:
        np.testing.assert_array_equal(ours.classes, theirs.classes)


# -- values ---------------------------------------------------------------------------------------


def test_the_inputs_are_those_of_a_preprocessor_of_the_whole_table(parquet: Path) -> None:
    rows = table_rows(parquet, "good", validation=0.25, seed=3)
    table = some_table()
    there = np.array([value is not None for value in table["good"].to_pylist()])
    np.testing.assert_array_equal(rows.file_rows, np.flatnonzero(there))
    features = table.filter(there).drop_columns("good")
    wanted = TablePreprocessor.fit(features, rows.train)
    assert rows.preprocessor.state() == wanted.state()
    np.testing.assert_array_equal(rows.x, wanted.transform(features))
    labels = np.array(table.filter(there)["good"].to_pylist())
    np.testing.assert_array_equal(rows.classes[rows.targets], labels)
    assert sorted([*rows.train, *rows.validation]) == list(range(there.sum()))
    assert len(rows.validation) == round(there.sum() * 0.25)
    assert isinstance(rows.x, np.memmap)
    assert rows.x.dtype == np.float32


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize(
    "options",
    [
        {"target": "good", "validation": 0.2},
        {"target": "good", "learn_rows": 150, "seed": 4, "dtype": "float64"},
        {"target": "size", "columns": ["a", "day"]},
        {"target": ["size", "count"], "drop": ["day"], "task": "regression"},
    ],
    ids=lambda options: " ".join(options),
)
def test_ranks_make_the_bits_of_one_process(size: int, options: Any, parquet: Path) -> None:
    alone = table_rows(parquet, distributed=None, **options)
    for rows in by_ranks(size, parquet, **options):
        same(rows, alone)


@pytest.mark.parametrize("size", [1, 3])
def test_a_csv_file_gives_what_the_same_parquet_file_gives(
    size: int, parquet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = parquet.with_suffix(".csv")
    pa.csv.write_csv(some_table(), file)
    monkeypatch.setattr("gpubackprop.data.tables._BLOCK", 4096)
    of_parquet = table_rows(parquet, "good", distributed=None)
    found = by_ranks(size, file, "good")
    for rows in found:
        np.testing.assert_allclose(rows.x, of_parquet.x, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(rows.targets, of_parquet.targets)
    if size > 1:
        spans = [set(rows.decoded) for rows in found]
        assert not spans[0] & spans[1]
        assert min(map(len, spans)) > 1


def test_labels_of_a_csv_file_stay_as_they_were_written_whatever_the_blocks_look_like(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "codes.csv"
    labels = ["7"] * 300 + ["007"] * 300  # the first blocks alone are whole numbers
    lines = [f"{j % 11},{label}" for j, label in enumerate(labels)]
    file.write_text("\n".join(["a,code", *lines]))
    monkeypatch.setattr("gpubackprop.data.tables._BLOCK", 512)
    for rows in by_ranks(2, file, "code"):
        assert rows.classes.tolist() == ["007", "7"]
        np.testing.assert_array_equal(rows.classes[rows.targets], labels)


def test_columns_of_many_categories_are_mapped_as_codes(tmp_path: Path) -> None:
    file = tmp_path / "many.parquet"
    pq.write_table(some_table(categories=90), file, row_group_size=GROUP)
    alone, (first, second) = table_rows(file, "size", distributed=None), by_ranks(2, file, "size")
    assert isinstance(alone.x, CodedInputs)
    assert isinstance(first.x.codes, np.memmap)
    same(first, alone)
    same(second, alone)


# -- who reads what -------------------------------------------------------------------------------


def test_each_rank_decodes_its_own_row_groups_alone(
    parquet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: Counter[int] = Counter()
    whole = pq.ParquetFile.iter_batches

    def counted(self: Any, *args: Any, row_groups: list[int], **named: Any) -> Any:
        decoded.update(row_groups)
        return whole(self, *args, row_groups=row_groups, **named)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    monkeypatch.setattr(pq.ParquetFile, "read", None)
    found = by_ranks(3, parquet, "good")
    # Ten row groups, once for the targets, once for the sample, once for the inputs.
    assert decoded == {group: 3 for group in range(ROWS // GROUP)}
    for rows, (start, stop) in zip(found, [(0, 300), (300, 700), (700, 1000)], strict=True):
        assert rows.decoded == tuple((row, row + GROUP) for row in range(start, stop, GROUP))


def test_every_row_group_belongs_to_one_part_and_parts_are_about_as_large() -> None:
    class Metadata:
        def __init__(self, sizes: list[int]) -> None:
            self.sizes, self.num_rows, self.num_row_groups = sizes, sum(sizes), len(sizes)

        def row_group(self, group: int) -> Any:
            return type("Group", (), {"num_rows": self.sizes[group]})

    rng = np.random.default_rng(0)
    for _ in range(100):
        sizes = rng.integers(0, 50, rng.integers(1, 30)).tolist()
        count = int(rng.integers(1, 6))
        parts = [row_groups(Metadata(sizes), index, count) for index in range(count)]
        assert [group for groups, _ in parts for group in groups] == list(range(len(sizes)))
        for groups, first in parts:
            assert first == (sum(sizes[: groups[0]]) if groups else 0)
            rows = sum(sizes[group] for group in groups)
            assert rows <= sum(sizes) / count + max(sizes)


def test_more_ranks_than_row_groups_leave_some_without_rows(tmp_path: Path) -> None:
    file = tmp_path / "one.parquet"
    pq.write_table(some_table(), file)
    found = by_ranks(3, file, "good")
    assert [len(rows.decoded) for rows in found] == [0, 1, 0]
    for rows in found:
        same(rows, table_rows(file, "good", distributed=None))


@pytest.mark.parametrize("shared", [False, True], ids=["a disk each", "one disk"])
def test_the_ranks_of_each_machine_read_the_file_together_unless_all_see_one_directory(
    shared: bool, parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(ranks: Communicator) -> TableRows:
        machine.name = "ab"[ranks.rank // 2]
        directory = tmp_path / "all" if shared else None
        return table_rows(parquet, "good", directory=directory, distributed=ranks)

    machine = threading.local()
    monkeypatch.setattr("socket.gethostname", lambda: machine.name)
    found = in_threads(4, work)
    machine.name = "c"
    alone = table_rows(parquet, "good", distributed=None)
    for rows in found:
        same(rows, alone)
    groups = [len(rows.decoded) for rows in found]
    assert groups == ([2, 3, 2, 3] if shared else [5, 5, 5, 5])


# -- the mapped file ------------------------------------------------------------------------------


def test_a_directory_keeps_the_mapped_file_and_without_one_nothing_is_left(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = tmp_path / "room"
    room.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(room))
    first, _ = by_ranks(2, parquet, "good")
    assert first.x.sum() != 0
    assert list(room.iterdir()) == []
    kept = tmp_path / "kept" / "here"
    second, _ = by_ranks(2, parquet, "good", directory=kept)
    np.testing.assert_array_equal(np.load(kept / "rows.x.npy"), second.x)
    with pytest.raises(DataError, match=r"rows.x.npy is there already; delete it, or name another"):
        table_rows(parquet, "good", directory=kept, distributed=None)


def test_a_full_disk_is_an_error_before_the_first_row_is_written(
    parquet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        table_rows(parquet, "good", distributed=None)
    with pytest.raises(DistributedError, match="rank 0 of 2 stopped all ranks: OSError"):
        by_ranks(2, parquet, "good")


# -- training -------------------------------------------------------------------------------------


def test_ranks_train_on_the_rows_as_one_process_does_and_the_model_takes_raw_tables(
    parquet: Path,
) -> None:
    def work(ranks: Communicator | None) -> Any:
        rows = table_rows(parquet, "good", validation=0.2, distributed=ranks)
        network = MLP([rows.x.shape[1], 8, 2], "tanh", seed=1, dtype="float64", device="cpu:numpy")
        trainer = Trainer(network, batch_size=64, distributed=ranks)
        options = {"rows": rows.train, "validation": rows.validation, "epochs": 3}
        history = trainer.fit(rows.x, rows.targets, **options)
        model = Model(network, classes=rows.classes, preprocessor=rows.preprocessor)
        return history["loss"], history["val_loss"], model.predict(some_table(20))

    alone, (first, second) = work(None), in_threads(2, work)
    for mine, other, theirs in zip(first, second, alone, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)
        np.testing.assert_array_equal(mine, other)


# -- the command line's ---------------------------------------------------------------------------


def of_command_line(ranks: Communicator | None, *arguments: object) -> TrainingData:
    words = ["train", *map(str, arguments)]
    args = build_parser(words).parse_args(words)
    settle(args)
    return prepare(args, ranks)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_ranks_of_the_command_line_read_a_table_together_and_have_the_data_of_one_process(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpubackprop.data.tables._BLOCK", 4096)
    files = [tmp_path / f"{name}.{kind}" for name in ("rows", "test")]
    for file, seed in zip(files, (7, 8), strict=True):
        table = some_table(seed=seed).append_column("weight", pa.array(np.arange(ROWS) % 5))
        if kind == "csv":
            pa.csv.write_csv(table, file)
        else:
            pq.write_table(table, file, row_group_size=GROUP)
    options = [files[0], "--target", "good", "--weights", "weight", "--group", "count", "--test", files[1]]  # fmt: skip
    whole = of_command_line(None, *options)
    decoded: Counter[int] = Counter()
    read = pq.ParquetFile.iter_batches

    def counted(self: Any, *args: Any, row_groups: list[int], **named: Any) -> Any:
        decoded.update(row_groups)
        return read(self, *args, row_groups=row_groups, **named)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    monkeypatch.setattr(pq.ParquetFile, "read", None)
    for data in in_threads(3, lambda ranks: of_command_line(ranks, *options, "--low-memory")):
        for name in ("x", "targets", "train", "validation", "test", "sample_weight", "classes"):
            np.testing.assert_array_equal(getattr(data, name), getattr(whole, name))
        assert data.preprocessor.state() == whole.preprocessor.state()
        assert isinstance(data.x, np.memmap)
        assert data.notes[: len(whole.notes)] == whole.notes
        assert "read in batches" in data.notes[-1]
    if kind == "parquet":  # both files' targets and inputs, and a sample of one
        assert decoded == {group: 5 for group in range(ROWS // GROUP)}


def test_one_rank_without_memory_for_a_table_lets_all_read_it_in_batches(
    parquet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(ranks: Communicator) -> TrainingData:
        short.value = ranks.rank == 1
        return of_command_line(ranks, parquet, "--target", "good")

    short = threading.local()
    monkeypatch.setattr(train_table, "exceeds_memory", lambda path: short.value)
    assert all("read in batches" in data.notes[-1] for data in in_threads(2, work))


# -- errors ---------------------------------------------------------------------------------------


def test_a_value_that_one_rank_cannot_read_stops_all_with_one_message(tmp_path: Path) -> None:
    table, file = some_table(), tmp_path / "bad.parquet"
    a = table["a"].fill_null(0).to_numpy().copy()
    a[950] = np.inf
    table = table.set_column(0, "a", pa.array(a))
    pq.write_table(table, file, row_group_size=GROUP)
    found = []

    def work(ranks: Communicator) -> None:
        with pytest.raises((DataError, DistributedError)) as caught:
            table_rows(file, "size", distributed=ranks, learn_rows=10)
        found.append(str(caught.value))

    in_threads(2, work)
    assert all("rank 1 of 2 stopped all ranks: DataError" in text for text in found)
    assert all("row 951" in text for text in found)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"target": "nothing"}, DataError, "nothing"),
        ({"target": "good", "dtype": "int32"}, OptionError, "float32 or float64"),
        ({"target": "good", "learn_rows": 0}, OptionError, "learn_rows is 0"),
        ({"target": "good", "columns": ["b"]}, DataError, "b"),
        ({"target": "good", "task": "regression"}, DataError, "regression wants numbers"),
        ({"target": "good", "max_categories": 0}, OptionError, "max_categories"),
    ],
)
def test_bad_input_is_an_error_that_names_it(
    options: Any, error: Any, said: str, parquet: Path
) -> None:
    with pytest.raises(error, match=said):
        table_rows(parquet, distributed=None, **options)


def test_a_target_column_without_values_and_one_of_infinities_are_errors(tmp_path: Path) -> None:
    file = tmp_path / "odd.parquet"
    odd = {"a": [1.0, 2.0, 3.0], "none": pa.nulls(3, pa.string()), "far": [0.5, np.inf, 1.0]}
    pq.write_table(pa.table(odd), file)
    with pytest.raises(DataError, match="no row has a target"):
        table_rows(file, "none", columns=["a"], distributed=None)
    with pytest.raises(DataError, match="row 2, target column 'far' holds inf"):
        table_rows(file, "far", columns=["a"], task="regression", distributed=None)
