# %% [markdown]
# # Vanishing gradients
#
# δ of the first layer is a product over all layers: of the weights and of the slopes g′. If the
# factors are below 1 on average, nothing is left of it in a deep network. We measure it: random
# networks of 32 units a layer, weights by Glorot, random inputs, and the size of δ_1 relative to the
# size of δ at the last hidden layer.

# %%
import numpy as np

from gpubackprop import MLP
from gpubackprop.figures import in_style, new_figure
from gpubackprop.formulas import ACTIVATIONS

DEPTHS = [2, 4, 8, 16, 32]
rng = np.random.default_rng(0)
x, y = rng.normal(size=(64, 32)), rng.integers(0, 10, 64)


def decades_lost(activation, depth, initializer="glorot_uniform"):
    """Return log10 of |δ_1| / |δ_depth|, the mean of three networks."""
    found = []
    for seed in range(3):
        widths = [*[32] * (depth + 1), 10]
        network = MLP(widths, activation, initializer=initializer, dtype="float64", seed=seed)
        delta = network.gradients(x, y).pre_activation
        ratio = np.linalg.norm(delta[0]) / np.linalg.norm(delta[depth - 1])
        found.append(np.log10(ratio))
    return float(np.mean(found))


table = np.array([[decades_lost(name, depth) for depth in DEPTHS] for name in ACTIVATIONS])

# %% [markdown]
# ## Depth and activation
#
# A number is a power of ten: −6 says that δ_1 is a millionth of δ at the last hidden layer.


# %%
@in_style
def heat_map(table, rows, columns, label):
    figure = new_figure((7.4, 0.55 * len(rows) + 1.4))
    axes = figure.add_subplot()
    image = axes.imshow(table, cmap="cividis", vmin=-12, vmax=1, aspect="auto")
    for i, j in np.ndindex(table.shape):
        color = "black" if table[i, j] > -5 else "white"
        axes.text(
            j, i, f"{table[i, j]:.1f}".replace("-", "−"), ha="center", va="center", color=color
        )
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel("hidden layers")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes)
    bar.set_label(label)
    bar.outline.set_visible(False)
    return figure


heat_map(table, list(ACTIVATIONS), DEPTHS, "log₁₀ |δ₁| / |δ last|")

# %% [markdown]
# The logistic function loses most: its slope is at most 1/4. tanh has a slope of 1 at 0. relu's slope
# is 0 or 1, so half of the units pass nothing on; with Glorot's weights that costs a factor too.
#
# ## Weights that make up for it
#
# He's initialisation draws larger weights, by just the factor that the activation loses on average.

# %%
names = ["tanh", "relu", "elu", "gelu"]
he = np.array([[decades_lost(name, depth, "he_uniform") for depth in DEPTHS] for name in names])
heat_map(he, names, DEPTHS, "log₁₀ |δ₁| / |δ last|")

# %%
losses = dict(zip(ACTIVATIONS, table[:, -1], strict=True))
assert losses["logistic"] < -15  # 32 layers: fifteen decades and more
assert losses["tanh"] > -3
assert he[names.index("relu"), -1] > losses["relu"] + 3
print({name: round(float(value), 1) for name, value in losses.items()})
