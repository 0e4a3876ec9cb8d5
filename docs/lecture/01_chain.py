# %% [markdown]
# # The deep and thin chain
#
# A network of L layers with one unit each. Every weight, bias and unit is a number, so the chain rule
# is a product of numbers, and each of its factors can be looked at.
#
# a_l = w_l h_{l-1} + b_l,  h_l = tanh(a_l),  ŷ = a_L,  loss ½ (ŷ − t)².

# %%
import numpy as np

from gpubackprop import MLP, plots

L = 6
network = MLP([1] * (L + 1), "tanh", output="linear", dtype="float64", seed=3)
for layer, w in enumerate([1.2, -0.9, 1.4, 0.8, -1.1, 1.5]):
    network.W[layer][...] = w
    network.b[layer][...] = 0.1 * layer
x, t = np.array([[0.5]]), np.array([[1.0]])
g = network.gradients(x, t)

# %% [markdown]
# ## One factor for each step back
#
# The loss depends on w_1 through a_1, h_1, a_2, ... and a_L. Going back along that way, each step is
# one factor:
#
# - from the loss to a_L: ŷ − t,
# - from a_{l+1} to h_l: w_{l+1},
# - from h_l to a_l: tanh′(a_l) = 1 − h_l².
#
# We multiply by hand and print what the library says beside it.

# %%
w = [float(W[0, 0]) for W in network.W]
h = [float(x[0, 0]), *(float(values[0, 0]) for values in g.h)]

delta = float(g.yhat[0, 0] - t[0, 0])  # δ_L
print("layer  by hand: δ_l   library: δ_l    ∂L/∂w_l = δ_l h_{l-1}")
for layer in range(L, 0, -1):
    ours = g.pre_activation[layer - 1][0, 0]
    print(f"{layer:5}  {delta:13.8f}  {ours:13.8f}  {delta * h[layer - 1]:13.8f}")
    np.testing.assert_allclose(delta, ours, rtol=1e-12)
    np.testing.assert_allclose(delta * h[layer - 1], g.W[layer - 1][0, 0], rtol=1e-12)
    if layer > 1:
        delta *= w[layer - 1] * (1 - h[layer - 1] ** 2)

# %% [markdown]
# The product for layer 1 uses the product for layer 2, which uses that for layer 3. Nothing is
# multiplied twice: that is all that backpropagation adds to the chain rule.
#
# ## The chain drawn
#
# Forward the units hold x, h_l and ŷ. Backward they hold δ_l. A line is a weight, or its gradient.

# %%
plots.network(network, g)

# %% [markdown]
# ## Where the product goes
#
# Each factor w · tanh′(a) is at most |w|, since tanh′ is at most 1. With weights of 0.5 nothing is
# left for layer 1 after 30 layers. Larger weights need not help: they drive the units to where tanh is
# flat, and its slope takes back more than the weight gives.

# %%
for scale in (0.5, 1.0, 1.5):
    deep = MLP([1] * 31, "tanh", output="linear", dtype="float64")
    for W in deep.W:
        W[...] = scale
    deltas = [abs(float(d[0, 0])) for d in deep.gradients(x, t).pre_activation]
    print(f"all weights {scale}: |δ_30| = {deltas[-1]:.3g}, |δ_1| = {deltas[0]:.3g}")
