"""JAX: every function is jitted, and its arguments are arrays on its device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpubackprop.bench import operations
from gpubackprop.bench.losses import IGNORED, peer_options
from gpubackprop.bench.peer_timers import JaxTimer
from gpubackprop.bench.problems import Unsupported
from gpubackprop.bench.shapes import Case
from gpubackprop.bench.steps import EPS, LEARNING_RATE, StepData
from gpubackprop.bench.timers import Timer, Work, number


def timer(device: str, provider: str) -> Timer:
    import jax

    platform = "cpu" if device == "cpu" else "gpu"
    try:
        jax.config.update("jax_default_device", jax.devices(platform)[number(device)])
    except RuntimeError as error:
        raise ImportError(f"the installed JAX has no {platform}: {error}".splitlines()[0]) from None
    jax.config.update("jax_default_matmul_precision", "highest")  # float32, as for all providers
    return JaxTimer(device)


def setup(case: Case, where: Timer, provider: str) -> Work:
    import jax

    make = _SETUPS.get(case.op)
    if make is None:
        raise Unsupported(f"JAX is not set up for {case.op}")
    return make(jax, case)


def _work(jax: Any, case: Case, function: Callable[..., Any], names: tuple[str, ...]) -> Work:
    """Jit `function(**inputs)`, which returns the results of these names."""
    inputs = {name: jax.device_put(a) for name, a in operations.get(case.op).inputs(case).items()}
    jitted = jax.jit(function)

    def run() -> Any:
        return jitted(**inputs)

    def outputs() -> dict[str, Any]:
        return {n: np.asarray(a) for n, a in zip(names, run(), strict=True)}

    return Work(run, outputs)


def _cross_entropy(jax: Any, case: Case) -> Work:
    jnp, options = jax.numpy, peer_options(case)
    smooth, z_loss = options["label_smoothing"], options["z_loss"]

    def mean(logits: Any, labels: Any, class_weight: Any) -> Any:
        z, classes = logits.astype(jnp.float32), logits.shape[1]
        counts = labels != IGNORED
        label = jnp.where(counts, labels, 0)
        weight = jnp.ones(classes) if class_weight is None else class_weight
        lse = jax.nn.logsumexp(z, axis=1)
        picked = jnp.take_along_axis(z, label[:, None], 1)[:, 0]
        row = (1 - smooth) * weight[label] * (lse - picked) + z_loss * lse * lse
        if smooth:
            row += smooth / classes * (weight * (lse[:, None] - z)).sum(1)
        return (row * counts).sum() / (weight[label] * counts).sum()

    both = jax.value_and_grad(mean)
    return _work(
        jax, case, lambda logits, labels, class_weight=None: both(logits, labels, class_weight),
        ("loss", "delta"),
    )  # fmt: skip


def _activation(jax: Any, name: str) -> Callable[[Any], Any]:
    functions = {
        "relu": jax.nn.relu, "tanh": jax.numpy.tanh,
        "gelu": lambda a: jax.nn.gelu(a, approximate=False),
    }  # fmt: skip
    if name not in functions:
        raise Unsupported(f"peers are set up for {', '.join(functions)}")
    return functions[name]


def _forward(jax: Any, case: Case) -> Work:
    function = _activation(jax, case.variant)
    return _work(jax, case, lambda a: (function(a),), ("h",))


def _affine(jax: Any, case: Case) -> Work:
    function = _activation(jax, case.variant)

    def both(x: Any, W: Any, b: Any, grad_h: Any) -> Any:
        h, pull = jax.vjp(lambda x, W, b: function(x @ W.T + b), x, W, b)
        grad_x, grad_W, grad_b = pull(grad_h)
        return h, grad_W, grad_b, grad_x

    return _work(jax, case, both, ("h", "grad_W", "grad_b", "grad_x"))


def _training_step(jax: Any, case: Case) -> Work:
    jnp, data = jax.numpy, StepData(case)
    x, y = (jax.device_put(array) for array in data.data())
    params = [jax.device_put(array) for group in data.weights() for array in group]
    layers = len(params) // 2

    def loss_of(params: Any, x: Any, y: Any) -> Any:
        h = x
        for layer in range(layers):
            h = h @ params[layer].T + params[layers + layer]
            h = jax.nn.relu(h) if layer < layers - 1 else h
        picked = jnp.take_along_axis(h, y[:, None], 1)[:, 0]
        return (jax.nn.logsumexp(h, axis=1) - picked).mean()

    def step(params: Any, m: Any, v: Any, count: Any, rows: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params, x[rows], y[rows])
        count = count + 1
        m = [0.9 * old + 0.1 * g for old, g in zip(m, grads, strict=True)]
        v = [0.999 * old + 0.001 * g * g for old, g in zip(v, grads, strict=True)]
        first, second = 1 - 0.9**count, 1 - 0.999**count
        params = [
            p - LEARNING_RATE * (a / first) / (jnp.sqrt(b / second) + EPS)
            for p, a, b in zip(params, m, v, strict=True)
        ]
        return params, m, v, count, loss

    jitted = jax.jit(step, donate_argnums=(0, 1, 2))
    zeros = [[jnp.zeros_like(p) for p in params] for _ in range(2)]
    state: list[Any] = [params, *zeros, jnp.float32(0)]
    batches = [jax.device_put(data.rows(i)) for i in range(data.batches)]

    def one(rows: Any) -> Any:
        *state[:], loss = jitted(*state, rows)
        return loss

    def losses() -> dict[str, Any]:
        numbers = range(data.steps_checked)
        return {"losses": [float(one(batches[i % data.batches])) for i in numbers]}

    return Work(lambda: [one(rows) for rows in batches], losses, data.batches)


_SETUPS: dict[str, Callable[[Any, Case], Work]] = {
    "softmax_cross_entropy": _cross_entropy,
    "activation_forward": _forward,
    "affine_layer": _affine,
    "training_step": _training_step,
}
