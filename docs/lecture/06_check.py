# %% [markdown]
# # Checking gradients
#
# A formula for a gradient can be wrong in ways that still train. Central differences tell: the loss a
# little to the right minus the loss a little to the left.

# %%
import numpy as np

from gpubackprop import MLP, gradient_check
from gpubackprop.figures import BLUE, ORANGE, in_style, new_figure

rng = np.random.default_rng(0)
network = MLP([4, 6, 3], "tanh", dtype="float64", seed=0)
x, y = rng.normal(size=(9, 4)), rng.integers(0, 3, 9)
g = network.gradients(x, y)


def loss_with(change):
    moved = network.copy()
    moved.W[0][2, 1] += change
    return float(moved.gradients(x, y).loss)


# %% [markdown]
# ## How small a step?
#
# The error of a difference has two parts. The curve is not a line, which costs h² (h for a one-sided
# difference): smaller steps are better. And the two losses are rounded, which costs 1/h: larger steps
# are better. Between them lies the best step.


# %%
@in_style
def errors(steps):
    exact = g.W[0][2, 1]
    central = [abs((loss_with(h) - loss_with(-h)) / (2 * h) - exact) for h in steps]
    one_sided = [abs((loss_with(h) - loss_with(0)) / h - exact) for h in steps]
    figure = new_figure((6.6, 4.0))
    axes = figure.add_subplot()
    axes.loglog(steps, one_sided, "o-", color=BLUE, label="one-sided: (L(w+h) − L(w)) / h")
    axes.loglog(steps, central, "o-", color=ORANGE, label="central: (L(w+h) − L(w−h)) / 2h")
    axes.set_xlabel("step h")
    axes.set_ylabel("error of the derivative")
    axes.grid(True)
    axes.legend()
    assert min(central) < 1e-10 < min(one_sided)
    return figure


errors(10.0 ** -np.arange(1, 13))

# %% [markdown]
# ## The call
#
# `gradient_check` does this for every weight and bias, and for every hidden unit too, in float64, with
# a five-point formula and a step that is quartered until two estimates agree. A step that crosses the
# kink of relu is shortened; a unit that sits on it is skipped and counted.

# %%
print(gradient_check(network, x, y))
relu = MLP([4, 6, 3], "relu", seed=0)
print(gradient_check(relu, x, y, coordinates=1000))
assert gradient_check(network, x, y).passed

# %% [markdown]
# ## It finds a fault
#
# A tanh whose slope is wrong by one part in a thousand:

# %%
from dataclasses import replace

from gpubackprop.formulas import activation

tanh = activation("tanh")


def wrong_slope(h, out, work, parameter):
    tanh.slope(h, out, work, parameter)
    out *= 1.001


faulty = MLP([4, 6, 3], dtype="float64", seed=0, device="cpu:numpy")
faulty.activations = [replace(tanh, slope=wrong_slope)]
found = gradient_check(faulty, x, y)
print(found)
assert not found.passed
