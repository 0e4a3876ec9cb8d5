"""Every host function on awkward shapes, in memory whose borders are watched.

A matrix lies in an allocation of its own that ends with its last element. Its rows have gaps, which
hold a pattern. `exercise` calls everything and checks the gaps. ``python -m tests.host_shapes
LIBRARY`` does the same in a process that runs under a sanitizer.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from tests.host_library import STORAGE, Host, structs

FLOATS = [np.dtype(t) for t in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)]
NUMBERS = [*FLOATS, np.dtype(np.uint8), np.dtype(np.int32), np.dtype(np.int64)]
# rows, columns, gap between rows: none, one, odd ones; short rows that are joined; pieces and tails
SHAPES = (
    (0, 3, 0), (1, 1, 0), (3, 0, 0), (5, 1, 3), (2, 7, 0), (33, 10, 0), (31, 3, 5), (70, 40, 0),
    (3, 41, 1), (35, 47, 0), (2, 255, 0), (33, 256, 3), (2, 257, 0), (3, 512, 0), (2, 513, 7),
    (1, 1500, 0),
)  # fmt: skip
COUNTS = (0, 1, 7, 511, 512, 513, 2000)
PATTERN = 0xA5


class Watched:
    """A matrix with `gap` columns of PATTERN after each row but the last.

    Attributes
    ----------
    array : (rows, cols) array
        The matrix.
    stride : int
        Elements from row to row.
    """

    def __init__(
        self, rows: int, cols: int, gap: int, dtype: np.dtype, fill: object = None
    ) -> None:
        self.stride = cols + gap
        length = max(0, (rows - 1) * self.stride + cols) if rows else 0
        self._flat = np.empty(length, dtype)
        self._flat.view(np.uint8)[:] = PATTERN
        step = self._flat.itemsize
        self.array = np.lib.stride_tricks.as_strided(
            self._flat, (rows, cols), (self.stride * step, step)
        )
        if fill is not None and self.array.size:
            self.array[...] = fill

    def check(self) -> None:
        """Raise AssertionError if a gap was written."""
        rows, cols = self.array.shape
        for row in range(rows - 1):
            gap = self._flat[row * self.stride + cols : (row + 1) * self.stride]
            assert (gap.view(np.uint8) == PATTERN).all(), f"the gap after row {row} was written"


def compute(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def numbers(random: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return numbers with both signs, or integers from 0 to 99."""
    if dtype.kind in "iu":
        return random.integers(0, 100, shape).astype(dtype)
    return (3 * random.standard_normal(shape)).astype(dtype)


def exercise(host: Host) -> int:
    """Call every function of the library and return the number of calls."""
    random, calls = np.random.default_rng(0), 0
    used = set()
    makers = (layers, sums, softmaxes, pointwise, updates, flats, one_hots, batches)
    for maker in makers:
        for name, values, watched in maker(host, random):
            host(name, **values)
            for matrix in watched:
                matrix.check()
            used.add(name)
            calls += 1
    assert used | {"gb_run"} == set(structs()), set(structs()) - used
    return calls


Call = tuple[str, dict[str, object], list[Watched]]


def layers(host: Host, random: np.random.Generator) -> Iterator[Call]:
    state = np.array([3, 2**40], np.uint64)
    names = host.names("gb_activation_names")
    for case, (rows, cols, gap) in enumerate(SHAPES * 2):
        for dtype in FLOATS:
            act = (case + 5 * STORAGE[dtype]) % len(names)
            product = Watched(rows, cols, gap, dtype, numbers(random, (rows, cols), dtype))
            a, h = Watched(rows, cols, gap + 1, dtype), Watched(rows, cols, gap, dtype)
            drop = {
                "dropout_state": state if case % 2 else None, "dropout_layer": 3,
                "dropout_threshold": 2**31, "dropout_scale": 2.0, "dropout_row": case,
            }  # fmt: skip
            code = {"storage": STORAGE[dtype], "activation": act, "parameter": 1.5, "cols": cols}
            yield "gb_affine_epilogue", {
                "product": product.array, "bias": numbers(random, (cols,), dtype), "a": a.array,
                "h": h.array, "last": rows, "stride_product": product.stride, "stride_a": a.stride,
                "stride_h": h.stride, "product_storage": STORAGE[dtype], **drop, **code,
            }, [product, a, h]  # fmt: skip
            partial = np.empty((-(-rows // 16), cols), compute(dtype))
            yield "gb_activation_backward", {
                "grad_h": product.array, "saved": h.array, "delta": a.array, "partial": partial,
                "grad_b": np.empty(cols, dtype), "last": rows, "rows": rows, "chunk_rows": 16,
                "stride_grad": product.stride, "stride_saved": h.stride, "stride_delta": a.stride,
                "sum_storage": STORAGE[dtype], **drop, **code,
            }, [product, a, h]  # fmt: skip


def sums(host: Host, random: np.random.Generator) -> Iterator[Call]:
    for rows, cols, gap in SHAPES:
        for dtype in FLOATS:
            x = Watched(rows, cols, gap, dtype, numbers(random, (rows, cols), dtype))
            partial = np.empty((-(-rows // 8), cols), compute(dtype))
            code = {"storage": STORAGE[dtype], "sum_storage": STORAGE[dtype], "divisor": 3.0}
            yield "gb_column_sum", {
                "x": x.array, "partial": partial, "last": rows, "rows": rows, "cols": cols,
                "stride": x.stride, "chunk_rows": 8, **code,
            }, [x]  # fmt: skip
            out = np.empty(cols, dtype)
            yield "gb_column_sum_finish", {
                "partial": partial, "out": out, "rows": len(partial), "cols": cols, **code
            }, []  # fmt: skip


def softmaxes(host: Host, random: np.random.Generator) -> Iterator[Call]:
    labels_of = (np.uint8, np.int32, np.int64)
    for case, (rows, cols, gap) in enumerate(shape for shape in SHAPES * 3 if shape[1]):
        for dtype in FLOATS:
            C = compute(dtype)
            z = Watched(rows, cols, gap, dtype, numbers(random, (rows, cols), dtype))
            delta = Watched(rows, cols, gap + 2, dtype)
            labels = random.integers(0, min(cols, 256), rows).astype(labels_of[case % 3])
            if rows > 2:
                labels[1] = 255  # ignored, or no class where there are fewer
            soft = Watched(rows, cols, gap, C, random.random((rows, cols)))
            values = {
                "logits": z.array, "delta": delta.array if case % 4 else None,
                "row_loss": np.empty(rows, C), "lse": np.empty(rows, C),
                "predicted": np.empty(rows, np.int64), "correct": np.empty(rows, np.bool_),
                "sample_weight": random.random(rows).astype(C) if case % 3 else None,
                "class_weight": random.random(cols).astype(C) if case % 5 > 2 else None,
                "upstream": random.random(rows).astype(C), "upstream_stride": 1,
                "divisor_at": np.zeros(()), "loss": np.zeros((), C), "last": rows, "rows": rows,
                "cols": cols, "stride_logits": z.stride, "stride_delta": delta.stride,
                "label_smoothing": 0.1 * (case % 2), "z_loss": 0.01 * (case % 3),
                "soft_cap": 5.0 * (case % 4 == 2), "storage": STORAGE[dtype], "weighs": 1,
            }  # fmt: skip
            values |= (
                {"probabilities": soft.array, "stride_probabilities": soft.stride,
                 "probability_storage": STORAGE[C]}
                if case % 6 == 5 else
                {"labels": labels, "label_storage": STORAGE[labels.dtype], "ignore_index": 255,
                 "has_ignore_index": case % 2}
            )  # fmt: skip
            yield "gb_softmax_cross_entropy", values, [z, delta, soft]
            yield "gb_softmax", {
                "a": z.array, "out": delta.array, "last": rows, "cols": cols, "stride_a": z.stride,
                "stride_out": delta.stride, "storage": STORAGE[dtype], "log_output": case % 2,
            }, [z, delta]  # fmt: skip
            yield "gb_row_weights", {
                "labels": labels, "divisor_at": np.zeros(()), "rows": rows, "classes": cols,
                "class_weight": random.random(cols).astype(C), "factor": 1.0, "storage": STORAGE[C],
                "label_storage": STORAGE[labels.dtype],
            }, []  # fmt: skip
            yield "gb_reduce_loss", {
                "row_loss": values["row_loss"], "loss": np.zeros((), C), "rows": rows,
                "divisor": float(rows), "storage": STORAGE[C],
            }, []  # fmt: skip


def pointwise(host: Host, random: np.random.Generator) -> Iterator[Call]:
    for case, (rows, cols, gap) in enumerate(SHAPES):
        for dtype in FLOATS:
            C = compute(dtype)
            a = Watched(rows, cols, gap, dtype, numbers(random, (rows, cols), dtype))
            t = Watched(rows, cols, gap, C, random.random((rows, cols)))
            delta = Watched(rows, cols, gap + 1, dtype)
            for formula in range(len(host.names("gb_loss_names"))):
                yield "gb_pointwise_loss", {
                    "a": a.array, "targets": t.array, "delta": delta.array,
                    "row_loss": np.empty(rows, C), "correct": np.empty(rows, np.bool_),
                    "sample_weight": random.random(rows).astype(C), "divisor_at": np.zeros(()),
                    "loss": np.zeros((), C), "last": rows, "rows": rows, "cols": cols,
                    "stride_a": a.stride, "stride_targets": t.stride, "stride_delta": delta.stride,
                    "upstream_value": 1.0, "divisor_factor": 1.0, "parameter": 1.0,
                    "storage": STORAGE[dtype], "target_storage": STORAGE[C], "formula": formula,
                    "weighs": 1,
                }, [a, t, delta]  # fmt: skip
            yield "gb_output", {
                "a": a.array, "out": delta.array, "last": rows, "cols": cols, "stride_a": a.stride,
                "stride_out": delta.stride, "storage": STORAGE[dtype], "kind": case % 3,
            }, [a, delta]  # fmt: skip


def updates(host: Host, random: np.random.Generator) -> Iterator[Call]:
    state = np.array([3, 2**40], np.uint64)
    for formula, _ in enumerate(host.names("gb_update_names")):
        for case, count in enumerate(COUNTS):
            for dtype in FLOATS:
                C = compute(dtype)
                half = FLOATS[2 + case % 2]
                slots = {f"s{i}": random.random(count).astype(C) for i in range(3)}
                factor = np.array(0.5, C)
                yield "gb_update", {
                    "p": numbers(random, (count,), dtype), "g": numbers(random, (count,), dtype),
                    **slots, "copy": np.empty(count, half), "c": random.random(8).astype(C),
                    "decay": factor if case % 2 else None, "clip": factor, "l2": factor,
                    "unscale": factor, "random": state if case % 3 else None, "last": count,
                    "penalized": count // 2, "storage": STORAGE[dtype],
                    "gradient_storage": STORAGE[dtype], "copy_storage": STORAGE[half],
                    "formula": formula,
                }, []  # fmt: skip
        yield "gb_prepare_update", {
            "hyperparameters": np.full(8, 0.5), "c": np.empty(8), "decay": np.empty(()), "lr": 0.1,
            "step": 3.0, "weight_decay": 0.1, "storage": 0, "formula": formula,
        }, []  # fmt: skip


def flats(host: Host, random: np.random.Generator) -> Iterator[Call]:
    for count in COUNTS:
        for dtype in FLOATS:
            x, code = numbers(random, (count,), dtype), {"storage": STORAGE[dtype]}
            partial = np.empty(-(-count // 600))
            yield "gb_sum_of_squares", {
                "x": x, "partial": partial, "out": np.empty(()), "last": count, "count": count,
                "chunk": 600, **code,
            }, []  # fmt: skip
            yield "gb_sum_of_squares_finish", {
                "partial": partial, "out": np.empty(()), "chunks": len(partial)
            }, []  # fmt: skip
            out = numbers(random, (count,), dtype)
            scale = np.array(0.5, compute(dtype))
            yield "gb_add_scaled", {"x": x, "scale": scale, "out": out, "last": count, **code}, []
            for target in FLOATS:
                stored = {"out": np.empty(count, target), "out_storage": STORAGE[target]}
                random_state = np.array([1, 2], np.uint64) if count % 2 else None
                yield "gb_round_to_storage", {
                    "x": x, "random": random_state, "last": count, **stored, **code
                }, []  # fmt: skip
                yield "gb_divide", {"x": x, "last": count, "divisor": 3.0, **stored, **code}, []


def one_hots(host: Host, random: np.random.Generator) -> Iterator[Call]:
    bounds = np.array([[1, 4], [4, 5], [7, 40]], np.int64)
    for rows, units, gap in SHAPES:
        codes = random.integers(-1, 43, (rows, 3)).astype(np.int32)  # beyond the groups too
        for dtype in FLOATS[:2]:
            W = Watched(units, 40, gap, dtype, numbers(random, (units, 40), dtype))
            a = Watched(rows, units, gap, dtype, numbers(random, (rows, units), dtype))
            code = {"codes": codes, "groups": 3, "stride_W": W.stride, "storage": STORAGE[dtype]}
            yield "gb_one_hot_forward", {
                "W": W.array, "a": a.array, "last": rows, "units": units, "inputs": 40,
                "stride_a": a.stride, "add": units % 2, **code,
            }, [W, a]  # fmt: skip
            yield "gb_one_hot_backward", {
                "bounds": bounds, "delta": a.array, "grad_W": W.array, "sums": np.empty(16 * 33),
                "last": units, "rows": rows, "stride_delta": a.stride, **code,
            }, [W, a]  # fmt: skip


def batches(host: Host, random: np.random.Generator) -> Iterator[Call]:
    for rows, cols, gap in SHAPES:
        for source in NUMBERS:
            x = Watched(rows, cols, gap, source, numbers(random, (rows, cols), source))
            for target in FLOATS if source.kind not in "iu" else [*FLOATS, source]:
                picked = np.array([-1, 0, rows - 1, rows + 5, 2**62], np.int64)
                out = Watched(5, cols, gap + 1, target)
                yield "gb_gather_rows", {
                    "source": x.array, "rows": picked, "out": out.array, "last": 5, "cols": cols,
                    "source_rows": rows, "stride_source": x.stride, "stride_out": out.stride,
                    "source_storage": STORAGE[source], "out_storage": STORAGE[target],
                }, [x, out]  # fmt: skip
                if target.kind in "iu":
                    continue
                out = Watched(rows, cols, gap, target)
                yield "gb_standardize", {
                    "raw": x.array, "mean": random.random(cols), "scale": 1 + random.random(cols),
                    "out": out.array, "last": rows, "cols": cols, "stride_raw": x.stride,
                    "stride_out": out.stride, "raw_storage": STORAGE[source],
                    "out_storage": STORAGE[target],
                }, [x, out]  # fmt: skip
    yield "gb_accumulate", {
        "loss": np.array(2.0), "correct": np.array([True, False]), "weights2": np.array(3.0),
        "totals": np.array([0, 0, 0, 0, 0, -1.0]), "rows": 2, "l2_value": 0.5, "storage": 0,
    }, []  # fmt: skip


if __name__ == "__main__":
    print(exercise(Host(Path(sys.argv[1]))), "calls")
