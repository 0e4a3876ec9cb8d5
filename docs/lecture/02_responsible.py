# %% [markdown]
# # Who is responsible for the loss?
#
# A network has been given one sample and its class. The loss is high. Which unit should have been
# larger, and which smaller? δ_l = ∂L/∂a_l answers it for every unit: a positive δ says that the loss
# falls if the unit's input falls.

# %%
import numpy as np

from gpubackprop import MLP, plots

network = MLP([3, 4, 4, 3], "tanh", dtype="float64", seed=1)
x, y = np.array([[1.0, -2.0, 0.5]]), np.array([1])
g = network.gradients(x, y)
plots.network(network, g)

# %% [markdown]
# Above is the forward pass: x enters on the left, ŷ leaves on the right. Below is the backward pass:
# δ_L = ŷ − e_y enters on the right. The right class has a negative δ, as its probability should be
# larger; the others have a positive one, as theirs should be smaller. A unit further left is
# responsible as far as its weights lead to responsible units, and as far as its own slope lets a
# change through:
#
# ∂L/∂h_l = W_{l+1}ᵀ δ_{l+1},  δ_l = ∂L/∂h_l ⊙ g′(a_l).
#
# ## Every matrix of it

# %%
print(network.trace(x[0], y[0]))

# %% [markdown]
# ## Does a step against δ help?
#
# δ is a claim about small changes. We move each hidden unit's bias a little, once in each direction,
# and look at the loss.

# %%
step = 1e-6
for unit in range(4):
    losses = []
    for sign in (1, -1):
        moved = network.copy()
        moved.b[1][unit] += sign * step
        losses.append(float(moved.gradients(x, y).loss))
    measured = (losses[0] - losses[1]) / (2 * step)
    claimed = g.pre_activation[1][0, unit]
    print(f"unit {unit} of layer 2: claimed {claimed:+.6f}, measured {measured:+.6f}")
    np.testing.assert_allclose(measured, claimed, atol=1e-8)
