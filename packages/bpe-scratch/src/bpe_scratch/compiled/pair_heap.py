# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""The most frequent pair first: a lazy heap of ``(count, pair index)`` beside the table of pairs.

Counts fall without the heap hearing of it; an entry that is stale when it comes to the top is put right then.
"""

from __future__ import annotations

from bpe_scratch.compiled.kernel import inner
from bpe_scratch.compiled.memory import load_int, store_int

# columns of the table of pairs, int64; the key is left << 32 | right
KEY, COUNT, BEGIN, SIZE, COLUMNS = 0, 1, 2, 3, 4


@inner
def precedes(pairs, count_a, a, count_b, b):
    """Whether an entry of the heap comes before another: the larger count, then the smaller ids."""
    if count_a != count_b:
        return count_a > count_b
    return load_int(pairs, a * COLUMNS + KEY) < load_int(pairs, b * COLUMNS + KEY)


@inner
def put_entry(heap, at, count, index):
    """Write an entry."""
    store_int(heap, 2 * at, count)
    store_int(heap, 2 * at + 1, index)


@inner
def heap_push(s, count, index):
    """Add ``(count, pair index)``."""
    heap, pairs, at = s.heap, s.pairs, s.heap_size
    s.heap_size = at + 1
    while at > 0:
        parent = (at - 1) >> 1
        above, other = load_int(heap, 2 * parent), load_int(heap, 2 * parent + 1)
        if not precedes(pairs, count, index, above, other):
            break
        put_entry(heap, at, above, other)
        at = parent
    put_entry(heap, at, count, index)


@inner
def heap_pop(s):
    """Remove the first entry, which the caller has read."""
    heap, pairs, size = s.heap, s.pairs, s.heap_size - 1
    s.heap_size = size
    count, index = load_int(heap, 2 * size), load_int(heap, 2 * size + 1)
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        c, x = load_int(heap, 2 * child), load_int(heap, 2 * child + 1)
        if child + 1 < size:
            c2, x2 = load_int(heap, 2 * child + 2), load_int(heap, 2 * child + 3)
            if precedes(pairs, c2, x2, c, x):
                child, c, x = child + 1, c2, x2
        if not precedes(pairs, c, x, count, index):
            break
        put_entry(heap, at, c, x)
        at = child
    put_entry(heap, at, count, index)


@inner
def next_pair(s):
    """The most frequent pair, which stays on top of the heap, or -1; stale counts are put right."""
    while s.heap_size > 0:
        count, index = load_int(s.heap, 0), load_int(s.heap, 1)
        now = load_int(s.pairs, index * COLUMNS + COUNT)
        if now == count:
            return index
        heap_pop(s)
        if now >= s.least:
            heap_push(s, now, index)
    return -1
