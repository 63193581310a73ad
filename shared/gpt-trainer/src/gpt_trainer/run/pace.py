"""How long a run goes on, and how long its first step will take."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gpt_trainer.report.display import duration
from gpt_trainer.settings.sections import LengthSection

FORWARDS_PER_STEP = 3
"""A step takes as long as so many evaluations: the backward has two products for each of the forward."""
LONG_SECONDS = 30.0


class Pace(NamedTuple):
    """A run's length and its checkpoints.

    Attributes:
        length: How long it goes on.
        save_every: Steps between checkpoints; 0 for the last alone.
        rate: The learning rate of a step, counted from 0, given it and the last step.
        profile: Steps to record; 0 for none.
    """

    length: LengthSection
    save_every: int
    rate: Callable[[int, int], float]
    profile: int = 0


class FirstStep:
    """Foretells a long first step by the evaluation before it, so that nobody takes it for a fault."""

    def __init__(self) -> None:
        self._comes = True
        self._seconds_per_target = 0.0

    def begins(self) -> bool:
        """Whether it is the process's first step that begins."""
        comes, self._comes = self._comes, False
        return comes

    def measured(self, seconds: float, targets: int) -> None:
        """Take in an evaluation; a short one was mostly the start of a framework, and tells nothing."""
        telling = targets > 0 and seconds > LONG_SECONDS / FORWARDS_PER_STEP
        self._seconds_per_target = seconds / targets if telling else 0.0

    def foretell(self, tokens: int, say: Callable[[str], object]) -> None:
        """Say so if a step of so many tokens will be long."""
        seconds = FORWARDS_PER_STEP * self._seconds_per_target * tokens
        if seconds > LONG_SECONDS:
            say(f"a step will take about {duration(seconds)}, by the pace of the evaluation")
