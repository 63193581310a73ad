"""Validation loss over a fixed set of rows."""

from __future__ import annotations

import math
from typing import NamedTuple

from gpt_data.loader import BatchLoader
from gpt_data.stopping import StopFlag

from gpt_trainer.backend import Backend


class Evaluation(NamedTuple):
    """The mean loss in nats and the number of targets that it is over."""

    loss: float
    targets: int

    @property
    def perplexity(self) -> float:
        """``exp(loss)``; infinite where that overflows."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    def __str__(self) -> str:
        perplexity = f"{self.perplexity:,.2f}" if self.perplexity < 1e6 else f"{self.perplexity:.2e}"
        return f"validation loss {self.loss:.4f}, perplexity {perplexity}"


def evaluate(backend: Backend, loader: BatchLoader, rows: int, stop: StopFlag) -> Evaluation | None:
    """Mean loss over the split's first rows, the same ones every time; None if asked to stop meanwhile.

    Args:
        rows: How many rows; all if there are fewer.
    """
    total, targets = 0.0, 0
    for batch in loader.sequential(rows):
        if stop():
            return None
        loss, count = backend.evaluate(batch)
        total, targets = total + loss, targets + count
    return Evaluation(total / max(1, targets), targets)
