"""Reading and writing whole files so that a crash, a full disk or a hostile file does no harm.

Every system call that changes a folder goes through the ``os`` module's functions, by attribute, which
is where the tests stop the process, fail a call or cut the power.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from gpt_trainer.errors import InputError, WriteError

CHUNK_BYTES = 1 << 22
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class UnreadableError(InputError):
    """The system refuses to read a file; what is in it may be whole."""


class FileRecord(NamedTuple):
    """What the manifest says of one file.

    Attributes:
        size: Length in bytes.
        sha256: Hexadecimal digest of the content.
    """

    size: int
    sha256: str


@contextlib.contextmanager
def write_errors(what: str) -> Iterator[None]:
    """Turn an ``OSError`` inside the block into a ``WriteError`` that says what to do next.

    Args:
        what: What cannot be done if the block fails, with the folder's name.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            advice = "free some space there or choose another output folder"
        else:
            advice = "check the folder and its permissions or choose another output folder"
        raise WriteError(f"{what}: {error.strerror or error}; {advice}") from error


def sync_folder(folder: Path) -> None:
    """Flush a folder's own entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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


def remove_folder(folder: Path) -> None:
    """Remove a folder and what is in it; a symbolic link in it is removed, not followed."""
    shutil.rmtree(folder)


def _write_all(descriptor: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(descriptor, data) :]


def write_file(path: Path, blocks: Iterable[bytes | memoryview]) -> FileRecord:
    """Create a file, write the blocks one after another, flush it to disk.

    Args:
        path: Where; it must not exist.
        blocks: The content; a memoryview must be one of bytes.

    Raises:
        OSError: As the system reports it; the file may be left behind, in part.
    """
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        for block in blocks:
            view = memoryview(block)
            for start in range(0, len(view), CHUNK_BYTES):
                piece = view[start : start + CHUNK_BYTES]
                digest.update(piece)
                _write_all(descriptor, piece)
            size += len(view)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return FileRecord(size, digest.hexdigest())


def _open_regular(path: Path, *, follow_link: bool) -> int:
    # O_NONBLOCK: opening a FIFO would otherwise wait for a writer that may never come
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_link else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except OSError as error:
        if error.errno == errno.ELOOP and not follow_link:
            raise InputError(f"{path} is a symbolic link; copy the folder with its links resolved") from None
        raise UnreadableError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path} is not a regular file")
    return descriptor


class RegularFile:
    """A regular file read once from start to end and, if there is a record, held to it.

    Nothing that was read may be used before ``finish`` has returned.
    """

    def __init__(self, path: Path, record: FileRecord | None = None, *, follow_link: bool = False) -> None:
        """Open the file.

        Args:
            path: Which file.
            record: Size and digest that it must have.
            follow_link: Whether a symbolic link is followed; refused otherwise.

        Raises:
            InputError: If it is missing, not a regular file, or of another size.
        """
        self.path = path
        self._record = record
        self._digest = hashlib.sha256() if record else None
        self._descriptor = _open_regular(path, follow_link=follow_link)
        self.size = os.fstat(self._descriptor).st_size
        if record and self.size != record.size:
            self.close()
            raise InputError(f"{path} has {self.size} bytes, the manifest says {record.size}")

    def read_into(self, target: memoryview) -> None:
        """Fill ``target``, a view of bytes, with what comes next.

        Raises:
            InputError: If the file ends before, or cannot be read.
        """
        for start in range(0, len(target), CHUNK_BYTES):
            piece = target[start : start + CHUNK_BYTES]
            filled = 0
            while filled < len(piece):
                try:
                    count = os.readv(self._descriptor, [piece[filled:]])
                except OSError as error:
                    raise UnreadableError(f"{self.path} cannot be read: {error.strerror}") from None
                if not count:
                    raise InputError(f"{self.path} ends too early")
                filled += count
            if self._digest:
                self._digest.update(piece)

    def read(self, count: int) -> bytes:
        """The next ``count`` bytes; the caller has bounded ``count``."""
        buffer = bytearray(count)
        self.read_into(memoryview(buffer))
        return bytes(buffer)

    def skip(self, count: int) -> None:
        """Pass over ``count`` bytes, which still count for the digest."""
        if not self._digest:
            os.lseek(self._descriptor, count, os.SEEK_CUR)
            return
        buffer = memoryview(bytearray(min(count, CHUNK_BYTES)))
        while count:
            self.read_into(buffer[: min(count, len(buffer))])
            count -= min(count, len(buffer))

    def finish(self) -> None:
        """Compare the digest, once everything has been read.

        Raises:
            InputError: If the content is not what the record says.
        """
        if self._digest and self._record and self._digest.hexdigest() != self._record.sha256:
            raise InputError(f"{self.path} is damaged: its sha256 is not the one in the manifest")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> RegularFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_small(
    path: Path, limit: int, record: FileRecord | None = None, *, follow_link: bool = False
) -> bytes:
    """The whole of a file that must not be longer than ``limit`` bytes.

    Args:
        path: Which file.
        limit: Longest length that is accepted.
        record: Size and digest that it must have, if known.
        follow_link: Whether a symbolic link is followed; refused otherwise.

    Raises:
        InputError: If the file is missing, special, too long or not the recorded one.
    """
    with RegularFile(path, record, follow_link=follow_link) as file:
        if file.size > limit:
            raise InputError(f"{path} has {file.size} bytes, at most {limit} are accepted")
        raw = file.read(file.size)
        file.finish()
    return raw
