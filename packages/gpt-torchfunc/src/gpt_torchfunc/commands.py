"""The package's two commands; the framework is imported when the command line has been read."""

from __future__ import annotations

from gpt_data.terminal import enter


def train() -> None:
    """``gpt-torchfunc-train``: train a GPT-2."""
    enter("gpt-torchfunc-train", "gpt_trainer.commands:train_main", "gpt_torchfunc.options:SPEC")


def sample() -> None:
    """``gpt-torchfunc-sample``: continue a text with a trained GPT-2."""
    enter("gpt-torchfunc-sample", "gpt_trainer.commands:sample_main", "gpt_torchfunc.options:SPEC")
