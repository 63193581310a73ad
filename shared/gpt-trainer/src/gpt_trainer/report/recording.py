"""What a recorded stretch of training leaves."""

from __future__ import annotations

ROWS = 30
"""Of a table of operations."""


class Recording:
    """Implements ``gpt_trainer.backend.Profile``; a backend fills it when the recording ends."""

    def __init__(self) -> None:
        self._table = ""

    def table(self) -> str:
        """The most expensive operations, one per line, most expensive first."""
        return self._table

    def fill(self, table: str) -> None:
        """Take the table over."""
        self._table = table
