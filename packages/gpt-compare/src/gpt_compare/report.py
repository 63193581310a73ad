"""The report: one table on the terminal, in ``report.md`` and on a page; every number in ``report.json``."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_trainer.errors import InputError, WriteError
from gpt_trainer.run.record import PACKAGES
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpt_compare.figures import SPREAD, WINDOW, Row, row_from_json

FORMAT = 2
JSON_NAME, MARKDOWN_NAME, PAGE_NAME = "report.json", "report.md", "report.html"
LARGEST_REPORT = 256 << 20
FAIR_SPREAD = 1.3
"""Turns of one competitor that differ by more say nothing about which competitor is faster."""
VERSIONS = ("python", "torch", "triton", "cuda", "jax", "jaxlib", *PACKAGES)
PLACE = ("backend", "device", "processors", "omp_num_threads")
COLUMNS = (
    "", "ms a step", "tokens/s", "MFU", "peak memory", "power", "energy", "price", "first step after", "loss",
    "validation", "gap", "training", "in all", "made with",
)  # fmt: skip
LOW, _, HIGH = SPREAD
NOTES = {
    "ms a step": f"median, and the {LOW}th to {HIGH}th percentile, over the second half of the steps; data "
    "included, evaluation and saving left out; of several turns the middle one, and behind it all medians",
    "tokens/s, MFU": "at the median",
    "peak memory": "allocated on a GPU, of the whole process on a CPU",
    "power": "of the whole device by its own counter, mean over the second half of training",
    "energy": "power over tokens/s, for a million tokens",
    "price": "dollars for a billion tokens, from --price-per-hour",
    "first step after": "from the start of the process: imports, weights, compilation, the first step",
    "loss": f"of training, mean of the last {WINDOW} steps",
    "validation": "after the last step",
    "gap": f"largest distance of the loss from the first competitor's, both means over {WINDOW} steps",
    "training": "sum of all steps, the first included",
    "in all": "the process, with two evaluations and saving",
}
"""How each figure is made."""


@dataclass(frozen=True)
class Comparison:
    """What is reported.

    Attributes:
        preset: The preset's name.
        settings: What all had in common: every flag's value by its name.
        rows: One for each competitor.
        command: What the user typed.
        date: UTC, ISO 8601.
        driver: The GPU driver's version, if it is known.
        price_per_hour: Dollars for an hour of this machine, if the user said so.
        disturbances: What else went on before the first began: a line each.
    """

    preset: str
    settings: Mapping[str, Any]
    rows: Sequence[Row]
    command: str
    date: str
    driver: str | None
    price_per_hour: float | None = None
    disturbances: Sequence[str] = ()

    @property
    def device(self) -> str:
        """As its vendor names it; unknown if nothing ran."""
        names = [row.made_by["device"] for row in self.rows if row.made_by]
        return names[0] if names else "unknown device"

    @property
    def versions(self) -> Mapping[str, str]:
        """Of everything that any competitor used."""
        used = {name: row.made_by[name] for row in self.rows for name in VERSIONS if name in row.made_by}
        return {name: used[name] for name in VERSIONS if name in used}

    @property
    def title(self) -> str:
        """Model, precision, step and device in one line."""
        given = self.settings
        tokens = given["tokens_per_step"]
        rows = "as many as fit" if tokens is None else tokens // given["context"]
        size = f"{given['steps']} steps of {rows} x {given['context']} tokens"
        return f"{self.preset}, {given['precision']}, {size}, on {self.device}"

    @property
    def warnings(self) -> list[str]:
        """Why the figures may not be compared: a line each, none if they may."""
        found = list(self.disturbances)
        for row in self.rows:
            if row.spread > FAIR_SPREAD:
                found.append(
                    f"{row.label}: its turns differ {row.spread:.2f} times: no order follows from them"
                )
            if row.throttled:
                found.append(f"{row.label}: the device was throttled, for heat or for want of power")
        return found

    def as_json(self) -> dict[str, Any]:
        """Every number."""
        return {
            "format": FORMAT, "title": self.title, "preset": self.preset, "command": self.command,
            "date": self.date, "device": self.device, "driver": self.driver, "versions": dict(self.versions),
            "config": dict(self.settings), "percentiles": list(SPREAD), "window": WINDOW,
            "price_per_hour": self.price_per_hour, "disturbances": list(self.disturbances),
            "rows": [row.as_json() for row in self.rows],
        }  # fmt: skip


def read_report(folder: Path) -> Comparison:
    """The comparison that a folder reports, written by this version or one before it.

    Raises:
        InputError: If there is no such report, or it is damaged.
    """
    path = folder / JSON_NAME
    try:
        if path.stat().st_size > LARGEST_REPORT:
            raise ValueError(f"more than {LARGEST_REPORT >> 20} MiB")
        values = json.loads(path.read_text("utf-8"))
        return Comparison(
            values["preset"],
            values["config"],
            [row_from_json(row) for row in values["rows"]],
            values["command"],
            values["date"],
            values["driver"],
            values.get("price_per_hour"),
            tuple(values.get("disturbances", ())),
        )
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path} is not a report of gpt-compare: {error}") from None


def cells(row: Row, price_per_hour: float | None = None) -> list[str]:
    """A row of the table, column by column as in ``COLUMNS``; an error takes the second."""
    f = row.figures
    if f is None:
        return [row.label, row.error or "", *[""] * (len(COLUMNS) - 2)]
    low, median, high = (1e3 * seconds for seconds in f.step_seconds)
    turns = "; " + ", ".join(f"{1e3 * turn:.1f}" for turn in row.turns) if len(row.turns) > 1 else ""
    choices = {name: value for name, value in row.made_by.items() if name not in (*VERSIONS, *PLACE)}
    joules = row.joules_per_token
    dollars = None if price_per_hour is None else row.dollars_per_billion_tokens(price_per_hour)
    return [
        row.label,
        f"{median:.1f} ({low:.1f}-{high:.1f}{turns})",
        f"{f.tokens_per_second:,.0f}",
        _or_blank("{:.1%}", f.mfu),
        f"{f.peak_memory_bytes / 1e9:.2f} GB",
        _or_blank("{:.0f} W", row.watts),
        _or_blank("{:,.0f} J", None if joules is None else 1e6 * joules),
        _or_blank("${:,.2f}", dollars),
        _or_blank("{:.1f} s", row.first_step_after),
        f"{f.loss:.4f}",
        _or_blank("{:.4f}", f.val_loss),
        _or_blank("{:.2g} %", None if row.gap is None else 100.0 * row.gap),
        f"{f.training_seconds:.1f} s",
        _or_blank("{:.1f} s", row.total_seconds),
        ", ".join(f"{name} {value}" for name, value in choices.items()),
    ]


def table_of(comparison: Comparison) -> list[list[str]]:
    """Heading and rows; columns that nobody fills are left out."""
    table = [list(COLUMNS), *(cells(row, comparison.price_per_hour) for row in comparison.rows)]
    filled = [any(line[place] for line in table[1:]) or not place for place in range(len(COLUMNS))]
    return [[cell for cell, keep in zip(line, filled, strict=True) if keep] for line in table]


def _or_blank(form: str, value: float | None) -> str:
    return "" if value is None else form.format(value)


def markdown(comparison: Comparison, pictures: Sequence[Path]) -> str:
    """The whole ``report.md``."""
    heading, *rows = table_of(comparison)
    table = [heading, ["---", *["--:"] * (len(heading) - 2), "---"], *rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in table]
    plots = [f"![{picture.stem.replace('-', ' ')}]({picture.name})" for picture in pictures]
    warnings = [f"**{warning}**\n" for warning in comparison.warnings]
    notes = [f"- *{name}*: {how}" for name, how in NOTES.items() if name.split(",")[0] in heading]
    made = f"# {comparison.title}\n\n{origin(comparison)}\n\n```sh\n{comparison.command}\n```\n"
    return "\n".join([made, *warnings, *lines, "", *notes, "", *plots]) + "\n"


def origin(comparison: Comparison) -> str:
    """Date, driver and versions in one line."""
    versions = ", ".join(f"{name} {value}" for name, value in comparison.versions.items())
    driver = f", driver {comparison.driver}" if comparison.driver else ""
    return f"{comparison.date}{driver}; {versions}"


def show(console: Console, comparison: Comparison) -> None:
    """Print the table, turned by a quarter, so that it fits a terminal."""
    finished = [cells(row, comparison.price_per_hour) for row in comparison.rows if row.figures is not None]
    labels, *lines = zip(COLUMNS, *finished, strict=True)
    # no padding: five competitors and their spreads are to fit eighty columns
    table = Table(title=comparison.title, padding=0)
    for place, label in enumerate(labels):
        table.add_column(Text(label), justify="right" if place else "left", overflow="fold")
    # what each was made with is long, and in the report
    for line in lines[:-1]:
        if any(line[1:]):
            table.add_row(*line)
    console.print(table)
    for row in comparison.rows:
        if row.error is not None:
            console.print(f"{row.label}: {row.error}", markup=False, highlight=False)
    for warning in comparison.warnings:
        console.print(f"beware: {warning}", markup=False, highlight=False)


def write_report(folder: Path, comparison: Comparison) -> Path:
    """Write ``report.json``, the plots, ``report.md`` and ``report.html``.

    Returns:
        The path of ``report.md``.

    Raises:
        WriteError: If something cannot be written.
    """
    # matplotlib takes two seconds, which --help would spend too
    from gpt_compare.page import page
    from gpt_compare.plots import draw_all

    path = folder / MARKDOWN_NAME
    try:
        (folder / JSON_NAME).write_text(json.dumps(comparison.as_json(), indent=1) + "\n", "utf-8")
        pictures = draw_all(folder, comparison.rows, comparison.title)
        path.write_text(markdown(comparison, pictures), "utf-8")
        settings = {name: value for name, value in comparison.settings.items() if value is not None}
        (folder / PAGE_NAME).write_text(
            page(
                comparison.title,
                origin(comparison),
                comparison.command,
                comparison.warnings,
                table_of(comparison),
                NOTES,
                comparison.rows,
                settings,
            ),
            "utf-8",
        )
    except OSError as error:
        raise WriteError(f"cannot write the report in {folder}: {error.strerror or error}") from None
    return path


def driver_version() -> str | None:
    """NVIDIA's driver, if its tool is there and answers."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.splitlines() or [""])[0].strip() or None if done.returncode == 0 else None
