"""Every entry through NVRTC (or nvcc) for the cards that are supported; no GPU is needed.

Where a source has changed since it was compiled whole (compiled.py), and the run is not a sample
(sweeps.py): every entry for sm_75 and sm_90, and the heaviest of each kernel for the other five
architectures. Where nothing has changed, a few of its entries, others each day; in a sample also the
heaviest for sm_75 and sm_90, if it has changed. GPUBACKPROP_COMPILE_ALL=1 compiles every entry for
every card. compiled_resources.py asserts. How wide each access of an entry is, and that none is
narrower, test_compiled_accesses.py asserts in the compiled code for one of the cards.
"""

from __future__ import annotations

import os
import re

import pytest

from gpubackprop.backends.cupy_launch import KERNELS, entries, least_architecture
from tests import compiled, first_rung
from tests.compiled_resources import MAX_REGISTERS, bodies, check, heaviest, line
from tests.emulator import compilers
from tests.emulator.compilers import ARCHITECTURES
from tests.emulator.module import HERE

pytestmark = pytest.mark.skipif(compilers.compiler() is None, reason=compilers.NONE_FOUND)

PTX_PROBE = HERE / "ptx_probe.cu"
WHOLE = (75, 90)  # the oldest card; H100 and H200
EVERYTHING = bool(os.environ.get("GPUBACKPROP_COMPILE_ALL"))
SOURCES = sorted({kernel.source for kernel in KERNELS.values()})
LINES: dict[str, str] = {}


@pytest.fixture(scope="module", autouse=True)
def table():
    yield
    print(
        "\n\nResources and theoretical occupancy (ptxas), by entry and card; not measured on a GPU"
    )
    print("\n".join(LINES.values()))


def entries_of(
    source: str, architecture: int, *, only_heaviest: bool
) -> dict[str, compilers.Defines]:
    """Return the defines by entry; a card without clusters or TF32 has no entry for them."""
    chosen = heaviest() if only_heaviest else entries()
    return {
        entry: defines for file, entry, defines in chosen
        if file == source and architecture >= least_architecture(entry)
    }  # fmt: skip


def held(entry: str, architecture: int, text: str, used: compilers.Resources) -> None:
    LINES[f"{entry} {architecture}"] = line(entry, architecture, used)
    check(entry, text, used)


def compile_each(source: str, architecture: int, wanted: dict[str, compilers.Defines]) -> None:
    for entry, defines in wanted.items():
        ptx, report = compilers.compiler().compile(source, architecture, defines)
        held(entry, architecture, bodies(ptx)[entry], compilers.resources(report)[entry])


def compile_whole(source: str, architecture: int, wanted: dict[str, compilers.Defines]) -> None:
    ptx, report = compilers.compiler().compile(source, architecture)
    texts, used = bodies(ptx), compilers.resources(report)
    assert set(texts) == set(used) == set(wanted)
    failed = {}
    for entry in sorted(wanted):
        try:
            held(entry, architecture, texts[entry], used[entry])
        except AssertionError as error:
            failed[entry] = str(error).splitlines()[0], used[entry]
    assert not failed


@pytest.mark.timeout(900)
@pytest.mark.sweep(keep=len(SOURCES) * len(ARCHITECTURES))  # each chooses among its own entries
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES)
def test_every_entry_of_a_file_compiles_within_its_resources(source, architecture, sweep):
    """All seven whole are a quarter of an hour of a core."""
    every, heavy = (
        entries_of(source, architecture, only_heaviest=heavy) for heavy in (False, True)
    )
    is_whole = EVERYTHING or architecture in WHOLE
    wanted = every if is_whole else heavy
    key = compiled.key_of(source, architecture, list(wanted))
    name = f"{source}-{architecture}"
    is_due = not compiled.is_on_record(name, key)
    if EVERYTHING or (is_due and sweep.number(len(wanted), compiled.SAMPLE) >= len(wanted)):
        (compile_whole if is_whole else compile_each)(source, architecture, wanted)
        compiled.passed(name, key)
        return
    chosen = set(heavy) if is_due and is_whole else set()
    pairs = [
        (entry, card) for card in ARCHITECTURES
        for entry in entries_of(source, card, only_heaviest=card not in WHOLE)
    ]  # fmt: skip
    chosen |= {entry for entry, card in compiled.sample(pairs, source) if card == architecture}
    compile_each(source, architecture, {entry: every[entry] for entry in sorted(chosen)})


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(architecture, marks=() if architecture in (75, 90) else pytest.mark.slow)
        for architecture in ARCHITECTURES
    ],
)
def test_the_naive_kernel_compiles_for_every_card(architecture):
    """It is no row of the launch table. Its accesses are of 32 bits, which is the point of it."""
    ptx, report = compilers.compiler().compile(first_rung.SOURCE, architecture)
    used = compilers.resources(report)[first_rung.ENTRY]
    assert (used.spills, used.stack) == (0, 0)
    assert used.registers <= MAX_REGISTERS
    text = bodies(ptx)[first_rung.ENTRY]
    assert not re.search(r"\.v[24]\.[bfu]|^\s+\w+[\w.]*\.f64", text, re.MULTILINE)


def test_a_broken_source_is_refused_with_the_compilers_message():
    with pytest.raises(compilers.CompileError, match="sm_90"):
        compilers.compiler().compile("update.cu", 90, (("ONLY_FORMULA", "no_such_rule"),))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_ptx_wrappers_compile_for_every_card(architecture):
    ptx, _ = compilers.compiler().compile(str(PTX_PROBE), architecture)
    text = bodies(ptx)
    assert ("cp.async.cg.shared.global" in text["copies"]) == (architecture >= 80)
    assert ("mapa.u64" in text["cluster_of_8"]) == (architecture >= 90)
    assert ("reqnctapercluster 8" in text["cluster_of_8"]) == (architecture >= 90)
    for instruction in ("ld.global.L1::no_allocate.v4", "ld.global.nc.L1::no_allocate.v4"):
        assert instruction in text["streams"]
    assert "st.global.cs.v4" in text["streams"]
    multiply = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"
    assert (multiply in text["tensor_cores"]) == (architecture >= 80)
    assert ("cvt.rn.tf32.f32" in text["tf32_of"]) == (architecture >= 90)
    assert {"ex2.approx.f32", "ex2.approx.ftz.f32"} <= set(text["exponentials"].split())
