"""Which of cuBLASLt's algorithms a plan takes: the fastest of its proposals, measured once.

The choice is kept in a file for each card, version of the library and problem, beside the compiled
kernels. So a second run takes the same algorithm, and its products have the same bits. To hold
several machines to one choice, give each the same file: GPUBACKPROP_PRODUCT_CHOICES=FILE.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop.backends.cupy import compiling, cublaslt
from gpubackprop.backends.kept_files import write

PROPOSALS, RUNS = 8, 3  # algorithms that are timed, and runs of each
Run = Callable[[cublaslt.Product, Any, Any], None]


class Choices:
    """The choices of one card.

    Parameters
    ----------
    cupy : module
        CuPy.
    index : int
        Number of the device.
    version : int
        Version of cuBLASLt.
    """

    def __init__(self, cupy: Any, index: int, version: int) -> None:
        self._cupy, self._index, self._version = cupy, index, version
        self._file: Path | None = None
        self._kept: dict[str, list[int]] = {}

    def choose(self, product: cublaslt.Product, run: Run, out: Any) -> None:
        """Give `product` its algorithm: the one that is kept, or else the fastest.

        Parameters
        ----------
        product : Product
            The product.
        run : callable
            ``run(product, out, workspace)`` queues it.
        out : array
            Like the result, of which the runs write a copy.

        Raises
        ------
        CublasLtError
            The library proposes none.
        """
        key = product.problem.key
        self._read()
        kept = self._kept.get(key)
        if kept and product.takes(cublaslt.Algorithm((cublaslt.U64 * 8)(*kept))):
            return
        results = product.candidates(PROPOSALS)
        if not results:
            raise cublaslt.CublasLtError("cuBLASLt proposes no algorithm")
        if len(results) == 1:
            product.take(results[0])
        else:
            self._take_fastest(product, results, run, out)
        self._keep(key, list(product.algorithm.data))

    def _take_fastest(
        self, product: cublaslt.Product, results: list[Any], run: Run, out: Any
    ) -> None:
        cuda, times = self._cupy.cuda, []
        room = self._cupy.empty(out.shape, out.dtype)
        largest = max(int(result.workspace) for result in results)
        workspace = self._cupy.empty(max(1, largest), np.uint8)
        for result in results:
            product.take(result)
            run(product, room, workspace)  # the first run loads the kernel
            start, end = cuda.Event(), cuda.Event()
            start.record()
            for _ in range(RUNS):
                run(product, room, workspace)
            end.record()
            end.synchronize()
            times.append(cuda.get_elapsed_time(start, end))
        product.take(results[int(np.argmin(times))])

    def way(self, key: str) -> int | None:
        """Return the number that `keep_way` has kept, or None."""
        self._read()
        kept = self._kept.get(key)
        return kept[0] if isinstance(kept, list) and kept and isinstance(kept[0], int) else None

    def keep_way(self, key: str, number: int) -> None:
        """Keep which of several ways was taken."""
        self._keep(key, [number])

    # -- the file ---------------------------------------------------------------------------------

    def _read(self) -> None:
        if self._file is not None:
            return
        card = self._cupy.cuda.Device(self._index).compute_capability
        name = f"products-{card}-{self._version}.json"
        given = os.environ.get("GPUBACKPROP_PRODUCT_CHOICES")
        self._file = Path(given) if given else compiling.cache_directory() / name
        with suppress(OSError, ValueError):
            self._kept |= json.loads(self._file.read_text(encoding="utf-8"))

    def _keep(self, key: str, algorithm: list[int]) -> None:
        self._kept[key] = algorithm
        assert self._file is not None
        with suppress(OSError):  # the next process chooses again
            write(self._file, json.dumps(self._kept).encode())
