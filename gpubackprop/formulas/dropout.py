"""Inverted dropout with random words that depend on (seed, step, layer, element) alone.

Element i of a layer's matrix, counted row by row, is kept and divided by 1 - p if
``word(i) >= threshold``; otherwise it becomes 0. word(i) is word i % 4 of Philox4x32-10 (Salmon et
al. 2011) for the counter {i // 4, step 2^16 + layer} and the key seed. The backward pass therefore
computes the mask again instead of storing it, and NumPy and CUDA
(``kernels/include/philox.cuh``, ``dropout.cuh``) draw the same mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

Array = np.ndarray
Take = Callable[[int, tuple[int, ...], Any], Array]  # (number, shape, dtype) -> working memory

MAX_STREAM = (1 << 16) - 1  # a step has one stream for each layer; the last one is for rounding
ROUNDING_STREAM = MAX_STREAM
# What a kernel reads where nothing is dropped.
NO_DROPOUT: dict[str, Any] = {
    "dropout_state": None, "dropout_threshold": 0, "dropout_scale": 1.0, "dropout_layer": 0,
    "dropout_row": 0,
}  # fmt: skip
_WORD = 1 << 32
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_LOWER, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


@dataclass(frozen=True, eq=False)
class Dropout:
    """The dropout of one layer.

    Parameters
    ----------
    rate : float
        Probability p in [0, 1) that an element becomes 0.
    layer : int
        Number of the hidden layer, from 0.
    state : (2,) uint64 array
        {seed, step} on the backend's device. It is read when a call runs.
    first_row : int
        Row of the layer's matrix at which an array of it begins: several ranks have each a part.

    References
    ----------
    N. Srivastava, G. Hinton, A. Krizhevsky, I. Sutskever and R. Salakhutdinov, "Dropout: a simple
    way to prevent neural networks from overfitting", 2014. J. Salmon, M. Moraes, R. Dror and D.
    Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011 (the random words).

    Examples
    --------
    >>> dropout = Dropout(0.5, 0, random_state(seed=1))
    >>> dropout.scale, dropout.threshold == 2**31
    (2.0, True)
    """

    rate: float
    layer: int
    state: Any
    first_row: int = 0

    @property
    def threshold(self) -> int:
        """Random words below this number drop their element."""
        return min(round(self.rate * _WORD), _WORD - 1)

    @property
    def scale(self) -> float:
        """The factor 1 / (1 - p) on the elements that are kept."""
        return 1.0 / (1.0 - self.rate)

    @property
    def kernel_fields(self) -> dict[str, Any]:
        """What a kernel reads of it, by the names of its record's fields."""
        numbers = self.state, self.threshold, self.scale, self.layer, self.first_row
        return dict(zip(NO_DROPOUT, numbers, strict=True))


def random_state(seed: int, step: int = 0) -> Array:
    """Return (2,) uint64 {seed, step}; both may be any integers, taken modulo 2^64."""
    return np.array([seed % (1 << 64), step % (1 << 64)], np.uint64)


class Philox:
    """The random words of consecutive elements; `words` allocates nothing.

    Parameters
    ----------
    state : (2,) uint64 array
        {seed, step}, read by each call of `words`.
    stream : int
        Number of the stream, below 2^16.
    first : int
        Number of the first element.
    count : int
        Number of elements.
    take : callable
        ``take(number, shape, dtype)`` gives working memory. Calls that do not run at the same time
        may share it.
    """

    def __init__(self, state: Array, stream: int, first: int, count: int, take: Take) -> None:
        self.state, self.stream, self.first = state, stream, first
        blocks = -(-(first % 4 + count) // 4)
        # Words 0 and 2 of all blocks, and words 3 and 1: 32 bits each, in 64 for the products.
        self._even, self._odd, self._product, self._upper = (
            take(i, (2, blocks), np.uint64) for i in range(4)
        )
        self._blocks = take(4, (blocks, 4), np.uint32)
        flat = self._blocks.reshape(4 * blocks)
        self._words = flat[first % 4 : first % 4 + count]

    def words(self) -> Array:
        """Return the words, (count,) uint32, in working memory."""
        seed, step = (int(number) for number in self.state)
        even, odd, product, upper = self._even, self._odd[::-1], self._product, self._upper
        self._start((step << 16 | self.stream) % (1 << 64))
        for turn in range(_ROUNDS):
            np.multiply(even, _MULTIPLIERS, product)
            np.right_shift(product, _SHIFT, upper)
            np.bitwise_xor(upper[::-1], odd, even)
            np.bitwise_xor(even, _round_key(seed, turn), even)
            np.bitwise_and(product, _LOWER, self._odd)
        for word, values in enumerate((even[0], odd[0], even[1], odd[1])):
            np.copyto(self._blocks[:, word], values, casting="unsafe")
        return self._words

    def _start(self, offset: int) -> None:
        """Set the counters: the blocks' numbers in words 0 and 1, `offset` in words 2 and 3."""
        numbers = self._product[0]
        numbers.fill(1)
        numbers[:1] = self.first // 4
        np.add.accumulate(numbers, 0, None, numbers)
        np.bitwise_and(numbers, _LOWER, self._even[0])
        np.right_shift(numbers, _SHIFT, self._odd[1])
        self._even[1].fill(offset & int(_LOWER))
        self._odd[0].fill(offset >> 32)


@lru_cache(maxsize=64)
def _round_key(seed: int, turn: int) -> Array:
    """Return the key of a round, (2, 1): for words 0 and 2."""
    low = (seed + turn * _WEYL[0]) % _WORD
    high = ((seed >> 32) + turn * _WEYL[1]) % _WORD
    return np.array([[low], [high]], np.uint64)


def drop(x: Array, out: Array, dropout: Dropout, words: Philox, dropped: Array) -> None:
    """out = x / (1 - p) if the word keeps the element, else 0, even for NaN; out may be x.

    `x` and `out` are blocks of float32 or float64; `dropped` is bool of their shape, working
    memory.
    """
    np.less(words.words().reshape(x.shape), np.uint32(dropout.threshold), dropped)
    np.multiply(x, dropout.scale, out)
    np.copyto(out, 0.0, where=dropped)


def keep_mask(shape: tuple[int, ...], dropout: Dropout) -> Array:
    """Return a boolean array of that shape: True for the elements that are kept."""
    memory: dict[int, Array] = {}

    def take(number: int, shape: tuple[int, ...], dtype: Any) -> Array:
        return memory.setdefault(number, np.empty(shape, dtype))

    first = dropout.first_row * math.prod(shape[1:])
    words = Philox(dropout.state, dropout.layer, first, math.prod(shape), take).words()
    return (words >= np.uint32(dropout.threshold)).reshape(shape)
