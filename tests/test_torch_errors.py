"""Bad input to `gpubackprop.torch`: each error says what, got, wanted and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)

import gpubackprop.torch as gt
from gpubackprop.errors import DeviceUnavailable, DtypeError, OptionError, ShapeError
from tests.emulator.module import missing_compiler
from tests.torch_paths import emulated

Z, Y = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])


def raised_as_in_pytorch(
    ours: Callable[..., Any], theirs: Callable[..., Any], *args: Any, **options: Any
) -> None:
    """A program that catches PyTorch's error catches ours."""
    with pytest.raises(Exception, match=r".+") as wanted:
        theirs(*args, **options)
    with pytest.raises(wanted.type):
        ours(*args, **options)


@pytest.mark.parametrize("label", [3, -1, 2**40])
def test_a_label_out_of_range_is_an_index_error_that_names_row_and_label(label):
    y = torch.tensor([0, 1, label, 0])
    with pytest.raises(IndexError):
        F.cross_entropy(Z, y)
    with pytest.raises(gt.LabelError, match=rf"target\[2\] is {label} but .* \[0, 3\)") as caught:
        gt.cross_entropy(Z, y)
    assert isinstance(caught.value, IndexError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.emulated
@pytest.mark.skipif(bool(missing_compiler()), reason=missing_compiler() or "-")
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_on_a_gpu_it_is_a_row_of_nan_and_the_error_of_a_later_call(reduction):
    with emulated() as counts:
        z, y = Z.clone().requires_grad_(), torch.tensor([0, 1, 7, 0])
        loss = gt.cross_entropy(z, y, reduction=reduction)
        assert loss.isnan().any()
        assert counts.waits == 0
        with pytest.raises(IndexError, match=r"target\[2\] of an earlier call on cuda:0 was 7"):
            gt.cross_entropy(z, Y)
        assert gt.cross_entropy(z, Y).isfinite(), "raised once, and the context lives"
        gt.cross_entropy(z, torch.tensor([0, 1, -5, 0]))
        with pytest.raises(IndexError, match="pass ignore_index"):
            gt.check_labels()
        gt.cross_entropy(z, y)
        optimizer = gt.SGD([z], lr=0.1)
        z.grad = torch.zeros_like(z)
        with pytest.raises(IndexError, match="was 7"):
            optimizer.step()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        ((Z, Y[:3]), {}, ShapeError, r"target has shape \(3,\) but .* indices \(4,\)"),
        ((Z, Y.float()), {}, DtypeError, r"are integers; use target.long\(\)"),
        ((Z, torch.ones(4, 3).long()), {}, DtypeError, r"e.g. target.argmax\(1\)"),
        ((Z.long(), Y), {}, DtypeError, r"input has dtype torch.int64"),
        ((torch.zeros(()), Y[0]), {}, ShapeError, "no dimension"),
        ((torch.zeros(4, 0), Y), {}, ShapeError, "at least one class"),
        ((Z, Y), {"weight": torch.ones(4)}, ShapeError, r"weight has shape \(4,\) .* \(3,\)"),
        ((Z, Z), {"weight": torch.ones(3).requires_grad_()}, OptionError, "does not compute"),
        ((Z, Y), {"reduction": "avg"}, OptionError, "'mean', 'sum', 'none'"),
        ((Z, Y), {"label_smoothing": 1.5}, OptionError, "label_smoothing is 1.5"),
        ((Z, Y), {"z_loss": -1.0}, OptionError, "z_loss is -1.0"),
        ((Z, torch.rand(4, 3)), {"ignore_index": 1}, OptionError, "goes with class indices"),
        ((Z, Y.to("meta")), {}, DeviceUnavailable, r"move it with target.to\(input.device\)"),
        ((Z.to("meta"), Y.to("meta")), {}, DeviceUnavailable, "works on cpu and cuda"),
    ],
)
def test_bad_arguments_of_cross_entropy_say_what_to_do(arguments, options, error, said):
    with pytest.raises(error, match=said):
        gt.cross_entropy(*arguments, **options)
    computes_there = "does not compute" in said
    if arguments[0].shape != (4, 0) and Y.device == arguments[1].device and not computes_there:
        raised_as_in_pytorch(gt.cross_entropy, F.cross_entropy, *arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ((torch.zeros(2, 3), torch.zeros(4, 5)), ShapeError, r"wants \(\.\.\., 5\)"),
        ((torch.zeros(2, 5), torch.zeros(4, 5), torch.zeros(5)), ShapeError, r"wanted \(4,\)"),
        ((torch.zeros(2, 5).double(), torch.zeros(4, 5)), DtypeError, "one float type"),
        ((torch.zeros(2, 5), torch.zeros(4, 5), None, "rleu"), OptionError, "relu"),
        ((torch.zeros(2, 5).to("meta"), torch.zeros(4, 5)), DeviceUnavailable, "works on cpu"),
        ((torch.zeros(2, 5), torch.zeros(4, 5).to("meta")), DeviceUnavailable, "weight lies on"),
        ((torch.zeros(2, 5).long(), torch.zeros(4, 5)), DtypeError, "one float type"),
        ((torch.zeros(2, 5), torch.zeros(4, 5), torch.zeros(4).double()), DtypeError, "one float"),
    ],
)
@pytest.mark.parametrize("autocast", [False, True])
def test_bad_arguments_of_a_layer_say_what_to_do(arguments, error, said, autocast):
    with torch.autocast("cpu", enabled=autocast), pytest.raises(error, match=said):
        gt.linear_act(*arguments)
    if "rleu" not in arguments and {t.device.type for t in arguments if t is not None} == {"cpu"}:
        theirs = F.linear
        raised_as_in_pytorch(gt.linear_act, theirs, *arguments)


X, W = torch.zeros(4, 5), torch.zeros(3, 5)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        ((X, W[:, :4], Y), {}, ShapeError, r"wanted are \(N, D\)"),
        ((X, W[:0], Y), {}, ShapeError, "at least one class"),
        ((X, W, Y), {"linear_bias": X[0]}, ShapeError, r"linear_bias .* wanted \(3,\)"),
        ((X, W, Y), {"weight": torch.ones(2)}, ShapeError, r"weight has shape \(2,\) .* \(3,\)"),
        ((X, W, Y), {"weight": torch.ones(99)}, ShapeError, r"weight has shape \(99,\)"),
        ((X, W, Y), {"weight": torch.ones(3).requires_grad_()}, OptionError, r"weight.detach\(\)"),
        ((X, W, Y), {"weight": torch.ones(3).to("meta")}, DeviceUnavailable, "weight lies on"),
        ((X, W, Y.to("meta")), {}, DeviceUnavailable, "target lies on"),
        ((X, W.to("meta"), Y), {}, DeviceUnavailable, "linear_weight lies on"),
        ((X, W, Y), {"linear_bias": torch.zeros(3).double()}, DtypeError, "one float type"),
        ((X.long(), W.long(), Y), {}, DtypeError, "one float type"),
        ((X.double(), W, Y), {}, DtypeError, r"\.to\(linear_weight.dtype\)"),
        ((X, W, Y.float()), {}, ShapeError, "class indices"),
    ],
)
@pytest.mark.parametrize("autocast", [False, True])
def test_bad_arguments_of_linear_cross_entropy_say_what_to_do(
    arguments, options, error, said, autocast
):
    with torch.autocast("cpu", enabled=autocast), pytest.raises(error, match=said):
        gt.linear_cross_entropy(*arguments, **options)
    if arguments[1].numel() and error is not DeviceUnavailable:
        raised_as_in_pytorch(gt.linear_cross_entropy, F.linear_cross_entropy, *arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((X[0, 0], W, Y), {}),
        ((X[None], W, Y), {}),
        ((X, W[0], Y), {}),
        ((X, W, Y[:2]), {}),
        ((X, W, Z), {"ignore_index": 1}),
        ((X, W, Z.long()), {}),
        ((X[0], torch.zeros(3, 2, 5), Y), {}),
        ((X, W, Y + 9), {}),
        ((X, W.half(), Y), {}),
        ((X, W, Y), {"reduction": "avg"}),
        ((X, W, Y), {"reduction": 3}),
        ((X, W, Y), {"label_smoothing": 2.0}),
        ((X, W, Y), {"label_smoothing": "a"}),
        ((X, W, Y), {"ignore_index": "a"}),
        ((X, W, Y), {"ignore_index": 1.5}),
        ((X, W, Y), {"ignore_index": True}),
    ],
)
def test_linear_cross_entropy_raises_what_pytorch_raises(arguments, options):
    raised_as_in_pytorch(gt.linear_cross_entropy, F.linear_cross_entropy, *arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((None, Y), {}),
        ((Z, None), {}),
        ((Z, [0, 1, 2, 0]), {}),
        ((Z, Y), {"weight": 3}),
        ((Z, Y), {"weight": [1.0, 1.0, 1.0]}),
        ((Z, Y), {"ignore_index": "a"}),
        ((Z, Y), {"ignore_index": None}),
        ((Z, Y), {"ignore_index": 1.5}),  # it had meant label 1
        ((Z, Y), {"ignore_index": 1.0}),
        ((Z, Y), {"ignore_index": "1"}),
        ((Z, Y), {"ignore_index": True}),
        ((Z, Y), {"label_smoothing": "a"}),
        ((Z, Y), {"reduction": None}),
        ((Z.long(), Y), {}),
    ],
)
def test_what_is_no_tensor_or_no_number_raises_what_pytorch_raises(arguments, options):
    raised_as_in_pytorch(gt.cross_entropy, F.cross_entropy, *arguments, **options)


def test_class_weights_that_require_a_gradient_are_taken_where_none_is_asked_for():
    weight = torch.rand(3, requires_grad=True)
    with torch.no_grad():
        for function, arguments in ((F.cross_entropy, (Z, Y)), (F.linear_cross_entropy, (X, W, Y))):
            ours = getattr(gt, function.__name__)(*arguments, weight=weight)
            torch.testing.assert_close(ours, function(*arguments, weight=weight))
