"""Writes that survive a kill or a power cut.

A file is written under another name, flushed to the disk, renamed, and its folder flushed, so that a reader
finds the old file or the new one and never half of one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt_data.errors import WriteError
from gpt_data.store.reading import CHUNK_BYTES, FileRecord

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def write_errors(what: str) -> Iterator[None]:
    """Turn an ``OSError`` inside the block into a ``WriteError`` that says what to do next.

    Raises:
        WriteError: In place of the ``OSError``.
    """
    try:
        yield
    except OSError as error:
        first = "free some space there" if error.errno in NO_SPACE else "check the folder and its permissions"
        raise WriteError(f"{what}: {error.strerror or error}; {first} or choose another folder") from error


def write_all(descriptor: int, payload: bytes | memoryview) -> None:
    """Write every byte of ``payload``, a view of bytes."""
    view = memoryview(payload)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename inside it lasts."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, each flushed into its parent."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        make_folder(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:
        # another process may have been faster; a file of that name is an error
        if not folder.is_dir():
            raise
    sync_folder(folder.parent)


def probe_folder(folder: Path) -> None:
    """Create a folder if it is missing, and prove that it takes writes.

    Raises:
        WriteError: If it is a file, read-only or cannot be made.
    """
    probe = folder / f".probe-{secrets.token_hex(4)}"
    with write_errors(f"cannot write in {folder}"):
        make_folder(folder)
        try:
            write_file(probe, [b"probe\n"])
        finally:
            probe.unlink(missing_ok=True)


def write_file(path: Path, blocks: Iterable[bytes | memoryview]) -> FileRecord:
    """Create a file, write the blocks one after another, flush it to disk.

    Args:
        path: Where; it must not exist.
        blocks: The content; a memoryview must be one of bytes.

    Raises:
        OSError: As the system reports it; the file may be left behind, in part.
    """
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        for block in blocks:
            view = memoryview(block)
            for start in range(0, len(view), CHUNK_BYTES):
                piece = view[start : start + CHUNK_BYTES]
                digest.update(piece)
                write_all(descriptor, piece)
            size += len(view)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return FileRecord(size, digest.hexdigest())


def write_atomic(path: Path, payload: bytes) -> FileRecord:
    """Replace ``path`` by ``payload`` as a whole or not at all.

    Args:
        path: The file; its folder exists.

    Raises:
        WriteError: If the disk does not take it; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    with write_errors(f"cannot write {path}"):
        try:
            record = write_file(temporary, [payload])
            os.replace(temporary, path)  # noqa: PTH105 - the os functions are what the crash tests count
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)
    return record
