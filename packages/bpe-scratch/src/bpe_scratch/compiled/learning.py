"""Learning merges with an index of pairs.

The words stand one after another in nodes, a separator between them.  The first node of a symbol holds its
id, the last one (if there are several) minus its length minus one, so that both neighbours are found in one
step.  The pair that starts at a node has an index, which the node holds too: a count falls without any
search.

All occurrences of a pair with the new token come to be in the one pass that makes the token.  So each pair's
occurrences are written once, in order, into a stretch of one long array, and later read in order; those
that have gone meanwhile are known by their node's pair index.  A pair whose count is too low at birth can
never be merged, since counts only fall, and is not kept at all.
"""

from __future__ import annotations

import heapq

from bpe_scratch.compiled.kernel import inner, kernel
from bpe_scratch.compiled.memory import load32, load_int, store32, store_int

# columns of the table of pairs, int64; the key is left << 32 | right
KEY, COUNT, BEGIN, SIZE, COLUMNS = 0, 1, 2, 3, 4
SEPARATOR = -2147483648
NO_PAIR = -1
# fields of a node, int32
SYMBOL, PAIR, WORD, FIELDS = 0, 1, 2, 3


@kernel
def begin(states):
    """Enter all pairs of bytes that occur often enough."""
    s = states[0]
    for at in range(1, s.size - 1):
        a, b = load32(s.nodes, at * FIELDS + SYMBOL), load32(s.nodes, (at + 1) * FIELDS + SYMBOL)
        if a >= 0 and b >= 0:
            note(s, at, a << 8 | b, a, b)
    enter_noted(s)


@inner
def note(s, at, row, a, b):
    """Count an occurrence, at a node, of the symbols ``a`` and ``b``, which have a row of ``rows`` for now.

    A row holds count, occurrences and key; zeros while it stands for no pair.
    """
    base = 3 * row
    if load_int(s.rows, base + 1) == 0:
        store32(s.used, s.rows_used, row)
        store_int(s.rows, base + 2, a << 32 | b)
        s.rows_used += 1
    weight = load_int(s.counts, load32(s.nodes, at * FIELDS + WORD))
    store_int(s.rows, base, load_int(s.rows, base) + weight)
    store_int(s.rows, base + 1, load_int(s.rows, base + 1) + 1)
    store32(s.noted, 2 * s.noted_used, at)
    store32(s.noted, 2 * s.noted_used + 1, row)
    s.noted_used += 1


@inner
def enter_noted(s):
    """Open each pair noted that is frequent enough, enter its occurrences, and clear the rows."""
    for k in range(s.rows_used):
        base = 3 * load32(s.used, k)
        count, index = load_int(s.rows, base), NO_PAIR
        if count >= s.least:
            index = open_pair(s, load_int(s.rows, base + 2), count, load_int(s.rows, base + 1))
        store_int(s.rows, base, index)
    for k in range(s.noted_used):
        put_pair(s, load32(s.noted, 2 * k), load_int(s.rows, 3 * load32(s.noted, 2 * k + 1)))
    for k in range(s.rows_used):
        base = 3 * load32(s.used, k)
        store_int(s.rows, base, 0)
        store_int(s.rows, base + 1, 0)
    s.rows_used = s.noted_used = 0


@inner
def open_pair(s, key, count, size):
    """Give a pair an index, which is returned, and a stretch of ``size`` places."""
    index = s.pairs_used
    base = index * COLUMNS
    store_int(s.pairs, base + KEY, key)
    store_int(s.pairs, base + COUNT, count)
    store_int(s.pairs, base + BEGIN, s.places_used)
    store_int(s.pairs, base + SIZE, 0)
    s.pairs_used += 1
    s.places_used += size
    return index


@inner
def put_pair(s, at, index):
    """Enter an occurrence at its node and at the end of its pair's stretch."""
    if index >= 0:
        store32(s.nodes, at * FIELDS + PAIR, index)
        base = index * COLUMNS
        size = load_int(s.pairs, base + SIZE)
        store32(s.places, load_int(s.pairs, base + BEGIN) + size, at)
        store_int(s.pairs, base + SIZE, size + 1)


@inner
def drop(nodes, at, weight, pairs):
    """The pair at a node is no more: its count falls."""
    index = load32(nodes, at * FIELDS + PAIR)
    if index >= 0:
        place = index * COLUMNS + COUNT
        store_int(pairs, place, load_int(pairs, place) - weight)


@inner
def start_before(nodes, at):
    """First node of the symbol that ends just before ``at``, or -1 at a separator."""
    last = load32(nodes, (at - 1) * FIELDS + SYMBOL)
    if last >= 0:
        return at - 1
    return -1 if last == SEPARATOR else at + last + 1


@inner
def join(s, pair, new, first, width):
    """Write the new token over every live occurrence; returns how many, their places compacted.

    ``first`` and ``width`` are the lengths of the left symbol and of the new one.
    """
    nodes, counts, pairs, places = s.nodes, s.counts, s.pairs, s.places
    begin = load_int(pairs, pair * COLUMNS + BEGIN)
    joined = 0
    for k in range(begin, begin + load_int(pairs, pair * COLUMNS + SIZE)):
        at = load32(places, k)
        if load32(nodes, at * FIELDS + PAIR) != pair:
            continue
        weight = load_int(counts, load32(nodes, at * FIELDS + WORD))
        before = start_before(nodes, at)
        if before >= 0:
            drop(nodes, before, weight, pairs)
            store32(nodes, before * FIELDS + PAIR, NO_PAIR)
        drop(nodes, at + first, weight, pairs)
        store32(nodes, (at + first) * FIELDS + PAIR, NO_PAIR)
        store32(nodes, at * FIELDS + SYMBOL, new)
        store32(nodes, (at + width - 1) * FIELDS + SYMBOL, -width - 1)
        store32(nodes, at * FIELDS + PAIR, NO_PAIR)
        store32(places, begin + joined, at)
        joined += 1
    return joined


@inner
def note_around(s, new, begin, joined, width):
    """Note the pairs that the new token makes: ``(x, new)`` in row ``2 * x``, ``(new, x)`` in the next.

    Two new tokens side by side are noted once, at the first.
    """
    nodes = s.nodes
    for k in range(begin, begin + joined):
        at = load32(s.places, k)
        before = start_before(nodes, at)
        if before >= 0:
            x = load32(nodes, before * FIELDS + SYMBOL)
            if x != new:
                note(s, before, 2 * x, x, new)
        y = load32(nodes, (at + width) * FIELDS + SYMBOL)
        if y >= 0:
            note(s, at, 2 * y + 1, new, y)


@inner
def merge(s, heap, pair, a, b, new):
    """Write a new token over every occurrence of a pair, and enter the pairs beside it."""
    first, known = load_int(s.lengths, a), s.pairs_used
    begin, width = load_int(s.pairs, pair * COLUMNS + BEGIN), first + load_int(s.lengths, b)
    store_int(s.lengths, new, width)
    joined = join(s, pair, new, first, width)
    note_around(s, new, begin, joined, width)
    enter_noted(s)
    for index in range(known, s.pairs_used):
        heapq.heappush(heap, entry(s, index))


@inner
def entry(s, pair):
    """A pair as the heap holds it: the most frequent first, of equals the one with the smaller ids."""
    return -load_int(s.pairs, pair * COLUMNS + COUNT), load_int(s.pairs, pair * COLUMNS + KEY), pair


@inner
def next_pair(s, heap):
    """Take the most frequent pair off the heap; -1 if there is none.

    Counts fall without the heap hearing of it; an entry that is stale when it comes to the top is put right.
    """
    while len(heap) > 0:
        negative, _, pair = heapq.heappop(heap)
        count = load_int(s.pairs, pair * COLUMNS + COUNT)
        if count == -negative:
            return pair
        if count >= s.least:
            heapq.heappush(heap, entry(s, pair))
    return -1


@kernel
def learn(states):
    """Learn up to ``budget`` merges, or all that are wanted, or as many as there is room for pairs.

    Returns whether there may be more to learn.
    """
    s = states[0]
    frequent = [pair for pair in range(s.pairs_used) if load_int(s.pairs, pair * COLUMNS + COUNT) >= s.least]
    heap = [entry(s, pair) for pair in frequent]
    heapq.heapify(heap)
    for _ in range(min(s.budget, s.wanted - s.learned)):
        pair = next_pair(s, heap)
        if pair < 0:
            return False
        size, key = load_int(s.pairs, pair * COLUMNS + SIZE), load_int(s.pairs, pair * COLUMNS + KEY)
        if s.pairs_used + min(2 * size, 2 * (257 + s.learned)) > s.pairs_room:
            return True
        a, b = key >> 32, key & 0xFFFFFFFF
        merge(s, heap, pair, a, b, 256 + s.learned)
        store_int(s.pairs, pair * COLUMNS + COUNT, 0)
        store_int(s.merges, 2 * s.learned, a)
        store_int(s.merges, 2 * s.learned + 1, b)
        s.learned += 1
    return True
