"""Evaluations besides the validation loss, which other packages bring and a run makes at its pauses.

A package registers one ``EvaluationSpec`` under the entry-point group ``gpt_trainer.evaluations``; its
flags appear among the trainer's, and nothing of it is imported before a command reads its flags.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from typing import Any

import bpe_scratch
from gpt_data.stopping import StopFlag

from gpt_trainer.backend import Backend
from gpt_trainer.errors import InputError
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.run.task import Measured, Measurement

ENTRY_POINT_GROUP = "gpt_trainer.evaluations"
FLAG = re.compile(r"--eval[-_]([a-z]+)[-_]every(=.*)?")

Measure = Callable[[Backend, StopFlag], Mapping[str, float | int] | None]
"""Metrics of the weights as they are, each named after the evaluation; None if asked to stop meanwhile."""


@dataclass(frozen=True)
class EvaluationSpec:
    """What a package registers.

    Attributes:
        name: Lower-case letters, as in ``hellaswag``.
        options: Frozen dataclass of its flags, each with a default, all named ``eval_<name>_...``; one of
            them is ``eval_<name>_every``, the steps between evaluations, 0 for never.
        prepare: Reads what it needs, and gives the function that a run calls. It raises ``InputError`` for
            data that is missing or does not fit the model or its tokenizer (None if there is none).
    """

    name: str
    options: type[Any]
    prepare: Callable[[Any, ModelConfig, bpe_scratch.Tokenizer | None], Measure]

    def every(self, options: Any) -> int:
        """Steps between evaluations."""
        return int(getattr(options, f"eval_{self.name}_every"))


def installed_evaluations() -> dict[str, EvaluationSpec]:
    """Import what is registered, by name, sorted."""
    specs = [point.load() for point in entry_points(group=ENTRY_POINT_GROUP)]
    return {spec.name: spec for spec in sorted(specs, key=lambda spec: spec.name)}


def refuse_missing(argv: Sequence[str], installed: Sequence[str]) -> None:
    """Refuse the flags of an evaluation that is not there, before the parser calls them unknown.

    Raises:
        InputError: Naming the flag and what there is.
    """
    for word in argv:
        found = FLAG.fullmatch(word)
        if found is not None and found[1] not in installed:
            raise InputError(
                f"--eval-{found[1]}-every: no package that brings this evaluation is installed; look for "
                f"{found[1]}-eval; installed evaluations: {', '.join(installed) or 'none'}"
            )


def prepare_evaluations(
    options: Mapping[str, Any], backend: Backend, tokenizer: bpe_scratch.Tokenizer | None, stop: StopFlag
) -> list[Measurement]:
    """The evaluations that were asked for, ready.

    Raises:
        InputError: If a number is negative, or something is missing or does not fit.
    """
    installed, prepared = installed_evaluations(), []
    for name, given in options.items():
        every = installed[name].every(given)
        if every < 0:
            raise InputError(f"--eval-{name}-every {every} is negative")
        if every > 0:
            measure = installed[name].prepare(given, backend.config, tokenizer)
            prepared.append(Measurement(every, partial(_measured, measure, backend, stop)))
    return prepared


def _measured(measure: Measure, backend: Backend, stop: StopFlag, step: int) -> Measured | None:
    del step
    found = measure(backend, stop)
    if found is None:
        return None
    # the file has the errors of the figures too; a line has room for the figures
    shown = (f"{name} {value:.4g}" for name, value in found.items() if not name.endswith("_stderr"))
    return Measured(found, ", ".join(shown))
