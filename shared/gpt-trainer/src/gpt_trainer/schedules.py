"""Learning-rate schedules: pure functions of the step.

All but noam begin with a linear warm-up, ``peak * (step + 1) / (warmup + 1)``, so that the first step
already learns and the peak is reached at ``step == warmup``; from there, with x the share of the way to
``total`` and f the floor:

    constant  peak
    cosine    peak (f + (1 - f) (1 + cos(pi x)) / 2)
    linear    peak (1 - (1 - f) x)
    wsd       peak until the last ``decay`` of the run, then as linear: warm-up, stable, decay
    noam      linear warm-up, then peak times the root of warmup / (step + 1)

References:
    Cosine: Loshchilov and Hutter 2017; Brown et al. 2020, appendix B (they count tokens, we count steps).
    Wsd: Hu et al. 2024 (MiniCPM), section 4; they decay exponentially, we decay linearly.
    Noam: Vaswani et al. 2017, equation 3.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

Schedule = Literal["cosine", "linear", "constant", "wsd", "noam"]


def ends(schedule: str) -> bool:
    """Whether a schedule has an end, at which its rate is low: what the number of steps decides."""
    return schedule in ("cosine", "linear", "wsd")


def learning_rate(
    schedule: str,
    step: int,
    *,
    peak: float,
    warmup: int,
    total: int,
    floor: float = 0.1,
    decay: float = 0.2,
) -> float:
    """The learning rate of a schedule at ``step``.

    Args:
        step: Optimizer steps already taken, from 0.
        warmup: Warm-up length in steps (not tokens); 0 means none.
        total: Step at which the floor is reached.
        floor: Last rate as a fraction of ``peak``.
        decay: Share of ``total`` in which wsd decays; cut short if the warm-up reaches into it.

    Raises:
        ValueError: If there is no such schedule, or one that ends does so before its warm-up.
    """
    if schedule not in get_args(Schedule):
        raise ValueError(f"schedule={schedule!r} is not one of {', '.join(get_args(Schedule))}")
    if schedule == "noam":
        return noam(step, peak=peak, warmup=warmup)
    if ends(schedule) and warmup > total:
        raise ValueError(f"warmup={warmup} exceeds total={total}")
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if schedule == "constant":
        return peak
    start = max(warmup, total - round(decay * total)) if schedule == "wsd" else warmup
    share = min(1.0, max(0, step - start) / max(1, total - start))
    if schedule == "cosine":
        return peak * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * share)))
    return peak * (1.0 - (1.0 - floor) * share)


def noam(step: int, *, peak: float, warmup: int) -> float:
    """The paper's ``d_model^-0.5 * min(s^-0.5, s * warmup^-1.5)``, scaled from its own peak to ``peak``.

    That is ``(d_model * warmup)^-0.5``; with a peak that is given it compares with the others.

    Args:
        step: Optimizer steps already taken, from 0; ``s`` is ``step + 1``.
        warmup: Warm-up length in steps; 0 counts as 1.
    """
    s, w = step + 1, max(1, warmup)
    return peak * math.sqrt(w) * min(math.pow(s, -0.5), s * math.pow(w, -1.5))
