"""The learning rate of the paper: up in a line, down with the root of the step."""

from __future__ import annotations

import math


def noam(step: int, *, d_model: int, warmup: int, scale: float = 1.0) -> float:
    """``scale D^-0.5 min(t^-0.5, t warmup^-1.5)`` at ``t = step + 1``: the paper counts from 1.

    The peak, at ``t == warmup``, is ``scale / sqrt(D warmup)``: 7e-4 for the base model.

    Args:
        step: Optimizer steps already taken, from 0.
        warmup: Steps over which the rate grows; the paper takes 4000.

    Raises:
        ValueError: If ``step`` is negative, or another number is not positive.

    References:
        Vaswani et al. 2017, equation 3.
    """
    if step < 0:
        raise ValueError(f"step={step} is negative")
    for name, value in (("d_model", d_model), ("warmup", warmup), ("scale", scale)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value} is not positive and finite")
    count = step + 1
    return scale * d_model**-0.5 * min(count**-0.5, count * warmup**-1.5)
