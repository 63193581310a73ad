"""The two commands of every backend: train and sample, each failure one line and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gpt_data.terminal import guarded

from gpt_trainer.gpt2.spec import gpt2_spec
from gpt_trainer.registry import BackendSpec
from gpt_trainer.run.training import run_command
from gpt_trainer.sample.command import sample


def train_main(spec: BackendSpec, argv: Sequence[str] | None = None) -> int:
    """Run ``gpt-*-train`` and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(f"{spec.name}-train", lambda: run_command(gpt2_spec(spec), words))


def sample_main(spec: BackendSpec, argv: Sequence[str] | None = None) -> int:
    """Run ``gpt-*-sample`` and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(f"{spec.name}-sample", lambda: sample(spec, words))
