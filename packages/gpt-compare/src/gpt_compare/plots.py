"""The four plots, one colour and one kind of line for each competitor throughout."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gpt_compare.figures import WINDOW, Figures, Row, smoothed

# Okabe and Ito's colours, told apart by colour-blind eyes too (Color Universal Design, 2008)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# curves that agree lie on each other: dashes let all of them be seen
LINES = ("-", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (1, 1)))
WIDTH, DPI = 7.2, 120
MINUTE = 60.0


class Entry(NamedTuple):
    """A finished competitor and its looks."""

    label: str
    figures: Figures
    colour: str
    line: str | tuple[float, tuple[float, ...]]


def draw_all(folder: Path, rows: Sequence[Row], title: str) -> list[Path]:
    """Write ``speed.png``, ``memory.png``, ``loss-by-step.png`` and ``loss-by-time.png``.

    Args:
        folder: Where to.
        rows: All competitors; those that did not finish are left out.
        title: What was compared, and on what.

    Returns:
        The files; none if no competitor finished.
    """
    entries = [
        Entry(row.label, row.figures, COLOURS[place % len(COLOURS)], LINES[place % len(LINES)])
        for place, row in enumerate(rows)
        if row.figures is not None
    ]
    if not entries:
        return []
    plots: dict[str, Callable[[Figure, list[Entry]], None]] = {
        "speed": _speed, "memory": _memory, "loss-by-step": _by_step, "loss-by-time": _by_time
    }  # fmt: skip
    for name, plot in plots.items():
        bars = plot in (_speed, _memory)
        figure = Figure(figsize=(WIDTH, 1.3 + 0.42 * len(entries) if bars else 4.9), layout="constrained")
        plot(figure, entries)
        figure.suptitle(title, fontsize=9, x=0.01, ha="left")
        figure.savefig(folder / f"{name}.png", dpi=DPI)
    return [folder / f"{name}.png" for name in plots]


def _speed(figure: Figure, entries: list[Entry]) -> None:
    axes = figure.subplots()
    rows = [entry.figures for entry in entries]
    speeds = np.array([f.tokens_per_second for f in rows])
    # seconds at the median over those at the other percentiles
    low, high = (speeds * [f.step_seconds[1] / f.step_seconds[i] for f in rows] for i in (2, 0))
    texts = [f"{f.tokens_per_second:,.0f}/s, {1e3 * f.step_seconds[1]:.1f} ms a step" for f in rows]
    _bars(axes, entries, speeds, high, texts)
    whiskers = np.array([speeds - low, high - speeds])
    axes.errorbar(speeds, range(len(rows)), xerr=whiskers, fmt="none", ecolor="#333333", capsize=3)
    axes.set_xlabel("tokens per second: median, 20th to 80th percentile")


def _memory(figure: Figure, entries: list[Entry]) -> None:
    axes = figure.subplots()
    sizes = np.array([entry.figures.peak_memory_bytes / 1e9 for entry in entries])
    _bars(axes, entries, sizes, sizes, [f"{size:.2f} GB" for size in sizes])
    axes.set_xlabel("GB at the peak: allocated on a GPU, the process on a CPU")


def _bars(axes: Axes, entries: list[Entry], values: np.ndarray, ends: np.ndarray, texts: list[str]) -> None:
    """Bars, and behind the end of each its value in words."""
    places = range(len(entries))
    axes.barh(places, values, color=[entry.colour for entry in entries], height=0.62)
    margin = 0.015 * ends.max()
    for place, end, text in zip(places, ends, texts, strict=True):
        axes.text(end + margin, place, text, va="center", fontsize=8.5)
    # the words need as much room as half of the longest bar
    axes.set_xlim(0.0, 1.55 * ends.max())
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:,.6g}")
    axes.xaxis.label.set_fontsize(9)
    axes.set_yticks(places, [textwrap.fill(entry.label, 24) for entry in entries])
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def _by_step(figure: Figure, entries: list[Entry]) -> None:
    """Losses, and below them the distance from the first competitor."""
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    first = smoothed(np.array(entries[0].figures.losses))
    for entry in entries:
        curve = smoothed(np.array(entry.figures.losses))
        steps = entry.figures.steps - len(curve) + 1 + np.arange(len(curve))
        _line(top, entry, steps, curve)
        length = min(len(curve), len(first))
        _line(bottom, entry, steps[:length], 100.0 * (curve[:length] / first[:length] - 1.0))
    _finish(figure, top)
    bottom.set_ylabel(f"% from\n{entries[0].label}", fontsize=8)
    bottom.set_xlabel(f"optimizer steps (each point the mean of {WINDOW})")
    bottom.grid(axis="y", alpha=0.25)
    bottom.spines[["top", "right"]].set_visible(False)


def _by_time(figure: Figure, entries: list[Entry]) -> None:
    axes = figure.subplots()
    in_minutes = max(entry.figures.training_seconds for entry in entries) > 5 * MINUTE
    for entry in entries:
        curve = smoothed(np.array(entry.figures.losses))
        clock = np.cumsum(entry.figures.seconds)[-len(curve) :]
        _line(axes, entry, clock / MINUTE if in_minutes else clock, curve)
    _finish(figure, axes)
    axes.set_xlim(left=0.0)
    unit = "minutes" if in_minutes else "seconds"
    axes.set_xlabel(f"{unit} of training: all steps, the first included; evaluation and start left out")


def _line(axes: Axes, entry: Entry, x: np.ndarray, y: np.ndarray) -> None:
    axes.plot(x, y, color=entry.colour, linestyle=entry.line, linewidth=1.6, label=entry.label)


def _finish(figure: Figure, axes: Axes) -> None:
    axes.set_ylabel("training loss (nats per token)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    # below, where no curve is; a dash pattern needs room to be recognized
    handles = list(axes.get_lines())
    figure.legend(
        handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9, handlelength=4
    )
