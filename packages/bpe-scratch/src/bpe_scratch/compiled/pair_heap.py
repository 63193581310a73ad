# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""The most frequent pair first: a lazy heap of ``(count, pair index)`` beside the table of pairs.

Counts fall without the heap hearing of it; an entry that is stale when it comes to the top is put right then.
"""

from __future__ import annotations

import numpy as np

from bpe_scratch.compiled.kernel import inner, kernel
from bpe_scratch.compiled.memory import address, load64, store64

# columns of the table of pairs, int64
LEFT, RIGHT, COUNT, BEGIN, SIZE, COLUMNS = 0, 1, 2, 3, 4, 5


@inner
def precedes(count_a, a, count_b, b, pairs):
    """Whether an entry of the heap comes before another: the larger count, then the smaller ids."""
    if count_a != count_b:
        return count_a > count_b
    left_a, left_b = load64(pairs, a * COLUMNS + LEFT), load64(pairs, b * COLUMNS + LEFT)
    if left_a != left_b:
        return left_a < left_b
    return load64(pairs, a * COLUMNS + RIGHT) < load64(pairs, b * COLUMNS + RIGHT)


@inner
def heap_push(heap, size, count, index, pairs):
    """Add ``(count, pair index)``; returns the new size."""
    at = size
    while at > 0:
        parent = (at - 1) >> 1
        above, other = np.int64(load64(heap, 2 * parent)), np.int64(load64(heap, 2 * parent + 1))
        if not precedes(count, index, above, other, pairs):
            break
        store64(heap, 2 * at, np.uint64(above))
        store64(heap, 2 * at + 1, np.uint64(other))
        at = parent
    store64(heap, 2 * at, np.uint64(count))
    store64(heap, 2 * at + 1, np.uint64(index))
    return size + 1


@inner
def heap_pop(heap, size, pairs):
    """Remove the first entry, which the caller has read; returns the new size."""
    size -= 1
    count, index = np.int64(load64(heap, 2 * size)), np.int64(load64(heap, 2 * size + 1))
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        c, x = np.int64(load64(heap, 2 * child)), np.int64(load64(heap, 2 * child + 1))
        if child + 1 < size:
            c2, x2 = np.int64(load64(heap, 2 * child + 2)), np.int64(load64(heap, 2 * child + 3))
            if precedes(c2, x2, c, x, pairs):
                child, c, x = child + 1, c2, x2
        if not precedes(c, x, count, index, pairs):
            break
        store64(heap, 2 * at, np.uint64(c))
        store64(heap, 2 * at + 1, np.uint64(x))
        at = child
    store64(heap, 2 * at, np.uint64(count))
    store64(heap, 2 * at + 1, np.uint64(index))
    return size


@inner
def next_pair(heap, size, pairs, least):
    """``(pair index or -1, size)``: the most frequent pair on top of the heap, stale counts put right."""
    while size > 0:
        count, index = np.int64(load64(heap, 0)), np.int64(load64(heap, 1))
        now = np.int64(load64(pairs, index * COLUMNS + COUNT))
        if now == count:
            return index, size
        size = heap_pop(heap, size, pairs)
        if now >= least:
            size = heap_push(heap, size, now, index, pairs)
    return -1, size


@kernel
def fill_heap(heap, pairs, number):
    """Enter the pairs of bytes."""
    heap, pairs, size = address(heap), address(pairs), 0
    for index in range(number):
        size = heap_push(heap, size, np.int64(load64(pairs, index * COLUMNS + COUNT)), index, pairs)
    return size
