"""The command's first step: Ctrl-C ends it with 130 and no word, even while the rest is imported."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point.

    Args:
        argv: Arguments; the process's own if not given.
    """
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeded:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from bpe_scratch import commands

    try:
        if heeded:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.unraisablehook = _once_more
        commands.main(argv)
    except KeyboardInterrupt:
        sys.exit(130)


def _once_more(error: Any) -> None:
    """A Ctrl-C that fell into an object's end or an import's callback, where Python prints it and goes on."""
    if isinstance(error.exc_value, KeyboardInterrupt):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(error)


if __name__ == "__main__":
    main()
