"""Bytes and strings that are filled after they are made, by functions of Python's public C interface.

A copy of 100 MB into new memory takes as long as decoding it: the system hands memory out in pages of
4 kB, each cleared at its first use.  So a result is made first and decoded into, and large ones are given
large pages where the system has them, as NumPy does for its arrays (102 MB: 15 ms instead of 45).
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
_text_new = PYFUNCTYPE(py_object, c_ssize_t, c_uint32)(("PyUnicode_New", pythonapi))


def new_bytes(size: int) -> tuple[bytes, int]:
    """``(bytes, address)``: to be filled at once, before anyone else sees them.

    Args:
        size: Their number, at least 1.
    """
    made: bytes = _bytes_new(None, size)
    place = _bytes_address(made)
    _ask_for_large_pages(place, size)
    return made, place


def new_text(number: int, widest: int, kind: int) -> str:
    """A string that is to be filled at once, before anyone else sees it.

    Args:
        number: Its characters.
        widest: Its widest character, or 127, 255, 65535 or 1114111, whichever is the next.
        kind: Bytes of a character.
    """
    made: str = _text_new(number, widest)
    # the address of the object, by CPython's own rule; its characters follow
    _ask_for_large_pages(id(made), number * kind)
    return made


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
