# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""From Python's strings to UTF-8, 64 characters at a time.

Python keeps a text in characters of one, two or four bytes, as wide as its widest. English with a single
dash in it has two, and ``str.encode`` then goes from character to character. Here 64 characters are narrowed
to bytes and written at once; those before the first that is not ASCII stand. That one is written singly, or
all the rest of the 64 where several are not ASCII.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from bpe_scratch.compiled.kernel import for_types, inner, kernel
from bpe_scratch.compiled.memory import (
    load8,
    load32,
    load_u16,
    lowest_bit,
    narrow8,
    narrow16,
    narrow32,
    pointer_address,
    set_bits,
    store8,
)
from bpe_scratch.patterns import to_utf8

PADDING = 64
"""Bytes that may be read, and written, beyond both ends of the text."""
_WINDOW = 64
_FEW = 6  # of 64 characters; one window more for each costs less than 64 single characters


@inner
def put(code, out, at):
    """Write one character; returns the new end, or -1 for a surrogate."""
    if code < 0x80:
        store8(out, at, code)
        return at + 1
    if code < 0x800:
        store8(out, at, 0xC0 | code >> 6)
        store8(out, at + 1, 0x80 | code & 0x3F)
        return at + 2
    if code < 0x10000:
        store8(out, at, 0xE0 | code >> 12)
        store8(out, at + 1, 0x80 | code >> 6 & 0x3F)
        store8(out, at + 2, 0x80 | code & 0x3F)
        return -1 if 0xD800 <= code < 0xE000 else at + 3
    store8(out, at, 0xF0 | code >> 18)
    store8(out, at + 1, 0x80 | code >> 12 & 0x3F)
    store8(out, at + 2, 0x80 | code >> 6 & 0x3F)
    store8(out, at + 3, 0x80 | code & 0x3F)
    return at + 4


def _writer(narrow: Any, read: Any) -> Any:
    """A function that writes characters of one width, and returns the new end or -1."""

    @inner
    def put_all(characters, i, stop, out, at):
        while i < stop and at >= 0:
            at = put(read(characters, i), out, at)
            i += 1
        return at

    @inner
    def write(characters, number, out, at):
        i = 0
        while i + _WINDOW <= number and at >= 0:
            high = narrow(characters, i, out, at)
            if high == np.uint64(0):
                i += _WINDOW
                at += _WINDOW
                continue
            step = lowest_bit(high)
            stop = i + (step + 1 if set_bits(high) <= _FEW else _WINDOW)
            at = put_all(characters, i + step, stop, out, at + step)
            i = stop
        return put_all(characters, i, number, out, at)

    return write


_write8, _write16, _write32 = _writer(narrow8, load8), _writer(narrow16, load_u16), _writer(narrow32, load32)


# a document takes microseconds: to give the interpreter's lock away and to wait for it would take longer
@partial(kernel, nogil=False)
def append_utf8(text, out, at):
    """Write the UTF-8 of a string from byte ``at`` of address ``out`` on, which must have room.

    Returns its end, or -1 if the string has a lone surrogate.
    """
    characters = pointer_address(text._data)
    if text._kind == 1:
        return _write8(characters, text._length, out, at)
    if text._kind == 2:
        return _write16(characters, text._length, out, at)
    return _write32(characters, text._length, out, at)


@cache
def _append() -> Any:
    return for_types(append_utf8, types.unicode_type, types.int64, types.int64)


class TextBuffer:
    """UTF-8 of documents one after another, as the kernels take them.

    Attributes:
        text: The bytes, with ``PADDING`` before the first document and behind the last.
    """

    def __init__(self, size: int) -> None:
        self.text = np.zeros(0, dtype=np.uint8)
        self.clear(size)

    def clear(self, size: int) -> None:
        """Forget all documents, and make room.

        Args:
            size: Bytes that must have room.
        """
        if self.text.size < size + 2 * PADDING:
            self.text = np.empty(size + 2 * PADDING, dtype=np.uint8)
            self.text[:PADDING] = 0
            self._address = self.text.ctypes.data
        self._bounds = [PADDING]

    @property
    def bounds(self) -> npt.NDArray[np.int64]:
        """Document ``i`` is ``text[bounds[i]:bounds[i + 1]]``."""
        return np.array(self._bounds, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def has_room(self, text: str) -> bool:
        """Whether a text fits, however wide its characters are.

        Args:
            text: Any text.
        """
        return self._bounds[-1] + most_bytes(text) + PADDING <= self.text.size

    def append(self, text: str) -> None:
        """Add a document that has room.

        Args:
            text: Any text.

        Raises:
            TextError: If the text has no UTF-8 form.
        """
        if type(text) is not str:
            # kernels take no subclass
            text = str.__str__(text)
        end = _append()(text, self._address, self._bounds[-1])
        if end < 0:
            # raises, and names the position
            to_utf8(text)
        else:
            self._bounds.append(end)


def most_bytes(text: str) -> int:
    """A bound of a text's length in UTF-8, known without reading it.

    Args:
        text: Any text.
    """
    # a subclass may say otherwise, but what it holds is written
    number = str.__len__(text)
    return number if str.isascii(text) else 4 * number
