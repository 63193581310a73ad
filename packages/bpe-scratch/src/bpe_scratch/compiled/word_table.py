# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Pieces as keys of a hash table, with no Python object per piece.

A slot is four 64-bit numbers: two of key, two of value. A piece of up to 15 bytes *is* its key: eight bytes,
then seven bytes and the length. A longer piece is keyed by a 64-bit hash and the place of its bytes in an
arena, and compared byte by byte. Collisions go to the next slot.  A free slot has a second key of 0.  Slots
are named by the index of their first number.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bpe_scratch.compiled.kernel import inner, kernel
from bpe_scratch.compiled.memory import load8, load64, load_bytes, prefetch, store8, store64, store_bytes

SLOT = 4
_C1, _C2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_ONE, _LONG = np.uint64(1), np.uint64(0xFF << 56)
_OFFSET = np.uint64((1 << 56) - 1)
INLINE = 15
_LINE = 64


def empty_slots(log: int) -> npt.NDArray[np.uint64]:
    """``2**log`` free slots, two to a cache line: one across two lines would cost two reads.

    Args:
        log: Number of slots, as a power of two.
    """
    slots = np.zeros((SLOT << log) + _LINE // 8, dtype=np.uint64)
    begin = -slots.ctypes.data % _LINE // 8
    return slots[begin : begin + (SLOT << log)]


@inner
def short_key(text, i, n):
    """``(first, second)`` key of a piece of 1 to 15 bytes, without a branch."""
    low = ~np.uint64(0) >> np.uint64(64 - 8 * min(n, 8))
    high = (_ONE << np.uint64(8 * max(n - 8, 0))) - _ONE
    return load_bytes(text, i) & low, load_bytes(text, i + 8) & high | np.uint64(n) << np.uint64(56)


@inner
def long_key(text, i, n):
    """``(first, second)`` key of a piece of 16 bytes or more; the second lacks the arena offset."""
    h = np.uint64(n) * _C2
    j = i
    while j + 8 <= i + n:
        h = (h ^ load_bytes(text, j)) * _C1
        h ^= h >> np.uint64(29)
        j += 8
    if j < i + n:
        h = (h ^ (load_bytes(text, j) & (~np.uint64(0) >> np.uint64(64 - 8 * (i + n - j))))) * _C1
        h ^= h >> np.uint64(29)
    return h, _LONG


@inner
def piece_key(text, i, n):
    """``(first, second)`` key of a piece of any length."""
    if n <= INLINE:
        return short_key(text, i, n)
    return long_key(text, i, n)


@inner
def first_slot(k0, k1, shift):
    """Where the search for a key begins in a table of ``2**(64 - shift)`` slots."""
    h = (k0 ^ (k1 * _C2)) * _C1
    h ^= h >> np.uint64(32)
    return np.int64((h * _C2) >> np.uint64(shift)) * SLOT


@inner
def ask_for_slots(text, cuts, number, slots, shift, batch, longest):
    """Make the keys of ``number`` pieces and prefetch their slots: memory answers while the others are made.

    ``batch`` receives for each piece its two keys and first slot.  Returns how many come before one of more
    than ``longest`` bytes.
    """
    i = np.int64(load64(cuts, 0))
    for q in range(number):
        end = np.int64(load64(cuts, q + 1))
        n = end - i
        if n <= INLINE:
            k0, k1 = short_key(text, i, n)
        elif n <= longest:
            k0, k1 = long_key(text, i, n)
        else:
            return q
        at = first_slot(k0, k1, shift)
        prefetch(slots, at)
        store64(batch, 3 * q, k0)
        store64(batch, 3 * q + 1, k1)
        store64(batch, 3 * q + 2, np.uint64(at))
        i = end
    return number


@inner
def same_bytes(text, i, n, arena, offset):
    """Whether the arena holds this long piece at ``offset``, behind its length."""
    if load_bytes(arena, offset) != np.uint64(n):
        return False
    for j in range(n):  # noqa: SIM110 - Numba has no generators
        if load8(text, i + j) != load8(arena, offset + 8 + j):
            return False
    return True


@inner
def find_slot(slots, shift, arena, text, i, n, k0, k1, at):
    """``(the piece's slot, whether it is there)``; a free slot if it is not.

    ``at`` is :func:`first_slot` of the key.
    """
    last = (np.int64(SLOT) << np.int64(64 - shift)) - 1
    while True:
        s0, s1 = load64(slots, at), load64(slots, at + 1)
        if s1 == 0:
            return at, False
        same = s0 == k0 and (s1 == k1 or (k1 == _LONG and s1 >= _LONG))
        # a long piece shares its keys with every piece of the same hash
        if same and (n <= INLINE or same_bytes(text, i, n, arena, np.int64(s1 & _OFFSET))):
            return at, True
        at = at + SLOT & last


@inner
def fill_slot(slots, at, arena, arena_used, text, i, n, k0, k1):
    """Write the key into a free slot.

    Returns the new end of the arena, which must have ``n + 24`` bytes free.
    """
    store64(slots, at, k0)
    store64(slots, at + 1, k1)
    if n <= INLINE:
        return arena_used
    store64(slots, at + 1, _LONG | np.uint64(arena_used))
    store_bytes(arena, arena_used, np.uint64(n))
    for j in range(n):
        store8(arena, arena_used + 8 + j, load8(text, i + j))
    return arena_used + 8 + n


@kernel
def rehash(old, new, shift):
    """Move all slots into a larger, empty table of ``2**(64 - shift)`` slots."""
    last = (np.int64(SLOT) << np.int64(64 - shift)) - 1
    for source in range(0, old.size, SLOT):
        k0, k1 = old[source], old[source + 1]
        if k1 == 0:
            continue
        at = first_slot(k0, min(_LONG, k1), shift)
        while new[at + 1] != 0:
            at = at + SLOT & last
        new[at : at + SLOT] = old[source : source + SLOT]
