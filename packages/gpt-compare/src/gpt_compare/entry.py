"""The command ``gpt-compare``, which imports nothing before Ctrl-C is answered."""

from __future__ import annotations

import sys

from gpt_data.terminal import guarded


def main() -> None:
    """Compare the backends; the process ends with the command's exit status."""
    sys.exit(guarded("gpt-compare", _run))


def _run() -> int:
    from gpt_compare.commands import run

    return run(sys.argv[1:])
