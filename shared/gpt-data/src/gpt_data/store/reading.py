"""Reading a regular file within bounds, and held to its record: neither pipes nor surprises."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

from gpt_data.errors import InputError

CHUNK_BYTES = 1 << 22


class UnreadableError(InputError):
    """The system refuses to read a file; what is in it may be whole."""


class FileRecord(NamedTuple):
    """What is known of a file that was written.

    Attributes:
        size: Length in bytes.
        sha256: Hexadecimal digest of the content.
    """

    size: int
    sha256: str


def open_regular(path: Path, *, follow_link: bool = False) -> int:
    """Open a regular file for reading and return its descriptor.

    Args:
        follow_link: Whether a symbolic link is followed; refused otherwise.

    Raises:
        InputError: If it is missing, unreadable or no regular file.
    """
    # O_NONBLOCK: opening a pipe would otherwise wait for a writer that may never come
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow_link else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except OSError as error:
        if error.errno == errno.ELOOP and not follow_link:
            raise InputError(f"{path} is a symbolic link; copy the folder with its links resolved") from None
        raise UnreadableError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:  # a name with a zero byte
        raise InputError(f"cannot read {str(path)!r}: {error}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path} is not a regular file")
    return descriptor


def read_bytes(
    path: Path, limit: int, record: FileRecord | None = None, *, follow_link: bool = False
) -> bytes:
    """The content of a file of at most ``limit`` bytes, as it is.

    Args:
        record: Size and digest that it must have, if known.
        follow_link: Whether a symbolic link is followed; refused otherwise.

    Raises:
        InputError: If the file is missing, special, too long or not the recorded one.
    """
    with RegularFile(path, record, follow_link=follow_link) as file:
        if file.size > limit:
            raise InputError(f"{path} has {file.size} bytes, at most {limit} are accepted")
        content = file.read(file.size)
        file.finish()
    return content


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file's content; a symbolic link is followed.

    Raises:
        InputError: If it cannot be read.
    """
    with os.fdopen(open_regular(path, follow_link=True), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class RegularFile:
    """A regular file read once from start to end and, if there is a record, held to it.

    Nothing that was read may be used before ``finish`` has returned.

    Args:
        record: Size and digest that it must have.
        follow_link: Whether a symbolic link is followed; refused otherwise.

    Raises:
        InputError: If it is missing, not a regular file, or of another size.
    """

    def __init__(self, path: Path, record: FileRecord | None = None, *, follow_link: bool = False) -> None:
        self.path = path
        self._record = record
        self._digest = hashlib.sha256() if record else None
        self._descriptor = open_regular(path, follow_link=follow_link)
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
                    raise UnreadableError(f"cannot read {self.path}: {error.strerror}") from None
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

    def __exit__(self, *exception: object) -> None:
        self.close()
