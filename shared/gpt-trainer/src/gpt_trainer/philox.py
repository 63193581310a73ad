"""Philox-4x32-10 in NumPy, and the rule by which every backend draws its dropout masks.

The mask of a site is a pure function of (seed, step, micro-batch, layer, site) and the element's
index, so that any framework computes it anywhere, in forward and again in backward, bit for bit.

    key  = words 0, 1 of philox(counter=(step, micro_batch, layer, site), key=(seed low, seed high))
    word = word 0 of philox(counter=(index low, index high, 0, 0), key=key)
    keep = word >= floor(rate * 2^32),   kept values are scaled by 1 / (1 - rate)

``index`` is the element's row-major position in the logical tensor: ``[B, T, D]`` for the embedding
and the two residual branches, ``[B, H, T, T]`` (query before key) for the attention weights.

References:
    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from jaxtyping import Bool, UInt32

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
LOW = np.uint64(0xFFFFFFFF)


class Site(IntEnum):
    """Where in the model a dropout mask applies; the embedding counts as layer 0."""

    EMBEDDING = 0
    ATTENTION = 1
    ATTENTION_RESIDUAL = 2
    MLP_RESIDUAL = 3


def philox(counter: UInt32[np.ndarray, " 4 *n"], key: tuple[int, int]) -> UInt32[np.ndarray, " 4 *n"]:
    """Ten rounds of Philox-4x32: four pseudo-random words for each counter.

    ``philox(0, (0, 0))`` begins ``6627e8d5 e169c58d`` (Random123's known-answer test).
    """
    c0, c1, c2, c3 = (word.astype(np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & LOW,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & LOW,
        )
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3]).astype(np.uint32)


def dropout_key(seed: int, step: int, micro_batch: int, layer: int, site: Site) -> tuple[int, int]:
    """The two 32-bit key words of one mask.

    Args:
        seed: The run's seed, below 2^64.
        step: Optimizer steps already taken, from 0.
        micro_batch: Counted from the step's first, over all processes and devices, in the order of rows.
        layer: Index of the block, from 0; 0 for the embedding.
    """
    counter = np.array([[step], [micro_batch], [layer], [int(site)]], np.uint32)
    words = philox(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    return int(words[0, 0]), int(words[1, 0])


def dropout_keys(seed: int, step: int, micro_batch: int, n_layer: int) -> UInt32[np.ndarray, "L 4 2"]:
    """Keys of every mask in one forward pass, by layer and ``Site``."""
    keys = [[dropout_key(seed, step, micro_batch, layer, site) for site in Site] for layer in range(n_layer)]
    return np.array(keys, np.uint32)


def dropout_threshold(rate: float) -> int:
    """Smallest 32-bit word that is kept at ``rate``."""
    return int(rate * 2.0**32)


def dropout_mask(shape: tuple[int, ...], key: tuple[int, int], rate: float) -> Bool[np.ndarray, " ..."]:
    """True where an element of a tensor of ``shape`` is kept."""
    index = np.arange(int(np.prod(shape)), dtype=np.uint64)
    zero = np.zeros_like(index)
    counter = np.stack([index & LOW, index >> np.uint64(32), zero, zero]).astype(np.uint32)
    kept: np.ndarray = philox(counter, key)[0] >= dropout_threshold(rate)
    return kept.reshape(shape)
