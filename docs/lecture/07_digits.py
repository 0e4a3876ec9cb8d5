# %% [markdown]
# # Training on handwritten digits
#
# scikit-learn brings 1,797 digits of 8 × 8 pixels. First all 64 pixels, then two numbers for each
# digit, so that the boundaries between the classes can be drawn.

# %%
import numpy as np
from sklearn.datasets import load_digits

from gpubackprop import MLP, Trainer, data, plots
from gpubackprop.figures import in_style, new_figure

pixels, digits = load_digits(return_X_y=True)
train, test = data.split_rows(len(pixels), 0.2, seed=0, stratify=digits)
scale = data.Standardizer.fit(pixels, train)
x = scale.transform(pixels)
network = MLP([64, 64, 10], "relu", initializer="he_uniform", seed=0)
trainer = Trainer(network, optimizer="adam", batch_size=64)
history = trainer.fit(x[train], digits[train], epochs=20, validation=0.1)
result = trainer.evaluate(x[test], digits[test])
print({name: round(float(value), 3) for name, value in result.items()})
assert result["accuracy"] > 0.95

# %%
plots.learning_curve(history, loss_label="cross entropy")

# %% [markdown]
# ## Which digits are taken for which

# %%
plots.confusion_matrix(digits[test], network.predict(x[test]).argmax(1), range(10))

# %% [markdown]
# ## Boundaries
#
# The two directions in which the digits vary most (their principal components, by a singular value
# decomposition) make a plane. A network with two inputs colours it: the class that it would predict at
# each point, paler where it is less sure. A number stands at the mean of its digit.

# %%
_, _, directions = np.linalg.svd(x[train] - x[train].mean(0), full_matrices=False)
plane = (x @ directions[:2].T).astype(np.float32)
plane /= plane[train].std(0)
colors = np.array(
    [[0.12, 0.47, 0.71], [1.0, 0.5, 0.05], [0.17, 0.63, 0.17], [0.84, 0.15, 0.16], [0.58, 0.4, 0.74],
     [0.55, 0.34, 0.29], [0.89, 0.47, 0.76], [0.5, 0.5, 0.5], [0.74, 0.74, 0.13], [0.09, 0.75, 0.81]]
)  # fmt: skip


def trained(widths, activation, epochs):
    small = MLP(widths, activation, initializer="he_uniform", seed=1)
    Trainer(small, optimizer="adam", batch_size=64, seed=0).fit(
        plane[train], digits[train], epochs=epochs
    )
    return small


@in_style
def boundaries(networks):
    figure = new_figure((4.6 * len(networks), 4.8))
    across = np.linspace(plane.min() - 0.2, plane.max() + 0.2, 160, dtype=np.float32)
    grid = np.stack(np.meshgrid(across, across), -1).reshape(-1, 2)
    for i, (title, small) in enumerate(networks.items(), 1):
        axes = figure.add_subplot(1, len(networks), i)
        yhat = small.predict(grid)
        shade = 1 - 0.75 * yhat.max(1, keepdims=True) * (1 - colors[yhat.argmax(1)])
        extent = (across[0], across[-1], across[0], across[-1])
        axes.imshow(shade.reshape(160, 160, 3), origin="lower", extent=extent)
        axes.scatter(
            *plane[test].T, c=colors[digits[test]], s=14, edgecolors="white", linewidths=0.4
        )
        share = float((small.predict(plane[test]).argmax(1) == digits[test]).mean())
        for digit in range(10):
            at = plane[train][digits[train] == digit].mean(0)
            axes.text(*at, str(digit), weight="bold", ha="center", va="center")
        axes.set_title(f"{title}: {share:.0%} right", fontsize=12)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


networks = {
    "no hidden layer": trained([2, 10], "relu", 60),
    "16 relu units": trained([2, 16, 10], "relu", 60),
    "64 and 64 tanh units": trained([2, 64, 64, 10], "tanh", 60),
}
boundaries(networks)

# %% [markdown]
# Without a hidden layer the boundaries are straight lines. Hidden units bend them. Two numbers of 64
# are too few to tell ten digits apart, whatever the network: on all pixels the same training gets
# more than 95 of 100 right.

# %%
share = {
    name: float((small.predict(plane[test]).argmax(1) == digits[test]).mean())
    for name, small in networks.items()
}
assert share["64 and 64 tanh units"] > share["no hidden layer"]
print({name: round(value, 2) for name, value in share.items()})
