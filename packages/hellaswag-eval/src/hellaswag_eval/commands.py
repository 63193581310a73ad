"""The package's command; what it needs is imported once Ctrl-C is answered."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gpt_data.terminal import guarded


def main(argv: Sequence[str] | None = None) -> None:
    """``hellaswag-eval``: score a model on HellaSwag, and end the process.

    Args:
        argv: Arguments; those of the process if None.
    """
    sys.exit(guarded("hellaswag-eval", lambda: _score(sys.argv[1:] if argv is None else argv)))


def _score(argv: Sequence[str]) -> int:
    from hellaswag_eval.score_command import run

    return run(argv)
