"""Leaving out steps whose gradient norm is far above what is usual."""

from __future__ import annotations

import math
from typing import Any

DECAY = 0.98
WARMUP_STEPS = 20
"""Norms seen before anything is left out: the first ones are large and fall fast."""


class SpikeGuard:
    """Largest norm that may still update the weights: a factor times a running mean of the norms.

    Norms reach the host one step late, so the bound of step s uses the norms of steps up to s - 2,
    whether or not that of s - 1 is known by then; a resumed run finds the same bound. A norm enters the
    mean as at most the bound it was held to, which lets the bound follow a lasting change.

    Args:
        factor: How many times the mean is too much; None to let everything pass.
    """

    def __init__(self, factor: float | None, state: dict[str, Any] | None = None) -> None:
        self.factor = factor
        state = state or {"step": -1, "seen": 0, "mean": 0.0, "earlier_seen": 0, "earlier_mean": 0.0}
        self._step = int(state["step"])
        self._now = (int(state["seen"]), float(state["mean"]))
        self._earlier = (int(state["earlier_seen"]), float(state["earlier_mean"]))

    def bound(self, step: int) -> float:
        """Largest norm with which step ``step`` may update the weights."""
        seen, mean = self._now if self._step <= step - 2 else self._earlier
        if self.factor is None or seen < WARMUP_STEPS:
            return math.inf
        return self.factor * mean

    def observe(self, step: int, norm: float) -> None:
        """Take in the norm of the step after the last one observed."""
        norm = min(norm, self.bound(step))
        seen, mean = self._now
        # an exponential mean that counts the first norms equally
        weight = max(1.0 - DECAY, 1.0 / (seen + 1))
        self._earlier, self._now = self._now, (seen + 1, mean + weight * (norm - mean))
        self._step = step

    def state(self) -> dict[str, Any]:
        """The state as JSON values."""
        (seen, mean), (earlier_seen, earlier_mean) = self._now, self._earlier
        return {
            "step": self._step,
            "seen": seen,
            "mean": mean,
            "earlier_seen": earlier_seen,
            "earlier_mean": earlier_mean,
        }
