"""Sweeps: the places of the lists, the largest batch, and the table of all."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpt_compare import commands, request
from gpt_compare.competitor import Competitor
from gpt_compare.figures import Row
from gpt_compare.sweep import _by_number, _draw, largest_batch, merged, points_of
from gpt_compare_toy import SMALL, finished, text_folder
from gpt_trainer.errors import InputError


def test_places_are_all_combinations_and_keep_the_other_flags() -> None:
    words = ["--batch-size", "8", "16", "--steps", "5", "--context", "64", "128", "--runs", "plain"]
    places = points_of(words)
    assert [place.name for place in places] == [
        f"context-{context}_batch-size-{rows}" for context in (64, 128) for rows in (8, 16)
    ]
    assert places[0].argv == ("--steps", "5", "--runs", "plain", "--context=64")
    assert [place.batch_size for place in places] == ["8", "16", "8", "16"]
    (only,) = points_of(["--steps", "5", "--context", "64"])
    assert (only.name, only.batch_size, only.argv) == ("", None, ("--steps", "5", "--context=64"))


def test_a_value_given_twice_is_one_place() -> None:
    places = points_of(["--batch-size", "8", "16", "8", "--context", "64", "64"])
    assert [place.name for place in places] == ["batch-size-8", "batch-size-16"]
    assert places[0].argv == ("--context=64",)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        *((["--batch-size", "0"], "0 is"), (["--context", "x"], "x is"), (["--context", "max"], "max is")),
        *((["--batch-size"], "is"), (["--batch-size", "--context", "8"], "is"), (["--preset"], "is")),
    ],
)
def test_what_is_no_value_is_refused(words: list[str], why: str) -> None:
    with pytest.raises(InputError, match=f"{words[0]} {why}"):
        points_of(words)


def test_the_largest_batch_is_not_looked_for_on_a_cpu() -> None:
    """Nothing says there what fits, until the system ends processes of its choice."""
    with pytest.raises(InputError, match="--batch-size max is for a GPU"):
        commands.run([*SMALL, "--batch-size", "max"])


@pytest.mark.parametrize(("limit", "first", "most"), [
    *((limit, 1, 16) for limit in (0, 1, 2, 7, 8, 9, 100, 777)),
    *((limit, 64, 7) for limit in (0, 3, 50, 64, 400)),
])  # fmt: skip
def test_the_largest_batch_fits_and_is_close_to_the_limit(limit: int, first: int, most: int) -> None:
    tried = []

    def fits(rows: int) -> bool:
        tried.append(rows)
        return rows <= limit

    found = largest_batch(fits, first)
    assert found <= limit
    assert limit - found <= found // 8
    assert len(tried) <= most


def train(competitor: Competitor, plan: Path, *_: object, **__: object) -> Row:
    """Fits up to ten rows; memory is the number of rows."""
    own = [int(flag.split("=")[1]) for flag in competitor.flags if flag.startswith("--micro-batch=")]
    rows = own[0] if own else tomllib.loads(plan.read_text())["micro_batch"]
    if rows > 10:
        return Row(competitor.label, "killed by SIGKILL: out of memory")
    return finished(competitor.label, [3.0, 2.0], [1.0, 1.0], memory=rows * 10**9)


def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str, run: Any = train) -> int:
    monkeypatch.setattr("gpt_compare.turns.run_competitor", run)
    monkeypatch.setattr(request, "_has_gpu", lambda name: True)
    text, cache = tmp_path / "text", tmp_path / "cache"
    data = ["--data", f"text:{text if text.exists() else text_folder(text)}", "--data-cache", str(cache)]
    given = words if "--out" in words else ("--out", str(tmp_path / "out"), "--runs", "a", "b", *words)
    return commands.run([*SMALL, "--device", "gpu", "--precision", "float32", *data, *given])


def test_a_sweep_reports_each_place_and_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare(tmp_path, monkeypatch, "--batch-size", "2", "4", "--context", "8", "16") == 0
    out = tmp_path / "out"
    listed = json.loads((out / "sweep.json").read_text())
    assert [each["report"] for each in listed] == [
        f"context-{context}_batch-size-{rows}" for context in (8, 16) for rows in (2, 4)
    ]
    for each, rows in zip(listed[2:], (2, 4), strict=True):
        config = json.loads((out / each["report"] / "report.json").read_text())["config"]
        assert (config["micro_batch"], config["tokens_per_step"], config["context"]) == (rows, 16 * rows, 16)
    table = (out / "sweep.md").read_text()
    assert table.startswith("# cpu-demo, float32, 200 steps, on a device, by context, batch size\n")
    assert "| tokens/s by context, batch size |" in table
    assert "| [16, 2](context-16_batch-size-2/report.md) |" in table
    assert "| a | 30,000 | 30,000 | 30,000 | 30,000 |" in table
    assert (out / "sweep.png").stat().st_size > 10_000
    assert {path.name for path in (out / listed[0]["report"]).iterdir() if path.is_file()} == {
        "plan.toml", "report.json", "report.md",
    }  # fmt: skip


def test_a_place_that_failed_says_why_and_one_that_found_its_batch_how_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compare(tmp_path, monkeypatch, "--batch-size", "16", "max", "8") == 1
    table = (tmp_path / "out" / "sweep.md").read_text()
    listed = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [each["values"]["batch_size"] for each in listed] == ["8", "16", "max"], "whatever was run first"
    assert table.startswith("# cpu-demo, float32, 200 steps, rows of 31 tokens, on a device, by batch size\n")
    assert "| a | 30,000 |  | 30,000 (10 rows) |" in table
    assert "| a | 8.00 GB |  | 10.00 GB |" in table
    assert "- b, 16: killed by SIGKILL: out of memory\n" in table


def test_a_busy_machine_is_said_once_and_the_sweeps_own_load_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = iter([9.0, 99.0])
    monkeypatch.setattr("os.getloadavg", lambda: (next(loads), 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert compare(tmp_path, monkeypatch, "--batch-size", "2", "4") == 0
    for name in ("sweep.md", "batch-size-2/report.md", "batch-size-4/report.md"):
        text = (tmp_path / "out" / name).read_text()
        assert re.findall(r"\*\*the load .+\*\*", text) == [
            "**the load was 9.0 on 2 cores before the first began**"
        ]


def test_two_sweeps_become_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of two devices that shared out the competitors; the second was cut off at its last place."""
    one, two = (
        ["--out", str(tmp_path / "one"), "--runs", "a"],
        ["--out", str(tmp_path / "two"), "--runs", "b"],
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert compare(tmp_path, monkeypatch, "--batch-size", "2", "4", *one) == 0
    tables = 0

    def cut_off(*_: object, **__: object) -> Row:
        nonlocal tables
        tables += 1
        if tables == 2:
            raise KeyboardInterrupt
        return finished("b", [3.0, 2.0], [0.5, 0.5])

    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path, monkeypatch, "--batch-size", "2", "4", *two, run=cut_off)
    assert commands.run(["report", str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    table = (tmp_path / "one" / "sweep.md").read_text()
    assert "| a | 30,000 | 30,000 |\n| b | 60,000 |  |" in table
    report = json.loads((tmp_path / "one" / "batch-size-2" / "report.json").read_text())
    assert [row["label"] for row in report["rows"]] == ["a", "b"]
    assert report["command"].count("CUDA_VISIBLE_DEVICES=1 gpt-compare ") == 2


def test_a_line_goes_on_over_a_place_that_nobody_tried_and_stops_at_one_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, rows in (("a", ["4", "8", "16"]), ("b", ["4", "10"])):
        compare(tmp_path, monkeypatch, "--out", str(tmp_path / name), "--runs", name, "--batch-size", *rows)
    top, _ = _draw(_by_number(merged([tmp_path / "a", tmp_path / "b"]))).axes
    assert [(line.get_label(), list(line.get_xdata())) for line in top.lines] == [
        ("a", [0, 1, 3]),
        ("b", [0, 2]),
    ]
    assert [np.isnan(line.get_ydata()).tolist() for line in top.lines] == [
        [False, False, True],
        [False, False],
    ]


def test_sweeps_over_different_flags_are_not_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, context = ["--batch-size", "2", "4"], ["--batch-size", "2", "--context", "8", "16"]
    for name, flags in (("a", rows), ("b", context)):
        compare(tmp_path, monkeypatch, "--out", str(tmp_path / name), "--runs", name, *flags)
    before = (tmp_path / "a" / "sweep.md").read_bytes()
    with pytest.raises(InputError, match="one sweep is over batch_size, another over context"):
        commands.run(["report", str(tmp_path / "a"), str(tmp_path / "b")])
    assert (tmp_path / "a" / "sweep.md").read_bytes() == before


@pytest.mark.parametrize(
    "text", ["{}", "[3]", '[{"values": {"colour": "2"}}]', '[{"values": {"context": "../x"}}]']
)
def test_what_is_no_sweep_is_one_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(InputError, match="not a sweep"):
        commands.run(["report", str(tmp_path)])


def test_what_all_places_share_is_in_the_title_also_of_two_that_became_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        given = ["--out", str(tmp_path / name), "--runs", name, "--batch-size", "2", "--context", "8", "16"]
        assert compare(tmp_path, monkeypatch, *given) == 0
    assert commands.run(["report", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    title = (tmp_path / "a" / "sweep.md").read_text().splitlines()[0]
    assert title == "# cpu-demo, float32, 200 steps, 2 rows a step, on a device, by context"


def test_max_is_each_competitors_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(tmp_path, monkeypatch, "--batch-size", "max") == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("b: ")]
    assert told[:4] == ["b: 4 rows fit", "b: 8 rows fit", "b: 16 rows do not fit", "b: 12 rows do not fit"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["made_by"]["rows"] for row in report["rows"]] == ["10", "10"]
    assert "as many as fit x 31 tokens" in report["title"]
    assert report["rows"][0]["figures"]["peak_memory_bytes"] > 10 * 10**9
