"""The package's two commands."""

from __future__ import annotations

import sys

from gpt_trainer.commands import sample_main, train_main

from gpt_jax.backend import SPEC


def train() -> None:
    """``gpt-jax-train``: train a GPT-2."""
    sys.exit(train_main(SPEC))


def sample() -> None:
    """``gpt-jax-sample``: continue a text with a trained GPT-2."""
    sys.exit(sample_main(SPEC))
