"""Opening a file through its compression, with one error for any fault met on the way."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bpe_scratch.unpacking import COMPRESSIONS, damage, unpack

from gpt_data.errors import InputError
from gpt_data.store.reading import open_regular

# none of these begins a text in UTF-8; bzip2's does, and is therefore known by name alone
MAGIC = {b"\x1f\x8b": ".gz", b"\xfd7zXZ\0": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}


@contextmanager
def open_unpacked(path: Path) -> Iterator[io.BufferedIOBase]:
    """Open a file through its compression; damage met while it is read is a ``InputError``.

    The name's last suffix says how it is compressed; if it says nothing, the file's first bytes do.

    Raises:
        InputError: Naming the file.
    """
    try:
        with os.fdopen(open_regular(path, follow_link=True), "rb") as file:
            kind = path.suffix if path.suffix in COMPRESSIONS else _kind_by_content(file)
            yield file if kind is None else _unpack(path, file, kind)
    except EOFError as error:
        raise InputError(f"cannot read {path}: it ended before the end of the stream") from error
    except damage() as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise InputError(f"cannot read {path}: {reason or error}") from error


def _kind_by_content(file: io.BufferedReader) -> str | None:
    start = file.peek(max(map(len, MAGIC)))
    return next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), None)


def _unpack(path: Path, file: io.BufferedReader, kind: str) -> io.BufferedIOBase:
    try:
        return unpack(file, kind)
    except ModuleNotFoundError as error:
        raise InputError(f"{path} {error}") from error
