"""The command ``gpt-compare``, which imports nothing before Ctrl-C is answered."""

from __future__ import annotations

from gpt_data.terminal import enter


def main() -> None:
    """Compare the backends; the process ends with the command's exit status."""
    enter("gpt-compare", "gpt_compare.commands:run")
