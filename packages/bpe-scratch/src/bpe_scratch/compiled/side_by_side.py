# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""New words merged side by side: each round every word of a group makes one merge.

A merge has to wait for the two pairs that the merge before it made: some hundred cycles, mostly of memory.
The merges of different words wait together.

A word of ``n`` bytes, up to 15, has 256 bytes of its own.  Symbols stand at 1 to ``n``, between two that
pair with nothing, and keep their places: a swallowed one only loses its bit among those alive.

    0: rank of the pair that begins at each of 16 places     64: the id that it becomes
    128: id at each of 32 places                             the last two: bits of those alive; the slot
"""

from __future__ import annotations

import numpy as np

from bpe_scratch.compiled.kernel import inner
from bpe_scratch.compiled.memory import (
    highest_bit,
    least_of_16,
    load8,
    load32,
    load64,
    lowest_bit,
    set_bits,
    store32,
    store64,
)
from bpe_scratch.compiled.pair_table import NO_PAIR, find_pair

GROUP = 16
WORD = 256
_BECOMES, _ID, _ALIVE, _SLOT = 16, 32, 30, 31
_NOTHING = 0x7FFFFFFF
_32, _LOW, _ONE = np.uint64(32), np.uint64(0xFFFFFFFF), np.uint64(1)


@inner
def store_pair(word, place, answer):
    """Write what the table of pairs says about the pair that begins at ``place``."""
    store32(word, place, np.int64(answer >> _32))
    store32(word, _BECOMES + place, np.int64(answer & _LOW))


@inner
def begin_word(word, text, i, n, slot, byte_ids, byte_pairs):
    """Lay out a piece of up to 15 bytes, which belongs into ``slot``."""
    for k in range(8):
        store64(word, k, NO_PAIR)
    store32(word, _ID, _NOTHING)
    before = load8(text, i)
    store32(word, _ID + 1, load32(byte_ids, before))
    for k in range(1, n):
        byte = load8(text, i + k)
        store_pair(word, k, load64(byte_pairs, before << 8 | byte))
        store32(word, _ID + 1 + k, load32(byte_ids, byte))
        before = byte
    store32(word, _ID + 1 + n, _NOTHING)
    store64(word, _ALIVE, (_ONE << np.uint64(n + 2)) - _ONE)
    store64(word, _SLOT, np.uint64(slot))


@inner
def merge_once(word, pairs, displacements, shift):
    """Make the strongest merge, the leftmost of equals; false if there is none."""
    least = least_of_16(word)
    if least >> _32 == _LOW:
        return False
    left = np.int64(least & _LOW)
    alive = load64(word, _ALIVE)
    swallowed = lowest_bit(alive >> np.uint64(left + 1)) + left + 1
    alive &= ~(_ONE << np.uint64(swallowed))
    after = lowest_bit(alive >> np.uint64(left + 1)) + left + 1
    before = highest_bit(alive & ((_ONE << np.uint64(left)) - _ONE))
    merged = load32(word, _BECOMES + left)
    right_answer = find_pair(pairs, displacements, shift, merged, load32(word, _ID + after))
    left_answer = find_pair(pairs, displacements, shift, load32(word, _ID + before), merged)
    store32(word, _ID + left, merged)
    store32(word, swallowed, np.int64(_LOW))
    store_pair(word, left, right_answer)
    store_pair(word, before, left_answer)
    store64(word, _ALIVE, alive)
    return True


@inner
def merge_group(group, waiting, number, pairs, displacements, shift):
    """Merge ``number`` words to the end. ``waiting`` [number] is scratch: those that go on."""
    for k in range(number):
        store64(waiting, k, np.uint64(group + k * WORD))
    while number > 0:
        left = np.int64(0)
        for k in range(number):
            word = load64(waiting, k)
            goes_on = merge_once(np.int64(word), pairs, displacements, shift)
            store64(waiting, left, word)
            left += np.int64(goes_on)
        number = left


@inner
def take_word(word, ids):
    """Write the ids of a merged word one after another; returns ``(their number, the slot)``."""
    alive = load64(word, _ALIVE)
    count = set_bits(alive) - 2
    for k in range(count):
        alive &= alive - _ONE
        store32(ids, k, load32(word, _ID + lowest_bit(alive)))
    return count, np.int64(load64(word, _SLOT))
