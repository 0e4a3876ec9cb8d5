"""Which softmax kernel takes which matrix, and its launch: arithmetic alone, for any card."""

from __future__ import annotations

import math

import pytest

from gpubackprop.backends.cupy_launch import DeviceProperties
from gpubackprop.backends.softmax_plan import plan_softmax
from gpubackprop.errors import OptionError

T4 = DeviceProperties(40, 65_536, (7, 5))
A100 = DeviceProperties(108, 166_912, (8, 0))
RTX4090 = DeviceProperties(128, 101_376, (8, 9))
H200 = DeviceProperties(132, 232_448, (9, 0))
CARDS = {"T4": T4, "A100": A100, "RTX 4090": RTX4090, "H200": H200}
BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
LENGTHS = [1, 2, 10, 31, 32, 33, 255, 256, 257, 1000, 1023, 1024, 1025, 4096, 8192, 32_000, 50_257]
LENGTHS += [65_537, 100_000, 128_256, 262_144, 1_000_003, 2**31 + 1]
ROWS = [1, 2, 7, 132, 4096, 65_535, 65_536, 10**6, 2**31 - 1, 2**31, 2**33]


def elements_on_chip(launch, itemsize: int) -> int:
    """Of a row, in registers and shared memory of all blocks that work on it."""
    threads = launch.block[0]
    held = 64 // 16
    blocks = int(launch.entry.partition("cluster")[2][:1] or 1)
    return blocks * threads * (held + launch.shared_packs) * 16 // itemsize


@pytest.mark.parametrize("contiguous", [False, True])
@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("card", CARDS)
def test_every_plan_is_a_launch_that_the_card_takes_and_covers_every_row(card, dtype, contiguous):
    device = CARDS[card]
    for rows in ROWS:
        for cols in LENGTHS:
            launches = plan_softmax(rows, cols, dtype, device, contiguous=contiguous)
            for launch in launches:
                threads = math.prod(launch.block)
                assert threads in (32, 64, 128, 256)
                assert 1 <= launch.grid[0] < 2**31
                assert 1 <= launch.grid[1] <= 65_535
                if "lanes" in launch.entry:
                    lanes, groups, _ = launch.block
                    tile = (groups * cols * BYTES[dtype] // 16 + 1) * 16
                    assert launch.shared_bytes == launch.shared_packs * tile
                    assert launch.shared_packs in (2, 3)
                    assert contiguous
                    assert groups * cols * BYTES[dtype] % 16 == 0, "all tiles lie alike"
                    assert lanes * groups == 128
                    assert 32 % lanes == 0
                    assert lanes * 64 < cols * BYTES[dtype] <= lanes * 128 or lanes == 1
                else:
                    assert launch.shared_bytes == launch.shared_packs * threads * 16
                assert launch.shared_bytes <= device.shared_bytes - 1024
                if "cluster" in launch.entry:
                    assert device.capability >= (9, 0)
                    assert launch.grid[0] % int(launch.entry.partition("cluster")[2][0]) == 0
            if len(launches) == 2:
                assert launches[0].partial == (rows, launches[0].grid[0])
                assert launches[0].grid == launches[1].grid


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("cols", [n for n in LENGTHS if n <= 256])
def test_a_short_row_of_the_general_form_has_at_most_eight_elements_for_each_lane(cols, dtype):
    (launch,) = plan_softmax(1000, cols, dtype, T4, general=True)
    assert "short_general" in launch.entry
    lanes, groups, _ = launch.block
    assert lanes * 8 >= cols
    assert lanes * groups == 128
    assert groups * cols * BYTES[dtype] <= 8192, "a tile has a row for every group"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("cols", [n for n in LENGTHS if n <= 100_000])
def test_one_block_holds_16_bit_rows_of_up_to_100_000_columns(cols, dtype):
    """So each logit is read from memory once, also without clusters."""
    (launch,) = plan_softmax(4096, cols, dtype, H200, cluster=1)
    assert elements_on_chip(launch, 2) >= cols + 7


@pytest.mark.parametrize(
    ("dtype", "largest"), [("bfloat16", 900_000), ("float32", 262_144), ("float64", 131_000)]
)
def test_clusters_hold_longer_rows_still(dtype, largest):
    for cols in [n for n in LENGTHS if 2048 < n <= largest]:
        (launch,) = plan_softmax(4096, cols, dtype, H200)
        assert elements_on_chip(launch, BYTES[dtype]) >= cols + 16 // BYTES[dtype] - 1


@pytest.mark.parametrize(
    ("rows", "cols", "dtype", "device", "form"),
    [
        (10**6, 10, "float32", H200, "lanes_w8"),
        (10**6, 32, "float32", H200, "lanes_w16"),
        (10**6, 33, "float32", H200, "lanes_w4"),
        (10**6, 64, "bfloat16", H200, "lanes_w16"),
        (10**6, 63, "bfloat16", H200, "lanes_w2"),
        (10**6, 16, "float64", H200, "lanes_w16"),
        (10**6, 256, "float32", H200, "lanes_w16"),
        (4096, 1000, "float32", H200, "lanes_w16"),
        (4096, 1025, "float32", H200, "rows"),
        (4096, 2048, "bfloat16", H200, "lanes_w16"),
        (4096, 2049, "bfloat16", H200, "rows"),
        (4096, 1023, "bfloat16", H200, "lanes_w2"),
        (4096, 1025, "bfloat16", H200, "rows"),  # four rows are no multiple of 16 bytes
        (4096, 32_000, "bfloat16", H200, "rows"),
        (4096, 50_257, "bfloat16", H200, "cluster2"),
        (4096, 131_072, "bfloat16", H200, "cluster4"),
        (4096, 262_144, "bfloat16", H200, "cluster8"),
        (4096, 262_144, "float32", H200, "cluster8"),
        (4096, 131_072, "bfloat16", A100, "rows"),
        (1, 1_000_003, "float32", H200, "parts"),
        (4, 262_144, "bfloat16", H200, "parts"),
        (1, 4096, "float32", H200, "rows"),
    ],
)
def test_the_form_goes_by_the_length_of_the_row(rows, cols, dtype, device, form):
    entry = plan_softmax(rows, cols, dtype, device)[0].entry
    assert entry.removeprefix("softmax_cross_entropy_").startswith(form)


def test_a_row_has_as_many_lanes_as_take_up_to_128_bytes_each():
    for cols, dtype, lanes in (
        (32, "float32", 1), (33, "float32", 2), (64, "float32", 2), (65, "float32", 4),
        (100, "float32", 4), (129, "float32", 8), (256, "float32", 8), (64, "bfloat16", 1),
        (100, "bfloat16", 2), (257, "bfloat16", 8), (17, "float64", 2), (512, "float64", 32),
        (1000, "float32", 32),
    ):  # fmt: skip
        (launch,) = plan_softmax(10**6, cols, dtype, H200)
        assert launch.block == (lanes, 128 // lanes, 1)


def test_rows_that_fit_twice_into_no_shared_memory_are_taken_straight_from_memory():
    (launch,) = plan_softmax(1000, 64, "float32", DeviceProperties(2, 8192))
    assert launch.entry == "softmax_cross_entropy_rows_labels_f32"


def test_a_lanes_accesses_are_as_wide_as_its_row_and_its_address_allow():
    for cols, alignment, width in ((8, 16, 16), (8, 8, 8), (8, 4, 4), (6, 16, 8), (7, 16, 4)):
        (launch,) = plan_softmax(100, cols, "float32", H200, alignment=alignment)
        assert launch.entry == f"softmax_cross_entropy_lanes_w{width}_f32"


@pytest.mark.parametrize(("rows", "cols"), [(4096, 1000), (10**6, 10), (10**6, 300), (256, 50_257)])
def test_groups_take_equally_many_rows_in_turn_and_few_tickets_are_drawn(rows, cols):
    """The last of a wave's blocks has at most one turn less; at most four waves are planned."""
    (launch,) = plan_softmax(rows, cols, "float32", H200)
    each = launch.block[1]
    blocks = launch.grid[0] // int(launch.entry.partition("cluster")[2][:1] or 1)
    turns = math.ceil(rows / each / blocks)
    assert turns * blocks * each - rows < turns * each + blocks * each
    assert blocks <= 4 * 132 * (512 // math.prod(launch.block))


def test_the_general_form_has_in_shared_memory_what_the_other_has_in_registers():
    for cols in [n for n in LENGTHS[:17] if n > 1024]:
        ours = plan_softmax(4096, cols, "float32", H200)
        general = plan_softmax(4096, cols, "float32", H200, general=True)
        names = [a.entry.replace("labels", "general") for a in ours]
        assert names == [b.entry for b in general]
        assert [a.grid for a in ours] == [b.grid for b in general]
        assert general[0].shared_packs >= ours[0].shared_packs


def test_aligned_rows_need_no_room_for_a_head():
    assert plan_softmax(64, 8192, "bfloat16", H200, aligned=True)[0].shared_packs == 0
    assert plan_softmax(64, 8192, "bfloat16", H200)[0].shared_packs == 1


@pytest.mark.parametrize("shape", [(0, 10), (10, 0), (0, 100_000)])
def test_nothing_to_do_is_no_launch(shape):
    assert plan_softmax(*shape, "float32", H200) == ()


@pytest.mark.parametrize("cluster", [3, 0, 16, -1])
def test_a_number_of_blocks_that_no_entry_has_is_refused(cluster):
    with pytest.raises(OptionError, match="cluster is"):
        plan_softmax(10, 10_000, "float32", H200, cluster=cluster)


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("card", CARDS)
def test_plain_rows_of_up_to_32_columns_are_pairs_where_every_multiprocessor_has_a_block(
    card, dtype
):
    device = CARDS[card]
    many = 256 * device.multiprocessors
    for cols in range(1, 34):
        (launch,) = plan_softmax(many, cols, dtype, device, plain=True)
        room = 2 * 256 * cols * BYTES[dtype] <= device.shared_bytes - 2048
        if cols > 32 or dtype == "float64" or not room:
            assert "pairs" not in launch.entry
            continue
        assert f"pairs_k{cols}_" in launch.entry
        assert launch.block == (128, 1, 1)
        assert launch.shared_bytes == launch.shared_packs * 256 * cols * BYTES[dtype]
        assert launch.shared_packs in (2, 3)
        assert launch.shared_bytes <= device.shared_bytes - 2048
        for rows, rest in (
            (many - 256, {}), (many, {"general": True}), (many, {"contiguous": False}), (many, {"plain": False}),
        ):  # fmt: skip
            other = plan_softmax(rows, cols, dtype, device, **({"plain": True} | rest))
            assert "pairs" not in other[0].entry
