r"""Where a piece ends: the named patterns as automata over UTF-8 bytes.

Each function takes the record ``s`` with valid UTF-8 ``s.text`` (with at least 64 bytes after ``end``), the
start ``i < end`` of a piece and the end of the document, and returns the end of the piece.
"""

from __future__ import annotations

from bpe_scratch.compiled.kernel import inner
from bpe_scratch.compiled.memory import bytes_within, load8, load32, lowest_bit
from bpe_scratch.unicode_classes import LETTER, LOWER, MARK, NUMBER, OTHER, SPACE, UPPER

_NONE, GPT2, _CL100K, _O200K = range(4)
KINDS = {"none": _NONE, "gpt2": GPT2, "cl100k": _CL100K, "o200k": _O200K}
_APOSTROPHE, _BLANK, _SLASH, _CR, _LF = 39, 32, 47, 13, 10


@inner
def class_at(s, i):
    """``(class, width in bytes)`` of the character at ``i``."""
    c = load8(s.text, i)
    if c < 0x80:
        return load8(s.classes, c), 1
    if c < 0xE0:
        code, width = (c & 0x1F) << 6 | load8(s.text, i + 1) & 0x3F, 2
    elif c < 0xF0:
        code, width = (c & 0x0F) << 12 | (load8(s.text, i + 1) & 0x3F) << 6 | load8(s.text, i + 2) & 0x3F, 3
    else:
        high = (c & 0x07) << 18 | (load8(s.text, i + 1) & 0x3F) << 12
        code, width = high | (load8(s.text, i + 2) & 0x3F) << 6 | load8(s.text, i + 3) & 0x3F, 4
    return load8(s.classes, load32(s.blocks, code >> 7) + (code & 127)), width


@inner
def is_line_break(s, i):
    """Whether a line feed or a carriage return stands at ``i``."""
    return load8(s.text, i) == _LF or load8(s.text, i) == _CR


@inner
def letters_end(s, i, end):
    """End of the letters from ``i`` on; 64 ASCII letters at a time."""
    while i < end:
        step = lowest_bit(~bytes_within(s.text, i, 32, 97, 26))
        i += step
        if step < 64:
            if i >= end or load8(s.text, i) < 0x80:
                break
            kind, width = class_at(s, i)
            if kind < UPPER or kind > LETTER:
                break
            i += width
    return min(i, end)


@inner
def numbers_end(s, i, end, limit):
    """End of at most ``limit`` numbers from ``i`` on."""
    while i < end and limit > 0:
        kind, width = class_at(s, i)
        if kind != NUMBER:
            break
        i += width
        limit -= 1
    return i


@inner
def others_end(s, i, end):
    """End of the characters that are neither letters, numbers nor white space."""
    while i < end:
        kind, width = class_at(s, i)
        if kind in (SPACE, NUMBER) or UPPER <= kind <= LETTER:
            break
        i += width
    return i


@inner
def spaces_end(s, i, end):
    """``(end, start of the last character, end of the last line break or 0)`` of white space."""
    last, line = i, 0
    while i < end:
        kind, width = class_at(s, i)
        if kind != SPACE:
            break
        last = i
        i += width
        if is_line_break(s, last):
            line = i
    return i, last, line


@inner
def contraction_end(s, i, end, any_case):
    """End of ``'s 't 'm 'd 'll 've 're`` at the apostrophe ``i``, or ``i``.

    U+017F is an ``s`` in another case.
    """
    if i + 1 >= end or load8(s.text, i) != _APOSTROPHE:
        return i
    fold = 0x20 if any_case else 0
    a = load8(s.text, i + 1) | fold
    if a == 115 or a == 116 or a == 109 or a == 100:
        return i + 2
    if i + 2 >= end:
        return i
    if any_case and load8(s.text, i + 1) == 0xC5 and load8(s.text, i + 2) == 0xBF:
        return i + 3
    b = load8(s.text, i + 2) | fold
    if (a == 108 and b == 108) or (b == 101 and (a == 118 or a == 114)):
        return i + 3
    return i


@inner
def cl100k_end(s, i, end):
    """The pattern ``cl100k``."""
    kind, width = class_at(s, i)
    if UPPER <= kind <= LETTER:
        return letters_end(s, i, end)
    if kind == NUMBER:
        return numbers_end(s, i, end, 3)
    j = contraction_end(s, i, end, True)
    if j > i:
        return j
    j = i + width
    if j < end and not is_line_break(s, i):
        following, _ = class_at(s, j)
        if UPPER <= following <= LETTER:
            return letters_end(s, j, end)
    return rest_end(s, i, end, kind, width, False)


@inner
def rest_end(s, i, end, kind, width, wide):
    r"""`` ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+``; if ``wide``, ``/`` stands beside line breaks.

    The first character has this class and width.  If not ``wide``, ``\s++$`` comes before line breaks.
    """
    following = SPACE
    if load8(s.text, i) == _BLANK and i + 1 < end:
        following, _ = class_at(s, i + 1)
    if kind != SPACE or following in (OTHER, MARK):
        j = others_end(s, i + width, end)
        while j < end and (is_line_break(s, j) or (wide and load8(s.text, j) == _SLASH)):
            j += 1
        return j
    stop, last, line = spaces_end(s, i, end)
    if line > 0 and (wide or stop < end):
        return line
    # all of it if the text ends, else all but its last character, at least one
    return stop if stop == end or last == i else last


@inner
def cased_word_end(s, i, end):
    r"""``(end of [Lu Lt Lm Lo M]*[Ll Lm Lo M]+, end of [Lu Lt Lm Lo M]+)``; ``i`` where none matches.

    The first part is greedy. If no lower-case letter follows it, it gives back characters until the last one
    that may also count as lower case, and the match ends behind that one.
    """
    both = i
    j = i
    while j < end:
        kind, width = class_at(s, j)
        if kind in (LETTER, MARK):
            both = j + width
        elif kind != UPPER:
            break
        j += width
    upper = j
    while j < end:
        kind, width = class_at(s, j)
        if kind != LOWER and kind != LETTER and kind != MARK:
            break
        j += width
    return (j if j > upper else both), upper


@inner
def o200k_word_end(s, i, end):
    """The two word alternatives of ``o200k``, each with and without the character before.

    ``i`` if none matches.
    """
    kind, width = class_at(s, i)
    lower, upper = cased_word_end(s, i, end)
    if (kind < UPPER or kind > LETTER) and kind != NUMBER and not is_line_break(s, i):
        j = i + width
        lower_after, upper_after = cased_word_end(s, j, end)
        if lower_after > j:
            return lower_after
        if lower == i and upper_after > j:
            return upper_after
    return lower if lower > i else upper


@inner
def o200k_end(s, i, end):
    """The pattern ``o200k``."""
    j = o200k_word_end(s, i, end)
    if j > i:
        return contraction_end(s, j, end, True)
    kind, width = class_at(s, i)
    if kind == NUMBER:
        return numbers_end(s, i, end, 3)
    return rest_end(s, i, end, kind, width, True)


@inner
def piece_end(s, i, end):
    """End of the piece that starts at ``i``, for the pattern ``s.kind``, which is not ``gpt2``."""
    if s.kind == _CL100K:
        return cl100k_end(s, i, end)
    if s.kind == _O200K:
        return o200k_end(s, i, end)
    return end
