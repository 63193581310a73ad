"""Work that a thread does ahead of the one who takes it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar

Item = TypeVar("Item")
POLL_SECONDS = 0.1
END_SECONDS = 10.0
"""How long a thread that waits for a network is waited for."""


class _End:
    """What comes behind the last item."""


class _Ahead(Generic[Item]):
    def __init__(self, items: Iterator[Item], depth: int) -> None:
        self.items = items
        self.ready: queue.Queue[Item | BaseException | _End] = queue.Queue(depth)
        self.closed = threading.Event()

    def fill(self) -> None:
        item: Item | BaseException | _End
        while not self.closed.is_set():
            try:
                item = next(self.items, _End())
            except BaseException as error:  # noqa: BLE001 - handed to the consumer, who raises it
                item = error
            self.put(item)
            if isinstance(item, BaseException | _End):
                return

    def put(self, item: Item | BaseException | _End) -> None:
        while not self.closed.is_set():
            with suppress(queue.Full):
                self.ready.put(item, timeout=POLL_SECONDS)
                return

    def take(self) -> Iterator[Item]:
        while True:
            item = self.ready.get()
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, _End):
                return
            yield item


@contextmanager
def read_ahead(items: Iterator[Item], depth: int) -> Iterator[Iterator[Item]]:
    """The same items, made by a thread before they are asked for.

    An error in the thread is raised where the item would have come. Leaving the context ends the thread.

    Args:
        depth: How many items wait at most.
    """
    ahead = _Ahead(items, depth)
    thread = threading.Thread(target=ahead.fill, name="gpt-data-ahead", daemon=True)
    thread.start()
    try:
        yield ahead.take()
    finally:
        ahead.closed.set()
        thread.join(END_SECONDS)
