"""The providers: this library, array expressions, the limit, and the peers that are installed."""

from __future__ import annotations

import argparse
import importlib.metadata
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gpubackprop.bench.shapes import Case
from gpubackprop.errors import OptionError

TORCH_OPS = frozenset({
    "softmax_cross_entropy", "pointwise_loss", "activation_forward", "activation_backward",
    "column_sum", "sum_of_squares", "gather_rows", "update", "update_many", "affine_layer",
    "training_step", "cold_start",
})  # fmt: skip
STEP = frozenset({"training_step", "cold_start"})
LINEAR = frozenset({"linear_cross_entropy", "linear_gelu"})
FIT = frozenset({"fit"})
NETWORKS = frozenset({"fit_many"})
MANY, PROCESSES, IN_TURN = "fit_many", "fit_many, processes", "one after another"  # all ours
OURS = {"cpu": "numpy", "cuda": "cupy_raw"}
NUMPY_ALONE = "gpubackprop, NumPy alone"  # without the compiled kernels of the host
FRONT_ENDS = ("gpubackprop.torch", "gpubackprop.sklearn")
OWN = frozenset((*OURS.values(), *FRONT_ENDS))
LIMIT = "limit"
SAME_SIZE = "limit, same size"  # for a small case on a GPU
COLD_CACHE = "cupy_raw, cold L2"  # ours; the L2 cache is emptied before each call
NO_PEERS = frozenset({LIMIT, SAME_SIZE, COLD_CACHE})
_PACKAGE = "gpubackprop.bench"


@dataclass(frozen=True)
class Provider:
    """One way to do a case.

    Attributes
    ----------
    name : name in tables.
    module : module of `gpubackprop.bench` with ``timer`` and ``setup``.
    kinds : "cpu", "cuda" or both.
    ops : operations that it is set up for; None for all.
    group : its name for ``--peers``; "" if it always takes part.
    slow : whether it takes part only in key cases with all threads, as it compiles for seconds.
    plain : whether it takes part only in cases without a variant.
    slow_for : operations for which a slow provider runs every case on a GPU.
    distribution : the package whose version is recorded.
    imports : what a program imports to use it, if it takes part in "cold_start".
    asked : whether it takes part only if it is named.
    on_host : operations that it computes on the host although there is a GPU.
    extra : the extra of this package that installs it.
    """

    name: str
    module: str
    kinds: tuple[str, ...]
    ops: frozenset[str] | None = None
    group: str = ""
    slow: bool = False
    distribution: str = ""
    plain: bool = False
    slow_for: frozenset[str] = frozenset()
    imports: str = ""
    extra: str = ""
    asked: bool = False
    on_host: frozenset[str] = frozenset()

    def takes_part(
        self, case: Case, device: str, peers: frozenset[str], only: frozenset[str] = frozenset()
    ) -> bool:
        """Say whether it runs this case on "cpu" or "cuda:N"; `only` names the providers that
        may."""
        kind = device.partition(":")[0]
        if kind not in self.kinds and case.op not in self.on_host:
            return False
        if self.ops is not None and case.op not in self.ops:
            return False
        if only or self.asked:
            return self.name in only
        if self.plain and case.variant:
            return False
        often = case.key or not self.slow or (kind == "cuda" and case.op in self.slow_for)
        return not self.group or (self.group in peers and often)


_BOTH = ("cpu", "cuda")
_OWN = "from gpubackprop import MLP, Trainer"
PROVIDERS = (
    Provider("numpy", "ours", ("cpu",), imports=_OWN),
    Provider(
        "cupy_raw", "ours", ("cuda",), imports=f"import cupy, gpubackprop.backends.cupy; {_OWN}"
    ),
    Provider("cupy_arrays", "expressions", ("cuda",), TORCH_OPS, imports="import cupy"),
    Provider(LIMIT, "limits", _BOTH, TORCH_OPS - {"cold_start"}),
    Provider(
        SAME_SIZE, "limits", ("cuda",), TORCH_OPS - {"cold_start", "training_step", "affine_layer"}
    ),
    Provider("NumPy by hand", "expressions", ("cpu",), imports="import numpy"),
    Provider(
        "NumPy by hand, two exps", "expressions", ("cpu",), frozenset({"softmax_cross_entropy"}),
        plain=True,
    ),
    Provider(
        FRONT_ENDS[0], "torch_peer", _BOTH,
        LINEAR | {"softmax_cross_entropy", "update_many"}, asked=True, extra="torch",
    ),
    Provider(FRONT_ENDS[1], "other_peers", _BOTH, FIT, asked=True, extra="sklearn"),
    Provider(MANY, "many_runs", _BOTH, NETWORKS, asked=True),
    Provider(PROCESSES, "many_runs", ("cpu",), NETWORKS, asked=True),
    Provider(IN_TURN, "many_runs", _BOTH, NETWORKS, asked=True),
    Provider(
        "torch eager", "torch_peer", _BOTH, TORCH_OPS | LINEAR | FIT, "torch",
        distribution="torch", imports="import torch", extra="torch",
    ),
    Provider(
        "torch foreach", "torch_peer", _BOTH, frozenset({"update_many"}), asked=True, extra="torch"
    ),
    Provider(
        "torch fused", "torch_peer", _BOTH,
        frozenset({"update", "update_many", "training_step"}) | FIT, "torch",
        distribution="torch", extra="torch",
    ),
    Provider(
        "torch.compile", "torch_peer", _BOTH, TORCH_OPS | LINEAR, "torch.compile", True, "torch",
        slow_for=frozenset({"softmax_cross_entropy"}), imports="import torch",
        extra="torch",
    ),
    Provider(
        "torch.compile max-autotune", "torch_peer", ("cuda",), TORCH_OPS, "torch.compile", True,
        "torch", imports="import torch", extra="torch",
    ),
    Provider(
        "Liger", "torch_peer", ("cuda",),
        frozenset({"softmax_cross_entropy", "linear_cross_entropy"}), "liger",
        distribution="liger-kernel", extra="bench",
    ),
    Provider(
        "JAX jit", "jax_peer", _BOTH,
        STEP | {"softmax_cross_entropy", "activation_forward", "affine_layer"}, "jax",
        distribution="jax", imports="import jax, jax.numpy", extra="bench",
    ),
    Provider(
        "scikit-learn", "other_peers", ("cpu",), STEP | FIT, "scikit-learn",
        distribution="scikit-learn", imports="from sklearn.neural_network import MLPClassifier",
        extra="sklearn", on_host=FIT,
    ),
    Provider(
        "thinc", "other_peers", ("cpu",), STEP, "thinc", distribution="thinc",
        imports="import thinc.api", extra="bench",
    ),
    Provider(
        NUMPY_ALONE, "ours", ("cpu",),
        frozenset({"softmax_cross_entropy", "training_step", "update", "update_many"}),
        "numpy-alone",
    ),
)  # fmt: skip
GROUPS = tuple(dict.fromkeys(one.group for one in PROVIDERS if one.group))
BY_NAME = {one.name: one for one in PROVIDERS}


def reference(names: Iterable[str], device: str) -> str:
    """Return our provider's name among these: the others' ratios refer to it."""
    own = OURS[device.partition(":")[0]]
    found = set(names)
    return next((name for name in (own, *FRONT_ENDS, MANY) if name in found), own)


def peer_groups(text: str) -> frozenset[str]:
    """Return the groups that "none", "all" or a list with commas names.

    Raises
    ------
    OptionError : a group is unknown.
    """
    if text in ("none", "all"):
        return frozenset(GROUPS) if text == "all" else frozenset()
    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    for name in sorted(names - set(GROUPS)):
        raise OptionError(f"no peer {name!r}; valid are all, none, {', '.join(GROUPS)}")
    return names


def peers_option(text: str) -> frozenset[str]:
    """Return `peer_groups` for a command line: an unknown group is wrong usage."""
    try:
        return peer_groups(text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def module_name(provider: str) -> str:
    return f"{_PACKAGE}.{BY_NAME[provider].module}"


def why_missing(provider: str, reason: str) -> str:
    """Return `reason`, and if the package is missing, the command that installs it."""
    extra = BY_NAME[provider].extra
    if not extra or not _NOT_THERE.search(reason):
        return reason
    return f'{reason}; run: pip install "gpubackprop[{extra}]"'


_NOT_THERE = re.compile(r"No module named|import of \S+ halted|cannot import name")


def package_versions() -> dict[str, str]:
    """Return the version of every installed package that may take part."""
    names = {one.distribution for one in PROVIDERS if one.distribution}
    names |= {"numpy", "scipy", "triton", "nvmath-python", "cupy-cuda12x", "cupy-cuda13x"}
    names |= {"nvidia-ml-py"}
    found: dict[str, Any] = {}
    for name in sorted(names):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
