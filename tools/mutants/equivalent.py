"""Mutants that no test can kill, each with the reason.

An entry is strict: the mutant can change no output. A mutant that only moves more bytes, or is less
repeatable, is not listed, because a test sees it (traffic, bitwise agreement). A mutant that only
changes how many loads a thread has in flight is listed; a GPU has to judge it. It is an error if a
run kills a listed mutant, or if an entry is no mutant of today's sources.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tools.mutants.mutations import Mutant


class Equivalent(NamedTuple):
    """`old` is in `times` lines of `file`, once or more, and the mutant has `new` there.

    A line ends in "\\n", so `old` may too. `nth` chooses one of several equal lines.
    """

    file: str
    old: str
    new: str
    reason: str
    times: int = 1
    nth: int | None = None

    def matches(self, mutant: Mutant) -> bool:
        if mutant.file != self.file or self.nth not in (None, mutant.nth):
            return False
        before, after = mutant.before.strip() + "\n", mutant.after.strip() + "\n"
        return any(
            before[:at] + self.new + before[at + len(self.old) :] == after
            for at in range(len(before))
            if before.startswith(self.old, at)
        )


SAME = "both branches give the same where the two sides are equal"
EMPTY = "a pack that begins at the end is empty: nothing of it is read or written"
IN_FLIGHT = "how many rows a thread loads before it uses the first: the same results and bytes"
EXACT = "that number is exact in 16 bits: both ways keep it"
EIGHTH = "the formulas have seven coefficients at most"
TABLE_ACCESSES = (
    "more accesses for the same result; the emulator counts none through a table's pointers"
)
FIRST_CHUNK = "begin is 0 only in a first chunk without a head, whose first is 0"
SKIPPED = "blocks of words beyond those that are used"
UNUSED = "a pack beyond the end: its values, -inf without reading, are not used"
NO_TURN = "loops over nothing"
NOT_READ = "a number more, which nobody reads"
RANK = "the rank of a block without a cluster is 0"
NO_ROW = "turns more, in which no group has a row"
ROUND = "joined rows are a multiple of `cols` wide: the remainder stays"
GUARDED = "the element after the last is behind a condition that is false there"
IN_GROUP = "lanes at a distance below `lanes`, a power of two, are in one group"
ALONE = "the row beside the one behind the last is then computed by itself, with the same bits"
LAST_TURN = "one more turn, in which no group has a row"
JUST_WHOLE = "a tile that is just whole is moved either way, and its labels are"
NO_SUCH_TILE = "no tile has one pack more than a multiple of 32"
FREE = "zeros in a place that no tile has"
NO_COLUMN = "a label that is no column counts nothing, ignored or not"
NOT_USED = "a place of the list beyond the last: its row is not loaded"
ONCE = "a column comes once, and none is as large as the first place"
ROOM = "room for more pieces than a row has; the compilers' reports have the registers"
NO_WORD = "one more turn, in which no array has a word"
NO_GROUP = "one more turn, in which no group has a number: 0 is added"
NO_CHUNK = "one more turn, of rows that are not there"
NO_ROW_LEFT = (
    "one more turn, in which no row is left: 0 is added, and what it reads of the list is not used"
)
MORE_CODES = "room for more codes than are read"
OTHER_LIST = "the list of one column more, which nobody reads"
LANE_0 = "threadIdx.x is below TILE: only lane 0 has a difference of 0, too"
NO_SHARE = "one more turn, in which no share is there: 0 is added"
NO_TILE = "of a tile without rows nothing is requested"
BEHIND = "a row behind the last: nothing of what is read is used"
NO_BLOCK = "one more turn, in which no block is there"
NO_PIECE = "a lane has MOST pieces at most: the turn more ends at once"
LATER_COLUMN = (
    "a piece behind the row's: its columns come after all of the row's, and the first counts"
)
LEVEL = "a piece behind the row's: its sum waits at a level that is not read"
UNEQUAL = (
    "lanes of unequal numbers of pieces: in another order the same results, and two meet at most"
)
ONE_PAIR = "a single pair is converted to the same numbers either way"
REST = "a column is what K leaves, whichever of the two rows it is of"
MORE_PAIRS = "room for more pairs than are read"
AS_UNUSUAL = "an ignored row as one that is not usual: the same zeros; its neighbour keeps its bits"
HUGE = "a loss of 1e30: the other terms are lost in either form"

PAIRS = "softmax_cross_entropy_pairs.cu"
LANES = "softmax_cross_entropy_lanes.cu"
SHORT = "softmax_cross_entropy_short.cu"
TABLE = (
    Equivalent(
        "activations.cuh", "return a > C(0) ? a : k * ::ex", "return a >= C(0) ? a : k * ::ex", SAME
    ),
    Equivalent(
        "activations.cuh", "return a > C(0) ? C(1) - t", "return a >= C(0) ? C(1) - t", SAME
    ),
    Equivalent(
        "activations.cuh", "return a > C(0) ? a : k * a", "return a >= C(0) ? a : k * a", SAME
    ),
    Equivalent("activations.cuh", "(a > C(0) ? C(1) - away", "(a >= C(0) ? C(1) - away", SAME),
    Equivalent("activations.cuh", "x > C(40) ?", "x >= C(40) ?", SAME),
    Equivalent("activations.cuh", "(a > C(0) ? a : C(0)) +", "(a >= C(0) ? a : C(0)) +", SAME),
    Equivalent(
        "activation_backward.cu", "STRIP_ROWS < strip.last ?", "STRIP_ROWS <= strip.last ?", SAME
    ),
    Equivalent("activation_backward.cu", "sizeof(T) == 8 ||", "sizeof(T) != 8 ||", IN_FLIGHT),
    Equivalent("activation_backward.cu", "8 || Drop::ON", "8 && Drop::ON", IN_FLIGHT),
    Equivalent("affine_epilogue.cu", "sizeof(P) == 8 ||", "sizeof(P) != 8 ||", IN_FLIGHT),
    Equivalent("affine_epilogue.cu", "8 || sizeof(P)", "8 && sizeof(P)", IN_FLIGHT),
    Equivalent("affine_epilogue.cu", "sizeof(P) > sizeof(T)", "sizeof(P) >= sizeof(T)", IN_FLIGHT),
    Equivalent("activations.cuh", "(a > C(0) ? C(1) : e)", "(a >= C(0) ? C(1) : e)", SAME),
    Equivalent("include/rows.cuh", "_base < rows; ", "_base <= rows; ", LAST_TURN),
    Equivalent("column_sum.cu", "STRIP_ROWS < strip.last ?", "STRIP_ROWS <= strip.last ?", SAME),
    Equivalent("gather_rows.cu", "from < 0 ?", "from <= 0 ?", SAME),
    Equivalent("gather_rows.cu", "j < 0 ?", "j <= 0 ?", SAME),
    Equivalent("gather_rows.cu", "(j < a.cols)", "(j <= a.cols)", EMPTY),
    Equivalent("gather_rows.cu", "j >= 0 &&", "j > 0 &&", IN_FLIGHT),
    Equivalent("gather_rows.cu", "E <= a.cols", "E < a.cols", IN_FLIGHT),
    Equivalent("gather_rows.cu", "w < a.most_words;", "w <= a.most_words;", NO_WORD),
    Equivalent("gather_rows.cu", "whole += vector", "whole -= vector", IN_FLIGHT),
    Equivalent("gather_rows.cu", "UNROLL; ++u) whole", "UNROLL - 1; ++u) whole", IN_FLIGHT),
    Equivalent("gather_rows.cu", "u < UNROLL; ++u)\n", "u <= UNROLL; ++u)\n", GUARDED),
    Equivalent("pointwise_loss.cu", "E == 1 ? 1", "E != 1 ? 1", IN_FLIGHT),
    Equivalent("pointwise_loss.cu", "k < p.cols;", "k <= p.cols;", EMPTY),
    Equivalent("pointwise_loss.cu", "k < 0 ?", "k <= 0 ?", SAME),
    Equivalent("one_hot.cu", "g < a.groups; g", "g <= a.groups; g", NO_GROUP),
    Equivalent("one_hot.cu", "code[CHUNK / 32];", "code[CHUNK * 32];", MORE_CODES),
    Equivalent("one_hot.cu", "code[CHUNK / 32];", "code[CHUNK];", MORE_CODES),
    Equivalent("one_hot.cu", "sizeof(T) == 8 ?", "sizeof(T) != 8 ?", IN_FLIGHT),
    Equivalent("one_hot.cu", "start < a.rows; s", "start <= a.rows; s", NO_CHUNK),
    Equivalent("one_hot.cu", "(warp < columns)", "(warp <= columns)", OTHER_LIST),
    Equivalent("one_hot.cu", "(threadIdx.x + TILE", "(threadIdx.x - TILE", LANE_0),
    Equivalent("one_hot.cu", "i < count; i", "i <= count; i", NO_ROW_LEFT),
    Equivalent("one_hot.cu", "[i + u < count ? i", "[i - u < count ? i", NOT_USED),
    Equivalent("one_hot.cu", "[i + u < count ? i", "[i + u <= count ? i", NOT_USED),
    Equivalent("spread_gradient.cu", "end - first < most ?", "end - first <= most ?", SAME),
    Equivalent("spread_gradient.cu", "behind.count > 0)", "behind.count >= 0)", NO_TILE),
    Equivalent("spread_gradient.cu", "first < a.shares; f", "first <= a.shares; f", NO_SHARE),
    Equivalent("sum_of_squares.cu", "i < 0 ?", "i <= 0 ?", SAME),
    Equivalent("sum_of_squares.cu", "SEQUENCE && i < a.count", "SEQUENCE && i <= a.count", EMPTY),
    Equivalent("losses.cuh", "- (a < C(0) ?", "- (a <= C(0) ?", SAME),
    Equivalent("prepare_update.cu", "factor < 1.0 ?", "factor <= 1.0 ?", SAME),
    Equivalent("updates.cuh", "s[1] <= s[2]", "s[1] < s[2]", SAME),
    Equivalent("include/rounding.cuh", "(::fabs(x) < 65504.f)", "(::fabs(x) <= 65504.f)", EXACT),
    Equivalent("include/rounding.cuh", "(::fabs(x) < smallest", "(::fabs(x) <= smallest", EXACT),
    Equivalent("update.cu", "i < count;", "i <= count;", EMPTY),
    Equivalent("update.cu", "i < 0 ?", "i <= 0 ?", SAME),
    Equivalent("update.cu", "count - i < E ?", "count - i <= E ?", SAME),
    Equivalent("update_table.cu", "FORMULA_COEFFICIENTS;", "FORMULA_COEFFICIENTS - 1;", EIGHTH),
    Equivalent("update_table.cu", "% (E * sizeof(T)) /", "% (E) /", TABLE_ACCESSES),
    Equivalent("update_table.cu", "begin > 0)", "begin >= 0)", FIRST_CHUNK),
    Equivalent("update_table.cu", "i < last;", "i <= last;", EMPTY),
    Equivalent("update_table.cu", "i < first ?", "i <= first ?", SAME),
    Equivalent("update_table.cu", "last - i < E ?", "last - i <= E ?", SAME),
    Equivalent("update_table.cu", "left < CHUNK ?", "left <= CHUNK ?", SAME),
    Equivalent("include/philox.cuh", "(E + 6) / 4;", "(E + 6) * 4;", SKIPPED),
    Equivalent("include/philox.cuh", "(E + 6) / 4;", "(E + 6);", SKIPPED),
    Equivalent("include/philox.cuh", "b < BLOCKS;", "b <= BLOCKS;", SKIPPED),
    Equivalent("include/philox.cuh", "b >= shift + E)", "b > shift + E)", SKIPPED),
    Equivalent("include/row_packs.cuh", "base < 0 ?", "base <= 0 ?", SAME),
    Equivalent("include/row_packs.cuh", "label < 0)", "label <= 0)", SAME),
    Equivalent("include/row_packs.cuh", "C(0) || pack >= limit", "C(0) || pack > limit", UNUSED),
    Equivalent("include/row_packs.cuh", "pack(j) < limit) add", "pack(j) <= limit) add", UNUSED),
    Equivalent("include/row_packs.cuh", "< packs; ++turn", "<= packs; ++turn", EMPTY, 2),
    Equivalent("include/row_packs.cuh", "GENERAL && p.log", "GENERAL || p.log", NOT_READ),
    Equivalent("softmax_cross_entropy.cu", "CLUSTER > 1 ? int(", "CLUSTER >= 1 ? int(", RANK),
    Equivalent("softmax_cross_entropy.cu", "&& row < p.rows", "&& row <= p.rows", EMPTY),
    Equivalent(PAIRS, "(lane, r) >= left", "(lane, r) > left", ALONE),
    Equivalent(PAIRS, "column(r * K + k)", "column(r / K + k)", REST),
    Equivalent(PAIRS, "-OF_ROW) > 8 ?", "-OF_ROW) >= 8 ?", SAME),
    Equivalent(PAIRS, "(left >= TILE_ROWS)", "(left > TILE_ROWS)", JUST_WHOLE, 2),
    Equivalent(PAIRS, "at < PACKS;", "at <= PACKS;", GUARDED),
    Equivalent(PAIRS, "at < PACKS;", "at < PACKS - 1;", NO_SUCH_TILE),
    Equivalent(PAIRS, "at + 32 <= PACKS ||", "at + 32 < PACKS ||", SAME),
    Equivalent(PAIRS, "left <= 0 ?", "left < 0 ?", SAME),
    Equivalent(PAIRS, "if (left > 0)", "if (left >= 0)", FREE),
    Equivalent(PAIRS, "at < TILE_ROWS * K;", "at < TILE_ROWS / K;", ALONE),
    Equivalent(PAIRS, "at < TILE_ROWS * K;", "at < TILE_ROWS;", ALONE),
    Equivalent(PAIRS, "tile[at] = T{};", ";", ALONE),
    Equivalent(PAIRS, "(p.ignore_index) < K", "(p.ignore_index) <= K", NO_COLUMN),
    Equivalent(PAIRS, "|| (p.has_ignore_index", "&& (p.has_ignore_index", AS_UNUSUAL),
    Equivalent(PAIRS, "< C(MANY)", "<= C(MANY)", HUGE),
    Equivalent(PAIRS, "left > 0; left", "left >= 0; left", LAST_TURN),
    Equivalent(PAIRS, "left < TILE_ROWS ?", "left <= TILE_ROWS ?", SAME),
    Equivalent(PAIRS, "at < place)", "at <= place)", ONCE),
    Equivalent(LANES, "column < place)", "column <= place)", ONCE),
    Equivalent(LANES, "LANE_BYTES / W;", "LANE_BYTES * W;", ROOM),
    Equivalent(LANES, "LANE_BYTES / W;", "LANE_BYTES;", ROOM),
    Equivalent(LANES, "cols / E % lanes", "cols * E % lanes", UNEQUAL),
    Equivalent(LANES, "cols / E % lanes", "cols % lanes", UNEQUAL),
    Equivalent(LANES, "j < MOST; ++j)", "j <= MOST; ++j)", NO_PIECE, 5),
    Equivalent(LANES, "j >= pieces)", "j > pieces)", LATER_COLUMN, nth=1),
    Equivalent(LANES, "j >= pieces)", "j > pieces)", LEVEL, nth=3),
    Equivalent("include/piece.cuh", "&& E >= 2)", "&& E > 2)", ONE_PAIR, 2),
    Equivalent("include/piece.cuh", "pairs[W / 4]", "pairs[W * 4]", MORE_PAIRS, 2),
    Equivalent("include/piece.cuh", "pairs[W / 4]", "pairs[W]", MORE_PAIRS, 2),
    Equivalent(LANES, "common > rows)", "common >= rows)", SAME),
    Equivalent(LANES, "- first < rows ?", "- first <= rows ?", SAME),
    Equivalent(LANES, "first >= p.rows ?", "first > p.rows ?", SAME),
    Equivalent(LANES, "first < p.rows; first", "first <= p.rows; first", LAST_TURN),
    Equivalent(LANES, "begin(z, row < p.rows)", "begin(z, row <= p.rows)", BEHIND),
    Equivalent("include/tile.cuh", "at < 0 ?", "at <= 0 ?", SAME),
    Equivalent("include/tile.cuh", "- at < E ?", "- at <= E ?", SAME),
    Equivalent("include/tile.cuh", "at < count; at +=", "at <= count; at +=", EMPTY, 2),
    Equivalent("include/loss_sums.cuh", "first < blocks; f", "first <= blocks; f", NO_BLOCK),
    Equivalent(SHORT, "first < p.rows;", "first <= p.rows;", EMPTY),
    Equivalent(SHORT, "first + turn * groups <", "first - turn * groups <", NO_ROW),
    Equivalent(SHORT, "first + turn * groups <", "first + turn / groups <", NO_ROW),
    Equivalent(SHORT, "first + turn * groups <", "first + turn <", NO_ROW),
    Equivalent(SHORT, "groups < p.rows;", "groups <= p.rows;", NO_ROW),
    Equivalent("include/ptx.cuh", "size >= 0x477ff000u", "size > 0x477ff000u", SAME),
    Equivalent("include/ptx.cuh", "size < 0x38800000u", "size <= 0x38800000u", SAME),
    Equivalent("include/ptx.cuh", "d > largest", "d >= largest", SAME),
    Equivalent("include/ptx.cuh", "d < -largest", "d <= -largest", SAME),
    Equivalent("include/ptx.cuh", "(d < 0 ? -double", "(d <= 0 ? -double", SAME),
    Equivalent("include/ptx.cuh", "(d < 0 ? -d :", "(d <= 0 ? -d :", SAME),
    Equivalent("include/reduce.cuh", "step, lanes));", "step, 32));", IN_GROUP),
    Equivalent("include/row_packs.cuh", "e < E; ++e)\n", "e <= E; ++e)\n", GUARDED, nth=1),
    Equivalent("include/vector.cuh", "e < E; ++e)\n", "e <= E; ++e)\n", GUARDED),
    Equivalent("include/vector.cuh", "e < PACK<T>; ++e)\n", "e <= PACK<T>; ++e)\n", GUARDED),
    Equivalent("include/strip.cuh", "first + chunk < all ?", "first + chunk <= all ?", SAME),
    Equivalent("include/strip.cuh", "blockIdx.y < all ?", "blockIdx.y <= all ?", SAME),
    Equivalent("include/strip.cuh", "|| left <= 0)", "|| left < 0)", SAME),
    Equivalent("include/vector.cuh", "left >= E ?", "left > E ?", SAME),
    Equivalent("include/vector.cuh", "left < 0 ?", "left <= 0 ?", SAME),
    Equivalent("include/strip.cuh", "at >= 0 ?", "at > 0 ?", SAME),
    Equivalent("include/strip.cuh", "at <= -E ?", "at < -E ?", SAME),
    Equivalent("include/strip.cuh", "(column < 0 ?", "(column <= 0 ?", ROUND),
    Equivalent("include/strip.cuh", "left >= E ?", "left > E ?", SAME),
    Equivalent("include/strip.cuh", "left < 0 ?", "left <= 0 ?", SAME),
)


def reason_of(mutant: Mutant) -> str:
    """Return why the mutant is equivalent, or ""."""
    return next((entry.reason for entry in TABLE if entry.matches(mutant)), "")


def stale(mutants: Iterable[Mutant]) -> list[str]:
    """Return the table's errors: entries that do not match exactly `times` mutants."""
    found = dict.fromkeys(TABLE, 0)
    for mutant in mutants:
        for entry in TABLE:
            found[entry] += entry.matches(mutant)
    return [
        f"{entry.file}: {entry.old!r} -> {entry.new!r} is {found[entry]} mutants, not {entry.times}"
        for entry in TABLE
        if found[entry] != entry.times
    ]
