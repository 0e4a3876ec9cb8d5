# %% [markdown]
# # Softmax cross entropy in seven steps, drawn
#
# [The kernels' own text](../kernels/README.md) tells how a row of logits comes to be read once. This
# page draws its steps and computes what each moves. It counts reads and writes of the matrix, which is
# what limits such a kernel; none of it was measured on a GPU.

# %%
import numpy as np

from gpubackprop.figures import BLUE, GREY, ORANGE, in_style, new_figure

STEPS = [  # (name, reads, writes) of the matrix, at most
    ("NumPy, line by line", 4, 2),
    ("first rung: a thread a row", 3, 1),
    ("1 online softmax", 2, 1),
    ("2 registers", 1, 1),
    ("3 shared memory", 1, 1),
    ("4 clusters", 1, 1),
    ("5 short rows, tiles", 1, 1),
    ("6 few long rows, parts", 2, 1),
    ("7 portable path", 2, 1),
]


@in_style
def moved():
    figure = new_figure((7.6, 4.2))
    axes = figure.add_subplot()
    names, reads, writes = zip(*STEPS, strict=True)
    places = range(len(STEPS))
    axes.barh(places, reads, color=BLUE, label="reads")
    axes.barh(places, writes, left=reads, color=ORANGE, label="writes")
    axes.set_yticks(places, names, fontsize=11)
    axes.invert_yaxis()
    axes.set_xlabel("passes over the matrix, at most")
    axes.xaxis.grid(True)
    axes.legend()
    return figure


moved()

# %% [markdown]
# ## 1. One pass for maximum and sum
#
# A thread keeps the pair (m, s): the largest logit so far, and the sum of exp(z − m). A larger logit
# m′ turns s into s · exp(m − m′). Two pairs merge by the same rule, so threads, warps, blocks and
# clusters all combine their parts of a row in one way.


# %%
def merge(one, other):
    (m1, s1), (m2, s2) = one, other
    m = max(m1, m2)
    return m, s1 * np.exp(m1 - m) + s2 * np.exp(m2 - m)


z = np.random.default_rng(0).normal(size=1000) * 20
parts = [(part.max(), np.exp(part - part.max()).sum()) for part in np.array_split(z, 32)]
m, s = parts[0]
for part in parts[1:]:
    m, s = merge((m, s), part)
print("log-sum-exp from 32 parts:", m + np.log(s))
np.testing.assert_allclose(m + np.log(s), np.logaddexp.reduce(z), rtol=1e-15)

# %% [markdown]
# The order of merging changes nothing but the last bits. Any tree of parts has the same result:


# %%
def tree(parts):
    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    return merge(tree(parts[:half]), tree(parts[half:]))


m, s = tree(parts)
np.testing.assert_allclose(m + np.log(s), np.logaddexp.reduce(z), rtol=1e-15)
print("the same by a tree:      ", m + np.log(s))

# %% [markdown]
# ## 2 to 7. Where the row stays between statistics and gradient
#
# The second read goes away where the row is still at hand when its sum is known. A box is 16 bytes of
# a row; its colour says where it waits.

# %%
PLACES = {"registers": BLUE, "shared memory": ORANGE, "memory": "#BBBBBB"}
ROWS = {
    "1 online softmax: read twice": [["memory"] * 16],
    "2 registers: 4096 columns of float32 in a block": [["registers"] * 16],
    "3 shared memory: 100,000 columns of 16 bits": [["registers"] * 6 + ["shared memory"] * 10],
    "4 clusters: blocks share a row": [(["registers"] * 2 + ["shared memory"] * 2) * 4],
    "5 short rows: a tile of whole rows": [["shared memory"] * 16] * 3,
    "6 few long rows: parts, and a second launch": [["memory"] * 16],
    "7 portable: what fits nowhere is read again": [["registers"] * 6 + ["memory"] * 10],
}


@in_style
def places():
    from matplotlib.patches import Patch, Rectangle

    figure = new_figure((8.4, 7.4))
    axes = figure.add_subplot()
    low = 0.0
    for name, rows in ROWS.items():
        axes.text(0, low - 0.25, name, fontsize=11, color="black", va="bottom")
        for row in rows:
            for k, place in enumerate(row):
                wall = name.startswith(("4", "6")) and k % 4 == 0 and k
                axes.add_patch(
                    Rectangle((k, low), 0.92, 0.5, color=PLACES[place], alpha=0.9, linewidth=0)
                )
                if wall:
                    axes.plot([k - 0.04] * 2, [low - 0.1, low + 0.6], color=GREY, linewidth=1.5)
            low += 0.62
        low += 0.75
    axes.set_xlim(-0.2, 16.2)
    axes.set_ylim(low, -1.0)
    axes.set_axis_off()
    handles = [Patch(color=color, label=place) for place, color in PLACES.items()]
    axes.legend(handles=handles, loc="lower right", ncols=3, fontsize=10)
    return figure


places()

# %% [markdown]
# A wall is the border of a block. In step 4 only the pairs (m, s) pass through it. In step 6 they wait
# in memory, and a second launch reads the row again, then mostly from the second-level cache.
#
# Which form a matrix takes is decided by `gpubackprop.backends.softmax_plan.plan_softmax`, from rows,
# columns, dtype, alignment and the card. For a card of 132 multiprocessors with 227 KiB of shared memory
# each (an H200's properties, assumed here):

# %%
from gpubackprop.backends.cupy_launch import DeviceProperties
from gpubackprop.backends.softmax_plan import plan_softmax

card = DeviceProperties(132, 232_448, (9, 0))
for rows, columns in [
    (10**6, 10),
    (4096, 200),
    (4096, 1000),
    (1024, 50_257),
    (256, 200_000),
    (4, 10**6),
]:
    launches = plan_softmax(rows, columns, "float32", card)
    print(f"{rows:>8} x {columns:<8}", ", then ".join(launch.entry for launch in launches))
