"""A request to stop: the first signal is remembered, the second one ends the process at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopFlag:
    """True once a signal has come; every loop asks it.

    The handler does nothing else, so that a checkpoint in the making is finished. It gives each signal
    its default action back: a second one ends the process, and the store stays whole all the same.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.received is not None

    def __bool__(self) -> bool:
        return self.received is not None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Listen to SIGINT, SIGTERM and SIGHUP inside the context; only in a process's main thread."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in before.items():
            # nohup ignores SIGHUP on purpose
            if handler is not signal.SIG_IGN:
                signal.signal(number, self._receive)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = signal.Signals(number)
        for listened in SIGNALS:
            if signal.getsignal(listened) == self._receive:
                signal.signal(listened, signal.SIG_DFL)
