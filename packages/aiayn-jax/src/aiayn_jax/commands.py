"""The encoder-decoder's two commands: train and translate, each failure one line and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack

from gpt_data.stopping import StopFlag
from gpt_data.terminal import guarded
from gpt_trainer.errors import InputError

from aiayn_jax import translate_command
from aiayn_jax.command_line import COMMAND, read_early, read_request
from aiayn_jax.runs.record import open_run
from aiayn_jax.runs.training import train as run_training


def train() -> None:
    """``aiayn-jax-train``: train an encoder-decoder."""
    sys.exit(train_main(sys.argv[1:]))


def translate() -> None:
    """``aiayn-jax-translate``: translate with a trained one."""
    sys.exit(translate_main(sys.argv[1:]))


def train_main(argv: Sequence[str]) -> int:
    """Run ``aiayn-jax-train`` and return its exit status."""
    return guarded(COMMAND, lambda: _train(argv))


def translate_main(argv: Sequence[str]) -> int:
    """Run ``aiayn-jax-translate`` and return its exit status."""
    return guarded(translate_command.COMMAND, lambda: translate_command.translate(argv))


def _train(argv: Sequence[str]) -> int:
    early = read_early(argv)
    with ExitStack() as stack:
        stop = StopFlag()
        stack.enter_context(stop.installed())
        resumed = None if early.resume is None else open_run(early.resume, stack)
        request = read_request(argv, early, resumed)
        actions = request.actions
        if resumed is not None and actions.out is not None:
            raise InputError(f"--out {actions.out} does not go with --resume")
        return run_training(
            request.config,
            request.preset,
            out=actions.out,
            resumed=resumed,
            resume_path=actions.resume,
            stop=stop,
        )
