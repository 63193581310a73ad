"""The command's first step: Ctrl-C ends it with 130 and no word, even while the rest is imported."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence


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
        commands.main(argv)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
