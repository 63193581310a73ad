"""One writer to a folder: a lock that the kernel drops when its process ends, however it ends.

The file's text only serves the message. Whether the lock is held is decided by ``flock`` alone, so that a
dead owner's lock is free at once and a recycled process id confuses nobody.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from gpt_data.errors import StoppedError, WriteError
from gpt_data.store.writing import make_folder, write_errors

LOCK_NAME = ".lock"
HOLDER_BYTES = 4096
POLL_SECONDS = 0.2


_HELD: weakref.WeakSet[FolderLock] = weakref.WeakSet()


@cache
def _let_go_in_children() -> None:
    def let_go() -> None:
        for lock in list(_HELD):
            lock.release()

    # a forked worker that outlives a killed process would otherwise keep its folder locked
    os.register_at_fork(after_in_child=let_go)


class FolderLock:
    """A context manager that holds a folder for one process; the folder is created if missing.

    A forked child does not inherit it.

    Args:
        should_stop: Asked while waiting; True gives up.
    """

    def __init__(
        self,
        folder: Path,
        *,
        wait: bool = False,
        should_stop: Callable[[], bool] | None = None,
        on_wait: Callable[[str], None] | None = None,
    ) -> None:
        self.folder = folder
        self.wait = wait
        self.should_stop = should_stop
        self.on_wait = on_wait
        self._descriptor: int | None = None

    def acquire(self) -> FolderLock:
        """Take the lock.

        Raises:
            WriteError: If another process holds it (the message names its pid and host) and there is no
                waiting for it, or the folder cannot be written.
            StoppedError: If it was asked to stop while it waited.
        """
        with write_errors(f"cannot lock {self.folder}"):
            make_folder(self.folder)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            descriptor = os.open(self.folder / LOCK_NAME, flags, 0o644)
            try:
                self._take(descriptor)
                _write_holder(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
        self._descriptor = descriptor
        _let_go_in_children()
        _HELD.add(self)
        return self

    def release(self) -> None:
        """Give the lock back; the file stays, as removing it would let two processes in."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> FolderLock:
        return self.acquire()

    def __exit__(self, *exception: object) -> None:
        self.release()

    def _take(self, descriptor: int) -> None:
        told = False
        while not _try(descriptor):
            if not self.wait:
                raise WriteError(
                    f"{self.folder} is in use by {_holder(descriptor)}; "
                    "wait for it, stop it, or choose another folder"
                )
            if self.should_stop is not None and self.should_stop():
                raise StoppedError(f"stopped while {_holder(descriptor)} uses {self.folder}")
            if self.on_wait is not None and not told:
                self.on_wait(f"waiting for {_holder(descriptor)}, which uses {self.folder}")
            told = True
            time.sleep(POLL_SECONDS)


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def _write_holder(descriptor: int) -> None:
    # a full disk must not keep old steps from being deleted: the text is worth less than the lock
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        holder = {"pid": os.getpid(), "host": socket.gethostname()}
        os.pwrite(descriptor, json.dumps(holder).encode() + b"\n", 0)


def _holder(descriptor: int) -> str:
    # the holder writes its name right after it got the lock: wait a moment for the text
    for _ in range(20):
        try:
            holder = json.loads(os.pread(descriptor, HOLDER_BYTES, 0))
            return f"process {int(holder['pid'])} on {ascii(holder['host'])[1:-1]}"
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            time.sleep(0.01)
    return "another process"
