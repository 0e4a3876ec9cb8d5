"""What README and docs say is run as it is written: programs, commands, and the lecture's table.

Every block of every Markdown file is found. A Python block runs; a line of a block without language
is a command and runs, or stands in `NOT_RUN` with the reason; any other block is listed in `TEXTS`
with what it is held to. A block that is none of these fails.
"""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
import subprocess
import sys

import numpy as np
import pytest
import threadpoolctl

from gpubackprop.backends.numpy import get_num_threads, set_num_threads
from tests import documents, lecture
from tests.cli_runs import ENVIRONMENT, ROOT, ok
from tests.emulator.module import missing_compiler

# Commands that a test cannot run as they stand, and why.
NOT_RUN = {
    "make demo": "installs; its command is that of test_cli_train",
    "make test": "installs, and is what runs this test",
    "make test-all": "installs, and is what runs this test",
    "make check": "installs, and runs this test",
    "make signatures": "installs",
    "make gpu OUT=dir PYTHON=python3": "needs a GPU; test_gpu_proof runs its stages",
    "make bench": "an hour; test_benchmarks_run runs it at small size",
    "pip install .": "installs; test_packaging does, from every form",
    'pip install ".[cli]"': "installs",
    "gpubackprop check": "half a minute; test_cli_commands runs it",
    "gpubackprop bench --peers all": "minutes; test_benchmarks_run runs it at small size",
    "gpubackprop bench --compare A.json B.json --html report.html": "test_benchmarks_compare does",
    "gpubackprop bench --peers all --op softmax": "minutes; the same",
    "python examples/sklearn_grid_search.py": "a minute; test_sklearn_programs runs it, with less",
    "python -m benchmarks --op softmax": "minutes; test_benchmarks_run runs it at small size",
    "gpubackprop bench --list --full": "test_benchmarks_compare runs it",
    "python -m benchmarks.report": "writes into this repository; test_benchmarks_report runs it",
    "python -m benchmarks.bench_many": "minutes; test_bench_many runs it at small size",
    "python -m benchmarks.bench_tables": "minutes, and packages of data; test_bench_tables runs one table",
    "python -m benchmarks.profile_step": "ten seconds; test_benchmarks runs it with less",
    "python -m pytest benchmarks --size smoke": "half a minute; test_benchmarks runs one file of it",
    "python -m pytest tests/test_layers.py": "is part of the suite",
    "GPUBACKPROP_RECORD=1 python -m pytest tests/test_kernel_compile.py": "minutes, and it writes",
    "python -m tools.counts": "a minute; test_counts runs one case",
    "python -m tools.counts --record": "a minute, and writes into this repository; the same",
    "python -m tools.fuzz --minutes 60": "an hour; test_fuzz searches for seconds",
    "python -m tools.fuzz --minutes 60 --only torch --seed 3": "an hour; the same",
    "python -m tools.mutants --all": "hours, and writes into this repository",
    "python -m tools.mutants --all --only '^update' --jobs 2": "an hour",
    "python -m tools.mutants --all --sample 30": "half an hour, and writes into this repository",
    "python -m tools.mutants --all --gone": "minutes, and writes into this repository",
    "python -m tools.mutants --sample 16 --seed 0": "minutes; test_mutants runs it",
    "mpirun -n 4 gpubackprop train": "needs MPI; test_distributed_mpi runs it on two ranks",
    "mpirun -n 3 python -m mpi4py.futures examples/search_over_ranks.py": "needs MPI; test_many_spread runs it",
    "mpirun -hosts node1,node2 -ppn 4 gpubackprop train /shared/images.npy --target /shared/labels.npy": "needs two machines",
    "srun --ntasks-per-node=4 --nodes=2 --mpi=pmi2 gpubackprop train /shared/images.npy --target /shared/labels.npy": "needs Slurm",
    "torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint node1:29500 --no-python gpubackprop train /shared/images.npy --target /shared/labels.npy": "needs two machines",
}


def names_files_of(folder, pattern, text):
    there = {path.name.partition(".")[0] for path in (ROOT / folder).rglob("*")}
    return [name for name in re.findall(pattern, text) if name not in there | {"kernels"}]


def shows_code_of(file, text):
    """The right column is the code; what is behind // is not."""
    source = " ".join((ROOT / file).read_text(encoding="utf-8").split())
    codes = [re.split(r" {4,}", line)[1].partition("//")[0].strip() for line in text.splitlines()]
    return [code for code in codes if code not in source]


def stands_in(file, text):
    """The whole text is in the file, up to white space."""
    source = " ".join((ROOT / file).read_text(encoding="utf-8").split())
    return [] if " ".join(text.split()) in source else [text]


# Blocks that are no program: how each begins -> what says of its text what is wrong in it.
TEXTS = {
    "activations.cuh": lambda text: names_files_of("kernels", r"(\w+)\.cuh", text),
    "host/math.hpp": lambda text: names_files_of("kernels", r"(\w+)\.[ch]pp", text),
    "kernels || formulas": lambda text: names_files_of(
        "gpubackprop", r"(?<![\w-])\w+(?!-)\b", text
    ),
    "delta_l = dL/dh_l": lambda text: shows_code_of("kernels/activation_backward.cu", text),
    "template <class T> struct ColumnSumArguments": lambda text: stands_in(
        "kernels/column_sum.cu", text
    ),
    "m = z.max(1": lambda text: [],  # its own test, below
    "(1 - w) / 2 * exp": lambda text: [],  # a formula; test_activations holds the code to mpmath
}
BLOCKS = documents.blocks()
PYTHON = [block for block in BLOCKS if block.language == "python"]
SHELL = [block for block in BLOCKS if block.language == ""]
OTHER = [block for block in BLOCKS if block not in PYTHON + SHELL]
COMMANDS = [(block, command) for block in SHELL for command in block.commands]
EMULATED = "tests/emulator/README.md"


def by_name(value):
    return value.name if isinstance(value, documents.Block) else value


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that has the examples as a checkout has them; what the programs write stays in it."""
    folder = tmp_path_factory.mktemp("documents")
    for name in ("examples", "benchmarks", "tests", "tools", "docs"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(autouse=True)
def threads_as_before():
    before = get_num_threads()
    with threadpoolctl.threadpool_limits():
        yield
    set_num_threads(before)


# -- blocks ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("block", PYTHON, ids=by_name)
def test_a_python_block_of_a_document_runs_as_written(block, folder, monkeypatch):
    if block.document == EMULATED and missing_compiler():
        pytest.skip(missing_compiler())
    monkeypatch.chdir(folder)
    program = folder / "program.py"
    program.write_text(block.text, encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()):
        runpy.run_path(str(program), run_name="__main__")


@pytest.mark.slow
@pytest.mark.parametrize(("block", "command"), COMMANDS, ids=by_name)
def test_a_command_of_a_document_runs_as_written_or_has_a_reason(
    block, command, folder, monkeypatch
):
    wrong = documents.why_not_a_command(command)
    assert not wrong, f"{block.name}: {command}: {wrong}"
    if command in NOT_RUN:
        return
    monkeypatch.chdir(folder)
    program, *arguments = shlex.split(command)
    if program == "gpubackprop":
        ok(*arguments)
        return
    assert program == "python", f"{block.name}: {command} is neither run nor in NOT_RUN"
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_every_command_that_is_not_run_stands_in_a_document():
    assert NOT_RUN.keys() <= {command for _, command in COMMANDS}


@pytest.mark.parametrize("block", OTHER, ids=by_name)
def test_a_block_that_is_no_code_is_known_and_says_what_is_there(block):
    """An unknown one fails: give it the language python, none for commands, or a check here."""
    (check,) = [check for start, check in TEXTS.items() if block.text.startswith(start)] or [None]
    assert check is not None, f"{block.name} is no block that test_documents knows"
    assert check(block.text) == []


def test_the_softmax_cross_entropy_of_the_kernels_readme_is_pytorchs():
    """Its delta is of the sum of the rows, as the text has no mean."""
    import torch

    (block,) = [block for block in OTHER if block.text.startswith("m = z.max(1")]
    rng = np.random.default_rng(0)
    names = {"np": np, "z": rng.normal(size=(6, 4)), "y": rng.integers(0, 4, 6), "N": 6}
    z, y = torch.tensor(names["z"], requires_grad=True), torch.tensor(names["y"])
    exec(block.text, names)
    loss = torch.nn.functional.cross_entropy(z, y, reduction="none")
    loss.sum().backward()
    np.testing.assert_allclose(names["loss"], loss.detach(), rtol=1e-12)
    np.testing.assert_allclose(names["delta"], z.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("document", documents.documents())
def test_the_commands_in_the_prose_of_a_document_are_commands(document):
    wrong = {
        command: reason
        for command in documents.spoken_commands(document)
        if (reason := documents.why_not_a_command(command))
    }
    assert not wrong


def test_the_commands_in_the_docstrings_of_modules_are_commands():
    commands = documents.docstring_commands()
    assert len(commands) > 10
    wrong = {
        f"{file}: {command}": reason
        for command, file in commands.items()
        if (reason := documents.why_not_a_command(command))
    }
    assert not wrong


@pytest.mark.parametrize("document", documents.documents())
def test_the_links_of_a_document_lead_to_a_file(document):
    text = re.sub(r"`[^`\n]*`", "", documents.read(document))  # [&](int at) in code is no link
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    here = (ROOT / document).parent
    assert [link for link in links if "://" not in link and not (here / link).exists()] == []


# -- the finder itself ----------------------------------------------------------------------------


def test_fenced_and_indented_blocks_are_found_with_their_lines():
    text = "a\n\n```python\nx = 1\n```\n\n    y = 2\n    z\n\n- item\n    more of it\n\n~~~\nls # c\n~~~\n"
    found = list(documents.blocks_of("d.md", text))
    assert [(block.line, block.language, block.text) for block in found] == [
        (3, "python", "x = 1"),
        (7, "indented", "y = 2\nz"),
        (13, "", "ls # c"),
    ]
    assert found[-1].commands == ["ls"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("gpubackprop check | info", "without |"),
        ("gpubackprop trane", "no command trane"),
        ("gpubackprop train --epoch 3", "its parser"),
        ("make coffee", "no coffee"),
        ('pip install ".[everything]"', "no extra everything"),
        ("pip install numpy", "numpy is not this package"),
        ("python -m gpubackprop.nothing", "no module"),
        ("python examples/nothing.py", "no file"),
        ("python -m benchmarks.report --nothing", "no option --nothing"),
        ("python -m pytest tests/test_nothing.py", "there is no tests/test_nothing.py"),
        ("rm -rf /", "is none of"),
        ("gpubackprop info 'x", "quotation"),
    ],
)
def test_a_command_that_cannot_work_is_found_without_running_it(command, said):
    assert said in documents.why_not_a_command(command)


# -- the lecture's table --------------------------------------------------------------------------

TABLE = lecture.table(documents.read("README.md"))


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.lecture)
def test_a_row_of_the_lectures_table_is_what_pytorch_computes(row):
    lecture.check_row(row)


def test_the_lectures_table_has_its_rows():
    assert len(TABLE) == 8
    whole = " ".join(row.here for row in TABLE)
    for name in ("a", "h", "yhat", "output", "hidden", "pre_activation", "W", "b"):
        assert f"g.{name}" in whole


EDITS = [
    (1, "(ŷ − e_y)/N", "ŷ − e_y"),  # the fault that was in the README
    (1, "1/N Σ −log", "Σ −log"),
    (1, "`g.output`", "`g.loss`; `g.hidden[l-1]`"),
    (2, "(ŷ − t)/N", "ŷ − t"),
    (2, "½‖", "‖"),
    (0, "W_l h_{l-1}", "W_l h_l"),
    (0, "g.a[l-1]", "g.a[l]"),
    (0, "g.h[l-1]", "g.h[l]"),
    (1, "`g.yhat`", "`g.a[2]`"),
    (0, "(h_prev, W, b,", "(h_prev, W, b * 2,"),
    (3, "W_{l+1}ᵀ", "W_{l}ᵀ"),
    (3, "g.hidden[l-1]", "g.pre_activation[l-1]"),
    (4, "g′(a_l)", "g(a_l)"),
    (4, '"relu"', '"tanh"'),
    (5, "Σ δ_l h_{l-1}ᵀ", "δ_l h_{l-1}ᵀ"),
    (5, "(D_l, D_{l-1})", "(D_{l-1}, D_l)"),
    (6, "g.b[l-1]", "g.b[l]"),
    (6, "(D_l,)", "(N, D_l)"),
    (7, "θ − η", "θ + η"),
    (7, "GradientDescent(lr)", "GradientDescent(2 * lr)"),
]


@pytest.mark.parametrize(("number", "old", "new"), EDITS)
def test_a_wrong_edit_of_the_lectures_table_is_found(number, old, new):
    row = TABLE[number]
    edited = lecture.Row(*(cell.replace(old, new) for cell in row))
    assert edited != row
    with pytest.raises(Exception):  # noqa: B017, PT011 (a formula or call may fail in any way)
        lecture.check_row(edited)
