"""Pieces as keys of a hash table, with no Python object per piece.

A slot is four 64-bit numbers: two of key, two of value. A piece of up to 15 bytes *is* its key: eight bytes,
then seven bytes and the length. A longer piece is keyed by a 64-bit hash and the place of its bytes in an
arena, behind their number, and compared byte by byte. Collisions go to the next slot.  A free slot has a
second key of 0.  Slots are named by the index of their first number.
"""

from __future__ import annotations

import numpy as np

from bpe_scratch.compiled.kernel import inner
from bpe_scratch.compiled.memory import (
    load8,
    load64,
    load_bytes,
    load_int,
    prefetch,
    store8,
    store64,
    store_int,
)
from bpe_scratch.compiled.state import State, aligned_zeros

SLOT = 4
INLINE, LONGEST = 15, 255
C1, C2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_ONE, LONG = np.uint64(1), np.uint64(0xFF << 56)
OFFSET = np.uint64((1 << 56) - 1)
# a long piece at the arena's very start would look like one that is looked for
ARENA_START = 8


@inner
def short_key(text, i, n):
    """``(first, second)`` key of a piece of 1 to 15 bytes, without a branch."""
    low = ~np.uint64(0) >> np.uint64(64 - 8 * min(n, 8))
    high = (_ONE << np.uint64(8 * max(n - 8, 0))) - _ONE
    return load_bytes(text, i) & low, load_bytes(text, i + 8) & high | np.uint64(n) << np.uint64(56)


@inner
def long_key(text, i, n):
    """``(first, second)`` key of a piece of 16 bytes or more; the second lacks the arena offset."""
    h = np.uint64(n) * C2
    j = i
    while j + 8 <= i + n:
        h = (h ^ load_bytes(text, j)) * C1
        h ^= h >> np.uint64(29)
        j += 8
    if j < i + n:
        h = (h ^ (load_bytes(text, j) & (~np.uint64(0) >> np.uint64(64 - 8 * (i + n - j))))) * C1
        h ^= h >> np.uint64(29)
    return h, LONG


@inner
def first_slot(k0, k1, shift):
    """Where the search for a key begins in a table of ``2**(64 - shift)`` slots."""
    h = (k0 ^ (k1 * C2)) * C1
    h ^= h >> np.uint64(32)
    return np.int64((h * C2) >> np.uint64(shift)) * SLOT


@inner
def ask_for_slots(s, number):
    """Make the keys of ``number`` pieces and prefetch their slots: memory answers while the others are made.

    ``s.batch`` receives for each piece its two keys and first slot.  Returns how many come before one of more
    than ``LONGEST`` bytes.
    """
    text, cuts, slots, shift, batch = s.text, s.cuts, s.slots, s.shift, s.batch
    i = load_int(cuts, 0)
    for q in range(number):
        end = load_int(cuts, q + 1)
        n = end - i
        if n <= INLINE:
            k0, k1 = short_key(text, i, n)
        elif n <= LONGEST:
            k0, k1 = long_key(text, i, n)
        else:
            return q
        at = first_slot(k0, k1, shift)
        prefetch(slots, at)
        store64(batch, 3 * q, k0)
        store64(batch, 3 * q + 1, k1)
        store_int(batch, 3 * q + 2, at)
        i = end
    return number


@inner
def same_bytes(text, i, n, arena, offset):
    """Whether the arena holds this long piece at ``offset``, behind its length."""
    if load_int(arena, offset // 8) != n:
        return False
    for j in range(n):  # noqa: SIM110 - Numba has no generators
        if load8(text, i + j) != load8(arena, offset + 8 + j):
            return False
    return True


@inner
def find_slot(s, i, n, k0, k1, at):
    """``(the piece's slot, whether it is there)``; a free slot if it is not.

    ``at`` is :func:`first_slot` of the key.
    """
    slots, last = s.slots, (np.int64(SLOT) << (64 - s.shift)) - 1
    while True:
        s0, s1 = load64(slots, at), load64(slots, at + 1)
        if s1 == 0:
            return at, False
        same = s0 == k0 and (s1 == k1 or (k1 == LONG and s1 >= LONG))
        # a long piece shares its keys with every piece of the same hash
        if same and (n <= INLINE or same_bytes(s.text, i, n, s.arena, np.int64(s1 & OFFSET))):
            return at, True
        at = at + SLOT & last


@inner
def has_room(s, n):
    """Whether one more piece, of ``n`` bytes, has room."""
    room = np.int64(3) << (62 - s.shift)
    return s.slots_used < room and s.arena_used + n + 32 <= s.arena_size


@inner
def fill_slot(s, at, i, n, k0, k1):
    """Write the key into a free slot."""
    s.slots_used += 1
    store64(s.slots, at, k0)
    store64(s.slots, at + 1, k1)
    if n > INLINE:
        arena, offset = s.arena, s.arena_used
        store64(s.slots, at + 1, LONG | np.uint64(offset))
        store_int(arena, offset // 8, n)
        for j in range(n):
            store8(arena, offset + 8 + j, load8(s.text, i + j))
        s.arena_used = offset + (n + 15) // 8 * 8


def point_to_words(state: State, log: int, arena: int, pool: int) -> None:
    """Give a state an empty table: ``2**log`` slots, ``arena`` bytes of long pieces, ``pool`` ids."""
    state.point(
        slots=aligned_zeros(SLOT << log),
        arena=np.zeros(arena, dtype=np.uint8),
        pool=np.zeros(pool, dtype=np.int32),
    )
    state["shift"], state["arena_size"], state["pool_size"] = 64 - log, arena, pool
    state["slots_used"], state["arena_used"], state["pool_used"] = 0, ARENA_START, 0
