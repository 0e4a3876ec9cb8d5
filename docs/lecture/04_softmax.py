# %% [markdown]
# # Softmax and cross entropy, step by step
#
# Why is δ = ŷ − e_y? One row of logits a, its class y, and nothing but numbers.

# %%
import numpy as np

from gpubackprop import ops
from gpubackprop.figures import BLUE, ORANGE, in_style, new_figure

a, y = np.array([2.0, -1.0, 0.5, 1.0]), 2
K = len(a)

# %% [markdown]
# ## Forward
#
# 1. m = max a, and shifted logits a − m. Softmax does not change, and exp cannot overflow.
# 2. e_k = exp(a_k − m), and their sum S.
# 3. ŷ_k = e_k / S, the probabilities.
# 4. L = −log ŷ_y = log S − (a_y − m).

# %%
m = a.max()
e = np.exp(a - m)
S = e.sum()
yhat = e / S
loss = np.log(S) - (a[y] - m)
print("a     ", a)
print("a - m ", a - m)
print("e     ", e.round(4), " S =", S.round(4))
print("yhat  ", yhat.round(4), " sum =", yhat.sum())
print("L     ", loss.round(6), " -log yhat_y =", -np.log(yhat[y]).round(6))

# %% [markdown]
# ## Backward, the long way
#
# L depends on a through ŷ_y alone: ∂L/∂ŷ_y = −1/ŷ_y. And softmax has the slopes
#
# ∂ŷ_k/∂a_j = ŷ_k ([k = j] − ŷ_j),
#
# a whole matrix J, since raising one logit lowers all other probabilities. The chain rule is a product
# of a row with that matrix.

# %%
J = np.diag(yhat) - np.outer(yhat, yhat)
grad_yhat = np.zeros(K)
grad_yhat[y] = -1 / yhat[y]
long_way = grad_yhat @ J
print("J\n", J.round(4))
print("dL/da ", long_way.round(6))

# %% [markdown]
# ## Backward, the short way
#
# Only row y of J counts: −1/ŷ_y · ŷ_y ([y = j] − ŷ_j) = ŷ_j − [y = j]. The factor ŷ_y cancels, and
# with it every trouble for a small ŷ_y. So δ = ŷ − e_y: the prediction minus the truth.

# %%
e_y = np.eye(K)[y]
delta = yhat - e_y
print("delta ", delta.round(6))
np.testing.assert_allclose(delta, long_way, atol=1e-15)

library_loss, library_delta = ops.softmax_cross_entropy(a[None], np.array([y]))
np.testing.assert_allclose(library_loss, loss, rtol=1e-14)
np.testing.assert_allclose(library_delta[0], delta, atol=1e-15)

# %% [markdown]
# ## The pull on each logit
#
# δ sums to 0: what pushes the right class up is taken from the others in proportion to their
# probability.


# %%
@in_style
def pull():
    figure = new_figure((7.2, 3.4))
    left, right = (figure.add_subplot(1, 2, i) for i in (1, 2))
    colors = [ORANGE if k == y else BLUE for k in range(K)]
    for axes, values, name in ((left, yhat, "ŷ"), (right, -delta, "−δ = e_y − ŷ")):
        axes.bar(range(K), values, color=colors)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_title(name)
        axes.set_xlabel("class (orange: the right one)")
        axes.set_xticks(range(K))
    return figure


assert abs(delta.sum()) < 1e-15
pull()

# %% [markdown]
# ## Why the short way is also the exact way
#
# With a logit far below the largest one, ŷ_y is 0 in float32 and −1/ŷ_y is infinite. The long way
# gives NaN. ŷ − e_y is −1, which is right, and L = log S − (a_y − m) is right too.

# %%
far = np.array([[300.0, 0.0]], np.float32)
loss, delta = ops.softmax_cross_entropy(far, np.array([1]))
print("loss", loss, " delta", delta[0])
assert (float(loss), delta[0].tolist()) == (300.0, [1.0, -1.0])
