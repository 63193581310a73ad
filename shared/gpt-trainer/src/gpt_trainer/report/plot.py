"""``loss.png``: the losses of a run by step, and what else was evaluated, with the extra ``plots``.

Shapes: S steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from jaxtyping import Float64

from gpt_trainer.report.metrics import METRICS_NAME, read_metrics

PLOT_NAME = "loss.png"
SMOOTHED_SHARE, SMOOTHED_LEAST = 0.02, 10
"""The smooth curve looks at about this share of all steps, and at least at so many."""
INK, PALE, ACCENT = "#1f4e79", "#a9c4de", "#d1495b"
COLOURS = (ACCENT, INK, "#7a9e3f")
ROOM = 1.14
"""The axis of steps is so much longer than the run: the last values stand there, where no line is."""
DRAWN = ("step", "val_loss", "val_targets", "val_bits_per_byte")
"""What an evaluation tells that has no panel of its own."""

Points = list[tuple[int, float]]


def plot_losses(run: Path) -> Path | None:
    """Draw the run's losses; None if matplotlib is not installed or there is nothing to draw."""
    lines = read_metrics(run / METRICS_NAME)
    if not any("loss" in line for line in lines) or find_spec("matplotlib") is None:
        return None
    draw_losses(lines, run.name).savefig(run / PLOT_NAME)
    return run / PLOT_NAME


def draw_losses(lines: Sequence[Mapping[str, Any]], title: str) -> Any:
    """The losses of a run, and below them a panel for each other kind of figure, as a ``matplotlib`` figure.

    Args:
        lines: Its metrics; at least one is a step's.
    """
    extras = extra_figures(lines)
    heights = [3.0, *[1.0] * len(extras)]
    make = import_module("matplotlib.figure").Figure
    figure = make(figsize=(7.2, 4.2 + 1.3 * len(extras)), dpi=160, layout="constrained")
    top, *below = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    _draw_losses(top, lines)
    for axes, (name, points) in zip(below, extras.items(), strict=True):
        _draw_extra(axes, name, points)
    last = max(line["step"] for line in lines)
    top.set_xlim(0, ROOM * last)
    (below or [top])[-1].set_xlabel("optimizer steps")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def extra_figures(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Points]]:
    """What was evaluated besides the loss: by panel, each figure's values by step.

    Errors are left out, and counts, which are the whole numbers. A figure whose name goes on from another's,
    as ``acc_norm`` from ``acc``, is drawn with it.
    """
    found: dict[str, Points] = {}
    for line in lines:
        for name, value in () if "loss" in line else line.items():
            if name not in DRAWN and not name.endswith("_stderr") and not isinstance(value, int):
                found.setdefault(name, []).append((line["step"], value))
    panels: dict[str, dict[str, Points]] = {}
    for name, points in found.items():
        panel = next((first for first in panels if name.startswith(f"{first}_")), name)
        panels.setdefault(panel, {})[name] = points
    return panels


def _draw_losses(axes: Any, lines: Sequence[Mapping[str, Any]]) -> None:
    train = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    val = [(line["step"], line["val_loss"]) for line in lines if "val_loss" in line]
    steps, losses = (np.array(each, np.float64) for each in zip(*train, strict=True))
    smoothed = smooth(losses)
    axes.plot(steps, losses, color=PALE, linewidth=0.8, label="training, each step")
    axes.plot(steps, smoothed, color=INK, linewidth=1.6, label="training, smoothed")
    ends = [(smoothed[-1], INK, "")]
    if val:
        # a line from the first step to the last would claim what nobody measured
        looks = {"marker": "o", "markersize": 3.5, "linewidth": 1.4 if len(val) > 2 else 0.0}
        axes.plot(*zip(*val, strict=True), color=ACCENT, label="validation", **looks)
        ends.append((val[-1][1], ACCENT, ""))
    _add_bits(axes, lines)
    _write_ends(axes, int(steps[-1]), ends)
    axes.set_ylabel("loss (nats per token)")
    _tidy(axes)
    # above the plot: there is a curve everywhere in it
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0))


def _add_bits(axes: Any, lines: Sequence[Mapping[str, Any]]) -> None:
    """A second scale, where the held-out text's tokens are so many bytes each."""
    told = [line for line in lines if line.get("val_bits_per_byte") and line["val_loss"]]
    if told:
        factor = told[-1]["val_bits_per_byte"] / told[-1]["val_loss"]
        scale = axes.secondary_yaxis("right", functions=(lambda y: factor * y, lambda y: y / factor))
        scale.set_ylabel("bits per byte of the held-out text", fontsize=9)
        scale.spines["right"].set_visible(False)


def _write_ends(axes: Any, step: int, ends: list[tuple[float, str, str]], least: float = 0.055) -> None:
    """The last values behind their curves, one above the other where they are close.

    Args:
        ends: Each with its colour, and what is written behind it.
        least: From one to the next, as a share of the panel's height.
    """
    low, high = axes.get_ylim()
    least, places = least * (high - low), [end[:2] for end in sorted(ends)]
    for place in range(1, len(places)):
        value, below = places[place][0], places[place - 1][0]
        if value - below < least:
            middle = (value + below) / 2.0
            places[place - 1 : place + 1] = [
                (middle - least / 2.0, places[place - 1][1]),
                (middle + least / 2.0, places[place][1]),
            ]
    for (at, colour), (value, _, name) in zip(places, sorted(ends), strict=True):
        axes.text(1.015 * step, at, f"{value:.3f}{name}", color=colour, va="center", fontsize=9)


def _draw_extra(axes: Any, panel: str, figures: Mapping[str, Points]) -> None:
    ends = []
    for (name, points), colour in zip(figures.items(), cycle(COLOURS)):
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3.5, linewidth=1.4)
        ends.append((points[-1][1], colour, name.removeprefix(panel).replace("_", " ")))
    axes.margins(y=0.25)
    _write_ends(axes, max(points[-1][0] for points in figures.values()), ends, least=0.17)
    # the panel is not high: a name of four words would lie over the next one's
    axes.set_ylabel(fill(panel.replace("_", " "), 14), fontsize=9)
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)


def smooth(losses: Float64[np.ndarray, " S"]) -> Float64[np.ndarray, " S"]:
    """At each step the line that fits the steps around it best: no lag, and at the ends no other width.

    Args:
        losses: Of each step; the more there are, the more of them a value looks at.
    """
    half = int(max(SMOOTHED_LEAST, SMOOTHED_SHARE * len(losses)) // 2)
    at = np.arange(len(losses), dtype=np.float64)
    first, stop = np.maximum(at - half, 0).astype(int), np.minimum(at + half + 1, len(at)).astype(int)

    def sums(values: Float64[np.ndarray, " S"]) -> Float64[np.ndarray, " S"]:
        whole = np.concatenate([[0.0], np.cumsum(values)])
        found: Float64[np.ndarray, " S"] = whole[stop] - whole[first]
        return found

    count, x, y = sums(np.ones_like(at)), sums(at), sums(losses)
    spread = sums(at * at) - x * x / count
    slope = (sums(at * losses) - x * y / count) / np.where(spread > 0.0, spread, 1.0)
    fitted: Float64[np.ndarray, " S"] = y / count + slope * (at - x / count)
    return fitted
