"""One writer per folder: an advisory lock that the kernel drops when its process ends, however it ends.

The file's text only serves the message. Whether the lock is held is decided by ``flock`` alone, so a
dead owner's lock is free at once and a recycled process id confuses nobody.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
import weakref
from pathlib import Path
from types import TracebackType

from gpt_trainer.checkpoint.files import make_folder, write_errors
from gpt_trainer.errors import WriteError

LOCK_NAME = ".lock"
HOLDER_BYTES = 4096


class FolderLock:
    """A context manager that holds a folder for one process; the folder is created if missing."""

    def __init__(self, folder: Path) -> None:
        """Remember which folder; nothing is locked yet.

        Args:
            folder: The folder to hold.
        """
        self.folder = folder
        self._descriptor: int | None = None

    def acquire(self) -> FolderLock:
        """Take the lock, without waiting.

        Raises:
            WriteError: If another process holds it (the message names its pid and host), or the folder
                cannot be written.
        """
        with write_errors(f"cannot lock {self.folder}"):
            make_folder(self.folder)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self.folder / LOCK_NAME, flags, 0o644)
            try:
                self._lock(descriptor)
                _write_holder(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
        self._descriptor = descriptor
        return self

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise WriteError(
                f"{self.folder} is in use by {_holder(descriptor)}; "
                "wait for it, stop it, or choose another folder"
            ) from None

    def release(self) -> None:
        """Give the lock back; the file stays, as removing it would let two processes in."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> FolderLock:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class RunLock(FolderLock):
    """Holds a run's folder for the life of the run: ``with RunLock(run): train()``."""

    def acquire(self) -> RunLock:
        """Take the lock, without waiting; a forked child does not inherit it.

        Raises:
            WriteError: If another process holds it (the message names its pid and host), or the folder
                cannot be written.
        """
        super().acquire()
        _release_in_children(self)
        return self


def _release_in_children(lock: FolderLock) -> None:
    # a forked worker that outlives a killed run would otherwise keep the run's folder locked
    reference = weakref.ref(lock)

    def release() -> None:
        held = reference()
        if held is not None:
            held.release()

    os.register_at_fork(after_in_child=release)


def _write_holder(descriptor: int) -> None:
    # a full disk must not keep old steps from being deleted: the text is worth less than the lock
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        holder = {"pid": os.getpid(), "host": socket.gethostname()}
        os.pwrite(descriptor, json.dumps(holder).encode() + b"\n", 0)


def _holder(descriptor: int) -> str:
    # the holder writes its name right after it got the lock: wait a moment for the text
    for _ in range(20):
        try:
            holder = json.loads(os.pread(descriptor, HOLDER_BYTES, 0))
            return f"process {int(holder['pid'])} on {ascii(holder['host'])[1:-1]}"
        except (OSError, ValueError, KeyError, TypeError):
            time.sleep(0.01)
    return "another process"
