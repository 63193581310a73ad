"""The report: one table on the terminal, in ``report.md`` and on a page; every number in ``report.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt_data.store.writing import write_atomic, write_errors
from gpt_data.terminal import writing
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpt_compare.comparison import JSON_NAME, VERSIONS, Comparison
from gpt_compare.figures import SPREAD, WINDOW, Row
from gpt_compare.request import ENDS

MARKDOWN_NAME, PAGE_NAME = "report.md", "report.html"
HELLASWAG, GENERATION = "HellaSwag", "texts, tokens/s"
JOULES, DOLLARS = "J for 10^6 tokens", "$ for 10^9 tokens"
PLACE = ("backend", "device", "processors", "omp_num_threads")
COLUMNS = (
    "", "ms a step", "tokens/s", "MFU", "peak memory", "power", JOULES, DOLLARS, "kernels", "compiling",
    "first step after", "steps", "loss", "validation", "bits per byte", HELLASWAG, "gap", GENERATION,
    "training", "in all", "made with",
)  # fmt: skip
LOW, _, HIGH = SPREAD
NOTES = {
    "ms a step": f"median, and the {LOW}th to {HIGH}th percentile, over the second half of the steps; data "
    "included, evaluation and saving left out; of several turns the middle one, and behind it all medians",
    "tokens/s": "at the median",
    "MFU": "at the median, of the device's peak",
    "peak memory": "allocated on a GPU, of the whole process on a CPU",
    "power": "of the whole device by its own counter, mean over the second half of training",
    JOULES: "power over tokens/s",
    DOLLARS: "from tokens/s and --price-per-hour",
    "kernels": "that a step launches, by the framework's own profiler; on a CPU operations",
    "compiling": "in which the framework's compilers worked; what its cache on disk holds is not compiled",
    "steps": "taken in the time that each had",
    "first step after": "from the start of the process: imports, weights, compilation, the first step",
    "loss": f"of training, mean of the last {WINDOW} steps",
    "validation": "after the last step",
    "bits per byte": "the validation loss over the bytes of the tokens scored, whatever the vocabulary",
    HELLASWAG: "acc_norm after the last step, and its standard error",
    "gap": f"largest distance of the loss from the first competitor's, both means over {WINDOW} steps",
    GENERATION: "so many texts continued at once: tokens added to all of them",
    "training": "sum of all steps, the first included",
    "in all": "the process, with two evaluations and saving",
}
"""How each figure is made."""
LABELS_WIDE, COMPETITOR_WIDE = 18, 15
"""Columns of a terminal; more competitors than fit it side by side get a table below."""


def cells(row: Row, comparison: Comparison) -> list[str]:
    """A row of the table, column by column as in ``COLUMNS``; an error takes the second."""
    f = row.figures
    if f is None:
        return [row.label, row.error or "", *[""] * (len(COLUMNS) - 2)]
    low, median, high = (1e3 * seconds for seconds in f.step_seconds)
    turns = "; " + ", ".join(f"{1e3 * turn:.1f}" for turn in row.turns) if len(row.turns) > 1 else ""
    choices = {name: value for name, value in row.made_by.items() if name not in (*VERSIONS, *PLACE)}
    joules = row.joules_per_token
    price = comparison.price_per_hour
    dollars = None if price is None else row.dollars_per_billion_tokens(price)
    return [
        row.label,
        f"{median:.1f} ({low:.1f}-{high:.1f}{turns})",
        f"{f.tokens_per_second:,.0f}",
        _or_blank("{:.1%}", f.mfu),
        f"{f.peak_memory_bytes / 1e9:.2f} GB",
        _or_blank("{:.0f} W", row.watts),
        _or_blank("{:,.0f}", None if joules is None else 1e6 * joules),
        _or_blank("{:,.2f}", dollars),
        _or_blank("{:,.0f}", None if row.breakdown is None else row.breakdown.launched),
        _or_blank("{:.1f} s", row.compile_seconds),
        _or_blank("{:.1f} s", row.first_step_after),
        f"{f.steps:,}" if comparison.budgeted else "",
        f"{f.loss:.4f}",
        _or_blank("{:.4f}", f.val_loss),
        _or_blank("{:.4f}", f.bits_per_byte),
        _hellaswag(f.besides),
        _or_blank("{:.2g} %", None if row.gap is None else 100.0 * row.gap),
        ", ".join(f"{speed.rows}: {speed.decode:,.0f}" for speed in row.generation),
        f"{f.training_seconds:.1f} s",
        _or_blank("{:.1f} s", row.total_seconds),
        ", ".join(f"{name} {value}" for name, value in choices.items()),
    ]


def _hellaswag(found: Mapping[str, float | int]) -> str:
    """By each protocol that was asked for."""
    shares = {name: value for name, value in found.items() if re.fullmatch(r"hellaswag_\w+_acc_norm", name)}
    return ", ".join(f"{value:.2%} ± {found[f'{name}_stderr']:.2%}" for name, value in shares.items())


def table_of(comparison: Comparison) -> list[list[str]]:
    """Heading and rows; columns that nobody fills are left out."""
    table = [list(COLUMNS), *(cells(row, comparison) for row in comparison.rows)]
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
    notes = [f"- *{name}*: {how}" for name, how in NOTES.items() if name in heading]
    made = f"# {comparison.title}\n\n{origin(comparison)}\n\n```sh\n{comparison.command}\n```\n"
    samples = [f"\n{row.label} at its end:\n\n{_quoted(row.sample)}" for row in comparison.rows if row.sample]
    return "\n".join([made, *warnings, *lines, "", *notes, "", *plots, *samples]) + "\n"


def _quoted(text: str) -> str:
    """Markdown's form of a text whose signs mean nothing."""
    return "".join(f"    {line}\n" for line in text.splitlines())


def origin(comparison: Comparison) -> str:
    """Date, driver and versions in one line."""
    versions = ", ".join(f"{name} {value}" for name, value in comparison.versions.items())
    driver = f", driver {comparison.driver}" if comparison.driver else ""
    return f"{comparison.date}{driver}; {versions}"


class Screen(Console):
    """The standard output in lines as they are; it may be full, or read by nobody any more."""

    def __init__(self, **how: Any) -> None:
        super().__init__(markup=False, highlight=False, **how)

    def print(self, *given: Any, **how: Any) -> None:
        """As rich prints; what the output does not take is an ``OutputError``."""
        with writing():
            super().print(*given, **how)

    def on_broken_pipe(self) -> None:
        """A reader that has enough is no error; rich makes it status 1, as of what got slower."""
        raise BrokenPipeError


def show(console: Console, comparison: Comparison) -> None:
    """Print the table, turned by a quarter, so that it fits a terminal."""
    console.print(comparison.title)
    finished = [cells(row, comparison) for row in comparison.rows if row.figures is not None]
    beside = max(1, (console.width - LABELS_WIDE) // COMPETITOR_WIDE)
    tables = -(-len(finished) // beside)
    for number in range(tables):
        _show_table(
            console, finished[number * len(finished) // tables : (number + 1) * len(finished) // tables]
        )
    for row in comparison.rows:
        if row.error is not None:
            console.print(f"{row.label}: {row.error}")
    for warning in comparison.warnings:
        console.print(f"beware: {warning}")


def _show_table(console: Console, finished: Sequence[Sequence[str]]) -> None:
    labels, *lines = zip(COLUMNS, *finished, strict=True)
    # no padding: four competitors and their spreads are to fit eighty columns
    table = Table(padding=0)
    for place, label in enumerate(labels):
        table.add_column(Text(label), justify="right" if place else "left", overflow="fold")
    # what each was made with is long, and in the report
    for line in lines[:-1]:
        if any(line[1:]):
            table.add_row(*line)
    console.print(table)


def write_report(folder: Path, comparison: Comparison, pictures: bool = True) -> Path:
    """Write ``report.json``, the plots, ``report.html`` and ``report.md``, whose path is returned.

    Args:
        pictures: Whether there are to be plots, and the page around them.

    Raises:
        WriteError: If something cannot be written.
    """
    path = folder / MARKDOWN_NAME
    with write_errors(f"cannot write the report in {folder}"):
        write_json(folder, comparison)
        drawn = _draw(folder, comparison) if pictures else []
        path.write_text(markdown(comparison, drawn), "utf-8")
    return path


def _draw(folder: Path, comparison: Comparison) -> list[Path]:
    """The plots, which are returned, and the page."""
    # matplotlib takes two seconds, which --help would spend too
    from gpt_compare.page import page
    from gpt_compare.plots import as_svg, draw_all

    rows, reference = comparison.rows, comparison.reference
    settings = {name: value for name, value in comparison.settings.items() if value is not None}
    if settings.get("eval_every") == ENDS:
        settings["eval_every"] = "at the ends alone"
    (folder / PAGE_NAME).write_text(
        page(
            comparison.title,
            origin(comparison),
            comparison.command,
            comparison.warnings,
            table_of(comparison),
            NOTES,
            as_svg(rows, reference),
            {row.label: row.sample for row in comparison.rows if row.sample},
            settings,
        ),
        "utf-8",
    )
    return draw_all(folder, rows, comparison.title, reference)


def write_json(folder: Path, comparison: Comparison) -> None:
    """Write ``report.json`` alone, whole or not at all; ``gpt-compare report`` draws the rest of it.

    Raises:
        WriteError: If it cannot be written.
    """
    write_atomic(folder / JSON_NAME, json.dumps(comparison.as_json(), indent=1).encode() + b"\n")
