"""Philox-4x32-10 in NumPy, and the rule by which every backend draws its dropout masks.

The mask of a site is a pure function of (seed, step, layer, site) and an element's place in the whole
step's batch, so that any framework computes it anywhere, in forward and again in backward, bit for bit,
however that batch is cut into micro-batches or shared by processes and devices.

    key  = words 0, 1 of philox(counter=(step, layer, site, 0), key=(seed low, seed high))
    word = word (column mod 4) of philox(counter=(column div 4, line, row, 0), key=key)
    keep = word >= floor(rate * 2^32),   kept values are scaled by 1 / (1 - rate)

``row`` is a row's number in the whole step's batch, ``line`` and ``column`` are a place inside of it:
position and feature in ``[B, T, D]`` (the embedding and the two residual branches), ``head * T + query``
and key in ``[B, H, T, T]`` (the attention weights).

References:
    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
from jaxtyping import Bool, UInt32

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
WORDS = 4
"""Of a call, each for one of as many columns."""
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


def dropout_key(seed: int, step: int, layer: int, site: Site) -> tuple[int, int]:
    """The two 32-bit key words of one mask.

    Args:
        seed: The run's seed, below 2^64.
        step: Optimizer steps already taken, from 0.
        layer: Index of the block, from 0; 0 for the embedding.
    """
    counter = np.array([[step], [layer], [int(site)], [0]], np.uint32)
    words = philox(counter, _words(seed))
    return int(words[0, 0]), int(words[1, 0])


def dropout_keys(seed: int, step: int, first_row: int, n_layer: int) -> UInt32[np.ndarray, "L 4 3"]:
    """Of every mask in one forward pass, by layer and ``Site``: the key's two words, and the first row."""
    layer, site = np.indices((n_layer, len(Site)), np.uint32)
    words = philox(np.stack([np.full_like(layer, step), layer, site, np.zeros_like(layer)]), _words(seed))
    return np.stack([words[0], words[1], np.full_like(layer, first_row)], -1)


def _words(seed: int) -> tuple[int, int]:
    """Low and high half."""
    return seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF


def dropout_threshold(rate: float) -> int:
    """Smallest 32-bit word that is kept at ``rate``."""
    return int(rate * 2.0**32)


def dropout_mask(
    shape: tuple[int, ...], key: tuple[int, int], rate: float, first_row: int = 0
) -> Bool[np.ndarray, " ..."]:
    """True where an element of a tensor of ``shape`` is kept: rows, axes that number the lines, columns.

    Args:
        first_row: Number, in the whole step's batch, of the tensor's first row.
    """
    rows, *lines, columns = shape
    calls = -(-columns // WORDS)
    row, line, call = np.indices((rows, math.prod(lines), calls), np.uint32)
    words = philox(np.stack([call, line, row + np.uint32(first_row), np.zeros_like(row)]), key)
    kept: np.ndarray = np.moveaxis(words, 0, -1) >= dropout_threshold(rate)
    return kept.reshape(rows, -1, calls * WORDS)[:, :, :columns].reshape(shape)
