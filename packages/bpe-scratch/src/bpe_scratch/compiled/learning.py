# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Learning merges with an index of pairs.

The words stand one after another in slots, a separator between them.  The first slot of a symbol holds its
id, the last one (if there are several) minus its length minus one, so that both neighbours are found in one
step.  The pair that starts at a slot has an index, which the slot holds too: a count falls without any
search.

All occurrences of a pair with the new token come to be in the one pass that makes the token.  So each pair's
occurrences are written once, in order, into a stretch of one long array, and later read in order; those
that have gone meanwhile are known by their slot's pair index.  A pair whose count is too low at birth can
never be merged, since counts only fall, and is not kept at all.

Fields of a slot: symbol, pair index, word.
"""

from __future__ import annotations

import numpy as np

from bpe_scratch.compiled.kernel import inner, kernel
from bpe_scratch.compiled.memory import address, load32, load64, store32, store64
from bpe_scratch.compiled.pair_heap import (
    BEGIN,
    COLUMNS,
    COUNT,
    LEFT,
    RIGHT,
    SIZE,
    heap_pop,
    heap_push,
    next_pair,
)

SEPARATOR = -2147483648
NO_PAIR, PENDING = -1, -2
SYMBOL, PAIR, WORD, FIELDS = 0, 1, 2, 3
DONE, PAIRS_FULL, PLACES_FULL, DUPLICATE = 0, 1, 2, 3
# fields of the state
PAIRS_USED, PLACES_USED, HEAP_SIZE, LEARNED, STATE_SIZE = 0, 1, 2, 3, 4


@kernel
def lay_out(text, starts, byte_ids, nodes):
    """Fill the slots: a separator, then each word and a separator."""
    nodes[0, SYMBOL] = SEPARATOR
    nodes[0, PAIR] = NO_PAIR
    at = 1
    for w in range(starts.size - 1):
        for k in range(starts[w], starts[w + 1]):
            nodes[at, SYMBOL] = byte_ids[text[k]]
            nodes[at, PAIR] = NO_PAIR
            nodes[at, WORD] = w
            at += 1
        nodes[at, SYMBOL] = SEPARATOR
        nodes[at, PAIR] = NO_PAIR
        at += 1
    return at


@kernel
def index_bytes(nodes, used, weights, least, grid_count, grid_size, pairs, places):
    """Enter all pairs of bytes that occur at least ``least`` times; returns pairs and places used.

    ``grid_count`` and ``grid_size`` [256, 256] are scratch zeros.
    """
    for at in range(1, used - 1):
        a, b = nodes[at, SYMBOL], nodes[at + 1, SYMBOL]
        if a >= 0 and b >= 0:
            grid_count[a, b] += weights[nodes[at, WORD]]
            grid_size[a, b] += 1
    number, end = 0, 0
    for a in range(256):
        for b in range(256):
            if grid_count[a, b] >= least:
                pairs[number, LEFT], pairs[number, RIGHT] = a, b
                pairs[number, COUNT], pairs[number, BEGIN] = grid_count[a, b], end
                pairs[number, SIZE] = 0
                end += grid_size[a, b]
                grid_size[a, b] = number
                number += 1
            else:
                grid_size[a, b] = NO_PAIR
    for at in range(1, used - 1):
        a, b = nodes[at, SYMBOL], nodes[at + 1, SYMBOL]
        if a >= 0 and b >= 0 and grid_size[a, b] >= 0:
            index = grid_size[a, b]
            nodes[at, PAIR] = index
            places[pairs[index, BEGIN] + pairs[index, SIZE]] = at
            pairs[index, SIZE] += 1
    return number, end


@inner
def drop(nodes, at, weight, pairs):
    """The pair at a slot is no more: its count falls."""
    index = load32(nodes, at * FIELDS + PAIR)
    if index >= 0:
        place = index * COLUMNS + COUNT
        store64(pairs, place, load64(pairs, place) - np.uint64(weight))


@inner
def start_before(nodes, at):
    """First slot of the symbol that ends just before ``at``, or -1 at a separator."""
    last = load32(nodes, (at - 1) * FIELDS + SYMBOL)
    if last >= 0:
        return at - 1
    return -1 if last == SEPARATOR else at + last + 1


@inner
def join(pair, new, nodes, weights, lengths, pairs, places):
    """Write the new token over every live occurrence; returns how many, their slots compacted in place."""
    a = np.int64(load64(pairs, pair * COLUMNS + LEFT))
    begin = np.int64(load64(pairs, pair * COLUMNS + BEGIN))
    size = np.int64(load64(pairs, pair * COLUMNS + SIZE))
    width, first = load32(lengths, new), load32(lengths, a)
    joined = 0
    for k in range(begin, begin + size):
        at = load32(places, k)
        if load32(nodes, at * FIELDS + PAIR) != pair:
            continue
        weight = np.int64(load64(weights, load32(nodes, at * FIELDS + WORD)))
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
    if load64(around, 2 * row + 1) == 0:
        store32(touched, number, row)
        number += 1
    store64(around, 2 * row, load64(around, 2 * row) + np.uint64(weight))
    store64(around, 2 * row + 1, load64(around, 2 * row + 1) + np.uint64(1))
    return number


@inner
def count_around(new, begin, joined, nodes, weights, width, places, around, touched):
    """Add up the pairs that the new token makes; returns the number of rows of ``around`` in use.

    ``around`` [2 * tokens, 2] holds count and occurrences: row ``2 * x`` of the pair ``(x, new)``, row ``2
    * x + 1`` of ``(new, x)``. Two new tokens side by side count as the latter.
    """
    number = 0
    for k in range(begin, begin + joined):
        at = load32(places, k)
        weight = np.int64(load64(weights, load32(nodes, at * FIELDS + WORD)))
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
def open_pairs(new, number, least, pairs, used, places_used, around, touched, heap, heap_size):
    """Give an index and a stretch of places to each new pair that is frequent enough.

    ``around`` then holds the index.
    """
    for t in range(number):
        row = load32(touched, t)
        count, size = np.int64(load64(around, 2 * row)), np.int64(load64(around, 2 * row + 1))
        if count < least:
            store64(around, 2 * row, np.uint64(NO_PAIR))
            continue
        x = row >> 1
        base = used * COLUMNS
        store64(pairs, base + LEFT, np.uint64(x if row & 1 == 0 else new))
        store64(pairs, base + RIGHT, np.uint64(new if row & 1 == 0 else x))
        store64(pairs, base + COUNT, np.uint64(count))
        store64(pairs, base + BEGIN, np.uint64(places_used))
        store64(pairs, base + SIZE, np.uint64(0))
        store64(around, 2 * row, np.uint64(used))
        heap_size = heap_push(heap, heap_size, count, used, pairs)
        places_used += size
        used += 1
    return used, places_used, heap_size


@inner
def put_pair(nodes, at, index, pairs, places):
    """Enter an occurrence at its slot and at the end of its pair's stretch."""
    store32(nodes, at * FIELDS + PAIR, index)
    if index >= 0:
        base = index * COLUMNS
        size = load64(pairs, base + SIZE)
        store32(places, np.int64(load64(pairs, base + BEGIN) + size), at)
        store64(pairs, base + SIZE, size + np.uint64(1))


@inner
def enter_around(new, begin, joined, nodes, width, places, around, pairs):
    """Enter every pair beside a new token."""
    for k in range(begin, begin + joined):
        at = load32(places, k)
        before = start_before(nodes, at)
        if before >= 0:
            x = load32(nodes, before * FIELDS + SYMBOL)
            if x != new:
                put_pair(nodes, before, np.int64(load64(around, 4 * x)), pairs, places)
        y = load32(nodes, (at + width) * FIELDS + SYMBOL)
        put_pair(nodes, at, np.int64(load64(around, 4 * y + 2)) if y >= 0 else NO_PAIR, pairs, places)


@inner
def is_new(value, seen, mask):
    """Enter the hash of a token's bytes; false if it is there."""
    at = np.int64(value >> np.uint64(20)) & mask
    while load64(seen, at) != 0:
        if load64(seen, at) == value:
            return False
        at = (at + 1) & mask
    store64(seen, at, value)
    return True


@kernel
def learn(
    budget,
    least,
    nodes,
    weights,
    lengths,
    hashes,
    powers,
    seen,
    pairs,
    places,
    heap,
    around,
    touched,
    merges,
    state,
):
    """Learn up to ``budget`` merges, or until ``merges`` is full.

    Stops early when an array may become too small.
    """
    pair_room, place_room, mask = pairs.shape[0], places.size, seen.size - 1
    nodes, weights, seen, pairs = address(nodes), address(weights), address(seen), address(pairs)
    places, heap, around, touched = address(places), address(heap), address(around), address(touched)
    lengths_at = address(lengths)
    used, places_used, heap_size, learned = state[0], state[1], state[2], state[3]
    reason = DONE
    while budget > 0 and learned < merges.shape[0]:
        pair, heap_size = next_pair(heap, heap_size, pairs, least)
        if pair < 0:
            break
        size = np.int64(load64(pairs, pair * COLUMNS + SIZE))
        if used + min(2 * size, 2 * (257 + learned)) > pair_room:
            reason = PAIRS_FULL
            break
        if places_used + 2 * size > place_room:
            reason = PLACES_FULL
            break
        a, b = np.int64(load64(pairs, pair * COLUMNS + LEFT)), np.int64(load64(pairs, pair * COLUMNS + RIGHT))
        new = 256 + learned
        hashes[new], powers[new] = hashes[a] * powers[b] + hashes[b], powers[a] * powers[b]
        if not is_new(hashes[new] | np.uint64(1), seen, mask):
            reason = DUPLICATE
            break
        lengths[new] = lengths[a] + lengths[b]
        heap_size = heap_pop(heap, heap_size, pairs)
        begin, width = np.int64(load64(pairs, pair * COLUMNS + BEGIN)), np.int64(lengths[new])
        joined = join(pair, new, nodes, weights, lengths_at, pairs, places)
        number = count_around(new, begin, joined, nodes, weights, width, places, around, touched)
        used, places_used, heap_size = open_pairs(
            new, number, least, pairs, used, places_used, around, touched, heap, heap_size
        )
        enter_around(new, begin, joined, nodes, width, places, around, pairs)
        for t in range(number):
            store64(around, 2 * load32(touched, t), np.uint64(0))
            store64(around, 2 * load32(touched, t) + 1, np.uint64(0))
        merges[learned, 0], merges[learned, 1] = a, b
        learned += 1
        budget -= 1
    state[0], state[1], state[2], state[3] = used, places_used, heap_size, learned
    return reason
