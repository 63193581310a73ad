"""Applying merges: to short pieces side by side, to a long one by a heap.

A merge has to wait for what the table of pairs says of the two pairs that the merge before it made. So the
pieces of a group make one merge each in turn: what they wait for, they wait for together.

A short piece has ``PIECE`` bytes of its own. Its symbols move up as they become fewer.

    the number of symbols     [264] what the table says of the pair that begins at each     [264] the symbols

Before the first symbol, and behind the last, stands one that merges with none.
"""

from __future__ import annotations

import heapq

import numpy as np

from bpe_scratch.compiled.kernel import inner, kernel
from bpe_scratch.compiled.memory import load8, load32, load64, load_int, lowest_bit, store64, store_int
from bpe_scratch.compiled.pair_table import NO_PAIR, find_pair

GROUP = 16
FOUND, IDS = 16, 16 + 8 * 264
PIECE = 67 * 64
"""An odd number of cache lines: pieces do not fall on each other in the cache."""
_NOTHING = 0x7FFFFFFF
_32, _ONE = np.uint64(32), np.uint64(1)
_LOW, RANK = np.uint64(0xFFFFFFFF), np.uint64(0xFFFFFFFF << 32)


@inner
def begin_piece(s, piece, i, n):
    """Lay out ``n`` bytes of text from ``i`` on."""
    found, ids, before = piece + FOUND, piece + IDS, load8(s.text, i)
    store_int(piece, 0, n)
    store_int(ids, -1, _NOTHING)
    for k in range(n):
        byte = load8(s.text, i + k)
        store_int(ids, k, load32(s.byte_ids, byte))
        store64(found, k - 1, load64(s.byte_pairs, before << 8 | byte))
        before = byte
    store_int(ids, n, _NOTHING)


@inner
def merge_once(s, piece):
    """Make the strongest merge, the leftmost of equals; whether there was one."""
    n, found, ids = load_int(piece, 0), piece + FOUND, piece + IDS
    least = NO_PAIR
    for k in range(n - 1):
        least = min(least, load64(found, k) & RANK | np.uint64(k))
    if least >> _32 == _LOW:
        return False
    at = np.int64(least & _LOW)
    merged = np.int64(load64(found, at) & _LOW)
    left = find_pair(s, load_int(ids, at - 1), merged)
    right = find_pair(s, merged, load_int(ids, at + 2))
    store_int(ids, at, merged)
    # eight at a time, whether they are there or not
    for first in range(at + 1, n, 8):
        for k in range(first, first + 8):
            store_int(ids, k, load_int(ids, k + 1))
            store64(found, k, load64(found, k + 1))
    store64(found, at - 1, left)
    store64(found, at, right)
    store_int(piece, 0, n - 1)
    return True


@inner
def merge_group(s, number):
    """Merge the first ``number`` of ``s.pieces`` to the end."""
    going = (_ONE << np.uint64(number)) - _ONE
    while going != 0:
        turn = going
        while turn != 0:
            k = lowest_bit(turn)
            turn &= turn - _ONE
            if not merge_once(s, s.pieces + k * PIECE):
                going ^= _ONE << np.uint64(k)


@inner
def push_pair(s, heap, ids, i, j):
    """Push what the symbols ``i`` and ``j`` may become."""
    answer = find_pair(s, ids[i], ids[j])
    if answer != NO_PAIR:
        heapq.heappush(heap, answer & RANK | np.uint64(i))


@kernel
def continue_long(states, ids, links, entries, budget):
    """Take ``budget`` entries or all, the least first; those that are left. A swallowed symbol becomes -1.

    An entry is ``rank << 32 | position`` of a pair that merges; ``links`` [n, 2] are the previous and next.
    """
    s, n, heap = states[0], ids.size, list(entries)
    heapq.heapify(heap)
    while len(heap) > 0 and budget > 0:
        budget -= 1
        top = heapq.heappop(heap)
        i = np.int64(top & _LOW)
        j = links[i, 1]
        if ids[i] < 0 or j >= n:
            continue
        answer = find_pair(s, ids[i], ids[j])
        if answer == NO_PAIR or answer >> _32 != top >> _32:
            continue
        ids[i] = np.int64(answer & _LOW)
        ids[j] = -1
        after, before = links[j, 1], links[i, 0]
        links[i, 1] = after
        if after < n:
            links[after, 0] = i
            push_pair(s, heap, ids, i, after)
        if before >= 0:
            push_pair(s, heap, ids, before, i)
    return np.array(heap)
