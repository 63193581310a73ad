"""A shuffle that is a function: the place of row i, for any i, without a table.

A Feistel network over 2^(2h) >= N numbers, keyed by (seed, epoch), is a permutation whatever its
round function; numbers that land outside [0, N) walk on along their cycle until they are inside.

Shapes: n indices.

References:
    Luby and Rackoff 1988 (the network); Black and Rogaway 2002, section 4 (cycle walking).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, UInt64

ROUNDS = 8
MASK64 = 2**64 - 1
# odd constants of SplitMix64's finalizer (Steele, Lea and Flood 2014)
GAMMA, MIX1, MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def finalize(words: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """SplitMix64's finalizer: every bit of a word depends on every bit given."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(MIX1)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(MIX2)
    mixed: np.ndarray = words ^ (words >> np.uint64(31))
    return mixed


def round_keys(seed: int, epoch: int) -> UInt64[np.ndarray, " rounds"]:
    """One 64-bit key for each round.

    Args:
        seed: Any integer; its low 64 bits count.
        epoch: Passes over the data already made, from 0.
    """
    start = finalize(np.array([(seed + GAMMA) & MASK64], np.uint64)) ^ np.uint64((epoch * GAMMA) & MASK64)
    steps = np.arange(1, ROUNDS + 1, dtype=np.uint64) * np.uint64(GAMMA)
    return finalize(finalize(start) + steps)


def permute(index: Int64[np.ndarray, " n"], size: int, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    """Where the shuffle of ``range(size)`` sends each index.

    Args:
        index: Places in the shuffled order, each in ``[0, size)``.
        size: Number of things shuffled, at least 1.
        epoch: Passes over the data already made, from 0.

    Raises:
        ValueError: If an index is outside ``[0, size)``.
    """
    if index.size and (index.min() < 0 or index.max() >= size):
        raise ValueError(f"index {index.min()}..{index.max()} is outside [0, {size})")
    half = np.uint64(((size - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << int(half)) - 1)
    keys = round_keys(seed, epoch)
    words = index.astype(np.uint64)
    pending = np.arange(index.size)
    while pending.size:
        words[pending] = _network(words[pending], keys, half, low)
        pending = pending[words[pending] >= np.uint64(size)]
    return words.astype(np.int64)


def _network(
    words: UInt64[np.ndarray, " n"], keys: UInt64[np.ndarray, " rounds"], half: np.uint64, low: np.uint64
) -> UInt64[np.ndarray, " n"]:
    left, right = words >> half, words & low
    for key in keys:
        left, right = right, left ^ (finalize(right ^ key) & low)
    return (left << half) | right
