"""Inverted dropout with random words that are a pure function of (seed, step, layer, element).

Element i of a layer's matrix, counted row by row, is kept where ``word(i) >= threshold`` and
divided by 1 - p; the others become 0. word(i) is word i % 4 of Philox4x32-10 (Salmon et al. 2011)
of the counter {i // 4, step 2^16 + layer} and the key seed, so that the backward pass computes the
mask again, and NumPy and CUDA (``kernels/include/philox.cuh``, ``dropout.cuh``) have the same one.
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

MAX_STREAM = (1 << 16) - 1  # streams of a step: one for each layer, the last for rounding
ROUNDING_STREAM = MAX_STREAM
_WORD = 1 << 32
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_LOWER, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


@dataclass(frozen=True, eq=False)
class Dropout:
    """Dropout of one layer.

    Attributes
    ----------
    rate : p in [0, 1), the probability that an element becomes 0.
    layer : number of the hidden layer, from 0.
    state : (2,) uint64 {seed, step} on the backend's device, read when a call runs.
    """

    rate: float
    layer: int
    state: Any

    @property
    def threshold(self) -> int:
        """Words below it are dropped."""
        return min(round(self.rate * _WORD), _WORD - 1)

    @property
    def scale(self) -> float:
        return 1.0 / (1.0 - self.rate)


def random_state(seed: int, step: int = 0) -> Array:
    """(2,) uint64 {seed, step}; both may be any integers, taken modulo 2^64."""
    return np.array([seed % (1 << 64), step % (1 << 64)], np.uint64)


class Philox:
    """Random words of consecutive elements, without allocation in `words`.

    Parameters
    ----------
    state : (2,) uint64 {seed, step}, read by each call of `words`. stream : below 2^16.
    first, count : numbers of the elements: first, ..., first + count - 1.
    take : gives working memory, which calls that do not run at the same time may share.
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
        """(count,) uint32 in working memory."""
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
        """The counters: the blocks' numbers in words 0 and 1, `offset` in words 2 and 3."""
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
    """(2, 1): the key of a round, for words 0 and 2."""
    low = (seed + turn * _WEYL[0]) % _WORD
    high = ((seed >> 32) + turn * _WEYL[1]) % _WORD
    return np.array([[low], [high]], np.uint64)


def drop(x: Array, out: Array, dropout: Dropout, words: Philox, dropped: Array) -> None:
    """out = x / (1 - p) where the words keep it, else 0, NaN or not. out may be x.

    `x`, `out` : blocks of float32 or float64. `dropped` : bool of their shape, working memory.
    """
    np.less(words.words().reshape(x.shape), np.uint32(dropout.threshold), dropped)
    np.multiply(x, dropout.scale, out)
    np.copyto(out, 0.0, where=dropped)


def keep_mask(shape: tuple[int, ...], dropout: Dropout) -> Array:
    """Bool array of that shape: the elements that are kept."""
    memory: dict[int, Array] = {}

    def take(number: int, shape: tuple[int, ...], dtype: Any) -> Array:
        return memory.setdefault(number, np.empty(shape, dtype))

    words = Philox(dropout.state, dropout.layer, 0, math.prod(shape), take).words()
    return (words >= np.uint32(dropout.threshold)).reshape(shape)
