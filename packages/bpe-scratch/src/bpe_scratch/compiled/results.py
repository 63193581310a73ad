"""Bytes and strings that are filled after they are made, by functions of Python's public C interface.

A copy of 100 MB into new memory takes twice as long as decoding it: the system hands memory out in pages of
4 kB, each cleared at its first use.  So a result is made first and decoded into, and large ones are given
large pages where the system has them, as NumPy does for its arrays (102 MB: 16 ms instead of 44).
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from ctypes import PYFUNCTYPE, c_int, c_size_t, c_ssize_t, c_uint32, c_void_p, py_object, pythonapi
from functools import cache
from typing import Any

_LARGE = 1 << 22

_bytes_new = PYFUNCTYPE(py_object, c_void_p, c_ssize_t)(("PyBytes_FromStringAndSize", pythonapi))
_bytes_address = PYFUNCTYPE(c_void_p, py_object)(("PyBytes_AsString", pythonapi))
# an address instead of an object: a string may be written only while there is one reference to it
_text_new = PYFUNCTYPE(c_void_p, c_ssize_t, c_uint32)(("PyUnicode_New", pythonapi))
_text_from = PYFUNCTYPE(py_object, c_int, c_void_p, c_ssize_t)(("PyUnicode_FromKindAndData", pythonapi))
_text_copy = PYFUNCTYPE(c_ssize_t, c_void_p, c_ssize_t, py_object, c_ssize_t, c_ssize_t)(
    ("PyUnicode_CopyCharacters", pythonapi)
)
_release = PYFUNCTYPE(None, c_void_p)(("Py_DecRef", pythonapi))


def new_bytes(size: int) -> tuple[bytes, int]:
    """``(bytes, address)``: to be filled at once, before anyone else sees them.

    Args:
        size: Their number, at least 1.
    """
    made: bytes = _bytes_new(None, size)
    place = _bytes_address(made)
    _ask_for_large_pages(place, size)
    return made, place


def text_of(kind: int, units: int, number: int) -> str:
    """A string of characters of one width.

    Args:
        kind: Bytes of a character: 1, 2 or 4.
        units: Address of the first.
        number: How many.
    """
    made: str = _text_from(kind, units, number)
    return made


class TextUnderConstruction:
    """A string that is filled part by part.

    Args:
        number: Its characters.
        widest: Its widest character, or 127, 255, 65535 or 1114111, whichever is the next.
        kind: Bytes of a character.
    """

    def __init__(self, number: int, widest: int, kind: int) -> None:
        self._place: int | None = _text_new(number, widest)
        self._end = 0
        _ask_for_large_pages(self._place or 0, number * kind)

    def append(self, part: str, start: int) -> None:
        """Write the characters of a part.

        Args:
            part: Characters, none wider than the widest.
            start: Those before are left out.
        """
        self._end += _text_copy(self._place, self._end, part, start, len(part) - start)

    def finish(self) -> str:
        """The string."""
        made: str = ctypes.cast(self._place or 0, py_object).value
        return made

    def __del__(self) -> None:
        # finish() made a reference of its own
        if self._place:
            _release(self._place)


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """The system's call, where it knows large pages."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    found: Any = ctypes.CDLL(None).madvise
    found.argtypes = [c_void_p, c_size_t, c_int]
    return found  # type: ignore[no-any-return]


def _ask_for_large_pages(place: int, size: int) -> None:
    """Only advice: it changes no content, and a refusal does not matter."""
    advise = _madvise() if size >= _LARGE else None
    if advise is not None and sys.platform == "linux":
        start = -(-place // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = (place + size) // mmap.PAGESIZE * mmap.PAGESIZE
        advise(start, stop - start, mmap.MADV_HUGEPAGE)
