"""Reading a file through its compression, and one error for any fault met on the way.

Python's own readers take an empty ``.gz`` for an empty text and pass over whatever follows the first
streams of an ``.xz`` or ``.bz2``. Here a compressed file is whole streams and nothing else.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from gpt_data.errors import InputError
from gpt_data.store.reading import open_regular

COMPRESSIONS = (".bz2", ".gz", ".xz", ".zst")
# none of these begins a text in UTF-8; bzip2's does, and is therefore known by name alone
MAGIC = {b"\x1f\x8b": ".gz", b"\xfd7zXZ\0": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
CHUNK_BYTES = 2**17
XZ_MEMORY = 2**29
"""An ``.xz`` that needs more than this to be unpacked is refused."""


@contextmanager
def open_unpacked(path: Path) -> Iterator[io.BufferedIOBase]:
    """Open a file through its compression; damage met while it is read is a ``InputError``.

    The name's last suffix says how it is compressed; if it says nothing, the file's first bytes do.

    Raises:
        InputError: Naming the file.
    """
    with explain_read(path), os.fdopen(open_regular(path, follow_link=True), "rb") as file:
        kind = path.suffix if path.suffix in COMPRESSIONS else _kind_by_content(file)
        if kind is not None and not os.fstat(file.fileno()).st_size:
            raise InputError(f"cannot read {path}: it is empty, which no {kind} file is")
        yield _unpack(path, file, kind)


@contextmanager
def explain_read(path: Path) -> Iterator[None]:
    """Turn whatever the system or a decompressor raises into one line that names the file.

    Raises:
        InputError: In place of the other error.
    """
    try:
        yield
    except EOFError as error:
        raise InputError(f"cannot read {path}: it ended before the end of the stream") from error
    except _damage() as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise InputError(f"cannot read {path}: {reason or error}") from error


def _kind_by_content(file: io.BufferedReader) -> str | None:
    start = file.peek(max(map(len, MAGIC)))
    return next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), None)


def _unpack(path: Path, file: io.BufferedReader, kind: str | None) -> io.BufferedIOBase:
    if kind is None:
        return file
    if kind == ".gz":
        return gzip.GzipFile(fileobj=file)
    makers: dict[str, Callable[[], Any]] = {
        ".bz2": bz2.BZ2Decompressor,
        ".xz": lambda: lzma.LZMADecompressor(memlimit=XZ_MEMORY),
        ".zst": lambda: _zstd(path).ZstdDecompressor(),
    }
    # what may stand between two streams of an .xz, by its specification
    padding = b"\0" if kind == ".xz" else b""
    return io.BufferedReader(_Streams(file, makers[kind], padding), CHUNK_BYTES)


class _Streams(io.RawIOBase):
    """Compressed streams, one after the other to the end of the file.

    Args:
        padding: The byte that may fill up the place between streams.
    """

    def __init__(self, file: io.BufferedReader, make: Callable[[], Any], padding: bytes) -> None:
        self._file, self._make, self._padding = file, make, padding
        self._stream = make()

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
                packed = self._file.read(CHUNK_BYTES) if self._stream.needs_input else b""
                if not packed and self._stream.needs_input:
                    raise EOFError
            data = self._stream.decompress(packed, len(target))
            if data:
                target[: len(data)] = data
                return len(data)

    def _next_stream(self) -> bytes:
        """What follows the stream that has ended, padding left out; nothing at the end of the file."""
        rest: bytes = self._stream.unused_data
        while not rest or (self._padding and not rest.lstrip(self._padding)):
            rest = self._file.read(CHUNK_BYTES)
            if not rest:
                return b""
        return rest.lstrip(self._padding) if self._padding else rest


def _zstd(path: Path | None = None) -> Any:
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise InputError(f"{path} needs Python 3.14 or the extra gpt-data[zstd]")


def _damage() -> tuple[type[Exception], ...]:
    known = (OSError, zlib.error, lzma.LZMAError)
    try:
        return (*known, _zstd().ZstdError)
    except InputError:
        return known
