# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""The merges as a hash table that is at most half full; collisions go to the next slot.

All keys, ``left << 32 | right`` plus one, stand before all answers, ``rank << 32 | merged id``: a search
reads keys alone, which take half of the cache.
"""

from __future__ import annotations

import numpy as np

from bpe_scratch.compiled.kernel import inner, kernel
from bpe_scratch.compiled.memory import load32, load64, store64
from bpe_scratch.compiled.state import State
from bpe_scratch.vocabulary import Vocabulary

NO_PAIR = np.uint64(0xFFFFFFFFFFFFFFFF)
_C1, _C2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_32, _ONE = np.uint64(32), np.uint64(1)


@inner
def key_and_slot(left, right, shift):
    """The key of a pair, and where the search for it begins in a table of ``2**(64 - shift)`` slots."""
    key = (np.uint64(left) << _32 | np.uint64(right)) + _ONE
    h = key * _C1
    return key, np.int64((h ^ h >> _32) * _C2 >> np.uint64(shift))


@inner
def find_pair(s, left, right):
    """``rank << 32 | merged id`` of a pair, or ``NO_PAIR``."""
    key, at = key_and_slot(left, right, s.pair_shift)
    size = np.int64(1) << (64 - s.pair_shift)
    found = load64(s.pairs, at)
    while (found != key) & (found != 0):
        at = at + 1 & size - 1
        found = load64(s.pairs, at)
    # what is not there has its answer too: to branch would cost more than to load it
    return load64(s.pairs, size + at)


@kernel
def fill_pairs(rows, ranks, pairs, shift):
    """Enter all merges ``rows`` [merges, 3] into an empty table."""
    for m in range(rows.shape[0]):
        key, at = key_and_slot(rows[m, 0], rows[m, 1], shift)
        while pairs[0, at] != 0:
            at = (at + 1) % pairs.shape[1]
        pairs[0, at], pairs[1, at] = key, np.uint64(ranks[m]) << _32 | np.uint64(rows[m, 2])


@kernel
def look_up_bytes(states):
    """What the table says of each two bytes ``left << 8 | right``: a word starts with these."""
    s = states[0]
    for both in range(1 << 16):
        left, right = load32(s.byte_ids, both >> 8), load32(s.byte_ids, both & 255)
        store64(s.byte_pairs, both, find_pair(s, left, right))


def point_to_pairs(state: State, vocabulary: Vocabulary) -> None:
    """Make the table of a vocabulary's merges for a state."""
    log = max(4, (2 * len(vocabulary.merges)).bit_length())
    pairs = np.zeros((2, 1 << log), dtype=np.uint64)
    pairs[1] = NO_PAIR
    fill_pairs(vocabulary.merge_array, np.array(vocabulary.ranks, dtype=np.int64), pairs, 64 - log)
    state["pair_shift"] = 64 - log
    byte_ids, byte_pairs = np.array(vocabulary.byte_ids, dtype=np.int32), np.zeros(1 << 16, dtype=np.uint64)
    state.point(pairs=pairs, byte_ids=byte_ids, byte_pairs=byte_pairs)
    look_up_bytes(state.record)
