# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Learning merges with an index of pairs.

The words stand one after another in nodes, a separator between them.  The first node of a symbol holds its
id, the last one (if there are several) minus its length minus one, so that both neighbours are found in one
step.  The pair that starts at a node has an index, which the node holds too: a count falls without any
search.

All occurrences of a pair with the new token come to be in the one pass that makes the token.  So each pair's
occurrences are written once, in order, into a stretch of one long array, and later read in order; those
that have gone meanwhile are known by their node's pair index.  A pair whose count is too low at birth can
never be merged, since counts only fall, and is not kept at all.

Fields of a node, int32: symbol, pair index, word.
"""

from __future__ import annotations

import heapq

from bpe_scratch.compiled.kernel import inner, kernel
from bpe_scratch.compiled.memory import load8, load32, load_int, store32, store_int

# columns of the table of pairs, int64; the key is left << 32 | right
KEY, COUNT, BEGIN, SIZE, COLUMNS = 0, 1, 2, 3, 4
SEPARATOR = -2147483648
NO_PAIR, PENDING = -1, -2
SYMBOL, PAIR, WORD, FIELDS = 0, 1, 2, 3


@inner
def put_node(nodes, at, symbol, word):
    """Write a node that begins no pair."""
    store32(nodes, at * FIELDS + SYMBOL, symbol)
    store32(nodes, at * FIELDS + PAIR, NO_PAIR)
    store32(nodes, at * FIELDS + WORD, word)


@inner
def lay_out(s):
    """Fill the nodes: a separator, then each word and a separator."""
    put_node(s.nodes, 0, SEPARATOR, 0)
    at = 1
    for w in range(s.words):
        for k in range(load_int(s.starts, w), load_int(s.starts, w + 1)):
            put_node(s.nodes, at, load32(s.byte_ids, load8(s.text, k)), w)
            at += 1
        put_node(s.nodes, at, SEPARATOR, 0)
        at += 1
    s.nodes_used = at


@inner
def pair_of_bytes(nodes, at):
    """``left << 8 | right`` of the symbols at two nodes, or -1 at a separator."""
    a, b = load32(nodes, at * FIELDS + SYMBOL), load32(nodes, (at + 1) * FIELDS + SYMBOL)
    return a << 8 | b if a >= 0 and b >= 0 else -1


@kernel
def begin(states):
    """Lay out the words, and enter all pairs of bytes that occur often enough.

    ``grid`` [65536, 2], zeros, counts each pair's occurrences, weighted and not; then it holds its index.
    """
    s = states[0]
    lay_out(s)
    for at in range(1, s.nodes_used - 1):
        pair = pair_of_bytes(s.nodes, at)
        if pair >= 0:
            weight = load_int(s.counts, load32(s.nodes, at * FIELDS + WORD))
            store_int(s.grid, 2 * pair, load_int(s.grid, 2 * pair) + weight)
            store_int(s.grid, 2 * pair + 1, load_int(s.grid, 2 * pair + 1) + 1)
    for pair in range(1 << 16):
        count, size, index = load_int(s.grid, 2 * pair), load_int(s.grid, 2 * pair + 1), NO_PAIR
        if count >= s.least and size > 0:
            index = open_pair(s, (pair >> 8) << 32 | (pair & 255), count, size)
        store_int(s.grid, 2 * pair, index)
    for at in range(1, s.nodes_used - 1):
        pair = pair_of_bytes(s.nodes, at)
        if pair >= 0:
            put_pair(s, at, load_int(s.grid, 2 * pair))


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
    store32(s.nodes, at * FIELDS + PAIR, index)
    if index >= 0:
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
            store32(nodes, before * FIELDS + PAIR, PENDING)
        drop(nodes, at + first, weight, pairs)
        store32(nodes, (at + first) * FIELDS + PAIR, NO_PAIR)
        store32(nodes, at * FIELDS + SYMBOL, new)
        store32(nodes, (at + width - 1) * FIELDS + SYMBOL, -width - 1)
        store32(nodes, at * FIELDS + PAIR, PENDING)
        store32(places, begin + joined, at)
        joined += 1
    return joined


@inner
def tally(around, row, weight, touched, number):
    """One more occurrence of a pair; new rows are noted in ``touched``. Returns their number."""
    if load_int(around, 2 * row + 1) == 0:
        store32(touched, number, row)
        number += 1
    store_int(around, 2 * row, load_int(around, 2 * row) + weight)
    store_int(around, 2 * row + 1, load_int(around, 2 * row + 1) + 1)
    return number


@inner
def count_around(s, new, begin, joined, width):
    """Add up the pairs that the new token makes; returns the number of rows of ``around`` in use.

    ``around`` [2 * tokens, 2] holds count and occurrences: row ``2 * x`` of the pair ``(x, new)``, row ``2
    * x + 1`` of ``(new, x)``. Two new tokens side by side count as the latter.
    """
    nodes, counts, places, around, touched, number = s.nodes, s.counts, s.places, s.around, s.touched, 0
    for k in range(begin, begin + joined):
        at = load32(places, k)
        weight = load_int(counts, load32(nodes, at * FIELDS + WORD))
        before = start_before(nodes, at)
        if before >= 0:
            x = load32(nodes, before * FIELDS + SYMBOL)
            if x != new:
                number = tally(around, 2 * x, weight, touched, number)
        y = load32(nodes, (at + width) * FIELDS + SYMBOL)
        if y >= 0:
            number = tally(around, 2 * y + 1, weight, touched, number)
    return number


@inner
def open_pairs(s, heap, new, number):
    """Open each new pair that is frequent enough; ``around`` then holds its index instead of its count."""
    for t in range(number):
        row = load32(s.touched, t)
        count, index = load_int(s.around, 2 * row), NO_PAIR
        if count >= s.least:
            x = row >> 1
            key = (x << 32 | new) if row & 1 == 0 else (new << 32 | x)
            index = open_pair(s, key, count, load_int(s.around, 2 * row + 1))
            heapq.heappush(heap, entry(s, index))
        store_int(s.around, 2 * row, index)


@inner
def enter_around(s, new, begin, joined, width):
    """Enter every pair beside a new token."""
    nodes = s.nodes
    for k in range(begin, begin + joined):
        at = load32(s.places, k)
        before = start_before(nodes, at)
        if before >= 0:
            x = load32(nodes, before * FIELDS + SYMBOL)
            if x != new:
                put_pair(s, before, load_int(s.around, 4 * x))
        y = load32(nodes, (at + width) * FIELDS + SYMBOL)
        put_pair(s, at, load_int(s.around, 4 * y + 2) if y >= 0 else NO_PAIR)


@inner
def merge(s, heap, pair, a, b, new):
    """Write a new token over every occurrence of a pair, and enter the pairs beside it."""
    first = load_int(s.lengths, a)
    begin, width = load_int(s.pairs, pair * COLUMNS + BEGIN), first + load_int(s.lengths, b)
    store_int(s.lengths, new, width)
    joined = join(s, pair, new, first, width)
    number = count_around(s, new, begin, joined, width)
    open_pairs(s, heap, new, number)
    enter_around(s, new, begin, joined, width)
    for t in range(number):
        row = load32(s.touched, t)
        store_int(s.around, 2 * row, 0)
        store_int(s.around, 2 * row + 1, 0)


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
