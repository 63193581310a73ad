"""The package's command; what it needs is imported once Ctrl-C is answered."""

from __future__ import annotations

from gpt_data.terminal import enter


def main() -> None:
    """``hellaswag-eval``: score a model on HellaSwag, and end the process."""
    enter("hellaswag-eval", "hellaswag_eval.score_command:run")
