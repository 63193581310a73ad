"""Plots of what a step and a text take: a stacked bar for each competitor, and speeds by texts at once."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Literal, NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from gpt_compare.breakdown import CLASSES, IDLE
from gpt_compare.figures import Figures, Row

# neighbours differ in lightness too; what a device does not do is pale
PARTS = dict(
    zip(
        [*CLASSES, IDLE],
        ("#B2182B", "#8C6BB1", "#E69F00", "#0072B2", "#1f4e79", "#7FC9A7", "#9A9A9A", "#E4E4E4"),
        strict=True,
    )
)
PALE = (IDLE, "other", "cross-entropy", "norms and elementwise")
"""Their numbers are dark."""
LEAST = 0.05
"""Parts of less of the longest step have no number in them."""


class Entry(NamedTuple):
    """A finished competitor and its looks."""

    row: Row
    figures: Figures
    colour: str
    line: str | tuple[float, tuple[float, ...]]

    @property
    def label(self) -> str:
        """What the user called it."""
        return self.row.label


def quiet(axes: Axes, grid: Literal["both", "x", "y"] = "y") -> None:
    """No frame, and lines to read values by."""
    axes.grid(axis=grid, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def legend_below(figure: Figure, handles: Sequence[Artist]) -> None:
    """Where no curve is; a dash pattern needs room to be recognized."""
    figure.legend(
        handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9, handlelength=4
    )


def step(figure: Figure, entries: Sequence[Entry]) -> None:
    """Milliseconds of a step by what the device did, and behind each bar the kernels that it launched."""
    axes = figure.subplots()
    found = [(entry, entry.row.breakdown) for entry in entries if entry.row.breakdown is not None]
    times = [{name: 1e3 * part for name, part in each.seconds().items()} for _, each in found]
    longest = max(sum(each.values()) for each in times)
    drawn = [name for name in PARTS if any(each[name] > 0.0 for each in times)]
    for place, each in enumerate(times):
        left = 0.0
        for name in drawn:
            axes.barh(place, each[name], left=left, color=PARTS[name], height=0.62)
            if each[name] > LEAST * longest:
                ink = "#1b1b1b" if name in PALE else "#ffffff"
                axes.text(
                    left + each[name] / 2.0, place, _three_digits(each[name]), ha="center", va="center",
                    fontsize=8, color=ink,
                )  # fmt: skip
            left += each[name]
        axes.text(1.01 * left, place, f"{found[place][1].launched:,.0f} launched", va="center", fontsize=8.5)
    axes.set_xlim(0.0, 1.25 * longest)
    axes.set_yticks(range(len(found)), [textwrap.fill(entry.label, 24) for entry, _ in found])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds of a profiled step", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    handles = [axes.barh(0.0, 0.0, color=PARTS[name], label=name) for name in drawn]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)


def _three_digits(milliseconds: float) -> str:
    """A number of at least three digits, never by a power of ten.

    >>> _three_digits(2101.2), _three_digits(56.78), _three_digits(0.1234)
    ('2,101', '56.8', '0.123')
    """
    return f"{milliseconds:,.0f}" if milliseconds >= 100.0 else f"{milliseconds:.3g}"


def generation(figure: Figure, entries: Sequence[Entry]) -> None:
    """Tokens a second by the number of texts that are continued at once."""
    panels = figure.subplots(1, 2)
    for axes, name, words in zip(
        panels, ("prefill", "decode"), ("read at the beginning", "added to all texts"), strict=True
    ):
        for entry in entries:
            speeds = entry.row.generation
            if speeds:
                x, y = [speed.rows for speed in speeds], [getattr(speed, name) for speed in speeds]
                looks = {"color": entry.colour, "linestyle": entry.line, "label": entry.label}
                axes.plot(x, y, marker="o", markersize=4, **looks)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:,.10g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("texts at once")
        axes.set_title(f"tokens a second, {words}", fontsize=9, loc="left")
        quiet(axes, "both")
    legend_below(figure, panels[0].get_lines())
