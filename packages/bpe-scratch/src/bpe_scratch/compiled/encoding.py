"""From UTF-8 bytes to ids, or to counts of pieces: cut pieces, look them up, merge those that are new.

``s`` is the record that carries the kernel across calls; it stops and says why whenever Python has to make
room.
"""

from __future__ import annotations

import numpy as np

from bpe_scratch.compiled.cuts import CUTS, cut_pieces
from bpe_scratch.compiled.kernel import inner, kernel
from bpe_scratch.compiled.memory import (
    address,
    load32,
    load64,
    load_int,
    store16,
    store32,
    store64,
    store_four16,
    store_four32,
    store_int,
)
from bpe_scratch.compiled.merging import GROUP, IDS, PIECE, begin_piece, merge_group
from bpe_scratch.compiled.word_table import ask_for_slots, fill_slot, find_slot, has_room

DONE, TABLE_FULL, LONG_PIECE = 0, 1, 2
SPARE = 4
"""Ids that may be written behind the last one."""
# scratch: two keys and a slot for each piece; which ones are new
FRESH, BATCH_SIZE = 3 * CUTS, 4 * CUTS
_INLINE_IDS = 4
_COUNT_SHIFT = np.uint64(28)
_COUNT_MASK, _IN_POOL = np.uint64(0xF), np.uint64(0xF << 28)
_32 = np.uint64(32)


@inner
def store_value(s, at, ids, count):
    """Write the ids of a piece into its slot, four at most, or else into the pool.

    Four ids of 28 bits stand in 32 bits each, their number above the first.
    """
    if count <= _INLINE_IDS:
        # what stands behind the last id is never read
        value = load64(ids, 0) | load64(ids, 1) << _32 | np.uint64(count) << _COUNT_SHIFT
        more = load64(ids, 2) | load64(ids, 3) << _32
    else:
        value, more = _IN_POOL | np.uint64(count) << _32, np.uint64(s.pool_used)
        for k in range(count):
            store32(s.pool, s.pool_used + k, load_int(ids, k))
        s.pool_used += count
    store64(s.slots, at + 2, value)
    store64(s.slots, at + 3, more)


@inner
def emit(slots, at, pool, out, written, narrow):
    """Append the ids of a known piece to ``out``, as uint16 or uint32; returns the new end."""
    value = load64(slots, at + 2)
    count = np.int64(value >> _COUNT_SHIFT & _COUNT_MASK)
    if count > _INLINE_IDS:
        count, first = np.int64(value >> _32), load_int(slots, at + 3)
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
def find_pieces(s, number):
    """Find the slots of ``number`` pieces, and enter those that are new, without their ids yet.

    ``s.batch`` holds what :func:`ask_for_slots` wrote; each first slot gives way to the right one.  Returns
    ``(how many were found, how many of these are new)``; fewer if there is no room for a new one.
    """
    batch, slots, fresh = s.batch, s.slots, 0
    for q in range(number):
        k0, k1, at = load64(batch, 3 * q), load64(batch, 3 * q + 1), load_int(batch, 3 * q + 2)
        if (load64(slots, at) ^ k0) | (load64(slots, at + 1) ^ k1):
            i = load_int(s.cuts, q)
            n = load_int(s.cuts, q + 1) - i
            at, known = find_slot(s, i, n, k0, k1, at)
            if not known:
                if not has_room(s, n):
                    return q, fresh
                fill_slot(s, at, i, n, k0, k1)
                store_int(batch, FRESH + fresh, q)
                fresh += 1
            store_int(batch, 3 * q + 2, at)
    return number, fresh


@inner
def learn_pieces(s, fresh, number):
    """Merge a group of new pieces, whose numbers in the batch stand at ``fresh``, and write their ids."""
    for k in range(number):
        q = load_int(fresh, k)
        i = load_int(s.cuts, q)
        begin_piece(s, s.pieces + k * PIECE, i, load_int(s.cuts, q + 1) - i)
    merge_group(s, number)
    for k in range(number):
        piece = s.pieces + k * PIECE
        store_value(s, load_int(s.batch, 3 * load_int(fresh, k) + 2), piece + IDS, load_int(piece, 0))


@inner
def take_pieces(s, number, fresh, written):
    """Count the pieces of a batch; or merge the ``fresh`` new ones, and write the ids of all.

    Returns how many ids are written now.
    """
    slots, batch = s.slots, s.batch
    if s.counting:
        for q in range(number):
            at = load_int(batch, 3 * q + 2)
            store_int(slots, at + 2, load_int(slots, at + 2) + 1)
        return written
    for first in range(0, fresh, GROUP):
        learn_pieces(s, batch + 8 * (FRESH + first), min(GROUP, fresh - first))
    pool, out, narrow = s.pool, s.out, s.narrow
    for q in range(number):
        written = emit(slots, load_int(batch, 3 * q + 2), pool, out, written, narrow)
    return written


@kernel
def encode_documents(states, text, bounds, lengths, out):
    """Encode documents that stand one after another in ``text`` until done or until something is full.

    ``bounds`` [documents + 1] are where they begin and end, ``lengths`` [documents] receives the ids of each.
    ``out`` has room for an id of each byte and ``SPARE`` more; it is an array of bytes whatever the ids are,
    or all of this would be compiled twice.
    """
    s = states[0]
    s.text, s.out = address(text), address(out)
    i, document, written = s.position, s.document, s.written
    reason = DONE
    while document < lengths.size:
        begin, end = bounds[document], bounds[document + 1]
        i = max(i, begin)
        before = written
        while i < end and reason == DONE:
            m = cut_pieces(s, i, begin, end)
            number = ask_for_slots(s, m)
            if number < m:
                reason, s.stop = LONG_PIECE, load_int(s.cuts, number + 1)
            size = load_int(s.cuts, number) - i
            if not s.counting and s.pool_used + size > s.pool_size:
                reason = TABLE_FULL
                break
            ready, fresh = find_pieces(s, number)
            if ready < number:
                reason = TABLE_FULL
            written = take_pieces(s, ready, fresh, written)
            i = load_int(s.cuts, ready)
        lengths[document] += written - before
        if reason != DONE:
            break
        document += 1
    s.position, s.document, s.written = i, document, written
    return reason


@kernel
def enter_tokens(states, text, bounds, whole_pieces, indexes):
    """Enter all tokens as known pieces: as they are if ``whole_pieces``, or else as what they merge to."""
    s = states[0]
    s.text = address(text)
    for first in range(0, indexes.size, GROUP):
        number = min(GROUP, indexes.size - first)
        for k in range(number + 1):
            store_int(s.cuts, k, bounds[first + k])
        ask_for_slots(s, number)
        _, fresh = find_pieces(s, number)
        if not whole_pieces:
            learn_pieces(s, s.batch + 8 * FRESH, fresh)
            continue
        for k in range(number):
            store_int(s.pieces, 0, indexes[first + k])
            store_value(s, load_int(s.batch, 3 * k + 2), s.pieces, 1)
