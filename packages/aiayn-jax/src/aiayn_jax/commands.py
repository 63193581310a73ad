"""The encoder-decoder's two commands; JAX is imported when the command line has been read."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gpt_data.terminal import guarded

TRAIN, TRANSLATE = "aiayn-jax-train", "aiayn-jax-translate"


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
    from contextlib import ExitStack

    from gpt_trainer.errors import InputError

    from aiayn_jax.command_line import read_early, read_request
    from aiayn_jax.runs.record import open_run

    early = read_early(argv)
    with ExitStack() as stack:
        resumed = None if early.resume is None else open_run(early.resume, stack)
        request = read_request(argv, early, resumed)
        actions = request.actions
        if resumed is not None and actions.out is not None:
            raise InputError(f"--out {actions.out} does not go with --resume")
        from aiayn_jax.runs.training import train as run_training

        return run_training(
            request.config,
            request.preset,
            out=actions.out,
            resumed=resumed,
            resume_path=actions.resume,
        )
