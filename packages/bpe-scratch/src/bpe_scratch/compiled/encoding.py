# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""From UTF-8 bytes to ids: cut pieces, look them up, merge those that are new.

``state`` carries the kernel across calls; it stops and says why whenever Python has to make room.
"""

from __future__ import annotations

import numpy as np

from bpe_scratch.compiled.cuts import CUTS, cut_pieces
from bpe_scratch.compiled.kernel import inner, kernel
from bpe_scratch.compiled.memory import (
    address,
    load32,
    load64,
    store16,
    store32,
    store64,
    store_four16,
    store_four32,
)
from bpe_scratch.compiled.merging import merge_short
from bpe_scratch.compiled.side_by_side import GROUP, WORD, begin_word, merge_group, take_word
from bpe_scratch.compiled.word_table import (
    INLINE,
    SLOT,
    ask_for_slots,
    fill_slot,
    find_slot,
    first_slot,
    piece_key,
)

DONE, OUT_FULL, CACHE_FULL, LONG_PIECE = 0, 1, 2, 3
LONGEST_SHORT = 255
SPARE = 4
"""Ids that may be written behind the last one."""
LARGEST_BATCH = CUTS * LONGEST_SHORT + SPARE
"""Ids that may come of one batch of pieces."""
# scratch: two keys and a slot for each piece; which ones are new; the words that are merged side by side
FRESH, WAITING, WORDS = 3 * CUTS, 4 * CUTS, 4 * CUTS + GROUP
BATCH_SIZE = WORDS + GROUP * WORD // 8
# fields of the state
POSITION, DOCUMENT, WRITTEN, SLOTS_USED, ARENA_USED, POOL_USED, STATE_SIZE = 0, 1, 2, 3, 4, 5, 6
_INLINE_IDS = 4
_COUNT_SHIFT = np.uint64(28)
_COUNT_MASK, _IN_POOL = np.uint64(0xF), np.uint64(0xF << 28)
_32 = np.uint64(32)


@inner
def store_value(slots, at, pool, used, ids, count):
    """Write the ids of a piece into its slot, four at most, or else into the pool.

    Four ids of 28 bits stand in 32 bits each, their number above the first. Returns the pool's new end.
    """
    if count <= _INLINE_IDS:
        value, more = np.uint64(load32(ids, 0)) | np.uint64(count) << _COUNT_SHIFT, np.uint64(0)
        if count > 1:
            value |= np.uint64(load32(ids, 1)) << _32
        if count > 2:
            more = np.uint64(load32(ids, 2))
        if count > 3:
            more |= np.uint64(load32(ids, 3)) << _32
    else:
        value, more = _IN_POOL | np.uint64(count) << _32, np.uint64(used)
        for k in range(count):
            store32(pool, used + k, load32(ids, k))
        used += count
    store64(slots, at + 2, value)
    store64(slots, at + 3, more)
    return used


@inner
def emit(slots, at, pool, out, written, narrow):
    """Append the ids of a known piece to ``out``, as uint16 or uint32; returns the new end."""
    value = load64(slots, at + 2)
    count = np.int64(value >> _COUNT_SHIFT & _COUNT_MASK)
    if count > _INLINE_IDS:
        count, first = np.int64(value >> _32), np.int64(load64(slots, at + 3))
        for k in range(count):
            if narrow:
                store16(out, written + k, load32(pool, first + k))
            else:
                store32(out, written + k, load32(pool, first + k))
        return written + count
    # all four, without a branch: that costs less than one wrong guess of the count
    if narrow:
        store_four16(slots, at + 2, out, written)
    else:
        store_four32(slots, at + 2, out, written)
    return written + count


@inner
def find_pieces(text, cuts, number, slots, shift, room, arena, arena_size, state, batch):
    """Find the slots of ``number`` pieces, and enter those that are new, without their ids yet.

    ``batch`` holds what :func:`ask_for_slots` wrote; each first slot gives way to the right one.  Returns
    ``(how many were found, how many of these are new)``; fewer if there is no room for a new one.
    """
    fresh = 0
    for q in range(number):
        k0, k1, at = load64(batch, 3 * q), load64(batch, 3 * q + 1), np.int64(load64(batch, 3 * q + 2))
        if (load64(slots, at) ^ k0) | (load64(slots, at + 1) ^ k1):
            i = np.int64(load64(cuts, q))
            n = np.int64(load64(cuts, q + 1)) - i
            at, known = find_slot(slots, shift, arena, text, i, n, k0, k1, at)
            if not known:
                used, arena_used = np.int64(load64(state, SLOTS_USED)), np.int64(load64(state, ARENA_USED))
                if used >= room or arena_used + n + 32 > arena_size:
                    return q, fresh
                arena_used = fill_slot(slots, at, arena, arena_used, text, i, n, k0, k1)
                store64(state, SLOTS_USED, np.uint64(used + 1))
                store64(state, ARENA_USED, np.uint64(arena_used))
                store64(batch, FRESH + fresh, np.uint64(q))
                fresh += 1
            store64(batch, 3 * q + 2, np.uint64(at))
    return number, fresh


@inner
def learn_pieces(
    text, cuts, fresh, slots, pool, state, byte_ids, byte_pairs, pairs, displacements, pair_shift,
    ids, found, batch,
):  # fmt: skip
    """Merge the ``fresh`` new pieces of a batch and write their ids into their slots."""
    group, waiting = batch + 8 * WORDS, batch + 8 * WAITING
    used, taken = np.int64(load64(state, POOL_USED)), 0
    while taken < fresh:
        words = 0
        while taken < fresh and words < GROUP:
            q = np.int64(load64(batch, FRESH + taken))
            i, at = np.int64(load64(cuts, q)), np.int64(load64(batch, 3 * q + 2))
            n = np.int64(load64(cuts, q + 1)) - i
            taken += 1
            if n <= INLINE:
                begin_word(group + words * WORD, text, i, n, at, byte_ids, byte_pairs)
                words += 1
            else:
                count = merge_short(text, i, n, byte_ids, pairs, displacements, pair_shift, ids, found)
                used = store_value(slots, at, pool, used, ids, count)
        merge_group(group, waiting, words, pairs, displacements, pair_shift)
        for k in range(words):
            count, at = take_word(group + k * WORD, ids)
            used = store_value(slots, at, pool, used, ids, count)
    store64(state, POOL_USED, np.uint64(used))


@kernel
def encode_documents(
    kind, text, bounds, lengths, state, blocks, classes, cuts, slots, shift, arena, pool,
    byte_ids, byte_pairs, pairs, displacements, pair_shift, ids, found, batch, out, narrow,
):  # fmt: skip
    """Encode documents that stand one after another in ``text`` until done or until something is full.

    ``bounds`` [documents + 1] are where they begin and end, ``lengths`` [documents] receives the ids of each.
    ``out`` is an array of bytes whatever the ids are, or all of this would be compiled twice.
    """
    room, arena_size, pool_size = (slots.size // SLOT) * 3 // 4, arena.size, pool.size
    out_size = out.size >> (1 if narrow else 2)
    text, blocks, classes, cuts = address(text), address(blocks), address(classes), address(cuts)
    slots, arena, pool, byte_ids = address(slots), address(arena), address(pool), address(byte_ids)
    byte_pairs, pairs, displacements = address(byte_pairs), address(pairs), address(displacements)
    ids, found, batch, out, counters = (
        address(ids),
        address(found),
        address(batch),
        address(out),
        address(state),
    )
    i, document, written = state[POSITION], state[DOCUMENT], state[WRITTEN]
    reason = DONE
    while document < lengths.size:
        begin, end = bounds[document], bounds[document + 1]
        i = max(i, begin)
        before = written
        while i < end and reason == DONE:
            m = cut_pieces(kind, text, i, begin, end, blocks, classes, cuts)
            number = ask_for_slots(text, cuts, m, slots, shift, batch, LONGEST_SHORT)
            if number < m:
                reason = LONG_PIECE
            size = np.int64(load64(cuts, number)) - i
            if written + size + SPARE > out_size:
                reason = OUT_FULL
                break
            if np.int64(load64(counters, POOL_USED)) + size > pool_size:
                reason = CACHE_FULL
                break
            ready, fresh = find_pieces(
                text, cuts, number, slots, shift, room, arena, arena_size, counters, batch
            )
            if ready < number:
                reason = CACHE_FULL
            learn_pieces(
                text, cuts, fresh, slots, pool, counters, byte_ids, byte_pairs, pairs, displacements,
                pair_shift, ids, found, batch,
            )  # fmt: skip
            for q in range(ready):
                written = emit(slots, np.int64(load64(batch, 3 * q + 2)), pool, out, written, narrow)
            i = np.int64(load64(cuts, ready))
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
