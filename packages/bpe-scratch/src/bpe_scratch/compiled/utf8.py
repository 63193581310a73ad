# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""UTF-8 of texts that Python keeps in 16 bits a character, as it does English with a single dash in it.

``str.encode`` goes through these from character to character; here 64 of ASCII go at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from bpe_scratch.compiled.kernel import inner, kernel
from bpe_scratch.compiled.memory import address, load16, lowest_bit, narrow, pointer, store8
from bpe_scratch.patterns import to_utf8

_SHORT = 1 << 10  # to call a kernel would take longer
_WINDOW = 64


@inner
def put(code, out, at):
    """Write one character; returns its end, or -1 for a surrogate."""
    if code < 0x80:
        store8(out, at, code)
        return at + 1
    if code < 0x800:
        store8(out, at, 0xC0 | code >> 6)
    else:
        store8(out, at, 0xE0 | code >> 12)
        at += 1
        store8(out, at, 0x80 | code >> 6 & 0x3F)
    store8(out, at + 1, 0x80 | code & 0x3F)
    return -1 if 0xD800 <= code < 0xE000 else at + 2


@kernel
def write_utf8(text, out):
    """Write a text into ``out``; returns its end, or -1 if it has another width, or a surrogate."""
    source, number, out, i, at = pointer(text._data), text._length, address(out), 0, 0
    if text._kind != 2:
        return -1
    while i < number and at >= 0:
        if i + _WINDOW <= number:
            step = lowest_bit(narrow(source, i, out, at))
            i, at = i + step, at + step
        # what follows singly, up to the next that is ASCII
        ascii_ = False
        while i < number and at >= 0 and not ascii_:
            code = load16(source, i)
            at = put(code, out, at)
            ascii_ = code < 0x80
            i += 1
    return at


def utf8_of(texts: Iterable[str]) -> Iterator[bytes]:
    """As :func:`to_utf8` of each text; long ones of that width by the kernel."""
    out = np.empty(0, dtype=np.uint8)
    for text in texts:
        # a subclass may say otherwise than it is
        plain = str.__str__(text)
        if len(plain) >= _SHORT and not plain.isascii():
            if out.size < 3 * len(plain) + _WINDOW:
                out = np.empty(4 * len(plain) + _WINDOW, dtype=np.uint8)
            end = write_utf8(plain, out)
            if end >= 0:
                yield out[:end].tobytes()
                continue
        yield to_utf8(plain)
