"""From the metrics of a run to the numbers of its row.  Shape: S steps.

A step's time is the loop's own: launch and wait, data included, evaluation and saving left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from gpt_compare.breakdown import Breakdown, breakdown_from_json
from gpt_compare.observing import Speed

WINDOW = 10
"""Losses are means over so many steps, wherever they are called smoothed."""
SPREAD = (20, 50, 80)
"""Percentiles of a step's time; the middle one is the median."""


@dataclass(frozen=True)
class Figures:
    """What one finished run costs and reaches.

    Attributes:
        steps: Optimizer steps.
        step_seconds: The percentiles ``SPREAD`` of a step's seconds, over the second half of the steps.
        tokens_per_second: At the median.
        mfu: The median's share of the device's peak; None if that is not known.
        peak_memory_bytes: Highest in any step: allocated on a GPU, the whole process's on a CPU.
        first_step_seconds: The first step alone: what a backend compiles before it, it compiles in it.
        loss: Training loss at the end, smoothed.
        val_loss: Validation loss at the end; None if the data holds too little.
        bits_per_byte: The same in bits for a byte of text; None if the tokenizer is not known.
        training_seconds: Sum of all steps, the first included.
        losses: Of each step, in nats per token.
        seconds: Of each step.
        tokens_per_step: Trained on.
        validations: Step, loss and bits per byte (0 if they are not known) of each evaluation.
        besides: What other evaluations found after the last step, by name, as the metrics have it.
    """

    steps: int
    step_seconds: tuple[float, float, float]
    tokens_per_second: float
    mfu: float | None
    peak_memory_bytes: int
    first_step_seconds: float
    loss: float
    val_loss: float | None
    training_seconds: float
    losses: tuple[float, ...] = field(repr=False)
    seconds: tuple[float, ...] = field(repr=False)
    bits_per_byte: float | None = None
    tokens_per_step: float = 0.0
    validations: tuple[tuple[int, float, float], ...] = ()
    besides: Mapping[str, float | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One competitor's result: figures, or the line that says why there are none.

    Attributes:
        label: The competitor's command line.
        error: What went wrong; None if it finished.
        figures: Its numbers; None if it did not finish.
        first_step_after: Seconds from the start of its process until its first step was written.
        total_seconds: Of its process, imports, evaluations and saving included.
        gap: Largest distance of its smoothed curve from the first finished competitor's, as a fraction.
        made_by: Device, versions and choices, from the run's record.
        watts: Mean power over the second half of its training; None where the device does not count.
        throttled: Whether the device ran slower for heat or want of power meanwhile.
        turns: Median seconds of a step in each of its turns; the row is that of the turn in the middle.
        compile_seconds: In which its framework's compilers worked; None where nothing tells.
        generation: How fast it continues texts, for each number of texts.
        breakdown: Where the time of its profiled steps went; None without a profile.
        sample: A text that it wrote at the end.
    """

    label: str
    error: str | None = None
    figures: Figures | None = None
    first_step_after: float | None = None
    total_seconds: float | None = None
    gap: float | None = None
    made_by: Mapping[str, str] = field(default_factory=dict)
    watts: float | None = None
    throttled: bool = False
    turns: tuple[float, ...] = ()
    compile_seconds: float | None = None
    generation: tuple[Speed, ...] = ()
    breakdown: Breakdown | None = None
    sample: str = ""

    @property
    def joules_per_token(self) -> float | None:
        """At the mean power and the median speed."""
        return (
            None
            if self.watts is None or self.figures is None
            else self.watts / self.figures.tokens_per_second
        )

    def dollars_per_billion_tokens(self, price_per_hour: float) -> float | None:
        """What a billion tokens of training cost at the median speed."""
        if self.figures is None:
            return None
        return 1e9 / self.figures.tokens_per_second / 3600.0 * price_per_hour

    @property
    def spread(self) -> float:
        """The slowest turn's median over the fastest's; 1 for a single turn."""
        return max(self.turns) / min(self.turns) if self.turns else 1.0


def measure(lines: Sequence[Mapping[str, Any]]) -> Figures:
    """The figures of a finished run.

    Raises:
        ValueError: If no step is among them.
    """
    steps = [line for line in lines if "loss" in line]
    if not steps:
        raise ValueError("the metrics hold no step")
    late = steps[len(steps) // 2 :]
    low, median, high = np.percentile([line["seconds"] for line in late], SPREAD).tolist()
    losses, seconds = (np.array([line[name] for line in steps], np.float64) for name in ("loss", "seconds"))
    shares = [line["mfu"] for line in late if "mfu" in line]
    last = steps[-1]["step"]
    validations = tuple(
        (line["step"], line["val_loss"], line.get("val_bits_per_byte", 0.0))
        for line in lines
        if "val_loss" in line
    )
    others = [line for line in lines if "loss" not in line and "val_loss" not in line]
    final = validations[-1] if validations and validations[-1][0] == last else None
    return Figures(
        steps=len(steps),
        step_seconds=(low, median, high),
        tokens_per_second=steps[-1]["tokens"] / last / median,
        mfu=float(np.median(shares)) if shares else None,
        peak_memory_bytes=max(line["peak_memory_bytes"] for line in steps),
        first_step_seconds=float(seconds[0]),
        loss=float(smoothed(losses)[-1]),
        val_loss=None if final is None else final[1],
        bits_per_byte=None if final is None else final[2] or None,
        tokens_per_step=steps[-1]["tokens"] / last,
        validations=validations,
        besides={
            name: value
            for line in others
            if line["step"] == last
            for name, value in line.items()
            if name != "step"
        },
        training_seconds=float(seconds.sum()),
        losses=tuple(losses.tolist()),
        seconds=tuple(seconds.tolist()),
    )


def smoothed(losses: Float[np.ndarray, " S"]) -> Float[np.ndarray, " W"]:
    """Means over ``WINDOW`` steps, one for each step that ends a window; over all if there are fewer."""
    window = min(WINDOW, len(losses))
    return np.convolve(losses, np.full(window, 1.0 / window), mode="valid")


def largest_gap(losses: Sequence[float], first: Sequence[float]) -> float:
    """Largest relative distance of two smoothed curves, over the steps that both have."""
    length = min(len(losses), len(first))
    got, want = (smoothed(np.array(each[:length], np.float64)) for each in (losses, first))
    return float(np.abs(got / want - 1.0).max())


def with_gaps(rows: Sequence[Row]) -> list[Row]:
    """The rows, each finished one with its gap to the first that finished; that one has none."""
    finished = [row.figures for row in rows if row.figures is not None]
    return [
        replace(row, gap=largest_gap(row.figures.losses, finished[0].losses))
        if row.figures is not None and row.figures is not finished[0]
        else row
        for row in rows
    ]


def of_turns(rows: Sequence[Row]) -> Row:
    """One row of a competitor's turns: the one with the median speed; the first that failed, if one did.

    Args:
        rows: Of each turn, at least one.
    """
    for row in rows:
        if row.figures is None:
            return row
    ordered = sorted(rows, key=lambda row: row.figures.step_seconds[1] if row.figures else 0.0)
    turns = tuple(row.figures.step_seconds[1] for row in rows if row.figures)
    return replace(
        ordered[(len(ordered) - 1) // 2], turns=turns, throttled=any(row.throttled for row in rows)
    )


def row_from_json(values: Mapping[str, Any]) -> Row:
    """The row that ``Comparison.as_json`` wrote, by this version or one before it."""
    figures, breakdown = values["figures"], values.get("breakdown")
    if figures is not None:
        lists = {name: tuple(value) for name, value in figures.items() if isinstance(value, list)}
        seen = tuple(tuple(found) for found in figures.get("validations", ()))
        figures = Figures(**{**figures, **lists, "validations": seen})
    return Row(
        **{
            **values,
            "figures": figures,
            "turns": tuple(values.get("turns", ())),
            "generation": tuple(Speed(*speed) for speed in values.get("generation", ())),
            "breakdown": None if breakdown is None else breakdown_from_json(breakdown),
        }
    )
