"""Sections of settings that every task has."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gpt_trainer.backend import Precision, Runtime


@dataclass(frozen=True)
class RuntimeSection(Runtime):
    """Where and how it runs.

    Attributes:
        precision: Precision of products (bfloat16 on a GPU and float32 on a CPU if not given).
        seed: Decides weights, data order and dropout.
    """

    # open until the device is known; a backend sees it chosen
    precision: Precision | None = None  # type: ignore[assignment]


@dataclass(frozen=True)
class ReportSection:
    """When to evaluate, save and report; 0 means never, except that the end is always saved.

    Attributes:
        eval_every: Steps between evaluations.
        save_every: Steps between checkpoints.
        log_every: Steps between plain lines.
        plain: Plain lines even on a terminal.
        tensorboard: Also write TensorBoard files.
        trackio: Also report to trackio.
        wandb: Also report to Weights & Biases.
    """

    eval_every: int = 250
    save_every: int = 250
    log_every: int = 10
    plain: bool = False
    tensorboard: bool = False
    trackio: bool = False
    wandb: bool = False


UNKNOWN = sys.maxsize
"""The end of a run of which nothing is known yet."""
LENGTHS = frozenset(("steps", "train_tokens", "minutes"))
"""Settings that decide how long a run goes on."""


@dataclass(frozen=True)
class LengthSection:
    """How long a run goes on.

    Attributes:
        steps: Optimizer steps in all.
        train_tokens: Train on so many tokens in all, whatever --steps says.
        minutes: Train for so many minutes, whatever --steps says: of steps alone, without evaluations, saving
            and the first step of each process, which compiles.
    """

    steps: int
    train_tokens: int | None = None
    minutes: float | None = None

    @property
    def last(self) -> int | None:
        """The last step, where it is known from the start."""
        return self.steps if self.train_tokens is None and self.minutes is None else None

    def end(self, step: int, tokens: int, seconds: float) -> int:
        """The last step as far as it can be told: at the mean pace so far.

        Args:
            step: Optimizer steps taken.
            tokens: Trained on so far.
            seconds: That its steps took so far.
        """
        if self.last is not None:
            return self.last
        spent = tokens / self.train_tokens if self.train_tokens else seconds / 60.0 / (self.minutes or 1.0)
        if spent >= 1.0:
            return step
        # a division by next to nothing is past what an integer of the clock's precision tells
        return max(step + 1, math.ceil(step / spent - 1e-6)) if spent > 1e-9 else UNKNOWN

    @property
    def words(self) -> str:
        """The length in words."""
        if self.minutes is not None:
            return f"{self.minutes:g} minutes"
        return f"{self.steps:,} steps" if self.train_tokens is None else f"{self.train_tokens:,} tokens"

    def flag(self, factor: int = 1) -> str:
        """The flag that decides, with so many times its value."""
        if self.minutes is not None:
            return f"--minutes {factor * self.minutes:g}"
        if self.train_tokens is not None:
            return f"--train-tokens {factor * self.train_tokens}"
        return f"--steps {factor * self.steps}"


def decided_anew(length: LengthSection, names: Collection[str]) -> LengthSection:
    """A length without the budget that it had, where settings that are named decide another.

    Args:
        names: Of settings that are given to replace others.
    """
    return replace(length, train_tokens=None, minutes=None) if LENGTHS.intersection(names) else length


def require_length(length: LengthSection) -> None:
    """Refuse a length that is not positive, or that two flags decide.

    Raises:
        ValueError: Naming the flags.
    """
    require_positive({name: getattr(length, name) for name in ("steps", "train_tokens", "minutes")})
    if length.minutes is not None and length.train_tokens is not None:
        raise ValueError(f"minutes={length.minutes} and train_tokens={length.train_tokens}: give one of them")


def require_positive(values: Mapping[str, Any]) -> None:
    """Refuse numbers that are not positive and finite; None is passed over.

    Raises:
        ValueError: Naming the first.
    """
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name}={value} is not positive and finite")


def require_not_negative(values: Mapping[str, Any]) -> None:
    """Refuse numbers that are negative or not finite.

    Raises:
        ValueError: Naming the first.
    """
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value} is not in [0, infinity)")


def require_seed(seed: int) -> None:
    """Refuse a seed that is no key of 64 bits.

    Raises:
        ValueError: Naming it.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed={seed} is not in [0, 2^64)")
