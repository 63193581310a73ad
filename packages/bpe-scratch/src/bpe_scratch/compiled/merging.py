# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Applying merges to one piece, short or long, and the table of merges.

The pair table holds two 64-bit numbers a slot: ``left << 32 | right`` plus one, and ``rank << 32 | merged
id``.
"""

from __future__ import annotations

import numpy as np

from bpe_scratch.compiled.kernel import inner, kernel
from bpe_scratch.compiled.memory import address, load8, load32, load64, store32, store64

NO_PAIR = np.uint64(0xFFFFFFFFFFFFFFFF)
_C1 = np.uint64(0x9E3779B97F4A7C15)
_32, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)
_ONE = np.uint64(1)


@inner
def pair_slot(key, shift):
    """Where the search for a pair begins in a table of ``2**(64 - shift)`` slots."""
    h = key * _C1
    h ^= h >> _32
    return np.int64((h * _C1) >> np.uint64(shift))


@kernel
def fill_pairs(table, shift, left, right, ranks, merged):
    """Enter all merges into an empty table."""
    mask = (np.int64(1) << np.int64(64 - shift)) - 1
    for m in range(left.size):
        key = (np.uint64(left[m]) << _32 | np.uint64(right[m])) + _ONE
        at = pair_slot(key, shift)
        while table[2 * at] != 0:
            at = (at + 1) & mask
        table[2 * at] = key
        table[2 * at + 1] = np.uint64(ranks[m]) << _32 | np.uint64(merged[m])


@inner
def find_pair(table, shift, left, right):
    """``rank << 32 | merged id`` of a pair, or ``NO_PAIR``."""
    mask = (np.int64(1) << np.int64(64 - shift)) - 1
    key = (np.uint64(left) << _32 | np.uint64(right)) + _ONE
    at = pair_slot(key, shift)
    while True:
        found = load64(table, 2 * at)
        if found == key:
            return load64(table, 2 * at + 1)
        if found == 0:
            return NO_PAIR
        at = (at + 1) & mask


@inner
def merge_short(text, i, n, byte_ids, pairs, shift, ids, found):
    """Merge a short piece in place: scan for the strongest pair, join, repeat. Returns the number of ids.

    ``ids`` [>= n] receives the ids; ``found`` [>= n] is scratch, the table's answer for each pair.
    """
    store32(ids, 0, load32(byte_ids, load8(text, i)))
    for k in range(1, n):
        store32(ids, k, load32(byte_ids, load8(text, i + k)))
        store64(found, k - 1, find_pair(pairs, shift, load32(ids, k - 1), load32(ids, k)))
    while n > 1:
        best, least = 0, load64(found, 0)
        for k in range(1, n - 1):
            answer = load64(found, k)
            if answer >> _32 < least >> _32:
                best, least = k, answer
        if least == NO_PAIR:
            break
        store32(ids, best, np.int64(least & _LOW))
        n -= 1
        for k in range(best + 1, n):
            store32(ids, k, load32(ids, k + 1))
            store64(found, k - 1, load64(found, k))
        if best > 0:
            store64(found, best - 1, find_pair(pairs, shift, load32(ids, best - 1), load32(ids, best)))
        if best < n - 1:
            store64(found, best, find_pair(pairs, shift, load32(ids, best), load32(ids, best + 1)))
    return n


@inner
def sift_down(heap, size, at):
    """Restore a heap with four children a node after ``heap[at]`` grew."""
    value = load64(heap, at)
    while True:
        child = 4 * at + 1
        if child >= size:
            break
        least = child
        for other in range(child + 1, min(child + 4, size)):
            if load64(heap, other) < load64(heap, least):
                least = other
        if load64(heap, least) >= value:
            break
        store64(heap, at, load64(heap, least))
        at = least
    store64(heap, at, value)


@inner
def push(heap, size, value):
    """Add to the heap; returns its new size."""
    at = size
    while at > 0:
        parent = (at - 1) >> 2
        if load64(heap, parent) <= value:
            break
        store64(heap, at, load64(heap, parent))
        at = parent
    store64(heap, at, value)
    return size + 1


@kernel
def start_long(text, byte_ids, pairs, shift, ids, links, heap):
    """Fill symbols, links (previous, next) and the heap of ``rank << 32 | position``; returns its size."""
    n, size = ids.size, 0
    text, byte_ids, pairs, heap = address(text), address(byte_ids), address(pairs), address(heap)
    for i in range(n):
        ids[i] = load32(byte_ids, load8(text, i))
        links[i, 0] = i - 1
        links[i, 1] = i + 1
    for i in range(n - 1):
        answer = find_pair(pairs, shift, ids[i], ids[i + 1])
        if answer != NO_PAIR:
            store64(heap, size, (answer >> _32) << _32 | np.uint64(i))
            size += 1
    for at in range((size - 2) // 4, -1, -1):
        sift_down(heap, size, at)
    return size


@kernel
def continue_long(pairs, shift, ids, links, heap, size, budget):
    """Take up to ``budget`` entries off the heap; returns the size left. A swallowed symbol becomes -1."""
    n = ids.size
    pairs, heap = address(pairs), address(heap)
    while size > 0 and budget > 0:
        budget -= 1
        top = load64(heap, 0)
        size -= 1
        if size > 0:
            store64(heap, 0, load64(heap, size))
            sift_down(heap, size, 0)
        i = np.int64(top & _LOW)
        if ids[i] < 0:
            continue
        j = links[i, 1]
        if j >= n:
            continue
        answer = find_pair(pairs, shift, ids[i], ids[j])
        if answer == NO_PAIR or answer >> _32 != top >> _32:
            continue
        ids[i] = np.int64(answer & _LOW)
        ids[j] = -1
        after = links[j, 1]
        links[i, 1] = after
        if after < n:
            links[after, 0] = i
            answer = find_pair(pairs, shift, ids[i], ids[after])
            if answer != NO_PAIR:
                size = push(heap, size, (answer >> _32) << _32 | np.uint64(i))
        before = links[i, 0]
        if before >= 0:
            answer = find_pair(pairs, shift, ids[before], ids[i])
            if answer != NO_PAIR:
                size = push(heap, size, (answer >> _32) << _32 | np.uint64(before))
    return size
