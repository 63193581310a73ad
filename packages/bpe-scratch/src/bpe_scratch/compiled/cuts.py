r"""Where pieces start, many at once: GPT-2's pattern over bitmaps of 64 bytes, the others piece by piece.

A window of 64 bytes is looked at as a whole; bit ``k`` of a bitmap belongs to byte ``k``.  With a bitmap of
each class of character, the starts of pieces are a few operations on 64-bit numbers:

    the first character of each stretch of white space;
    its last character too, if something follows it (a blank there belongs to what follows);
    the first character of each run of letters, numbers or others, unless a blank stands before it;
    and after a contraction that begins a run, the character behind it instead of the letter inside it.

Whether a byte begins a piece depends on the four bytes before it (a contraction may begin three bytes back,
and what stands before it matters) and the three after it (white space of three bytes, and what follows), so
a window decides its middle 56 bytes, and carries nothing to the next.
"""

from __future__ import annotations

import numpy as np

from bpe_scratch.compiled.kernel import inner
from bpe_scratch.compiled.memory import bytes_within, load8, lowest_bit, set_bits, store_int
from bpe_scratch.compiled.pieces import GPT2, class_at, contraction_end, piece_end
from bpe_scratch.unicode_classes import LETTER, NUMBER, SPACE, UPPER

BATCH = 512
CUTS = BATCH + 128
"""Room that a list of cuts needs: a window may begin when there is room for none of its pieces."""
BEHIND = 4
_MIDDLE = 56
_ALL, _ONE, _NONE = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(1), np.uint64(0)
_DECIDED = np.uint64((1 << _MIDDLE) - 1)


@inner
def high_classes(s, window, high):
    """``(letters, numbers, spaces)`` among the bytes ``high``, which are not ASCII: whole characters."""
    letters, numbers, spaces = _NONE, _NONE, _NONE
    while high != _NONE:
        k = lowest_bit(high)
        lead = window + k
        # the window may begin inside a character
        while load8(s.text, lead) & 0xC0 == 0x80:
            lead -= 1
        kind, width = class_at(s, lead)
        rest = lead + width - window - k
        span = ((_ONE << np.uint64(rest)) - _ONE) << np.uint64(k)
        high &= ~span
        if UPPER <= kind <= LETTER:
            letters |= span
        elif kind == NUMBER:
            numbers |= span
        elif kind == SPACE:
            spaces |= span
    return letters, numbers, spaces


@inner
def move_contractions(s, window, end, quotes, letters, starts):
    """``'s`` at the start of a run: the piece takes the letters in, and the next starts behind them."""
    while quotes != _NONE:
        k = lowest_bit(quotes)
        quotes &= quotes - _ONE
        width = contraction_end(s, window + k, end, False) - window - k
        if width > 0:
            starts &= ~(_ONE << np.uint64(k) << _ONE)
            # only inside the run of letters: elsewhere a start is there already, or belongs to a blank
            starts |= _ONE << np.uint64(k) << np.uint64(width) & letters
    return starts


@inner
def gpt2_starts(s, at, begin, end):
    """Bitmap of the pieces that start in the 56 bytes from ``at`` on, in the document ``[begin, end)``.

    Reads 64 bytes from ``at - BEHIND`` on.
    """
    window = at - BEHIND
    before = np.uint64(max(begin - window, 0))
    beyond = ~(_ALL >> np.uint64(64 - min(end - window, 64)))
    inside = _ALL << before & ~beyond
    blanks = bytes_within(s.text, window, 0, 32, 1) & inside
    letters = bytes_within(s.text, window, 32, 97, 26) & inside
    numbers = bytes_within(s.text, window, 0, 48, 10) & inside
    spaces = bytes_within(s.text, window, 0, 9, 5) & inside | blanks
    high = bytes_within(s.text, window, 0, 128, 128) & inside
    if high != _NONE:
        more_letters, more_numbers, more_spaces = high_classes(s, window, high)
        letters |= more_letters & inside
        numbers |= more_numbers & inside
        spaces |= more_spaces & inside
    others = inside & ~(letters | numbers | spaces)
    last = spaces & ~((spaces | beyond) >> _ONE)
    if last & high != _NONE:
        # white space of two or three bytes: step back to its first
        inner_bytes = bytes_within(s.text, window, 0, 128, 64)
        last = last & ~inner_bytes | (last & inner_bytes) >> _ONE
        last = last & ~inner_bytes | (last & inner_bytes) >> _ONE
    runs = letters & ~(letters << _ONE) | numbers & ~(numbers << _ONE) | others & ~(others << _ONE)
    runs &= ~(blanks << _ONE)
    starts = spaces & ~(spaces << _ONE) | last | runs
    quotes = bytes_within(s.text, window, 0, 39, 1) & runs
    if quotes != _NONE:
        starts = move_contractions(s, window, end, quotes, letters, starts)
    return starts >> np.uint64(BEHIND) & _DECIDED


@inner
def write_bits(cuts, m, at, bits):
    """Append the position of each set bit; returns the new number of cuts.

    Writes eight at a time, whether they are there or not: that costs less than a wrong guess of the number.
    """
    after = m + set_bits(bits)
    while True:
        for k in range(8):
            store_int(cuts, m + k, at + lowest_bit(bits))
            bits &= bits - _ONE
        if bits == _NONE:
            return after
        m += 8


@inner
def cut_pieces(s, i, begin, end):
    """Cut about ``BATCH`` pieces from the start of a piece ``i`` on; returns their number.

    Piece ``k`` is ``[cuts[k], cuts[k + 1])``. ``s.text`` can be read from four bytes before ``begin`` to
    64 after ``end``.
    """
    m, at = 0, i
    if s.kind == GPT2:
        while at < end and m <= BATCH:
            m = write_bits(s.cuts, m, at, gpt2_starts(s, at, begin, end))
            at += _MIDDLE
        if at < end:
            # the last one is cut off: it comes again
            return m - 1
    else:
        while at < end and m < BATCH:
            store_int(s.cuts, m, at)
            at = piece_end(s, at, end)
            m += 1
    store_int(s.cuts, m, min(at, end))
    return m
