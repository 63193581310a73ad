# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Applying merges to one piece: to a short one by scanning, to a long one by a heap."""

from __future__ import annotations

import numpy as np

from bpe_scratch.compiled.kernel import inner, kernel
from bpe_scratch.compiled.memory import address, load8, load32, load64, store32, store64
from bpe_scratch.compiled.pair_table import NO_PAIR, find_pair

_NOTHING = 0x7FFFFFFF
_32, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


@inner
def merge_short(s, i, n):
    """Merge a short piece in place: scan for the strongest pair, join, repeat. Returns the number of ids.

    ``s.ids`` receives the ids, between two that pair with nothing; ``s.found`` is scratch, the table's answer
    for the pair that begins at each.
    """
    ids, found, before = s.ids, s.found, load8(s.text, i)
    store32(ids, -1, _NOTHING)
    for k in range(n):
        byte = load8(s.text, i + k)
        store32(ids, k, load32(s.byte_ids, byte))
        store64(found, k - 1, load64(s.byte_pairs, before << 8 | byte))
        before = byte
    store32(ids, n, _NOTHING)
    store64(found, n - 1, NO_PAIR)
    while True:
        best, least = 0, load64(found, 0)
        for k in range(1, n - 1):
            answer = load64(found, k)
            if answer >> _32 < least >> _32:
                best, least = k, answer
        if least == NO_PAIR:
            return n
        # asked before all else: memory answers while the rest moves up
        merged, n = np.int64(least & _LOW), n - 1
        left = find_pair(s, load32(ids, best - 1), merged)
        right = find_pair(s, merged, load32(ids, best + 2))
        store32(ids, best, merged)
        for k in range(best + 1, n + 1):
            store32(ids, k, load32(ids, k + 1))
            store64(found, k, load64(found, k + 1))
        store64(found, best - 1, left)
        store64(found, best, right)


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
def start_long(states, ids, links, heap):
    """Fill symbols, links (previous, next) and the heap of ``rank << 32 | position``; returns its size.

    The piece begins at ``position``; ``ids`` [n] receives its bytes' ids.
    """
    s, n, size = states[0], ids.size, 0
    heap = address(heap)
    for i in range(n):
        ids[i] = load32(s.byte_ids, load8(s.text, s.position + i))
        links[i, 0] = i - 1
        links[i, 1] = i + 1
    for i in range(n - 1):
        answer = find_pair(s, ids[i], ids[i + 1])
        if answer != NO_PAIR:
            store64(heap, size, (answer >> _32) << _32 | np.uint64(i))
            size += 1
    for at in range((size - 2) // 4, -1, -1):
        sift_down(heap, size, at)
    return size


@inner
def push_pair(s, heap, size, ids, i, j):
    """Push what the symbols ``i`` and ``j`` may become; returns the new size."""
    answer = find_pair(s, ids[i], ids[j])
    if answer == NO_PAIR:
        return size
    return push(heap, size, (answer >> _32) << _32 | np.uint64(i))


@kernel
def continue_long(states, ids, links, heap, size, budget):
    """Take up to ``budget`` entries off the heap; returns the size left. A swallowed symbol becomes -1."""
    s, n = states[0], ids.size
    heap = address(heap)
    while size > 0 and budget > 0:
        budget -= 1
        top = load64(heap, 0)
        size -= 1
        if size > 0:
            store64(heap, 0, load64(heap, size))
            sift_down(heap, size, 0)
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
            size = push_pair(s, heap, size, ids, i, after)
        if before >= 0:
            size = push_pair(s, heap, size, ids, before, i)
    return size
