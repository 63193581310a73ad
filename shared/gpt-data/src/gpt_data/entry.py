"""The command ``gpt-data-prepare``, which imports nothing before Ctrl-C is answered."""

from __future__ import annotations

import sys

from gpt_data.terminal import guarded


def main() -> None:
    """Prepare token shards; the process ends with the command's exit status."""
    sys.exit(guarded("gpt-data-prepare", _run))


def _run() -> int:
    from gpt_data.command import run

    return run(sys.argv[1:])
