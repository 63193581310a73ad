"""Learning-rate schedules: pure functions of the step.

All begin with a linear warm-up, ``peak * (step + 1) / (warmup + 1)``, so that the first step already
learns and the peak is reached at ``step == warmup``.
"""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "linear", "constant", "wsd", "noam"]


def ends(schedule: str) -> bool:
    """Whether a schedule has an end, at which its rate is low: what the number of steps decides."""
    return schedule in ("cosine", "linear", "wsd")


def _warmup(step: int, peak: float, warmup: int) -> float:
    return peak * (step + 1) / (warmup + 1)


def _progress(step: int, start: int, total: int) -> float:
    """Share of the way from ``start`` to ``total``, within [0, 1]."""
    if start > total:
        raise ValueError(f"warmup={start} exceeds total={total}")
    return min(1.0, (step - start) / max(1, total - start))


def cosine_schedule(step: int, *, peak: float, warmup: int, total: int, floor: float = 0.1) -> float:
    """Linear warm-up, then half a cosine down to ``floor * peak``.

    Args:
        step: Optimizer steps already taken, from 0.
        warmup: Warm-up length in steps (not tokens); 0 means none.

    Raises:
        ValueError: If ``warmup > total``.

    References:
        Loshchilov and Hutter 2017; Brown et al. 2020, appendix B (they count tokens; we count steps).
    """
    share = _progress(step, warmup, total)
    if step < warmup:
        return _warmup(step, peak, warmup)
    return peak * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * share)))


def linear_schedule(step: int, *, peak: float, warmup: int, total: int, floor: float = 0.1) -> float:
    """Linear warm-up, then a straight line down to ``floor * peak``.

    Args:
        step: Optimizer steps already taken, from 0.
        warmup: Warm-up length in steps; 0 means none.

    Raises:
        ValueError: If ``warmup > total``.
    """
    share = _progress(step, warmup, total)
    if step < warmup:
        return _warmup(step, peak, warmup)
    return peak * (1.0 - (1.0 - floor) * share)


def constant_schedule(step: int, *, peak: float, warmup: int) -> float:
    """Linear warm-up, then ``peak`` for ever.

    Args:
        step: Optimizer steps already taken, from 0.
        warmup: Warm-up length in steps; 0 means none.
    """
    return _warmup(step, peak, warmup) if step < warmup else peak


def wsd_schedule(
    step: int, *, peak: float, warmup: int, total: int, floor: float = 0.1, decay: float = 0.2
) -> float:
    """Warm-up, stable, decay: ``peak`` until the last ``decay`` of the run, then a line to the floor.

    Args:
        step: Optimizer steps already taken, from 0.
        warmup: Warm-up length in steps; 0 means none.
        decay: Share of ``total`` in which the rate decays; cut short if the warm-up reaches into it.

    Raises:
        ValueError: If ``warmup > total``.

    References:
        Hu et al. 2024 (MiniCPM), section 4; they decay exponentially, we decay linearly.
    """
    if warmup > total:
        raise ValueError(f"warmup={warmup} exceeds total={total}")
    if step < warmup:
        return _warmup(step, peak, warmup)
    start = max(warmup, total - round(decay * total))
    if step < start:
        return peak
    return peak * (1.0 - (1.0 - floor) * _progress(step, start, total))


def noam_schedule(step: int, *, peak: float, warmup: int) -> float:
    """Linear warm-up, then decay with the inverse root of the step.

    The paper's ``d_model^-0.5 * min(s^-0.5, s * warmup^-1.5)`` peaks at ``(d_model * warmup)^-0.5``;
    here the peak is given instead, so that the schedule compares with the others.

    Args:
        step: Optimizer steps already taken, from 0; ``s`` is ``step + 1``.
        warmup: Warm-up length in steps; 0 counts as 1.

    References:
        Vaswani et al. 2017, equation 3.
    """
    s, w = step + 1, max(1, warmup)
    return peak * math.sqrt(w) * min(math.pow(s, -0.5), s * math.pow(w, -1.5))


def learning_rate(
    schedule: str, step: int, *, peak: float, warmup: int, total: int, floor: float, decay: float
) -> float:
    """The learning rate of a named schedule at ``step``.

    Args:
        step: Optimizer steps already taken, from 0.

    Raises:
        ValueError: If there is no such schedule, or ``warmup > total``.
    """
    if schedule == "cosine":
        return cosine_schedule(step, peak=peak, warmup=warmup, total=total, floor=floor)
    if schedule == "linear":
        return linear_schedule(step, peak=peak, warmup=warmup, total=total, floor=floor)
    if schedule == "constant":
        return constant_schedule(step, peak=peak, warmup=warmup)
    if schedule == "wsd":
        return wsd_schedule(step, peak=peak, warmup=warmup, total=total, floor=floor, decay=decay)
    if schedule == "noam":
        return noam_schedule(step, peak=peak, warmup=warmup)
    raise ValueError(f"schedule={schedule!r} is not one of cosine, linear, constant, wsd, noam")
