# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""The merges as a perfect hash table: one look, no search, so that nothing has to be guessed.

A pair's hash gives it a bucket, a base and a step.  Each bucket has a number, its displacement, chosen when
the table is filled such that ``base + displacement * step`` is free for all of its pairs.  Large buckets
choose first, while there is room.

A slot holds two 64-bit numbers: ``left << 32 | right`` plus one, and ``rank << 32 | merged id``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bpe_scratch.compiled.kernel import inner, kernel
from bpe_scratch.compiled.memory import load32, load64
from bpe_scratch.vocabulary import Vocabulary

NO_PAIR = np.uint64(0xFFFFFFFFFFFFFFFF)
_C1, _C2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_8, _24, _32, _ZERO, _ONE = np.uint64(8), np.uint64(24), np.uint64(32), np.uint64(0), np.uint64(1)
_TRIES = 1 << 15
_SMALLEST_LOG = 6
_BUCKET_LOG = 2  # slots to a bucket, as a power of two


@inner
def pair_hash(left, right, shift):
    """``(key, bucket, base, step)`` of a pair in a table of ``2**(64 - shift)`` slots."""
    key = (np.uint64(left) << _32 | np.uint64(right)) + _ONE
    h = key * _C1
    h ^= h >> _32
    h *= _C2
    mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(shift)
    return key, np.int64(h >> np.uint64(shift + _BUCKET_LOG)), h >> _24 & mask, h >> _8 & mask | _ONE


@inner
def find_pair(pairs, displacements, shift, left, right):
    """``rank << 32 | merged id`` of a pair, or ``NO_PAIR``."""
    key, bucket, base, step = pair_hash(left, right, shift)
    mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(shift)
    at = np.int64(base + np.uint64(load32(displacements, bucket)) * step & mask)
    found, answer = load64(pairs, 2 * at), load64(pairs, 2 * at + 1)
    # arithmetic instead of a choice, which the compiler would make a branch
    return answer | _ZERO - np.uint64(found != key)


@inner
def place_bucket(first, following, rows, ranks, pairs, displacement, shift):
    """Write the pairs of a bucket if all of their slots are free; else write none and return false."""
    mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(shift)
    m = first
    while m >= 0:
        key, _, base, step = pair_hash(rows[m, 0], rows[m, 1], shift)
        at = np.int64(base + np.uint64(displacement) * step & mask)
        if pairs[2 * at] != 0:
            break
        pairs[2 * at] = key
        pairs[2 * at + 1] = np.uint64(ranks[m]) << _32 | np.uint64(rows[m, 2])
        m = following[m]
    stop, m = m, first
    while stop >= 0 and m != stop:
        _, _, base, step = pair_hash(rows[m, 0], rows[m, 1], shift)
        pairs[2 * np.int64(base + np.uint64(displacement) * step & mask)] = 0
        m = following[m]
    return stop < 0


@kernel
def fill_pairs(rows, ranks, pairs, displacements, shift):
    """Enter all merges ``rows`` [merges, 3] into an empty table; false if a bucket finds no place."""
    first = np.full(displacements.size, -1, dtype=np.int64)
    sizes = np.zeros(displacements.size, dtype=np.int64)
    following = np.empty(rows.shape[0], dtype=np.int64)
    for m in range(rows.shape[0]):
        _, bucket, _, _ = pair_hash(rows[m, 0], rows[m, 1], shift)
        following[m] = first[bucket]
        first[bucket] = m
        sizes[bucket] += 1
    for size in range(sizes.max(), 0, -1):
        for bucket in range(displacements.size):
            if sizes[bucket] != size:
                continue
            displacement = 0
            while not place_bucket(first[bucket], following, rows, ranks, pairs, displacement, shift):
                displacement += 1
                if displacement == _TRIES:
                    return False
            displacements[bucket] = displacement
    return True


class PairTable:
    """The arrays of a table, in the order in which kernels take them."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        rows, ranks = vocabulary.merge_array, np.array(vocabulary.ranks, dtype=np.int64)
        log = max(_SMALLEST_LOG, (len(rows) * 5 // 4).bit_length())
        while not self._fill(rows, ranks, log):
            log += 1
        self.byte_pairs = _pairs_of_bytes(vocabulary, rows, ranks)

    def _fill(self, rows: npt.NDArray[np.int64], ranks: npt.NDArray[np.int64], log: int) -> bool:
        pairs = np.zeros(2 << log, dtype=np.uint64)
        displacements = np.zeros(1 << (log - _BUCKET_LOG), dtype=np.int32)
        self.arrays = (pairs, displacements, 64 - log)
        return bool(fill_pairs(rows, ranks, pairs, displacements, 64 - log))


def _pairs_of_bytes(
    vocabulary: Vocabulary, rows: npt.NDArray[np.int64], ranks: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint64]:
    """What :func:`find_pair` says of two bytes, at ``left << 8 | right``: a word starts with these."""
    byte_of_id = np.full(len(vocabulary.tokens), -1)
    byte_of_id[list(vocabulary.byte_ids)] = np.arange(256)
    left, right = byte_of_id[rows[:, 0]], byte_of_id[rows[:, 1]]
    both = (left >= 0) & (right >= 0)
    pairs = np.full(1 << 16, NO_PAIR)
    pairs[left[both] << 8 | right[both]] = (ranks[both] << 32 | rows[both, 2]).astype(np.uint64)
    return pairs
