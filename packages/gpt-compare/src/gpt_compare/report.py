"""The report: one table on the terminal and in ``report.md``, every number in ``report.json``."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_trainer.config import TrainConfig
from gpt_trainer.errors import WriteError
from gpt_trainer.record import PACKAGES
from gpt_trainer.settings import flat
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpt_compare.figures import SPREAD, WINDOW, Row
from gpt_compare.plots import draw_all

FORMAT = 1
VERSIONS = ("python", "torch", "triton", "cuda", "jax", "jaxlib", *PACKAGES)
PLACE = ("backend", "device", "processors", "omp_num_threads")
COLUMNS = (
    "", "ms a step", "tokens/s", "MFU", "peak memory", "first step after", "loss", "validation", "gap",
    "training", "in all", "made with",
)  # fmt: skip
LOW, _, HIGH = SPREAD
NOTES = f"""\
*ms a step*: median, and the {LOW}th to {HIGH}th percentile, over the second half of the steps; data included,
evaluation and saving left out. *tokens/s*, *MFU*: at the median. *peak memory*: allocated on a GPU, of the
whole process on a CPU. *first step after*: from the start of the process: imports, weights, compilation,
the first step. *loss*: of training, mean of the last {WINDOW} steps. *validation*: after the last step.
*gap*: largest distance of the training loss from the first competitor's, both means over {WINDOW} steps.
*training*: sum of all steps, the first included; *in all*: the process, with two evaluations and saving.
"""


@dataclass(frozen=True)
class Comparison:
    """What is reported.

    Attributes:
        preset: The preset's name.
        config: The settings that all had in common.
        rows: One for each competitor.
        command: What the user typed.
        date: UTC, ISO 8601.
        driver: The GPU driver's version, if it is known.
    """

    preset: str
    config: TrainConfig
    rows: Sequence[Row]
    command: str
    date: str
    driver: str | None

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
        config = self.config
        rows, context, precision = config.rows, config.model.context, config.runtime.precision
        size = f"{config.schedule.steps} steps of {rows} x {context} tokens"
        return f"{self.preset}, {precision}, {size}, on {self.device}"

    def as_json(self) -> dict[str, Any]:
        """Every number."""
        return {
            "format": FORMAT, "title": self.title, "preset": self.preset, "command": self.command,
            "date": self.date, "device": self.device, "driver": self.driver, "versions": dict(self.versions),
            "config": flat(self.config), "percentiles": list(SPREAD), "window": WINDOW,
            "rows": [row.as_json() for row in self.rows],
        }  # fmt: skip


def cells(row: Row) -> list[str]:
    """A row of the table, column by column as in ``COLUMNS``; an error takes the second.

    Args:
        row: One competitor's result.
    """
    f = row.figures
    if f is None:
        return [row.label, row.error or "", *[""] * (len(COLUMNS) - 2)]
    low, median, high = (1e3 * seconds for seconds in f.step_seconds)
    choices = {name: value for name, value in row.made_by.items() if name not in (*VERSIONS, *PLACE)}
    return [
        row.label,
        f"{median:.1f} ({low:.1f}-{high:.1f})",
        f"{f.tokens_per_second:,.0f}",
        _or_blank("{:.1%}", f.mfu),
        f"{f.peak_memory_bytes / 1e9:.2f} GB",
        _or_blank("{:.1f} s", row.first_step_after),
        f"{f.loss:.4f}",
        _or_blank("{:.4f}", f.val_loss),
        _or_blank("{:.2g} %", None if row.gap is None else 100.0 * row.gap),
        f"{f.training_seconds:.1f} s",
        _or_blank("{:.1f} s", row.total_seconds),
        ", ".join(f"{name} {value}" for name, value in choices.items()),
    ]


def _or_blank(form: str, value: float | None) -> str:
    return "" if value is None else form.format(value)


def markdown(comparison: Comparison, pictures: Sequence[Path]) -> str:
    """The whole ``report.md``.

    Args:
        comparison: What is reported.
        pictures: The plots, beside the report.
    """
    versions = ", ".join(f"{name} {value}" for name, value in comparison.versions.items())
    driver = f", driver {comparison.driver}" if comparison.driver else ""
    table = [COLUMNS, ["---", *["--:"] * (len(COLUMNS) - 2), "---"], *map(cells, comparison.rows)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in table]
    plots = [f"![{picture.stem.replace('-', ' ')}]({picture.name})" for picture in pictures]
    heading = (
        f"# {comparison.title}\n\n{comparison.date}{driver}; {versions}\n\n```sh\n{comparison.command}\n```\n"
    )
    return "\n".join([heading, *lines, "", NOTES, *plots]) + "\n"


def show(console: Console, comparison: Comparison) -> None:
    """Print the table, turned by a quarter, so that it fits a terminal.

    Args:
        console: Where to.
        comparison: What is reported.
    """
    finished = [cells(row) for row in comparison.rows if row.figures is not None]
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


def write_report(folder: Path, comparison: Comparison) -> Path:
    """Write ``report.json``, the plots and ``report.md``.

    Args:
        folder: Where to.
        comparison: What is reported.

    Returns:
        The path of ``report.md``.

    Raises:
        WriteError: If something cannot be written.
    """
    path = folder / "report.md"
    try:
        (folder / "report.json").write_text(json.dumps(comparison.as_json(), indent=1) + "\n", "utf-8")
        pictures = draw_all(folder, comparison.rows, comparison.title)
        path.write_text(markdown(comparison, pictures), "utf-8")
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
