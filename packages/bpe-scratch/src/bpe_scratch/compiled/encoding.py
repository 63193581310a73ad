# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""From UTF-8 bytes to ids: cut a piece, look it up, merge it if it is new.

``state`` carries the kernel across calls; it stops and says why whenever Python has to make room.
"""

from __future__ import annotations

import numpy as np

from bpe_scratch.compiled.kernel import inner, kernel
from bpe_scratch.compiled.memory import address, load32, load64, prefetch, store32, store64
from bpe_scratch.compiled.merging import merge_short
from bpe_scratch.compiled.pieces import piece_end
from bpe_scratch.compiled.word_table import SLOT, fill_slot, find_slot, first_slot, piece_key

DONE, OUT_FULL, CACHE_FULL, LONG_PIECE = 0, 1, 2, 3
LONGEST_SHORT = 255
BATCH = 64
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
def emit(slots, at, pool, out, written):
    """Append the ids of a known piece to ``out``; returns the new end."""
    value, more = load64(slots, at + 2), load64(slots, at + 3)
    count = np.int64(value & _COUNT_MASK)
    if count > _INLINE_IDS:
        for k in range(count):
            store32(out, written + k, load32(pool, np.int64(more) + k))
        return written + count
    # four stores without a branch cost less than one wrong guess of the count
    store32(out, written, np.int64(value >> _8 & _ID_MASK))
    store32(out, written + 1, np.int64(value >> _36))
    store32(out, written + 2, np.int64(more & _ID_MASK))
    store32(out, written + 3, np.int64(more >> _ID_BITS))
    return written + count


@inner
def cut_batch(kind, text, i, end, blocks, classes, slots, shift, batch):
    """Cut up to ``BATCH`` pieces and ask for their slots, so that the memory answers while others are cut.

    ``batch`` receives for each piece its start, length, two keys and first slot. Returns the number of
    pieces and the place where cutting stopped: before a piece that is too long, or at the end.
    """
    m = 0
    while i < end and m < BATCH:
        stop = piece_end(kind, text, i, end, blocks, classes)
        n = stop - i
        if n > LONGEST_SHORT:
            break
        k0, k1 = piece_key(text, i, n)
        at = first_slot(k0, k1, shift)
        prefetch(slots, at * SLOT)
        store64(batch, 5 * m, np.uint64(i))
        store64(batch, 5 * m + 1, np.uint64(n))
        store64(batch, 5 * m + 2, k0)
        store64(batch, 5 * m + 3, k1)
        store64(batch, 5 * m + 4, np.uint64(at))
        m += 1
        i = stop
    return m, i


@kernel
def encode_documents(
    kind, text, ends, lengths, state, blocks, classes,
    slots, shift, arena, pool, byte_ids, pairs, pair_shift, whole_pieces, seeds, ids, found, batch, out,
):  # fmt: skip
    """Encode documents that stand one after another in ``text`` until done or until something is full.

    ``ends`` [documents] are their ends, ``lengths`` [documents] receives the ids of each so far. With
    ``seeds`` a piece is a document and the number of ids that it may have is 1: used once to enter the
    vocabulary.
    """
    room, arena_size, pool_size, out_size = (slots.size // 4) * 3 // 4, arena.size, pool.size, out.size
    text, blocks, classes, slots, arena = (
        address(text),
        address(blocks),
        address(classes),
        address(slots),
        address(arena),
    )
    pool, byte_ids, pairs, ids = address(pool), address(byte_ids), address(pairs), address(ids)
    found, batch, out, seeding = address(found), address(batch), address(out), seeds.size > 0
    i, document, written = state[POSITION], state[DOCUMENT], state[WRITTEN]
    used, arena_used, pool_used = state[SLOTS_USED], state[ARENA_USED], state[POOL_USED]
    reason = DONE
    while document < ends.size:
        end = ends[document]
        before = written
        while i < end and reason == DONE:
            m, stop = cut_batch(kind, text, i, end, blocks, classes, slots, shift, batch)
            if m < BATCH and stop < end:
                reason = LONG_PIECE
            for q in range(m):
                i, n = np.int64(load64(batch, 5 * q)), np.int64(load64(batch, 5 * q + 1))
                k0, k1 = load64(batch, 5 * q + 2), load64(batch, 5 * q + 3)
                if written + n + 4 > out_size:
                    reason, stop = OUT_FULL, i
                    break
                at = np.int64(load64(batch, 5 * q + 4))
                at, known = find_slot(slots, shift, arena, text, i, n, k0, k1, at)
                if not known:
                    if used >= room or arena_used + n + 32 > arena_size or pool_used + n > pool_size:
                        reason, stop = CACHE_FULL, i
                        break
                    if seeding and whole_pieces:
                        store32(ids, 0, seeds[document])
                        count = 1
                    else:
                        count = merge_short(text, i, n, byte_ids, pairs, pair_shift, ids, found)
                    if seeding and count > 1:
                        continue
                    used += 1
                    arena_used = fill_slot(slots, at, arena, arena_used, text, i, n, k0, k1)
                    pool_used = store_value(slots, at, pool, pool_used, ids, count)
                written = emit(slots, at, pool, out, written)
            i = stop
        lengths[document] += written - before
        if reason != DONE:
            break
        document += 1
    state[POSITION], state[DOCUMENT], state[WRITTEN] = i, document, written
    state[SLOTS_USED], state[ARENA_USED], state[POOL_USED] = used, arena_used, pool_used
    return reason
