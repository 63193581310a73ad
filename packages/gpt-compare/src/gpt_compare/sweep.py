"""One comparison for each value of an axis: ``--batch-size``, ``--context`` or ``--preset`` as lists.

``--batch-size max`` looks for the largest that fits, for each competitor by itself, in a process each.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gpt_data.flags import EarlyParser
from gpt_data.store.reading import read_bytes
from gpt_data.store.writing import write_atomic, write_errors
from gpt_trainer.errors import InputError

from gpt_compare.comparison import Comparison, read_report
from gpt_compare.figures import Row

AXES = ("preset", "context", "batch_size")
JSON_NAME = "sweep.json"
MAX = "max"
LARGEST, LARGEST_LIST = 1 << 14, 1 << 20
"""Rows that are tried, and bytes of ``sweep.json``."""


@dataclass(frozen=True)
class Point:
    """One place of a sweep.

    Attributes:
        values: Those of the axes that have several, by axis.
        argv: The command line of this place alone, the batch size left out.
        batch_size: Rows of a micro-batch, of which a step then has one; or ``max``.
        context: If the user gave it.
    """

    values: dict[str, str]
    argv: tuple[str, ...]
    batch_size: str | None
    context: int | None

    @property
    def name(self) -> str:
        """For a folder and a table: ``batch-size-8_context-512``; empty if there is only one place."""
        return "_".join(f"{axis.replace('_', '-')}-{value}" for axis, value in self.values.items())


def points_of(argv: Sequence[str]) -> list[Point]:
    """Every combination of the lists, in the order given, each once.

    Raises:
        InputError: If a list is empty, or a batch size or a context is not a positive number.
    """
    parser = EarlyParser()
    for axis in AXES:
        parser.add_argument(f"--{axis.replace('_', '-')}", nargs="*", default=[None])
    found, rest = parser.parse_known_args(argv)
    lists = {axis: list(dict.fromkeys(getattr(found, axis))) for axis in AXES}
    for axis in AXES:
        if not lists[axis]:
            raise InputError(f"--{axis.replace('_', '-')} is given without a value")
    places = []
    for values in itertools.product(*lists.values()):
        given = {axis: value for axis, value in zip(AXES, values, strict=True) if value is not None}
        for axis in ("context", "batch_size"):
            value = given.get(axis, "1")
            if not (value.isdigit() and int(value)) and (axis, value) != ("batch_size", MAX):
                raise InputError(f"--{axis.replace('_', '-')} {value} is not a positive number")
        flags = [f"--{axis}={given[axis]}" for axis in ("preset", "context") if axis in given]
        several = {axis: value for axis, value in given.items() if len(lists[axis]) > 1}
        context = int(given["context"]) if "context" in given else None
        places.append(Point(several, (*rest, *flags), given.get("batch_size"), context))
    return places


def largest_batch(fits: Callable[[int], bool], first: int) -> int:
    """The largest number of rows that fits, to an eighth of it; 0 if not even one does.

    Args:
        fits: Tries a number of rows; expensive.
        first: What is tried first; the closer, the fewer tries.
    """
    good, bad = 0, first
    while bad <= LARGEST and fits(bad):
        good, bad = bad, 2 * bad
    while bad - good > max(1, good // 8):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def write_sweep(folder: Path, places: Sequence[tuple[Point, Comparison]]) -> Path:
    """Write speed and memory over the places: ``sweep.json``, ``sweep.png``, and ``sweep.md``; its path.

    Args:
        folder: Where to; each place's own report lies below it.

    Raises:
        WriteError: If something cannot be written.
    """
    places = _by_number(places)
    with write_errors(f"cannot write the sweep in {folder}"):
        list_places(folder, [point for point, _ in places])
        _draw(places).savefig(folder / "sweep.png")
        (folder / "sweep.md").write_text(_markdown(places), "utf-8")
    return folder / "sweep.md"


def _by_number(places: Sequence[tuple[Point, Comparison]]) -> list[tuple[Point, Comparison]]:
    """Along each axis; what is no number stands behind, in its order."""
    words = list(dict.fromkeys(value for point, _ in places for value in point.values.values()))

    def key(place: tuple[Point, Comparison]) -> list[tuple[bool, int]]:
        return [
            (False, int(value)) if value.isdigit() else (True, words.index(value))
            for value in place[0].values.values()
        ]

    return sorted(places, key=key)


def list_places(folder: Path, points: Sequence[Point]) -> None:
    """Write ``sweep.json``: the places that have a report below ``folder``.

    Raises:
        WriteError: If it cannot be written.
    """
    listed = [{"values": point.values, "report": point.name} for point in points]
    write_atomic(folder / JSON_NAME, json.dumps(listed, indent=1).encode() + b"\n")


def is_sweep(folder: Path) -> bool:
    """Whether a sweep was begun there."""
    return (folder / JSON_NAME).is_file()


def merged(folders: Sequence[Path]) -> list[tuple[Point, Comparison]]:
    """The places of several sweeps; where two have the same, the rows of both.

    Raises:
        InputError: If a folder holds no sweep, if they are over different flags, or two places of a name
            are not one comparison.
    """
    found: dict[str, tuple[Point, Comparison]] = {}
    for folder in folders:
        for point in _read_places(folder):
            comparison = read_report(folder / point.name)
            if point.name in found:
                comparison = found[point.name][1].taking_in(comparison)
            found[point.name] = point, comparison
    axes = dict.fromkeys(" and ".join(point.values) for point, _ in found.values())
    if len(axes) > 1:
        raise InputError(f"one sweep is over {', another over '.join(axes)}: they are not one")
    return list(found.values())


def _read_places(folder: Path) -> list[Point]:
    path = folder / JSON_NAME
    raw = read_bytes(path, LARGEST_LIST, follow_link=True)
    try:
        values = [
            {str(axis): str(value) for axis, value in place["values"].items()} for place in json.loads(raw)
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is not a sweep of gpt-compare: {error}") from None
    given = [item for place in values for item in place.items()]
    if not given or any(axis not in AXES or not re.fullmatch(r"[\w.-]+", value) for axis, value in given):
        raise InputError(f"{path} is not a sweep of gpt-compare: {values} are no places")
    return [Point(place, (), place.get("batch_size"), None) for place in values]


def _markdown(places: Sequence[tuple[Point, Comparison]]) -> str:
    labels = dict.fromkeys(row.label for _, comparison in places for row in comparison.rows)
    warnings = dict.fromkeys(f"**{warning}**\n" for _, each in places for warning in each.warnings)
    axes, lines = _axes(places), [f"# {_title(places)}", "", *warnings]
    for name, form in (("tokens/s", _speed), ("peak memory", _memory)):
        links = [f"[{', '.join(point.values.values())}]({point.name}/report.md)" for point, _ in places]
        lines += ["| " + " | ".join([f"{name} by {axes}", *links]) + " |", "| --- |" + " --: |" * len(places)]
        for label in labels:
            found = [form(_row(comparison, label)) for _, comparison in places]
            lines.append("| " + " | ".join([label, *found]) + " |")
        lines.append("")
    why = [
        f"- {label}, {', '.join(point.values.values())}: {row.error}"
        for label in labels
        for point, comparison in places
        if (row := _row(comparison, label)) and row.error
    ]
    return "\n".join([*lines, *why, *[""] * bool(why), "![Speed and memory](sweep.png)", ""])


def _title(places: Sequence[tuple[Point, Comparison]]) -> str:
    """What all places have in common, and the axes."""
    point, comparison = places[0]
    fixed = {"preset": comparison.preset, "context": f"rows of {comparison.settings['context']} tokens"}
    sizes = {_rows(each) for _, each in places}
    if len(sizes) == 1 and None not in sizes:
        fixed["batch_size"] = f"{sizes.pop()} rows a step"
    common = [words for axis, words in fixed.items() if axis not in point.values]
    common[1:1] = [comparison.settings["precision"], comparison.length]
    return f"{', '.join(common)}, on {comparison.device}, by {_axes(places)}"


def _rows(comparison: Comparison) -> int | None:
    """Rows of a step; None if each competitor has its own number."""
    tokens: int | None = comparison.settings["tokens_per_step"]
    return None if tokens is None else tokens // int(comparison.settings["context"])


def _axes(places: Sequence[tuple[Point, Comparison]]) -> str:
    return ", ".join(axis.replace("_", " ") for axis in places[0][0].values)


def _row(comparison: Comparison, label: str) -> Row | None:
    return next((row for row in comparison.rows if row.label == label), None)


def _speed(row: Row | None) -> str:
    """With the rows that a competitor found to fit."""
    if row is None or row.figures is None:
        return ""
    found = f" ({row.made_by['rows']} rows)" if "rows" in row.made_by else ""
    return f"{row.figures.tokens_per_second:,.0f}{found}"


def _memory(row: Row | None) -> str:
    return "" if row is None or row.figures is None else f"{row.figures.peak_memory_bytes / 1e9:.2f} GB"


def _draw(places: Sequence[tuple[Point, Comparison]]) -> Any:
    """One line for each competitor along the last axis; a gap where it failed, none where nobody tried."""
    # matplotlib takes two seconds, which --help would spend too
    from matplotlib.figure import Figure

    from gpt_compare.parts import legend_below, quiet
    from gpt_compare.plots import DPI, WIDTH, entries_of

    figure = Figure(figsize=(WIDTH, 5.6), dpi=DPI, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    entries = [{entry.label: entry for entry in entries_of(comparison.rows)} for _, comparison in places]
    for label in dict.fromkeys(label for found in entries for label in found):
        looks = next(found[label] for found in entries if label in found)
        for number, (first, end) in enumerate(_stretches([point for point, _ in places])):
            there = [place for place in range(first, end) if _row(places[place][1], label)]
            figures = [entries[place][label].figures if label in entries[place] else None for place in there]
            speeds = [np.nan if f is None else f.tokens_per_second for f in figures]
            sizes = [np.nan if f is None else f.peak_memory_bytes / 1e9 for f in figures]
            for axes, values in ((top, speeds), (bottom, sizes)):
                axes.plot(
                    there, values, color=looks.colour, linestyle=looks.line,
                    marker="o", markersize=4, label=None if number else label,
                )  # fmt: skip
    top.set_ylabel("tokens per second")
    bottom.set_ylabel("GB at the peak")
    for axes in (top, bottom):
        axes.set_ylim(0.0, 1.08 * axes.dataLim.ymax)
        axes.yaxis.set_major_formatter("{x:,.10g}")
        quiet(axes)
    bottom.set_xticks(range(len(places)), ["\n".join(point.values.values()) for point, _ in places])
    bottom.set_xlabel(_axes(places))
    legend_below(figure, top.get_legend_handles_labels()[0])
    return figure


def _stretches(points: Sequence[Point]) -> list[tuple[int, int]]:
    """First and end of neighbours that differ along the last axis alone."""
    stretches, first = [], 0
    for _, several in itertools.groupby(points, lambda point: list(point.values.values())[:-1]):
        end = first + len(list(several))
        stretches.append((first, end))
        first = end
    return stretches
