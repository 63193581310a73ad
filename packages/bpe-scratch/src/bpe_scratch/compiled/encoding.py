# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""From UTF-8 bytes to ids: cut pieces, look them up, merge those that are new.

``state`` carries the kernel across calls; it stops and says why whenever Python has to make room.
"""

from __future__ import annotations

import numpy as np

from bpe_scratch.compiled.cuts import cut_pieces
from bpe_scratch.compiled.kernel import inner, kernel
from bpe_scratch.compiled.memory import address, load32, load64, store16, store32, store64
from bpe_scratch.compiled.merging import merge_short
from bpe_scratch.compiled.word_table import SLOT, ask_for_slots, fill_slot, find_slot, first_slot, piece_key

DONE, OUT_FULL, CACHE_FULL, LONG_PIECE = 0, 1, 2, 3
LONGEST_SHORT = 255
BLOCK = 64
SPARE = 4
"""Ids that may be written behind the last one."""
# fields of the state
POSITION, DOCUMENT, WRITTEN, SLOTS_USED, ARENA_USED, POOL_USED, STATE_SIZE = 0, 1, 2, 3, 4, 5, 6
_ID_BITS = np.uint64(28)
_ID_MASK = np.uint64((1 << 28) - 1)
_8, _36 = np.uint64(8), np.uint64(36)
_COUNT_MASK = np.uint64(0xFF)
_INLINE_IDS = 4


@inner
def store_value(slots, at, pool, used, ids, count):
    """Write the ids of a piece into its slot, four at most, or else into the pool.

    Returns the pool's new end.
    """
    value, more = np.uint64(count) | np.uint64(load32(ids, 0)) << _8, np.uint64(0)
    if count > 1:
        value |= np.uint64(load32(ids, 1)) << _36
    if count > 2:
        more = np.uint64(load32(ids, 2))
    if count > 3:
        more |= np.uint64(load32(ids, 3)) << _ID_BITS
    if count > _INLINE_IDS:
        more = np.uint64(used)
        for k in range(count):
            store32(pool, used + k, load32(ids, k))
        used += count
    store64(slots, at + 2, value)
    store64(slots, at + 3, more)
    return used


@inner
def store_id(out, written, index, narrow):
    """Write one id as uint16 or uint32."""
    if narrow:
        store16(out, written, index)
    else:
        store32(out, written, index)


@inner
def emit(slots, at, pool, out, written, narrow):
    """Append the ids of a known piece to ``out``; returns the new end."""
    value, more = load64(slots, at + 2), load64(slots, at + 3)
    count = np.int64(value & _COUNT_MASK)
    if count > _INLINE_IDS:
        for k in range(count):
            store_id(out, written + k, load32(pool, np.int64(more) + k), narrow)
        return written + count
    # four stores without a branch cost less than one wrong guess of the count
    store_id(out, written, np.int64(value >> _8 & _ID_MASK), narrow)
    store_id(out, written + 1, np.int64(value >> _36), narrow)
    store_id(out, written + 2, np.int64(more & _ID_MASK), narrow)
    store_id(out, written + 3, np.int64(more >> _ID_BITS), narrow)
    return written + count


@inner
def short_pieces(cuts, first, m):
    """How many of the next ``BLOCK`` pieces come before one that is too long for the table."""
    number = min(m - first, BLOCK)
    for q in range(number):
        if load64(cuts, first + q + 1) - load64(cuts, first + q) > np.uint64(LONGEST_SHORT):
            return q
    return number


@inner
def find_pieces(
    text, cuts, first, number, slots, shift, room, arena, arena_size, pool, state,
    byte_ids, pairs, displacements, pair_shift, ids, found, batch,
):  # fmt: skip
    """Find the slots of ``number`` pieces; returns how many, fewer if there is no room for a new one.

    ``batch`` holds what :func:`ask_for_slots` wrote; each first slot gives way to the place of the right one.
    """
    for q in range(number):
        k0, k1 = load64(batch, 3 * q), load64(batch, 3 * q + 1)
        at = np.int64(load64(batch, 3 * q + 2)) * SLOT
        if load64(slots, at) != k0 or load64(slots, at + 1) != k1:
            i = np.int64(load64(cuts, first + q))
            n = np.int64(load64(cuts, first + q + 1)) - i
            at, known = find_slot(slots, shift, arena, text, i, n, k0, k1, at // SLOT)
            if not known:
                used, arena_used = np.int64(load64(state, SLOTS_USED)), np.int64(load64(state, ARENA_USED))
                if used >= room or arena_used + n + 32 > arena_size:
                    return q
                count = merge_short(text, i, n, byte_ids, pairs, displacements, pair_shift, ids, found)
                arena_used = fill_slot(slots, at, arena, arena_used, text, i, n, k0, k1)
                pool_used = np.int64(load64(state, POOL_USED))
                pool_used = store_value(slots, at, pool, pool_used, ids, count)
                store64(state, SLOTS_USED, np.uint64(used + 1))
                store64(state, ARENA_USED, np.uint64(arena_used))
                store64(state, POOL_USED, np.uint64(pool_used))
        store64(batch, 3 * q + 2, np.uint64(at))
    return number


@kernel
def encode_documents(
    kind, text, bounds, lengths, state, blocks, classes, cuts, slots, shift, arena, pool,
    byte_ids, pairs, displacements, pair_shift, ids, found, batch, out, narrow,
):  # fmt: skip
    """Encode documents that stand one after another in ``text`` until done or until something is full.

    ``bounds`` [documents + 1] are where they begin and end, ``lengths`` [documents] receives the ids of each.
    ``out`` is an array of bytes whatever the ids are, or all of this would be compiled twice.
    """
    room, arena_size, pool_size = (slots.size // SLOT) * 3 // 4, arena.size, pool.size
    out_size = out.size >> (1 if narrow else 2)
    text, blocks, classes, cuts = address(text), address(blocks), address(classes), address(cuts)
    slots, arena, pool, byte_ids = address(slots), address(arena), address(pool), address(byte_ids)
    pairs, displacements, ids, found = address(pairs), address(displacements), address(ids), address(found)
    batch, out, counters = address(batch), address(out), address(state)
    i, document, written = state[POSITION], state[DOCUMENT], state[WRITTEN]
    reason = DONE
    while document < lengths.size:
        begin, end = bounds[document], bounds[document + 1]
        i = max(i, begin)
        before = written
        while i < end and reason == DONE:
            m = cut_pieces(kind, text, i, begin, end, blocks, classes, cuts)
            first = 0
            while first < m and reason == DONE:
                number = short_pieces(cuts, first, m)
                if number < min(m - first, BLOCK):
                    reason = LONG_PIECE
                size = np.int64(load64(cuts, first + number)) - i
                if written + size + SPARE > out_size:
                    reason = OUT_FULL
                    break
                if np.int64(load64(counters, POOL_USED)) + size > pool_size:
                    reason = CACHE_FULL
                    break
                ask_for_slots(text, cuts, first, number, slots, shift, batch)
                ready = find_pieces(
                    text, cuts, first, number, slots, shift, room, arena, arena_size, pool, counters,
                    byte_ids, pairs, displacements, pair_shift, ids, found, batch,
                )  # fmt: skip
                if ready < number:
                    reason = CACHE_FULL
                for q in range(ready):
                    written = emit(slots, np.int64(load64(batch, 3 * q + 2)), pool, out, written, narrow)
                first += ready
                i = np.int64(load64(cuts, first))
        lengths[document] += written - before
        if reason != DONE:
            break
        document += 1
    state[POSITION], state[DOCUMENT], state[WRITTEN] = i, document, written
    return reason


@kernel
def enter_tokens(
    text, bounds, whole_pieces, indexes, state, slots, shift, arena,
    byte_ids, pairs, displacements, pair_shift, ids, found,
):  # fmt: skip
    """Enter every token that encodes to itself as a known piece; all of them do if ``whole_pieces``."""
    text, slots, arena, byte_ids = address(text), address(slots), address(arena), address(byte_ids)
    pairs, displacements, ids, found = address(pairs), address(displacements), address(ids), address(found)
    used, arena_used = state[SLOTS_USED], state[ARENA_USED]
    for token in range(indexes.size):
        i, n = bounds[token], bounds[token + 1] - bounds[token]
        if not whole_pieces:
            count = merge_short(text, i, n, byte_ids, pairs, displacements, pair_shift, ids, found)
            if count > 1:
                continue
        k0, k1 = piece_key(text, i, n)
        at, _ = find_slot(slots, shift, arena, text, i, n, k0, k1, first_slot(k0, k1, shift))
        arena_used = fill_slot(slots, at, arena, arena_used, text, i, n, k0, k1)
        store32(ids, 0, indexes[token])
        store_value(slots, at, 0, 0, ids, 1)
        used += 1
    state[SLOTS_USED], state[ARENA_USED] = used, arena_used
