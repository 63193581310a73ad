"""Writes that survive a kill or a power cut, and the lock that keeps a folder to one writer.

A file is written under another name, flushed to the disk, renamed, and its folder flushed, so that
a reader finds the old file or the new one and never half of one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from gpt_data.errors import StoppedError, WriteError
from gpt_data.store.reading import open_regular

LOCK_NAME = ".lock"
POLL_SECONDS = 0.2


@contextmanager
def explain_write(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` of a write into one line that names the file and what to do.

    Args:
        path: The file or folder that is being written.

    Raises:
        WriteError: In place of the ``OSError``.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = (
            "free some space and run the same command again" if full else "choose a folder that takes writes"
        )
        raise WriteError(f"cannot write {path}: {reason}; {advice}") from error


def write_all(handle: int, payload: bytes | memoryview) -> None:
    """Write every byte of ``payload`` to the file descriptor ``handle``."""
    view = memoryview(payload).cast("B")
    while view:
        view = view[os.write(handle, view) :]


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename inside it lasts."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, payload: bytes) -> None:
    """Replace ``path`` by ``payload`` as a whole or not at all.

    Args:
        path: The file; its folder exists.
        payload: The new content.

    Raises:
        WriteError: If the disk does not take it; the old file is untouched.
    """
    temporary = path.with_name(path.name + ".tmp")
    with explain_write(path):
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            write_all(handle, payload)
            os.fsync(handle)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)
        os.replace(temporary, path)  # noqa: PTH105 - the os functions are what the crash tests count
        sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Create ``folder`` with its parents and prove that it takes writes.

    Raises:
        WriteError: If it is a file, read-only or cannot be made.
    """
    with explain_write(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644))
        probe.unlink()


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file's content."""
    with os.fdopen(open_regular(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FolderLock:
    """One writer per folder, by a lock that the system drops when its owner ends, however it ends.

    Args:
        folder: An existing folder.
        wait: Whether to wait for another writer to end rather than refuse.
        should_stop: Asked while waiting; True gives up.
        on_wait: Told once, in one line, that there is something to wait for.
    """

    def __init__(
        self,
        folder: Path,
        *,
        wait: bool = False,
        should_stop: Callable[[], bool] | None = None,
        on_wait: Callable[[str], None] | None = None,
    ) -> None:
        self.path = folder / LOCK_NAME
        self.wait = wait
        self.should_stop = should_stop
        self.on_wait = on_wait
        self.handle = -1

    def __enter__(self) -> FolderLock:
        with explain_write(self.path):
            self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._acquire()
            owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
            with explain_write(self.path):
                os.ftruncate(self.handle, 0)
                os.pwrite(self.handle, owner.encode(), 0)
        except BaseException:
            os.close(self.handle)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # the file stays: removing it would let a third process lock a new file beside a waiting second
        os.close(self.handle)

    def _acquire(self) -> None:
        told = False
        while not self._try():
            if not self.wait:
                raise WriteError(
                    f"{self.path.parent} is being written by {self._owner()}; wait for it to end"
                )
            if self.should_stop is not None and self.should_stop():
                raise StoppedError(f"stopped while {self._owner()} writes {self.path.parent}")
            if self.on_wait is not None and not told:
                self.on_wait(f"waiting for {self._owner()}, which writes {self.path.parent}")
            told = True
            time.sleep(POLL_SECONDS)

    def _try(self) -> bool:
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise WriteError(f"cannot lock {self.path}: {error.strerror}") from error
        return True

    def _owner(self) -> str:
        try:
            owner = json.loads(os.pread(self.handle, 4096, 0))
            return f"process {owner['pid']} on {owner['host']}"
        except (ValueError, KeyError, TypeError):
            return "another process"
