"""Programs of losses, layers and optimizers, by this package and by PyTorch."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import io
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import gpubackprop.torch as gt
from gpubackprop.torch import patching
from gpubackprop.torch.bridge import numpy_view
from tests import tolerances
from tools.fuzz import known, programs, pytorch_lines
from tools.fuzz.leaves import Leaves, leaves_of
from tools.fuzz.programs import Fuzzer, World

DTYPES = ("float64", "float32", "float16", "bfloat16")
CHANCE = 4.0  # a single draw may be worse than PyTorch's, a mean over draws may not

# -- worlds -----------------------------------------------------------------------------------


def _names(functions: Any, optimizers: Any, convert: Callable[[Any], Any], exact: bool) -> Any:
    def names() -> dict[str, Any]:
        dtypes = {name: torch.float64 if exact else getattr(torch, name) for name in DTYPES}
        return dtypes | {
            "torch": torch, "nn": nn, "copy": copy, "pickle": pickle, "by_file": by_file, "resize_": resize_,
            "F": functions, "optim": optimizers, "convert": convert,
        }  # fmt: skip

    return names


def by_file(value: Any) -> Any:
    """Write a value by torch.save and read it back."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def resize_(tensor: torch.Tensor, *sizes: int) -> torch.Tensor:
    """Resize a tensor and fill it; where PyTorch raises, give it its own sizes back.

    PyTorch leaves it with the new sizes then, and writes past its memory in a later line.
    """
    before = tensor.shape, tensor.stride(), tensor.storage_offset()
    try:
        tensor.resize_(*sizes)
    except RuntimeError:
        tensor.as_strided_(*before)
        raise
    return tensor.fill_(1)


@contextmanager
def fresh(*contexts: Callable[[], contextlib.AbstractContextManager[Any]]) -> Iterator[None]:
    """Give PyTorch the global state of a new process, within `contexts`."""
    torch.manual_seed(0)
    try:
        with contextlib.ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context())
            yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.set_grad_enabled(True)


@contextmanager
def other_roundings(seed: int) -> Iterator[None]:
    """Make PyTorch round each layer's product as if its sums had another order.

    No scale tells how far off a saturated activation is, or one of a difference of large numbers.
    One of these is p - y: the gradient of a loss of probabilities y is off by a unit of y.
    """
    rng, exact = np.random.default_rng(seed), nn.functional.linear
    loss = torch._C._nn.cross_entropy_loss

    def noisy_loss(
        z: torch.Tensor, y: torch.Tensor, weight: Any, reduction: int, ignore_index: int,
        smoothing: float,
    ) -> torch.Tensor:  # fmt: skip
        out = loss(z, y, weight, reduction, ignore_index, smoothing)
        if not y.is_floating_point() or not z.numel():
            return out
        classes = min(1, z.dim() - 1)
        with torch.no_grad():
            drawn = torch.as_tensor(rng.uniform(-1, 1, tuple(z.shape)), device=z.device)
            tau = y * (1 - smoothing) + smoothing / z.shape[classes]
            if weight is not None:
                tau = tau * weight.reshape(-1, *[1] * (z.dim() - 1 - classes))
            unit = (drawn * tau * torch.finfo(z.dtype).eps).to(z.dtype)
        rows = (torch.where(z.isfinite(), z, 0) * unit).sum(classes)
        noise = (rows, rows.sum() / max(1, rows.numel()), rows.sum())[reduction]
        return out + (noise - noise.detach()).to(out.dtype)

    def noisy(x: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
        out = exact(x, weight, bias)
        with torch.no_grad():
            own = None if bias is None else bias.abs()
            sums = exact(x.abs(), weight.abs(), own)
            sums_in = max(torch.finfo(out.dtype).bits, 32)
            unit = torch.finfo(torch.float64 if sums_in == 64 else torch.float32).eps
            size = sums * unit + out.abs() * torch.finfo(out.dtype).eps
            drawn = torch.as_tensor(rng.uniform(-1, 1, tuple(out.shape)), device=out.device)
        return out + drawn.to(out.dtype) * size.to(out.dtype)

    with (
        mock.patch.object(nn.functional, "linear", noisy),
        mock.patch.object(torch._C._nn, "cross_entropy_loss", noisy_loss),
        _rounded_gradients(rng),
    ):
        yield


@contextmanager
def _rounded_gradients(rng: np.random.Generator) -> Iterator[None]:
    """Let steps with weight decay see gradients that are off by a unit of the sum's terms.

    If g + weight_decay * p is 0, what is left of it is the rounding. Adam divides that by eps=1e-8,
    and the next step's sum is off by the result.
    """
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def before(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            decay = group.get("weight_decay", 0)
            for p in group["params"] if decay else ():
                if p.grad is None or p.grad.layout != torch.strided or p.grad.dtype != p.dtype:
                    continue
                with torch.no_grad():
                    kept.append((p.grad, p.grad.clone()))
                    size = torch.finfo(p.dtype).eps * (p.grad.abs() + decay * p.abs())
                    drawn = torch.as_tensor(rng.uniform(-1, 1, tuple(p.shape)), device=p.device)
                    p.grad += drawn.to(p.dtype) * size

    def after(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            for grad, exact in kept:
                grad.copy_(exact)
        kept.clear()

    with contextlib.ExitStack() as stack:
        stack.callback(register_optimizer_step_pre_hook(before).remove)
        stack.callback(register_optimizer_step_post_hook(after).remove)
        yield


def _twins() -> Sequence[World]:
    names = _names(THEIRS, torch.optim, _same_module, False)
    noisy = [functools.partial(other_roundings, seed) for seed in range(4)]
    return [
        EXACT,
        *(World(f"twin {n}", names, functools.partial(fresh, one)) for n, one in enumerate(noisy)),
    ]


OURS = SimpleNamespace(
    cross_entropy=gt.cross_entropy, linear_cross_entropy=gt.linear_cross_entropy,
    CrossEntropyLoss=gt.CrossEntropyLoss,
)  # fmt: skip
THEIRS = SimpleNamespace(
    cross_entropy=nn.functional.cross_entropy,
    linear_cross_entropy=nn.functional.linear_cross_entropy,
    CrossEntropyLoss=nn.CrossEntropyLoss,
)


class Late:
    """PyTorch's names, looked up when a line uses them: by then `patch` has put ours there."""

    def __init__(self, *places: Any) -> None:
        self._places = places

    def __getattr__(self, name: str) -> Any:
        return next(getattr(place, name) for place in self._places if hasattr(place, name))


def _same_module(module: Any) -> Any:
    return module


WORLD_OF_PYTORCH = World("PyTorch", _names(THEIRS, torch.optim, _same_module, False), fresh)
EXACT = World(
    "PyTorch in float64", _names(THEIRS, torch.optim, _same_module, True), fresh, wider=True
)
DIRECT = World("gpubackprop", _names(OURS, gt, lambda m: gt.convert(m).module, False), fresh)


@contextmanager
def _patched() -> Iterator[None]:
    """Call `patch()` without its search for names in other modules.

    A program has no names there, and the search takes as long as a program.
    """
    with mock.patch.object(patching, "_in_modules", return_value=[]), gt.patch():
        yield


PATCHED = World(
    "gpubackprop by patch",
    _names(Late(nn.functional, nn), Late(torch.optim), _same_module, False),
    lambda: fresh(_patched),
)


def _emulated() -> contextlib.AbstractContextManager[Any]:
    from tests.torch_paths import emulated  # this import builds the kernels

    return emulated()


EMULATED = dataclasses.replace(DIRECT, around=lambda: fresh(_emulated))

# -- what can be seen -------------------------------------------------------------------------


def _special(value: Any, path: str) -> Leaves | None:
    if isinstance(value, torch.Tensor):
        return _of_tensor(value, path)
    if isinstance(value, nn.Module):
        held = dict(value.named_parameters()) | dict(value.named_buffers())
        return leaves_of(held, _special, path) | {f"{path}.training": value.training}
    if isinstance(value, torch.optim.Optimizer):
        return _of_optimizer(value, path)
    if isinstance(value, (torch.dtype, torch.device, torch.Size)):
        return {path: str(value)}
    if isinstance(value, torch.amp.GradScaler):
        return {f"{path}.scale": value.get_scale()}
    if callable(value) and not isinstance(value, type):
        return {}
    return None


def _of_optimizer(value: torch.optim.Optimizer, path: str) -> Leaves:
    try:
        return leaves_of(value.state_dict(), _special, path)
    except KeyError:  # the state of a parameter that left its group
        states = leaves_of(list(value.state.values()), _special, f"{path}['state']")
        return states | {f"{path}.cannot be read": True}


def _of_tensor(value: torch.Tensor, path: str) -> Leaves:
    leaves: Leaves = {
        f"{path}.dtype": str(value.dtype), f"{path}.shape": tuple(value.shape),
        f"{path}.requires_grad": value.requires_grad, f"{path}.is_leaf": value.is_leaf,
        f"{path}.device": str(value.device), f"{path}.layout": str(value.layout),
        f"{path}.type": "Parameter" if isinstance(value, nn.Parameter) else "Tensor",
    }  # fmt: skip
    if value.layout != torch.strided or value.device.type != "cpu":
        return leaves
    if isinstance(value, nn.Parameter) and value.numel():
        leaves[f"{path}.version"] = id(value), value._version
    leaves[f"{path}.resizable"] = value.untyped_storage().resizable()
    if value.numel() and path.rpartition(".")[2] != "grad":
        leaves[f"{path}.stride"] = value.stride()
    if value.is_leaf and value.grad is not None:
        leaves |= _of_tensor(value.grad, f"{path}.grad")
    elif value.is_leaf:
        leaves[f"{path}.grad"] = None
    number = value.detach()
    if _end(number) > value.untyped_storage().nbytes():  # after a resize_ that raised
        leaves[path] = "beyond its storage"
    elif value.is_floating_point():
        leaves[path] = np.array(numpy_view(number.clone()))
    else:
        leaves[path] = number.tolist()
    return leaves


def _end(tensor: torch.Tensor) -> int:
    """Return the bytes of storage that the elements need."""
    if not (count := tensor.numel()):
        return 0
    if not tensor.is_contiguous():
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        count = 1 + sum((size - 1) * step for size, step in steps)
    return int(tensor.storage_offset() + count) * tensor.element_size()


def _describe(value: Any) -> Leaves:
    return leaves_of(value, _special)


def same(there: np.ndarray, here: np.ndarray, twins: list[np.ndarray], lines: Sequence[str]) -> str:
    """Apply the rule of tests/tolerances.py and return why it fails, or "".

    Without a twin, the value must be within a unit of PyTorch's.
    """
    if not twins:
        apart = _apart(here, there, there.dtype)
        return f"{apart:.3g} units apart" if apart > 1 else ""
    # If numbers of about 1 cancel, the result has no scale of its own.
    finite = twins[0][np.isfinite(twins[0])]
    scale = 1.0 if np.abs(finite).max(initial=0) < 1e-15 else 0.0
    if any("step(" in line for line in lines):
        scale = max(scale, 0.25)
    if there.dtype == np.float64:  # the twin is PyTorch itself and rounds the same
        scale = 1.0
    here, there, exact, *others = (
        np.append(array, array.dtype.type(scale)) for array in (here, there, *twins)
    )
    dtype = min(there.dtype, here.dtype, key=lambda d: d.itemsize)  # the loss has the logits' type
    if FROM_FLOAT32.search("\n".join(lines)) and _are_float32(there) and _are_float32(here):
        dtype = np.dtype(np.float32)
    with np.errstate(over="ignore"):  # beyond the type's range, infinity is right
        rounded = exact.astype(dtype).astype(exact.dtype)
    ends = np.where(np.isinf(rounded), rounded, exact)
    ours, theirs = (
        min(_apart(array, oracle, dtype) for oracle in (exact, ends)) for array in (here, there)
    )
    theirs = max(theirs, *(_apart(array, exact, dtype) for array in others), 0.0)
    least = _least(dtype, "\n".join(lines), theirs)
    if ours <= CHANCE * max(theirs, least) and (
        ours < np.inf or _apart(here, there, there.dtype) < np.inf
    ):
        return ""
    return f"{ours:.3g} units from float64, PyTorch {theirs:.3g}"


def beyond(exact: np.ndarray, here: np.ndarray, lines: Sequence[str]) -> str:
    """Say why a number is not the twin's in float64, if PyTorch refuses the types.

    The comparison is coarse: in units of the program's narrowest type.
    """
    if exact.shape != here.shape:
        return f"shape {here.shape}, in float64 {exact.shape}"
    program, finite = "\n".join(lines), np.isfinite(exact) & np.isfinite(here)
    names = {
        "bfloat16": r"to\(bfloat16\)|autocast",
        "float16": r"to\(float16\)|half\(\)|torch\.half",
    }
    narrow = [name for name, pattern in names.items() if re.search(pattern, program)]
    unit = max(tolerances.UNITS[name][0] for name in ("float32", *narrow))
    if not narrow and not np.array_equal(np.isfinite(exact), np.isfinite(here)):
        return "finite elsewhere than in float64"
    size = max(1.0, np.abs(exact[finite]).max(initial=0.0))
    apart = np.abs(exact[finite] - here[finite].astype(float)).max(initial=0.0) / size / unit
    return f"{apart:.3g} units of the program's from float64" if apart > 16 else ""


# Programs in float64 with fewer digits, and the units that they may be off. The reason is a
# rounding to float32, or an error of PyTorch's own float64, which is the twin.
COARSE = (
    (r"Softplus\(\)", 2.0**25),  # PyTorch returns a from 20 on, off by exp(-20)
    # The gradient is rounding alone, and the step is that rounding divided by eps=1e-8.
    (r"(?s)(LayerNorm|Softmax\(-1\)).*Adam", 2.0**29),
    # With eps=0 such a step is as long as the rate, 0.1, in any direction.
    (r"(?s)(LayerNorm|Softmax\(-1\)).*Adam.*eps=0[,)]", 2.0**53),
    (r"to\((float32|b?float16)\)(?s:.*)= torch\.softmax\(.*\)\.double\(\)$", 2.0**29),
)


# A rate that is a tensor has the default dtype, and so has PyTorch's step size.
RATES = (
    (r"(?s)set_default_dtype\(torch\.half\).*lr'?\]?\s?=\s?torch.tensor", 2.0**-10),
    (r"lr'?\]?\s?=\s?torch.tensor", 2.0**-23),
)
FROM_BFLOAT16 = re.compile(
    r"(?s)to\(bfloat16\).*(to\((float16|float32|float64)\)|half\(\)|double\(\))"
)
# Steps in float32, then a cast: numbers that float32 holds were computed in it.
FROM_FLOAT32 = re.compile(r"(?s)to\(float32\).*step\(.*(to\(float64\)|double\(\))")
# Steps in 16 bits, then a cast: by chance PyTorch's may be without any error.
WIDENED = re.compile(r"(?s)to\(b?float16\).*step\(.*(to\(float(32|64)\)|double\(\))")
# 1 - s + s/K - p is 0 for one class, of 16 bits, but for a rounding in float32
ONE_CLASS = re.compile(r"(?s)randint\(1, .*autocast.*label_smoothing=")
# p - 1/K, in units of the logits of size 1e-3 that are left of it
CANCELS = re.compile(r"(?s)(1e-3|0\.001) \* .*label_smoothing=")


def _least(dtype: np.dtype, program: str, theirs: float) -> float:
    """Return how many units of `dtype` a result may be off, if PyTorch's own is off by `theirs`."""
    cast = 2.0**-7 if FROM_BFLOAT16.search(program) else 2.0**-10  # a unit of the type cast from
    rate = next((unit for pattern, unit in RATES if re.search(pattern, program)), 0.0)
    rate /= tolerances.UNITS[dtype.name][0]
    widened = WIDENED.search(program) is not None
    if dtype == np.float64:
        found = [units for pattern, units in COARSE if re.search(pattern, program, re.MULTILINE)]
        own = 2.0**29 if theirs > 1e4 else 100.0
        if widened or theirs > 2.0**31:
            own = 2.0**52 * cast
        return max(own, *found, rate)
    if dtype == np.float16 and FROM_BFLOAT16.search(program):
        return 8.0  # 8 units are one of bfloat16, the type before the cast
    narrow = re.search(r"to\(b?float16\)|half\(\)", program)
    if dtype == np.float32 and narrow:
        if "= torch.softmax(x" in program:  # in 16 bits, by chance as in float64
            return 2.0**23 * (2.0**-7 if "to(bfloat16)" in program else 2.0**-10)
        if widened or theirs > 16.0:
            return 2.0**23 * cast
    if dtype == np.float32 and CANCELS.search(program):
        return 2.0**10
    if dtype == np.float32 and ONE_CLASS.search(program):
        return 8.0
    return max(rate, 4.0 if "= torch.softmax(x.detach()" in program else 1.0)  # p - y cancels


def _are_float32(array: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        rounded = array.astype(np.float32)
    return array.dtype == np.float64 and np.array_equal(rounded, array, equal_nan=True)


def _apart(one: np.ndarray, other: np.ndarray, dtype: Any) -> float:
    """Return the difference in units; inf if NaN or infinities are in other places."""
    try:
        tolerances.assert_same_pattern(one, other)
    except AssertionError:
        return np.inf
    return tolerances.ulps(one, other, dtype)


def _fuzzer(name: str, call: str, ours: World, table: Sequence[known.Known]) -> Fuzzer:
    return Fuzzer(
        name, call, ["import copy, pickle, torch", "from torch import nn, float64, float32, float16, bfloat16"],
        pytorch_lines.program, WORLD_OF_PYTORCH, ours, _twins, _describe, same,
        lambda lines, found: known.reason(table, lines, found), frozenset({"dtype", "torch", "nn", "F", "optim", "copy", "pickle"}),
        beyond,
    )  # fmt: skip


FUZZER = _fuzzer("torch", "pytorch.check(PROGRAM)", DIRECT, known.TORCH)
PATCH_FUZZER = _fuzzer("patch", "pytorch.check(PROGRAM, 'patch')", PATCHED, known.PATCH)
EMULATED_FUZZER = _fuzzer("emulated", "pytorch.check(PROGRAM, 'emulated')", EMULATED, known.TORCH)
FUZZERS = {"": FUZZER, "patch": PATCH_FUZZER, "emulated": EMULATED_FUZZER}


def check(program: str, way: str = "") -> None:
    programs.check(FUZZERS[way], program)
