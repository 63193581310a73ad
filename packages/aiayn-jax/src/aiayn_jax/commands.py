"""The encoder-decoder's two commands; JAX is imported when the command line has been read."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gpt_data.terminal import guarded

from aiayn_jax import TRAIN, TRANSLATE


def train() -> None:
    """``aiayn-jax-train``: train an encoder-decoder."""
    sys.exit(train_main(sys.argv[1:]))


def translate() -> None:
    """``aiayn-jax-translate``: translate with a trained one."""
    sys.exit(translate_main(sys.argv[1:]))


def train_main(argv: Sequence[str]) -> int:
    """Run ``aiayn-jax-train`` and return its exit status."""
    return guarded(TRAIN, lambda: _train(argv))


def translate_main(argv: Sequence[str]) -> int:
    """Run ``aiayn-jax-translate`` and return its exit status."""
    return guarded(TRANSLATE, lambda: _translate(argv))


def _translate(argv: Sequence[str]) -> int:
    from aiayn_jax.translate_options import read_options

    options = read_options(argv)
    from aiayn_jax.translate_command import translate

    return translate(options)


def _train(argv: Sequence[str]) -> int:
    from gpt_trainer.run.training import run_command

    from aiayn_jax.spec import SPEC

    return run_command(SPEC, argv)
