"""The package's two commands; the framework is imported when the command line has been read."""

from __future__ import annotations

import sys

from gpt_data.terminal import guarded


def train() -> None:
    """``gpt-triton-train``: train a GPT-2."""
    sys.exit(guarded("gpt-triton-train", _train))


def sample() -> None:
    """``gpt-triton-sample``: continue a text with a trained GPT-2."""
    sys.exit(guarded("gpt-triton-sample", _sample))


def _train() -> int:
    from gpt_trainer.commands import train_main

    from gpt_triton.options import SPEC

    return train_main(SPEC)


def _sample() -> int:
    from gpt_trainer.commands import sample_main

    from gpt_triton.options import SPEC

    return sample_main(SPEC)
