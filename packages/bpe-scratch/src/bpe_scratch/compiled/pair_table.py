"""The merges as a hash table of buckets: a search compares all keys of a bucket at once.

A bucket is two cache lines: seven keys, ``left << 32 | right`` plus one, and a zero; then their answers,
``rank << 32 | merged id``, and the answer for what is not there. So nothing has to be guessed: a wrong guess
costs more than the rest. Of seven places four are taken at most; what finds its bucket full is in the next.
"""

from __future__ import annotations

import numpy as np

from bpe_scratch.compiled.kernel import inner, kernel
from bpe_scratch.compiled.memory import equal8, load64, lowest_bit
from bpe_scratch.compiled.state import State, aligned_zeros
from bpe_scratch.compiled.word_table import C1, C2
from bpe_scratch.vocabulary import Vocabulary

NO_PAIR = np.uint64(0xFFFFFFFFFFFFFFFF)
_32, _ONE, _EIGHTH = np.uint64(32), np.uint64(1), np.uint64(1 << 7)


@inner
def key_and_bucket(left, right, shift):
    """The key of a pair, and where the search for it begins in a table of ``2**(64 - shift)`` buckets."""
    key = (np.uint64(left) << _32 | np.uint64(right)) + _ONE
    h = key * C1
    return key, np.int64((h ^ h >> _32) * C2 >> np.uint64(shift))


@inner
def find_pair(s, left, right):
    """``rank << 32 | merged id`` of a pair, or ``NO_PAIR``."""
    key, bucket = key_and_bucket(left, right, s.pair_shift)
    buckets = np.int64(1) << (64 - s.pair_shift)
    near = equal8(s.pairs, 16 * bucket, key)
    while load64(s.pairs, 16 * bucket + 6) != 0 and near == 0:
        bucket = bucket + 1 & buckets - 1
        near = equal8(s.pairs, 16 * bucket, key)
    return load64(s.pairs, 16 * bucket + 8 + lowest_bit(near | _EIGHTH))


@kernel
def fill_pairs(rows, ranks, pairs, shift):
    """Enter all merges ``rows`` [merges, 3] into an empty table."""
    for m in range(rows.shape[0]):
        key, bucket = key_and_bucket(rows[m, 0], rows[m, 1], shift)
        while pairs[bucket, 6] != 0:
            bucket = (bucket + 1) % pairs.shape[0]
        at = 0
        while pairs[bucket, at] != 0:
            at += 1
        pairs[bucket, at] = key
        pairs[bucket, at + 8] = np.uint64(ranks[m]) << _32 | np.uint64(rows[m, 2])


def point_to_pairs(state: State, vocabulary: Vocabulary) -> None:
    """Make the table of a vocabulary's merges for a state, and one of what two bytes become."""
    log = max(1, (len(vocabulary.merges) // 4).bit_length())
    pairs = aligned_zeros(16 << log).reshape(-1, 16)
    pairs[:, 15] = NO_PAIR
    rows = np.array(vocabulary.merges, dtype=np.int64).reshape(-1, 3)
    ranks = np.array(vocabulary.ranks, dtype=np.int64)
    fill_pairs(rows, ranks, pairs, 64 - log)
    state["pair_shift"] = 64 - log
    byte_ids, byte_pairs = np.array(vocabulary.byte_ids, dtype=np.int32), np.full(1 << 16, NO_PAIR)
    byte_of = np.full(len(vocabulary.tokens), -1)
    byte_of[byte_ids] = range(256)
    left, right = byte_of[rows[:, :2]].T
    both = (left >= 0) & (right >= 0)
    byte_pairs[(left << 8 | right)[both]] = (ranks << 32 | rows[:, 2])[both]
    state.point(pairs=pairs, byte_ids=byte_ids, byte_pairs=byte_pairs)
