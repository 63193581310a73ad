"""The console commands ``gpt-triton-train`` and ``gpt-triton-sample``."""

from __future__ import annotations

import sys

from gpt_trainer.commands import sample_main, train_main

from gpt_triton.backend import SPEC


def train() -> None:
    """Train with this backend; the process ends with the trainer's exit status."""
    sys.exit(train_main(SPEC))


def sample() -> None:
    """Sample from a checkpoint with this backend."""
    sys.exit(sample_main(SPEC))
