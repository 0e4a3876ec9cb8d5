"""Philox4x32-10 and dropout from the paper (Salmon et al. 2011, section 3.3), in Python's integers."""

from __future__ import annotations

import numpy as np


def philox_block(counter: list[int], key: list[int]) -> list[int]:
    """Return four random words for a counter of four words and a key of two."""
    x, (k0, k1) = counter, key
    for _ in range(10):
        left, right = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [right >> 32 ^ x[1] ^ k0, right & 0xFFFFFFFF, left >> 32 ^ x[3] ^ k1, left & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return x


def philox_words(first: int, count: int, offset: int, seed: int) -> np.ndarray:
    """Return the words of the elements first, ..., first + count - 1, as Python computes them."""
    blocks = {}
    for block in range(first // 4, (first + count + 3) // 4):
        counter = [block & 0xFFFFFFFF, block >> 32, offset & 0xFFFFFFFF, offset >> 32]
        blocks[block] = philox_block(counter, [seed & 0xFFFFFFFF, seed >> 32])
    return np.array([blocks[i // 4][i % 4] for i in range(first, first + count)], np.uint64)


def keep(shape: tuple[int, int], p: float, seed: int, step: int, layer: int) -> np.ndarray:
    """Return the mask of a layer: offset = step 2^16 + layer; a word of at least p 2^32 keeps."""
    words = philox_words(0, shape[0] * shape[1], step << 16 | layer, seed)
    return words.reshape(shape) >= round(p * 2**32)
