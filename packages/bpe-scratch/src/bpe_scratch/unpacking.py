"""A file read through its compression.

Python's own readers take an empty ``.gz`` for an empty text and pass over whatever follows the first
streams of an ``.xz`` or ``.bz2``. Here a compressed file is whole streams, filled up with zeros at most.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from importlib import import_module
from typing import Any

COMPRESSIONS = (".bz2", ".gz", ".xz", ".zst")
XZ_MEMORY = 2**29
"""An ``.xz`` that needs more than this to be unpacked is refused."""
_CHUNK = 2**17


def unpack(file: io.BufferedReader, kind: str) -> io.BufferedIOBase:
    """What a file holds that is packed as ``kind`` says; reading it may raise one of :func:`damage` too.

    Raises:
        OSError: If the file is empty.
        ModuleNotFoundError: If nothing here unpacks ``.zst``.
    """
    makers: dict[str, Callable[[], Any]] = {
        ".bz2": bz2.BZ2Decompressor,
        ".xz": lambda: lzma.LZMADecompressor(memlimit=XZ_MEMORY),
        ".zst": lambda: _zstd().ZstdDecompressor(),
    }
    if not file.peek(1):
        raise OSError(f"it is empty, which no {kind} file is")
    if kind == ".gz":
        return gzip.GzipFile(fileobj=file)
    return io.BufferedReader(_Streams(file, makers[kind]), _CHUNK)


def damage() -> tuple[type[Exception], ...]:
    """What is raised where a file cannot be read, ends too early (``EOFError``) or cannot be unpacked."""
    known = (OSError, EOFError, zlib.error, lzma.LZMAError)
    try:
        return (*known, _zstd().ZstdError)
    except ModuleNotFoundError:
        return known


class _Streams(io.RawIOBase):
    """Compressed streams, one after the other to the end of the file."""

    def __init__(self, file: io.BufferedReader, make: Callable[[], Any]) -> None:
        self._file, self._make, self._stream = file, make, make()

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while True:
            if self._stream.eof:
                packed = self._next_stream()
                if not packed:
                    return 0
                self._stream = self._make()
            else:
                packed = self._file.read(_CHUNK) if self._stream.needs_input else b""
                if not packed and self._stream.needs_input:
                    raise EOFError("it ended before the end of the stream")
            data = self._stream.decompress(packed, len(target))
            if data:
                target[: len(data)] = data
                return len(data)

    def _next_stream(self) -> bytes:
        """What follows the stream that has ended, zeros left out; nothing at the end of the file."""
        rest: bytes = self._stream.unused_data.lstrip(b"\0")
        while not rest:
            packed = self._file.read(_CHUNK)
            if not packed:
                return b""
            rest = packed.lstrip(b"\0")
        return rest


def _zstd() -> Any:
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return import_module(name)
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError("needs Python 3.14 or backports.zstd, which the extra zstd brings")
