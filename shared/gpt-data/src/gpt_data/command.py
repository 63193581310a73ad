"""The command ``gpt-data-prepare``, entered before anything large is imported, so that Ctrl-C is answered."""

from __future__ import annotations

from gpt_data.terminal import enter


def main() -> None:
    """Run ``gpt-data-prepare``; its exit status is 0, 65 bad input, 73 cannot write, 75 resumable."""
    enter("gpt-data-prepare", "gpt_data.prepare_command:prepare_command")
