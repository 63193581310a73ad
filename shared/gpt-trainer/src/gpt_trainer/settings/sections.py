"""Sections of settings that every task has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
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
