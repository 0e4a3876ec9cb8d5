# %% [markdown]
# # Matrix form beside scalar loops
#
# The same backward pass twice: number by number, as one would write it first, and layer by layer as
# matrix products. Rows of x are samples, so the lecture's W h + b is x Wᵀ + b here.

# %%
import time

import numpy as np

from gpubackprop import MLP

rng = np.random.default_rng(0)
network = MLP([5, 7, 6, 3], "tanh", dtype="float64", seed=0)
x, y = rng.normal(size=(8, 5)), rng.integers(0, 3, 8)
N = len(x)

# %% [markdown]
# ## Loops
#
# One sample, one unit, one weight at a time.


# %%
def forward_by_loops(sample):
    h, a = [list(sample)], []
    for W, b in zip(network.W, network.b, strict=True):
        a.append([b[i] + sum(W[i, j] * h[-1][j] for j in range(W.shape[1])) for i in range(len(b))])
        h.append([np.tanh(value) for value in a[-1]])
    return h, a


def gradients_by_loops():
    grad_W = [np.zeros_like(W) for W in network.W]
    grad_b = [np.zeros_like(b) for b in network.b]
    for sample, label in zip(x, y, strict=True):
        h, a = forward_by_loops(sample)
        total = sum(np.exp(value) for value in a[-1])
        delta = [(np.exp(v) / total - (k == label)) / N for k, v in enumerate(a[-1])]
        for layer in range(len(network.W) - 1, -1, -1):
            for i in range(len(delta)):
                grad_b[layer][i] += delta[i]
                for j in range(len(h[layer])):
                    grad_W[layer][i, j] += delta[i] * h[layer][j]
            W = network.W[layer]
            grad_h = [sum(W[i, j] * delta[i] for i in range(len(delta))) for j in range(W.shape[1])]
            delta = [grad_h[j] * (1 - h[layer][j] ** 2) for j in range(len(grad_h))]
    return grad_W, grad_b


# %% [markdown]
# ## Matrices
#
# All samples, units and weights of a layer at once. Each line is a line of the lecture.


# %%
def gradients_by_matrices():
    h, a = [x], []
    for W, b in zip(network.W, network.b, strict=True):
        a.append(h[-1] @ W.T + b)  # a_l = W_l h_{l-1} + b_l
        h.append(np.tanh(a[-1]))  # h_l = g(a_l)
    e = np.exp(a[-1])
    delta = (e / e.sum(1, keepdims=True) - np.eye(3)[y]) / N  # δ_L = (ŷ − e_y) / N
    grad_W, grad_b = [], []
    for layer in range(len(network.W) - 1, -1, -1):
        grad_W.insert(0, delta.T @ h[layer])  # ∇W_l = Σ δ_l h_{l-1}ᵀ
        grad_b.insert(0, delta.sum(0))  # ∇b_l = Σ δ_l
        if layer:
            grad_h = delta @ network.W[layer]  # ∂L/∂h_{l-1} = W_lᵀ δ_l
            delta = grad_h * (1 - h[layer] ** 2)  # δ_{l-1} = ∂L/∂h_{l-1} ⊙ g′(a_{l-1})
    return grad_W, grad_b


# %% [markdown]
# ## All three agree
#
# The library fuses bias and activation, and slope and bias gradient, but the sums are the same.

# %%
g = network.gradients(x, y)
for name, (grad_W, grad_b) in {
    "loops": gradients_by_loops(),
    "matrices": gradients_by_matrices(),
}.items():
    worst = max(
        float(np.abs(mine - ours).max())
        for mine, ours in zip([*grad_W, *grad_b], [*g.W, *g.b], strict=True)
    )
    print(f"{name}: largest difference to network.gradients {worst:.1e}")
    assert worst < 1e-14

# %% [markdown]
# ## Why matrices
#
# There are as many multiplications either way. In matrix form they stand together, and a library of
# matrix products does thousands of millions a second where a loop of Python does some millions. The
# ratio below is of the machine that built this page.

# %%
start = time.perf_counter()
gradients_by_loops()
loops = time.perf_counter() - start
start = time.perf_counter()
for _ in range(20):
    gradients_by_matrices()
matrices = (time.perf_counter() - start) / 20
print("matrices are faster than loops:", matrices < loops)
