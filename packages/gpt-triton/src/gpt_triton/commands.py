"""The package's two commands; the framework is imported when the command line has been read."""

from __future__ import annotations

from gpt_data.terminal import enter


def train() -> None:
    """``gpt-triton-train``: train a GPT-2."""
    enter("gpt-triton-train", "gpt_trainer.commands:train_main", "gpt_triton.options:SPEC")


def sample() -> None:
    """``gpt-triton-sample``: continue a text with a trained GPT-2."""
    enter("gpt-triton-sample", "gpt_trainer.commands:sample_main", "gpt_triton.options:SPEC")
