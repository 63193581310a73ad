"""The command ``gpt-data-prepare``, entered before anything large is imported, so that Ctrl-C is answered."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gpt_data.terminal import guarded

NAME = "gpt-data-prepare"


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 65 bad input, 73 cannot write, 75 resumable.

    Args:
        argv: Arguments; those of the process if None.
    """
    return guarded(NAME, lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str]) -> int:
    from gpt_data.prepare_command import prepare_command

    return prepare_command(NAME, argv)


def main() -> None:
    """Run the command ``gpt-data-prepare``."""
    raise SystemExit(run())
