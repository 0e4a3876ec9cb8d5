"""The forms of the softmax kernels at sizes that an emulator likes, for the sanitizers."""

from __future__ import annotations

import numpy as np

from gpubackprop.backends.cupy import losses
from gpubackprop.backends.cupy_launch import DeviceProperties
from gpubackprop.dtypes import compute_dtype
from tests.emulator.arrays import Guarded
from tests.emulator.operations import DTYPES, Operations

H200 = DeviceProperties(2, 232_448, (9, 0))
ONE = DeviceProperties(1, 232_448, (9, 0))  # of which a block of pairs is enough
# name: card, blocks per row, columns
FORMS = {
    # Pieces of 16, 8 and 4 bytes, which one depends on the bytes of a row; then two lanes and more.
    "lane": (H200, None, 12),
    "lane of even rows": (H200, None, 10),
    "lane of 16": (H200, None, 16),
    "lane of odd rows": (H200, None, 11),
    # Two rows to a thread where only labels are given; neighbours, then rows apart.
    "lane or pair": (ONE, None, 9),
    "lane or pair apart": (ONE, None, 8),
    "lanes": (H200, None, 77),
    "lanes of 64": (H200, None, 64),
    "lanes of 100": (H200, None, 100),
    "warp": (DeviceProperties(2, 21_000, (9, 0)), None, 300),  # no room for tiles
    "block": (H200, 1, 700),
    "shared": (DeviceProperties(2, 12_288, (9, 0)), 1, 6001),
    "memory": (DeviceProperties(2, 8192, (9, 0)), 1, 7001),
    "cluster2": (DeviceProperties(2, 8192, (9, 0)), 2, 1501),
    "cluster4": (H200, 4, 600),
    "cluster8": (H200, 8, 600),
    "parts": (DeviceProperties(4), None, 16_999),
}


def launch_forms(verbs: Operations, dtype: str, names: tuple[str, ...] = tuple(FORMS)) -> None:
    """Launch every form, for the sanitizers, from awkward pointers.

    Each runs with labels (a bad one among them) and in its general form.
    """
    kind = DTYPES[dtype]
    compute = compute_dtype(kind)
    for name in names:
        card, cluster, cols = FORMS[name]
        if name == "parts":
            cols = {2: 34_000, 4: 17_000, 8: 9_000}[kind.itemsize]
        own = Operations(run=verbs.run, device=card)
        tiled = name.startswith("lane")
        # Three tiles and more of a block.
        rows = 1 if name == "parts" else 3 if not tiled else 80 if cols > 16 else 300
        for shift, gap in ((0, 0), (1, 0 if tiled else 2)):
            memory = Guarded()
            z = memory.normal((rows, cols), kind, shift=shift, gap=gap)
            t = memory.empty((rows, cols), compute, shift=1, gap=1)
            t[...] = 0.25
            per_row, per_class = np.ones(rows, compute), np.ones(cols, compute)
            result = {
                "row_loss": np.empty(rows, compute), "lse": np.empty(rows, compute),
                "predicted": np.empty(rows, np.int64), "correct": np.empty(rows, np.uint8),
                "bad_label": np.array([-1, -1]), "delta": z,
            }  # fmt: skip
            labels = np.arange(rows) % cols
            labels[:3] = np.array([cols - 1, 2**40, 0])[:rows]
            own.softmax_cross_entropy(
                z, labels, result, label_smoothing=0.1, z_loss=0.1, sample_weight=per_row,
                cluster=cluster,
            )  # fmt: skip
            own.softmax_cross_entropy(
                z, t, result, label_smoothing=0.1, class_weight=per_class, soft_cap=9.0,
                upstream=per_row, cluster=cluster,
            )  # fmt: skip
            sums = {
                "loss": np.empty((), compute), "weight_sum": np.empty((), compute),
                "correct_rows": np.empty((), np.int64), "bad_label": result["bad_label"], "delta": z,
            }  # fmt: skip
            own.softmax_cross_entropy(z, labels, sums, ignore_index=0, cluster=cluster)
            own.softmax_cross_entropy(
                z, labels, sums, ignore_index=0, weigh=losses.FIRST, cluster=cluster
            )
            if shift:  # no thread has the same packs of the gradients as of the logits
                result["delta"] = memory.empty((rows, cols), kind, shift=2 * shift, gap=gap)
                for wanted in (result, {"row_loss": result["row_loss"]}):
                    for weights in (None, per_class):
                        own.softmax_cross_entropy(
                            z, labels, wanted, label_smoothing=0.1, class_weight=weights,
                            cluster=cluster,
                        )  # fmt: skip
