# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""The merges as a hash table that is at most a quarter full; collisions go to the next slot.

A slot holds two 64-bit numbers: ``left << 32 | right`` plus one, and ``rank << 32 | merged id``.
"""

from __future__ import annotations

import numpy as np

from bpe_scratch.compiled.kernel import inner, kernel
from bpe_scratch.compiled.memory import load64
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
    while True:
        found = load64(s.pairs, 2 * at)
        if found == key:
            return load64(s.pairs, 2 * at + 1)
        if found == 0:
            return NO_PAIR
        at = at + 1 & (np.int64(1) << (64 - s.pair_shift)) - 1


@kernel
def fill_pairs(rows, ranks, pairs, shift):
    """Enter all merges ``rows`` [merges, 3] into an empty table."""
    for m in range(rows.shape[0]):
        key, at = key_and_slot(rows[m, 0], rows[m, 1], shift)
        while pairs[at, 0] != 0:
            at = (at + 1) % pairs.shape[0]
        pairs[at, 0], pairs[at, 1] = key, np.uint64(ranks[m]) << _32 | np.uint64(rows[m, 2])


def point_to_pairs(state: State, vocabulary: Vocabulary) -> None:
    """Make the table of a vocabulary's merges for a state."""
    log = max(4, (4 * len(vocabulary.merges)).bit_length())
    pairs = np.zeros((1 << log, 2), dtype=np.uint64)
    fill_pairs(vocabulary.merge_array, np.array(vocabulary.ranks, dtype=np.int64), pairs, 64 - log)
    state["pair_shift"] = 64 - log
    state.point(pairs=pairs, byte_ids=np.array(vocabulary.byte_ids, dtype=np.int32))
