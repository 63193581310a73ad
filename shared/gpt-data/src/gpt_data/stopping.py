"""A request to stop: the first signal is remembered, the second one ends the process at once.

A process that another has started for its own sake gets one when that other is gone.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SOON = "it ends when what is under way is done; a second signal ends it at once"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STARTER = "GPT_STARTED_BY"
"""In the environment of a command that is to end with the process that starts it: that process's number."""
POLL_SECONDS = 0.5


def end_with_starter() -> None:
    """Stop, as by SIGTERM, once the process that started this one is gone, where ``STARTER`` says so."""
    starter = os.environ.pop(STARTER, None)
    if starter is not None:
        threading.Thread(target=_follow, args=(int(starter),), name="starter", daemon=True).start()


def _follow(starter: int) -> None:
    # whoever has lost its parent is given another
    while os.getppid() == starter:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


class StopFlag:
    """True once a signal has come; every loop asks it.

    The handler does nothing else, so that a checkpoint in the making is finished. It gives each signal
    its default action back: a second one ends the process, and the store stays whole all the same.

    Python calls handlers between two of its instructions only, which a compilation can put off for minutes.
    A thread that the interpreter's own handler wakes says at once that a signal is heard, and ends the
    process on the second one.

    Attributes:
        received: The first signal that came.
        at_once: While this is True the first signal raises ``KeyboardInterrupt``: for work that asks nobody
            and leaves nothing behind.
        asked: How often it was asked: who goes on asking does not hang.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.at_once = False
        self.asked = 0

    def __call__(self) -> bool:
        """Whether to stop."""
        self.asked += 1
        return self.received is not None

    def __bool__(self) -> bool:
        return self.received is not None

    @contextmanager
    def installed(self, promise: str | None = None, *, after: float = 0.0) -> Iterator[None]:
        """Listen to SIGINT, SIGTERM and SIGHUP inside the context; only in a process's main thread.

        Args:
            promise: Said on the standard error behind the name of the first signal; nothing if None.
            after: Seconds in which the process may end without a word.
        """
        before = {number: signal.getsignal(number) for number in SIGNALS}
        with self._watching(promise, after):
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
        if self.at_once:
            raise KeyboardInterrupt

    @contextmanager
    def _watching(self, promise: str | None, after: float) -> Iterator[None]:
        """A thread that reads the signals' numbers, which the interpreter writes at once."""
        source, sink = os.pipe()
        os.set_blocking(sink, False)
        before = signal.set_wakeup_fd(sink, warn_on_full_buffer=False)
        watch = threading.Thread(
            target=self._watch, args=(source, promise, after), name="signals", daemon=True
        )
        watch.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            os.close(sink)
            watch.join()
            os.close(source)

    def _watch(self, source: int, promise: str | None, after: float) -> None:
        heard = False
        while number := os.read(source, 1):
            if number[0] not in SIGNALS:
                continue
            if heard:
                # the handler would have given the signal its default action, had it been called by now
                os._exit(128 + number[0])
            heard = True
            # what comes meanwhile is the second signal, or the end
            if promise is not None and not (after and select.select([source], [], [], after)[0]):
                _say(f"{signal.Signals(number[0]).name} heard: {promise}\n")


def _say(line: str) -> None:
    """Write on the standard error; above a live display in its place, which would draw over it."""
    with suppress(OSError, ValueError):
        if hasattr(sys.stderr, "rich_proxied_file"):
            sys.stderr.write(line)
        else:
            os.write(2, line.encode())
