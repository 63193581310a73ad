"""The report: its table says what its JSON says, and its plots show every competitor that finished."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpt_compare.figures import Row, with_gaps
from gpt_compare.plots import COLOURS
from gpt_compare.report import COLUMNS, Comparison, driver_version, show, write_report
from gpt_compare_toy import finished
from gpt_trainer.errors import WriteError
from gpt_trainer.presets import CPU_DEMO
from matplotlib.image import imread
from rich.console import Console

PLOTS = ("speed", "memory", "loss-by-step", "loss-by-time")
BROKEN = Row("gpt-x | --flag", "exit status 65: gpt-x is not [installed] | here")
LOSSES = np.linspace(7.0, 4.0, 40)
ROWS = [
    finished("gpt-triton", LOSSES, [30.0, *np.linspace(1.0, 1.2, 39)], memory=5 * 10**8, mfu=0.4567),
    BROKEN,
    finished("gpt-jax --layers unroll", LOSSES * 1.01, [9.0, *np.linspace(2.0, 2.4, 39)], memory=10**9),
]


def comparison(rows: list[Row]) -> Comparison:
    return Comparison("cpu-demo", CPU_DEMO, with_gaps(rows), "gpt-compare --x", "2026-01-02", "580.1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    assert write_report(folder, comparison(ROWS)) == folder / "report.md"
    return folder


def table_of(text: str) -> list[dict[str, str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    head, _, *body = ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines)
    assert tuple(head) == COLUMNS
    return [dict(zip(head, line, strict=True)) for line in body]


def number(cell: str) -> float:
    found = re.match(r"[\d.,e-]+", cell)
    assert found is not None, cell
    return float(found[0].replace(",", ""))


def expected(row: dict[str, Any]) -> dict[str, float]:
    figures = row["figures"]
    return {
        "ms a step": 1e3 * figures["step_seconds"][1],
        "tokens/s": figures["tokens_per_second"],
        "peak memory": figures["peak_memory_bytes"] / 1e9,
        "first step after": row["first_step_after"],
        "loss": figures["loss"],
        "validation": figures["val_loss"],
        "training": figures["training_seconds"],
        "in all": row["total_seconds"],
    }


def test_the_table_says_what_the_json_says(folder: Path) -> None:
    values = json.loads((folder / "report.json").read_text())
    table = table_of((folder / "report.md").read_text())
    assert [line[""].replace("\\|", "|") for line in table] == [row["label"] for row in values["rows"]]
    for line, row in zip(table, values["rows"], strict=True):
        if row["figures"] is None:
            assert line["ms a step"].replace("\\|", "|") == row["error"]
            assert not line["tokens/s"]
            continue
        for name, value in expected(row).items():
            # as many digits as are shown
            assert number(line[name]) == pytest.approx(value, rel=2e-3), name
    assert table[0]["MFU"] == "45.7%"
    assert (table[0]["gap"], table[2]["gap"], table[2]["MFU"]) == ("", "1 %", "")
    low, _, high = (1e3 * seconds for seconds in values["rows"][0]["figures"]["step_seconds"])
    assert table[0]["ms a step"].endswith(f"({low:.1f}-{high:.1f})")
    assert table[0]["made with"] == "attention written"


def test_it_says_where_and_how(folder: Path) -> None:
    text, values = (folder / "report.md").read_text(), json.loads((folder / "report.json").read_text())
    for words in ("cpu-demo", "on a device", "2026-01-02", "driver 580.1", "torch 2.0", "gpt-compare --x"):
        assert words in text
    for name in PLOTS:
        assert f"]({name}.png)" in text
    assert values["config"]["lr"] == CPU_DEMO.optimizer.lr
    assert values["rows"][2]["figures"]["losses"] == pytest.approx((LOSSES * 1.01).tolist())


def colours_in(path: Path) -> set[str]:
    pixels = np.rint(imread(path)[..., :3] * 255).astype(int).reshape(-1, 3)
    return {"#{:02X}{:02X}{:02X}".format(*pixel) for pixel in np.unique(pixels, axis=0)}


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_shows_who_finished_each_in_one_colour(folder: Path, name: str) -> None:
    """The one that failed keeps its colour to itself: the third is the third everywhere."""
    shown = colours_in(folder / f"{name}.png")
    assert {COLOURS[0], COLOURS[2]} <= shown
    assert COLOURS[1] not in shown


def test_the_terminal_shows_the_same_figures() -> None:
    out = io.StringIO()
    show(Console(file=out, width=80), comparison(ROWS))
    text = out.getvalue()
    for words in ("45.7%", "gpt-triton", "1 %", "4.3462"):
        assert words in text
    assert "gpt-x | --flag: exit status 65: gpt-x is not [installed] | here" in text.replace("\n", " ")
    assert max(map(len, text.splitlines())) <= 80


def test_nothing_finished_is_a_report_without_plots(tmp_path: Path) -> None:
    write_report(tmp_path, comparison([BROKEN]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]
    assert "unknown device" in (tmp_path / "report.md").read_text()
    show(Console(file=io.StringIO()), comparison([BROKEN]))


def test_a_report_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="cannot write the report in"):
        write_report(tmp_path / "none", comparison([BROKEN]))


@pytest.mark.parametrize(
    ("script", "version"),
    [("echo 580.95.05; echo 580.95.05", "580.95.05"), ("echo no driver; exit 9", None), ("true", None)],
)
def test_the_driver_is_told_if_its_tool_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, version: str | None
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert driver_version() == version
