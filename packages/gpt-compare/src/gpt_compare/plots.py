"""The plots, one colour and one kind of line for each competitor throughout."""

from __future__ import annotations

import io
import textwrap
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gpt_compare.figures import WINDOW, Figures, Row, smoothed

# Okabe and Ito's colours, told apart by colour-blind eyes too (Color Universal Design, 2008)
COLOURS = {
    "gpt-triton": "#0072B2", "gpt-torchfunc": "#D55E00", "gpt-jax": "#009E73", "plain": "#CC79A7"
}  # fmt: skip
SPARE = ("#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F")
"""For those that have flags of their own."""
# curves that agree lie on each other: dashes let all of them be seen
LINES = ("-", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (1, 1)))
WIDTH, DPI = 7.2, 120
MINUTE = 60.0


class Entry(NamedTuple):
    """A finished competitor and its looks."""

    label: str
    figures: Figures
    joules: float | None
    colour: str
    line: str | tuple[float, tuple[float, ...]]


def draw_all(folder: Path, rows: Sequence[Row], title: str) -> list[Path]:
    """Write speed, memory, energy where it is known, loss by step and loss by time as PNG.

    Args:
        rows: All competitors; those that did not finish are left out.

    Returns:
        The files; none if no competitor finished.
    """
    figures = drawn(rows, title)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=DPI)
    return [folder / f"{name}.png" for name in figures]


def as_svg(rows: Sequence[Row]) -> dict[str, str]:
    """The same plots as SVG to be set into a page: its letters, and its colour where they are black."""
    pictures = {}
    for name, figure in drawn(rows, None).items():
        out = io.StringIO()
        # letters stay letters; a salt for each picture keeps their clip paths apart, and equal in every run
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
            figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
        text = out.getvalue()
        pictures[name] = text[text.index("<svg") :].replace("#000000", "currentColor")
    return pictures


def drawn(rows: Sequence[Row], title: str | None) -> dict[str, Figure]:
    """The plots by name; none if no competitor finished.

    Args:
        rows: All competitors; those that did not finish are left out.
    """
    entries = entries_of(rows)
    plots: dict[str, Callable[[Figure, list[Entry]], None]] = {
        "speed": _speed, "memory": _memory, "energy": _energy,
        "loss-by-step": _by_step, "loss-by-time": _by_time,
    }  # fmt: skip
    if not all(entry.joules for entry in entries):
        del plots["energy"]
    figures = {}
    for name, plot in plots.items() if entries else ():
        bars = plot in (_speed, _memory, _energy)
        figure = Figure(figsize=(WIDTH, 1.3 + 0.42 * len(entries) if bars else 4.9), layout="constrained")
        plot(figure, entries)
        if title is not None:
            figure.suptitle(title, fontsize=9, x=0.01, ha="left")
        figures[name] = figure
    return figures


def entries_of(rows: Sequence[Row]) -> list[Entry]:
    """The finished competitors and their looks: a competitor has its colour in all plots ever made."""
    entries: list[Entry] = []
    for place, row in enumerate(rows):
        if row.figures is not None:
            colour = _colour(row.label, {entry.colour for entry in entries})
            line = LINES[place % len(LINES)]
            entries.append(Entry(row.label, row.figures, row.joules_per_token, colour, line))
    return entries


def _colour(label: str, taken: set[str]) -> str:
    """A competitor's own; one with flags has what its words choose, or the next that is free."""
    if label in COLOURS:
        return COLOURS[label]
    first = zlib.crc32(label.encode()) % len(SPARE)
    choices = [*SPARE[first:], *SPARE[:first]]
    return next((colour for colour in choices if colour not in taken), choices[0])


def _speed(figure: Figure, entries: list[Entry]) -> None:
    axes = figure.subplots()
    rows = [entry.figures for entry in entries]
    speeds = np.array([f.tokens_per_second for f in rows])
    # seconds at the median over those at the other percentiles
    low, high = (speeds * [f.step_seconds[1] / f.step_seconds[i] for f in rows] for i in (2, 0))
    texts = [f"{f.tokens_per_second:,.0f}/s, {1e3 * f.step_seconds[1]:.1f} ms a step" for f in rows]
    _bars(axes, entries, speeds, high, texts)
    whiskers = np.array([speeds - low, high - speeds])
    axes.errorbar(speeds, range(len(rows)), xerr=whiskers, fmt="none", ecolor="#000000", capsize=3)
    axes.set_xlabel("tokens per second: median, 20th to 80th percentile")


def _memory(figure: Figure, entries: list[Entry]) -> None:
    axes = figure.subplots()
    sizes = np.array([entry.figures.peak_memory_bytes / 1e9 for entry in entries])
    _bars(axes, entries, sizes, sizes, [f"{size:.2f} GB" for size in sizes])
    axes.set_xlabel("GB at the peak: allocated on a GPU, the process on a CPU")


def _energy(figure: Figure, entries: list[Entry]) -> None:
    axes = figure.subplots()
    joules = np.array([1e6 * (entry.joules or 0.0) for entry in entries])
    _bars(axes, entries, joules, joules, [f"{value:,.0f} J" for value in joules])
    axes.set_xlabel("joules of the whole device for a million tokens")


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
