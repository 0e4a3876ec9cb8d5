"""`ops.linear_cross_entropy` against PyTorch's linear and cross entropy: values, options, memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)

from gpubackprop import MLP, Trainer, backends, passes
from gpubackprop.backends import linear_cross_entropy as engine
from gpubackprop.errors import DtypeError, OptionError, ShapeError, TargetRangeError
from gpubackprop.losses import SoftmaxCrossEntropy
from gpubackprop.ops import linear_cross_entropy as plain
from gpubackprop.optimizers import Adam
from tests import ways
from tests.tolerances import Draws, assert_equal_in_float64
from tests.ways import linear_cross_entropy

ROWS, FEATURES, CLASSES = 23, 9, 70
WEIGHT = np.random.default_rng(5).uniform(0.1, 2, CLASSES)
OPTIONS: list[dict[str, Any]] = [
    {}, {"label_smoothing": 0.1}, {"class_weight": WEIGHT}, {"ignore_index": 3},
    {"z_loss": 0.01}, {"soft_cap": 2.0}, {"sample_weight": np.linspace(0, 2, ROWS)},
    {
        "label_smoothing": 0.2, "class_weight": WEIGHT, "ignore_index": 3, "z_loss": 0.01,
        "sample_weight": np.linspace(0.5, 2, ROWS),
    },
]  # fmt: skip
NAMES = ("loss", "grad_h", "grad_W", "grad_b")


@pytest.fixture(autouse=True)
def chunks_of_six_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make 23 rows four chunks, of which the last is short, and 70 classes four tiles."""
    monkeypatch.setattr(engine, "chunk_rows", lambda rows, *sizes: max(1, min(rows, 6)))
    monkeypatch.setattr(engine, "tile_classes", lambda features: 20)


def problem(dtype: Any, seed: int = 0) -> tuple[np.ndarray, ...]:
    """h, W, b and labels; some of them are 3."""
    rng = np.random.default_rng(seed)
    h, W, b = (rng.normal(size=s) for s in ((ROWS, FEATURES), (CLASSES, FEATURES), (CLASSES,)))
    labels = rng.integers(0, CLASSES, ROWS)
    labels[rng.random(ROWS) < 0.2] = 3
    return *(x.astype(dtype) for x in (h, W, b)), labels


def of_pytorch(
    h: Any, W: Any, b: Any, targets: Any, kind: torch.dtype, *, reduction: str = "mean",
    upstream: Any = 1.0, z_loss: float = 0.0, soft_cap: float = 0.0, sample_weight: Any = None,
    class_weight: Any = None, ignore_index: int | None = None, label_smoothing: float = 0.0,
) -> list[np.ndarray]:  # fmt: skip
    """Loss and gradients by PyTorch's operators and autograd, all in one dtype."""
    leaves = [
        torch.tensor(np.asarray(x, np.float64), dtype=kind, requires_grad=True) for x in (h, W, b)
    ]
    z = F.linear(*leaves)
    z = soft_cap * torch.tanh(z / soft_cap) if soft_cap else z
    t = torch.tensor(targets)
    t = t.to(kind) if t.is_floating_point() else t
    weight = None if class_weight is None else torch.tensor(class_weight, dtype=kind)
    ignored = -100 if ignore_index is None else ignore_index
    row = F.cross_entropy(
        z, t, weight, ignore_index=ignored, reduction="none", label_smoothing=label_smoothing
    )
    share = torch.ones(len(z), dtype=kind)
    if t.dim() == 1:
        share = torch.where(t == ignored, 0.0, share)
    row = row + z_loss * torch.logsumexp(z, 1).square() * share
    if sample_weight is not None:
        row, share = row * torch.tensor(sample_weight), share * torch.tensor(sample_weight)
    if weight is not None and t.dim() == 1:
        share = share * weight[t]
    loss = {"mean": row.sum() / share.sum(), "sum": row.sum(), "none": row}[reduction].to(kind)
    grads = torch.autograd.grad((loss * torch.as_tensor(upstream, dtype=kind)).sum(), leaves)
    return [x.detach().double().numpy() for x in (loss, *grads)]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("number", range(len(OPTIONS)))
def test_loss_and_gradients_in_chunks_are_pytorchs_in_float64(number, reduction):
    h, W, b, labels = problem(np.float64)
    options = OPTIONS[number] | {"reduction": reduction}
    options["upstream"] = np.linspace(-1, 2, ROWS) if reduction == "none" else 0.7
    result = linear_cross_entropy(h, W, b, labels, **options)
    wanted = of_pytorch(h, W, b, labels, torch.float64, **options)
    for got, exact in zip(result[:4], wanted, strict=True):
        assert_equal_in_float64(got, exact, 1e-13)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_loss_and_gradients_in_float32_have_no_more_error_than_pytorchs(reduction):
    draws = [Draws() for _ in NAMES]
    for seed in range(60):
        h, W, b, labels = problem(np.float32, seed)
        options = {"reduction": reduction, "label_smoothing": 0.1 * (seed % 2)}
        result = linear_cross_entropy(h, W, b, labels, **options)
        theirs = of_pytorch(h, W, b, labels, torch.float32, **options)
        exact = of_pytorch(h, W, b, labels, torch.float64, **options)
        for got, reference, wanted, errors in zip(result[:4], theirs, exact, draws, strict=True):
            errors.add(got, reference.astype(np.float32), wanted)
    for errors in draws:
        errors.check()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_sixteen_bits_are_summed_in_float32_and_have_less_error_than_pytorchs(dtype):
    """grad_W and grad_b are float32; PyTorch's are rounded to 16 bits, as its logits are."""
    kind = torch.float16 if dtype is np.float16 else torch.bfloat16
    h, W, b, labels = problem(dtype)
    result = linear_cross_entropy(h, W, b, labels)
    assert [x.dtype for x in result[:4]] == [np.float32, dtype, np.float32, np.float32]
    theirs = of_pytorch(h, W, b, labels, kind)
    exact = of_pytorch(h, W, b, labels, torch.float64)
    for name, got, reference, wanted in zip(NAMES, result[:4], theirs, exact, strict=True):
        error, of_pytorchs = (np.abs(np.asarray(x, float) - wanted).max() for x in (got, reference))
        assert error <= of_pytorchs, name


@pytest.mark.usefixtures("way")
def test_probabilities_are_targets_too():
    h, W, b, _ = problem(np.float64)
    p = np.random.default_rng(1).dirichlet(np.ones(CLASSES), ROWS)
    result = linear_cross_entropy(h, W, b, p, label_smoothing=0.1)
    wanted = of_pytorch(h, W, b, p, torch.float64, label_smoothing=0.1)
    for got, exact in zip(result[:4], wanted, strict=True):
        assert_equal_in_float64(got, exact, 1e-13)


@pytest.mark.usefixtures("way")
def test_details_of_each_row_are_those_of_the_logits():
    h, W, b, labels = problem(np.float64)
    details = linear_cross_entropy(h, W, b, labels, details=True).details
    z = h @ W.T + b
    np.testing.assert_allclose(details.lse, np.log(np.exp(z).sum(1)), rtol=1e-13)
    assert (details.predicted == z.argmax(1)).all()
    assert details.correct == (z.argmax(1) == labels).sum()


@pytest.mark.usefixtures("way")
def test_what_is_not_wanted_is_none_and_without_b_there_is_no_bias():
    h, W, b, labels = problem(np.float64)
    assert linear_cross_entropy(h, W, b, labels, gradient=False)[1:] == (None,) * 4
    result = linear_cross_entropy(h, W, None, labels, input_gradient=False)
    wanted = of_pytorch(h, W, np.zeros(CLASSES), labels, torch.float64)
    assert (result.grad_h, result.grad_b) == (None, None)
    assert_equal_in_float64(result.loss, wanted[0], 1e-13)
    assert_equal_in_float64(result.grad_W, wanted[2], 1e-13)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("order", ["C", "F", "strided"])
def test_arrays_of_any_strides_give_the_same_numbers(order):
    h, W, b, labels = problem(np.float64)

    def as_given(x: np.ndarray) -> np.ndarray:
        if order == "strided":
            wide = np.repeat(x, 2, axis=-1)
            return wide[..., ::2]
        return np.asarray(x, order=order)

    result = linear_cross_entropy(as_given(h), as_given(W), as_given(b), labels)
    for got, wanted in zip(result[:4], linear_cross_entropy(h, W, b, labels)[:4], strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("empty", ["nan", "zero"])
@pytest.mark.parametrize("ignored", [False, True], ids=["no rows", "every row ignored"])
@pytest.mark.parametrize("classes", [CLASSES, FEATURES - 1])
def test_a_mean_over_nothing_is_nan_or_zero_as_asked_and_moves_nothing(empty, ignored, classes):
    h, W, b, labels = problem(np.float64)
    rows = ROWS if ignored else 0
    labels[:] = 3
    result = linear_cross_entropy(
        h[:rows], W[:classes], b[:classes], labels[:rows],
        ignore_index=3, empty=empty, label_smoothing=0.1,
    )  # fmt: skip
    assert result.loss == 0 if empty == "zero" else np.isnan(result.loss)
    assert result.grad_h.shape == (rows, FEATURES)
    for gradient in result[2:4]:
        assert not np.nan_to_num(gradient).any()


def test_a_label_out_of_range_is_named_by_its_row_in_the_whole_batch():
    h, W, b, labels = problem(np.float64)
    labels[17] = CLASSES
    with pytest.raises(TargetRangeError, match=rf"targets\[17\] is {CLASSES}"):
        plain(h, W, b, labels)


@pytest.mark.ways("cuda-emulated", "cuda", reason="a host checks all labels beforehand")
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [np.float64, np.float16], ids=["float64", "float16"])
def test_a_label_out_of_range_on_a_gpu_is_named_by_its_row_in_the_whole_batch(dtype):
    for row in (17, 2, 22, 17):  # launches are kept from the second call on
        h, W, b, labels = problem(dtype)
        bad = labels.copy()
        bad[row] = CLASSES
        assert np.isnan(linear_cross_entropy(h, W, b, bad, check=False).loss)
        with pytest.raises(TargetRangeError, match=rf"targets\[{row}\] of a batch was {CLASSES}"):
            linear_cross_entropy(h, W, b, labels)


@pytest.mark.ways("numpy", "native", reason="a GPU's kernels round p before they subtract 1")
@pytest.mark.usefixtures("way")
def test_a_row_that_is_certain_moves_its_label_by_what_the_others_keep():
    """Logits 0 and -40: p is 1 in float32, and the gradients of the others are 4e-18."""
    W = np.zeros((5, 2), np.float32)
    W[2] = 40
    h = np.ones((3, 2), np.float32) / 2
    grad_b = linear_cross_entropy(h, W, W[:, 0] * 0, np.full(3, 2)).grad_b
    assert grad_b[2] == pytest.approx(-4 * np.exp(-40), rel=1e-5)


def test_wrong_arrays_are_refused_with_what_is_wanted():
    h, W, b, labels = problem(np.float64)
    for arguments, error, text in (
        ((h[:, :4], W, b, labels), ShapeError, r"h has shape \(23, 4\)"),
        ((h, W, b[:3], labels), ShapeError, r"b has shape \(3,\)"),
        ((h, W[:0], b[:0], labels), ShapeError, "at least one class"),
        ((h.astype(np.float32), W, b, labels), DtypeError, "h float32, W float64"),
        ((h, W, b, labels[:4]), ShapeError, r"targets has shape \(4,\)"),
    ):
        with pytest.raises(error, match=text):
            plain(*arguments)
    with pytest.raises(OptionError, match="reduction is 'average'"):
        plain(h, W, b, labels, reduction="average")
    with pytest.raises(ShapeError, match="upstream has shape"):
        plain(h, W, b, labels, upstream=np.ones(ROWS))


@pytest.mark.ways("numpy", "native", "cuda-emulated", reason="it compares plans with calls")
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["float32", "float16"])
def test_a_plan_replays_what_a_call_computes_on_a_host_bit_for_bit(dtype):
    backend = backends.get(ways.CURRENT[-1].device)
    h, W, b, labels = (backend.asarray(x) for x in problem(dtype))
    at_once, planned = ([], [])
    for results in (at_once, planned):
        compute = np.dtype(np.float32)
        result = {name: backend.zeros(ROWS, compute) for name in ("row_loss", "scale")}
        result["loss"] = backend.zeros((), compute)
        into = engine.LinearGradients(
            backend.zeros(h.shape, dtype), backend.zeros(W.shape, compute),
            backend.zeros(b.shape, compute),
        )  # fmt: skip
        options = backends.LossOptions(ignore_index=3, label_smoothing=0.1)

        def emit(on: Any, result: Any = result, into: Any = into, options: Any = options) -> None:
            engine.emit_linear_cross_entropy(on, h, W, b, labels, options, result, into)

        if results is at_once:
            emit(backend)
        else:
            replay = backend.plan(emit)
            replay()
            replay()
        results += [np.array(backend.to_host(x)) for x in (result["loss"], into.h, into.W, into.b)]
    # A plan of a GPU may take another algorithm for its products than a call.
    rounding = 0.0 if ways.on_host() else 2e-3 if dtype == np.float16 else 1e-6
    for once, replayed in zip(at_once, planned, strict=True):
        np.testing.assert_allclose(once, replayed, rtol=0, atol=rounding)


# -- memory ----------------------------------------------------------------------------------------


def most_bytes(run: Any) -> int:
    """Most bytes that NumPy held at a time during ``run()``, beyond what it returned."""
    run()
    tracemalloc.start()
    try:
        kept = run()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return peak - sum(x.nbytes for x in kept[1:4] if x is not None)


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["float32", "float16"])
def test_beyond_the_gradients_it_takes_an_eighth_of_pytorchs_memory(dtype, monkeypatch):
    """Counted at a 16th of 4096 x 4096 x 128256, by the formula at its full size. PyTorch holds the
    log of the softmax, its gradient and that of the logits: three matrices (N, K)."""
    monkeypatch.undo()
    rows, features, classes = 256, 256, 8016
    rng = np.random.default_rng(0)
    h, W = (rng.normal(size=(n, features)).astype(dtype) for n in (rows, classes))
    labels = rng.integers(0, classes, rows)
    counted = most_bytes(lambda: plain(h, W, None, labels))
    stated = engine.working_bytes(rows, features, classes, dtype, False)
    own = 6 << 20  # tiles of products and blocks of the loss, whatever the size
    assert counted <= stated + own
    assert counted >= stated / 2
    large = 4096, 4096, 128_256
    whole = 3 * large[0] * large[2] * np.dtype(dtype).itemsize
    for on_gpu in (False, True):
        assert engine.working_bytes(*large, dtype, on_gpu) + own <= whole / 8


# -- networks --------------------------------------------------------------------------------------


def trained(monkeypatch: pytest.MonkeyPatch, chunked: bool, **options: Any) -> list[np.ndarray]:
    """Parameters, training losses and validation losses after three epochs."""
    monkeypatch.setattr(passes, "LARGE_LOGITS", 0 if chunked else 1 << 62)
    rng = np.random.default_rng(2)
    x, labels = rng.normal(size=(50, 7)), rng.integers(0, CLASSES, 50)
    loss = SoftmaxCrossEntropy(ignore_index=3, label_smoothing=0.1, **options.pop("loss", {}))
    network = ways.MLP(
        [7, FEATURES, 8, CLASSES], seed=0, dropout=options.pop("dropout", 0), **options
    )
    trainer = Trainer(network, loss, batch_size=19, seed=1, optimizer=Adam(0.01), l2=1e-3)
    history = trainer.fit(x, labels, epochs=3, validation=(x[:30], labels[:30]))
    curves = [np.array(history[name]) for name in ("loss", "accuracy", "val_loss")]
    to_host = network.backend.to_host
    return [np.array(to_host(network.parameters)), *curves]


@pytest.mark.ways("numpy", "native", "cuda-emulated", "cuda", reason="a network is trained")
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "options", [{"dtype": "float64"}, {"dtype": "float64", "dropout": 0.2},
                {"dtype": "float64", "loss": {"reduction": "sum"}}, {"precision": "float16"}],
    ids=["float64", "dropout", "sum", "float16"],
)  # fmt: skip
def test_a_network_trains_alike_with_its_output_layer_in_chunks_and_whole(monkeypatch, options):
    whole, chunked = (trained(monkeypatch, on, **dict(options)) for on in (False, True))
    tolerance = 1e-11 if "dtype" in options else 2e-2
    for ours, wanted in zip(chunked, whole, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=tolerance, atol=tolerance)


def test_the_estimate_of_a_large_output_layer_counts_a_chunk_of_its_logits(monkeypatch):
    """A batch of 1,024 rows over 32,000 classes: 131 MB of logits, of which a quarter is held."""
    monkeypatch.undo()
    network = MLP([8, 16, 32_000])
    units = Trainer(network, batch_size=1024).memory_estimate(4096).units
    chunk = engine.working_bytes(1024, 16, 32_000, np.float32, False)
    assert units == 2 * 1024 * 16 * 4 + chunk
    small = Trainer(network, batch_size=256).memory_estimate(4096).units
    assert small == (2 * 16 + 32_000) * 256 * 4
