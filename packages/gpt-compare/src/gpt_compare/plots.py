"""The plots, one colour and one kind of line for each competitor throughout."""

from __future__ import annotations

import io
import textwrap
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gpt_compare import parts
from gpt_compare.figures import WINDOW, Row, smoothed
from gpt_compare.parts import Entry, legend_below, quiet
from gpt_compare.reference import Reference

# Okabe and Ito's colours, told apart by colour-blind eyes too (Color Universal Design, 2008)
COLOURS = {
    "gpt-triton": "#0072B2", "gpt-torchfunc": "#D55E00", "gpt-jax": "#009E73", "plain": "#CC79A7",
    "transformers": "#56B4E9",
}  # fmt: skip
SPARE = "#E69F00"
"""For a backend that is none of these."""
SHADES = (("black", 0.3), ("white", 0.6), ("black", 0.5), ("white", 0.4))
"""For those that have flags of their own: what is mixed into their backend's colour, and how much of it."""
# curves that agree lie on each other: dashes let all of them be seen
LINES = ("-", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (1, 1)))
WIDTH, DPI = 7.2, 120
MINUTE = 60.0


def draw_all(folder: Path, rows: Sequence[Row], title: str, reference: Reference | None = None) -> list[Path]:
    """Write as PNG what ``drawn`` draws; the files, none if no competitor finished."""
    figures = drawn(rows, title, reference)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=DPI)
    return [folder / f"{name}.png" for name in figures]


def as_svg(rows: Sequence[Row], reference: Reference | None = None) -> dict[str, str]:
    """The same plots as SVG to be set into a page: its letters, and its colour where they are black."""
    pictures = {}
    for name, figure in drawn(rows, None, reference).items():
        out = io.StringIO()
        # letters stay letters; a salt for each picture keeps their clip paths apart, and equal in every run
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
            figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
        text = out.getvalue()
        pictures[name] = text[text.index("<svg") :].replace("#000000", "currentColor")
    return pictures


def drawn(rows: Sequence[Row], title: str | None, reference: Reference | None = None) -> dict[str, Figure]:
    """Speed, memory, energy, losses, a step's parts and generation, as far as they are known, by name.

    Args:
        rows: Competitors that did not finish are left out; nothing is drawn if no one did.
    """
    entries = entries_of(rows)
    rows = [entry.row for entry in entries]
    bars, curves = 1.3 + 0.42 * len(entries), 4.9
    # what is drawn, whether there is something to draw, and the height
    plots: dict[str, tuple[Callable[[Figure], None], bool, float]] = {
        "speed": (partial(_speed, entries=entries), True, bars),
        "memory": (partial(_memory, entries=entries), True, bars),
        "energy": (partial(_energy, entries=entries), all(row.joules_per_token for row in rows), bars),
        "step": (partial(parts.step, entries=entries), any(row.breakdown for row in rows), 0.9 + bars),
        "loss-by-step": (partial(_by_step, entries=entries, reference=reference), True, curves),
        "loss-by-time": (partial(_by_time, entries=entries), True, curves),
        "generation": (
            partial(parts.generation, entries=entries), any(row.generation for row in rows), curves
        ),
    }  # fmt: skip
    figures = {}
    for name, (plot, there, height) in plots.items() if entries else ():
        if there:
            figures[name] = Figure(figsize=(WIDTH, height), layout="constrained")
            plot(figures[name])
            if title is not None:
                figures[name].suptitle(title, fontsize=9, x=0.01, ha="left")
    return figures


def entries_of(rows: Sequence[Row]) -> list[Entry]:
    """The finished competitors and their looks: a competitor has its colour in all plots ever made."""
    entries: list[Entry] = []
    for place, row in enumerate(rows):
        if row.figures is not None:
            colour = _colour(row.label, {entry.colour for entry in entries})
            entries.append(Entry(row, row.figures, colour, LINES[place % len(LINES)]))
    return entries


def _colour(label: str, taken: set[str]) -> str:
    """A competitor's own; one with flags has the shade that these choose, or the next that is free."""
    name, *flags = label.split() or [label]
    own = COLOURS.get(name, SPARE)
    if not flags:
        return own
    first = zlib.crc32(" ".join(flags).encode()) % len(SHADES)
    shades = [_mixed(own, *shade) for shade in (*SHADES[first:], *SHADES[:first])]
    return next((shade for shade in shades if shade not in taken), shades[0])


def _mixed(colour: str, other: str, share: float) -> str:
    """A colour with so much of another in it."""
    mixed = (1.0 - share) * np.array(to_rgb(colour)) + share * np.array(to_rgb(other))
    return to_hex(mixed.tolist()).upper()


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
    joules = np.array([1e6 * (entry.row.joules_per_token or 0.0) for entry in entries])
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
    axes.xaxis.set_major_formatter("{x:,.10g}")
    axes.xaxis.label.set_fontsize(9)
    axes.set_yticks(places, [textwrap.fill(entry.label, 24) for entry in entries])
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def _by_step(figure: Figure, entries: list[Entry], reference: Reference | None) -> None:
    """Losses, and below them the distance from the first competitor where all have the same steps."""
    apart = any(entry.row.gap is not None for entry in entries)
    top, *below = figure.subplots(
        1 + apart, 1, sharex=True, squeeze=False, height_ratios=(3, 1)[: 1 + apart]
    )[:, 0]
    first = smoothed(np.array(entries[0].figures.losses))
    for entry in entries:
        curve = smoothed(np.array(entry.figures.losses))
        steps = entry.figures.steps - len(curve) + 1 + np.arange(len(curve))
        _line(top, entry, steps, curve)
        length = min(len(curve), len(first))
        for axes in below:
            _line(axes, entry, steps[:length], 100.0 * (curve[:length] / first[:length] - 1.0))
    if reference is not None:
        _add_reference(top, reference, entries)
    top.set_ylabel("training loss (nats per token)")
    quiet(top)
    legend_below(figure, top.get_lines())
    for axes in below:
        axes.set_ylabel(f"% from\n{entries[0].label}", fontsize=8)
        quiet(axes)
    (below or [top])[-1].set_xlabel(f"optimizer steps (each point the mean of {WINDOW})")


def _add_reference(axes: Axes, reference: Reference, entries: list[Entry]) -> None:
    """A published curve, by the tokens of a step here, as far as the longest run goes."""
    steps = np.array(reference.tokens) / (entries[0].figures.tokens_per_step or 1.0)
    seen = steps <= max(entry.figures.steps for entry in entries)
    if seen.any():
        losses, name = np.array(reference.losses)[seen], textwrap.fill(reference.name, 44)
        axes.plot(steps[seen], losses, color="#7F7F7F", linewidth=1.2, linestyle=":", label=name)


def _by_time(figure: Figure, entries: list[Entry]) -> None:
    """Losses, and below them what evaluations between the ends told, by the clock after the first step."""
    between = any(len(entry.figures.validations) > 2 for entry in entries)
    top, *below = figure.subplots(
        1 + between, 1, sharex=True, squeeze=False, height_ratios=(3, 2)[: 1 + between]
    )[:, 0]
    clocks = [np.cumsum(entry.figures.seconds) - entry.figures.seconds[0] for entry in entries]
    in_minutes = max(clock[-1] for clock in clocks) > 5 * MINUTE
    unit = MINUTE if in_minutes else 1.0
    in_bytes = all(bits > 0.0 for entry in entries for *_, bits in entry.figures.validations)
    late = []
    for entry, clock in zip(entries, clocks, strict=True):
        curve = smoothed(np.array(entry.figures.losses))
        late += [*curve[len(curve) // 10 :]]
        _line(top, entry, clock[-len(curve) :] / unit, curve, _with_start(entry))
        for axes in below:
            seen = [found for found in entry.figures.validations if found[0] > 0]
            times = clock[[step - 1 for step, *_ in seen]] / unit
            _line(axes, entry, times, np.array([found[2 if in_bytes else 1] for found in seen]))
    top.set_ylabel("training loss\n(nats per token)" if between else "training loss (nats per token)")
    quiet(top)
    legend_below(figure, top.get_lines())
    for axes in below:
        axes.set_ylabel("bits per byte\nof held-out text" if in_bytes else "validation loss")
        quiet(axes)
        for line in axes.get_lines():
            line.set_marker("o")
            line.set_markersize(3.5)
    top.set_xlim(left=0.0)
    # the fall of the first tenth would leave the rest no height to be told apart in
    margin = 0.05 * (np.ptp(late) or 1.0)
    top.set_ylim(min(late) - margin, max(late) + margin)
    name = "minutes" if in_minutes else "seconds"
    (below or [top])[-1].set_xlabel(f"{name} of training after the first step, evaluations left out")


def _with_start(entry: Entry) -> str:
    """Its name, and what passes before the clock begins."""
    after = entry.row.first_step_after
    return entry.label if after is None else f"{entry.label} (first step after {after:.0f} s)"


def _line(axes: Axes, entry: Entry, x: np.ndarray, y: np.ndarray, label: str | None = None) -> None:
    drawn = axes.plot(
        x, y, color=entry.colour, linestyle=entry.line, linewidth=1.6, label=label or entry.label
    )
    if len(x) == 1:
        # a run of no more steps than one mean takes: a line would show nothing
        drawn[0].set_marker("o")
