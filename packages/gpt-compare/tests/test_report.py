"""The report: its table says what its JSON says, and its plots show every competitor that finished."""

from __future__ import annotations

import io
import json
import re
import resource
from dataclasses import asdict, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpt_compare.breakdown import Breakdown
from gpt_compare.comparison import Comparison, read_report
from gpt_compare.difference import differences
from gpt_compare.figures import Row, with_gaps
from gpt_compare.observing import Speed
from gpt_compare.plots import COLOURS, drawn, entries_of
from gpt_compare.reference import Reference
from gpt_compare.report import COLUMNS, Screen, show, write_json, write_report
from gpt_compare.request import ENDS
from gpt_compare_toy import finished
from gpt_trainer.errors import InputError, WriteError
from gpt_trainer.gpt2.presets import CPU_DEMO
from gpt_trainer.settings.values import flat
from matplotlib.image import imread

PLOTS = ("speed", "memory", "energy", "loss-by-step", "loss-by-time")
BROKEN = Row("gpt-x | --flag", "exit status 65: gpt-x is not [installed] | here")
LOSSES = np.linspace(7.0, 4.0, 40)
BESIDES = {"hellaswag_harness_items": 200, "hellaswag_harness_acc": 0.5, "hellaswag_harness_acc_stderr": 0.01}
BESIDES |= {"hellaswag_harness_acc_norm": 0.29551, "hellaswag_harness_acc_norm_stderr": 0.00455}
WATTS = {"watts": 690.0}
ROWS = [
    finished("gpt-triton", LOSSES, [30.0, *np.linspace(1.0, 1.2, 39)], memory=5 * 10**8, mfu=0.4567, **WATTS),
    BROKEN,
    finished(
        "gpt-jax --layers unroll", LOSSES * 1.01, [9.0, *np.linspace(2.0, 2.4, 39)], memory=10**9, **WATTS
    ),
]


def comparison(rows: list[Row]) -> Comparison:
    given = (
        flat(CPU_DEMO) | {"eval_every": ENDS},
        with_gaps(rows),
        "gpt-compare --x <&>",
        "2026-01-02",
        "580.1",
    )
    return Comparison("cpu-demo", *given, price_per_hour=3.6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    assert write_report(folder, comparison(ROWS)) == folder / "report.md"
    return folder


def table_of(text: str) -> list[dict[str, str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    head, _, *body = ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines)
    assert head == [name for name in COLUMNS if name in head]
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
        "power": row["watts"],
        "J for 10^6 tokens": 1e6 * row["watts"] / figures["tokens_per_second"],
        # $3.60 an hour is a tenth of a cent each second
        "$ for 10^9 tokens": 1e9 / figures["tokens_per_second"] * 1e-3,
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
def test_a_plot_shows_who_finished_each_in_its_colour(folder: Path, name: str) -> None:
    shown = colours_in(folder / f"{name}.png")
    assert {entry.colour for entry in entries_of(ROWS)} <= shown
    assert COLOURS["gpt-torchfunc"] not in shown


def test_a_competitor_has_one_colour_whoever_stands_beside_it() -> None:
    alone = {row.label: entries_of([row])[0].colour for row in ROWS if row.figures}
    assert alone["gpt-triton"] == COLOURS["gpt-triton"]
    assert [entry.colour for entry in entries_of(ROWS[::-1])] == list(alone.values())[::-1]
    many = [finished(f"gpt-jax --x {n}", LOSSES, [1.0] * 40) for n in range(4)]
    assert len({entry.colour for entry in entries_of(many)}) == 4


def test_the_page_stands_alone_and_shows_what_the_table_shows(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    # nothing is fetched, and nothing that the user typed becomes markup
    assert not re.findall(r"(?:src|href)=\"(?!#)", text.replace("xmlns:xlink=", ""))
    assert "gpt-compare --x &lt;&amp;&gt;" in text
    assert "prefers-color-scheme: dark" in text
    assert text.count("<svg") == len(PLOTS)
    assert "currentColor" in text[text.index("<svg") :]
    # no flag and no range is parted at its hyphen
    bare, words = re.sub(r"</?span>", "", text), re.findall(r"<span>(.+?)</span>", text)
    assert {"--", "(1"} <= {word[:2] for word in words}
    for line in table_of((folder / "report.md").read_text()):
        for cell in line.values():
            assert escape(cell.replace("\\|", "|")) in bare
    assert "<dt>lr</dt><dd>" in text
    assert "<dt>eval_every</dt><dd>at the ends alone</dd>" in text


def test_a_report_is_read_and_drawn_again(folder: Path, tmp_path: Path) -> None:
    write_report(tmp_path, read_report(folder))
    for name in ("report.json", "report.md", "report.html"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_a_report_of_the_first_format_is_read(folder: Path, tmp_path: Path) -> None:
    values = json.loads((folder / "report.json").read_text())
    for name in ("price_per_hour", "disturbances"):
        del values[name]
    for row in values["rows"]:
        for name in ("watts", "throttled", "turns"):
            del row[name]
    (tmp_path / "report.json").write_text(json.dumps({**values, "format": 1}))
    old = read_report(tmp_path)
    assert [row.watts for row in old.rows] == [None] * 3
    assert old.rows[0].figures == ROWS[0].figures


def test_one_that_failed_is_run_again_and_takes_its_place(folder: Path) -> None:
    again = finished(BROKEN.label, LOSSES * 1.02, [1.0] * 40)
    other = replace(comparison([again, finished("plain", LOSSES, [1.0] * 40)]), date="a day later")
    first = read_report(folder)
    whole = first.taking_in(other)
    assert whole.date == whole.taking_in(other).date == f"{first.date}, a day later"
    assert [row.label for row in whole.rows] == [*(row.label for row in ROWS), "plain"]
    assert whole.rows[1].figures == again.figures
    assert [row.gap for row in whole.rows] == pytest.approx([None, 0.02, 0.01, 0.0])
    with pytest.raises(InputError, match="they are not one comparison"):
        whole.taking_in(replace(whole, settings={**whole.settings, "lr": 0.5}))
    elsewhere = [replace(row, made_by={**row.made_by, "device": "another"}) for row in whole.rows]
    with pytest.raises(InputError, match="on another had other settings"):
        whole.taking_in(replace(whole, rows=elsewhere))


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"preset": 1', "[" * 100_000])
def test_what_is_no_report_is_one_error(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(InputError, match=r"report\.json"):
        read_report(tmp_path)


def test_it_warns_of_what_makes_it_unfair(tmp_path: Path) -> None:
    unsteady = replace(ROWS[0], turns=(1.0, 1.31))
    hot = replace(ROWS[2], throttled=True, turns=(2.0, 2.5))
    unfair = replace(comparison([unsteady, hot]), disturbances=("the load was 9.0 on 2 cores",))
    assert unfair.warnings == [
        "the load was 9.0 on 2 cores",
        "gpt-triton: its turns differ 1.31 times: no order follows from them",
        "gpt-jax --layers unroll: the device was throttled, for heat or for want of power",
    ]
    shared = finished("plain", LOSSES, [1.0] * 34 + [1.98] * 6)
    (said,) = comparison([shared]).warnings
    assert said == "plain: a fifth of its steps took 1.98 times the median or longer: something disturbed it"
    write_report(tmp_path, unfair)
    out = io.StringIO()
    show(Screen(file=out, width=200), unfair)
    for text in (out.getvalue(), *((tmp_path / name).read_text() for name in ("report.md", "report.html"))):
        assert all(warning in text for warning in unfair.warnings)
    assert comparison(ROWS).warnings == []


def test_a_diff_names_what_got_worse_by_more_than_the_spread() -> None:
    def row(label: str, ms: float, memory: int = 10**9) -> Row:
        made = finished(label, LOSSES, [ms * 1e-3] * 40, memory=memory)
        assert made.figures is not None
        return replace(
            made, figures=replace(made.figures, step_seconds=(0.97e-3 * ms, 1e-3 * ms, 1.03e-3 * ms))
        )

    old = comparison([row("a", 100), row("b", 100), row("c", 100), row("d", 100), BROKEN, row("e", 1)])
    new = comparison([row("a", 104), row("b", 120), row("c", 80, 2 * 10**9), replace(BROKEN, label="d"),
                      row(BROKEN.label, 1), row("f", 1)])  # fmt: skip
    lines = {line.split(":")[0]: (line, worse) for line, worse in differences(old, new)}
    assert {label: worse for label, (_, worse) in lines.items()} == {
        "a": False, "b": True, "c": True, "d": True, BROKEN.label: False, "e": False, "f": False
    }  # fmt: skip
    assert lines["a"][0] == "a: 100.0 -> 104.0 ms (+4.0%, within the spread), 1.00 -> 1.00 GB (+0.0%)"
    assert "120.0 ms (+20.0%, slower)" in lines["b"][0]
    assert "80.0 ms (-20.0%, faster), 1.00 -> 2.00 GB (+100.0%)" in lines["c"][0]
    assert (lines["e"][0], lines["f"][0]) == ("e: only in the first", "f: only in the second")


def test_the_terminal_shows_the_same_figures() -> None:
    out = io.StringIO()
    show(Screen(file=out, width=80), comparison(ROWS))
    text = out.getvalue()
    for words in ("45.7%", "gpt-triton", "1 %", "4.3462"):
        assert words in text
    assert "gpt-x | --flag: exit status 65: gpt-x is not [installed] | here" in text.replace("\n", " ")
    assert max(map(len, text.splitlines())) <= 80


def test_more_competitors_than_fit_a_terminal_are_a_table_below() -> None:
    out = io.StringIO()
    seven = [finished(f"gpt-{number}", [4.0, 3.0], [1.0, 1.0]) for number in range(7)]
    show(Screen(file=out, width=80), comparison(seven))
    heads = [line for line in out.getvalue().splitlines() if "gpt-" in line]
    assert [line.count("gpt-") for line in heads] == [3, 4]
    assert "30,000" in out.getvalue()


def test_nothing_finished_is_a_report_without_plots(tmp_path: Path) -> None:
    write_report(tmp_path, comparison([BROKEN]))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
    ]
    assert "unknown device" in (tmp_path / "report.md").read_text()
    out = io.StringIO()
    show(Screen(file=out, width=80), comparison([BROKEN]))
    assert "unknown device" in " ".join(out.getvalue().split("\n")[:2]), "no title of one letter a line"


def test_a_report_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"cannot write .*/none/report\.json"):
        write_report(tmp_path / "none", comparison([BROKEN]))


def test_a_full_disk_leaves_the_report_that_is_there(tmp_path: Path) -> None:
    """Hours of measurements may stand in it alone."""
    write_json(tmp_path, comparison([BROKEN]))
    before = (tmp_path / "report.json").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(WriteError, match="cannot write"):
            write_json(tmp_path, comparison([BROKEN, BROKEN]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "report.json").read_bytes() == before


def budgeted(tmp_path: Path) -> Comparison:
    """Two that had as many seconds, with all that can be told of them."""
    parts = Breakdown(2, 0.2, 0.16, {"nvjet_a": (8, 0.1), "_adamw_kernel": (2, 0.06)})
    row = replace(
        ROWS[0],
        breakdown=parts,
        compile_seconds=3.25,
        generation=(Speed(1, 9e3, 80.0), Speed(8, 2e4, 500.0)),
        sample="Once <upon>\na time",
    )
    assert row.figures is not None
    seen = ((0, 9.0, 4.5), (20, 5.0, 2.5), (40, 3.25, 1.625))
    row = replace(row, figures=replace(row.figures, validations=seen, bits_per_byte=1.625, besides=BESIDES))
    settings = {**flat(CPU_DEMO), "minutes": 0.5}
    reference = Reference("another text", (3e4, 6e5, 9e9), (9.0, 5.0, 3.0))
    given = (settings, [row, replace(row, label="plain")], "gpt-compare", "2026", None)
    made = Comparison("cpu-demo", *given, reference=reference)
    write_report(tmp_path, made)
    return made


def test_a_budget_has_its_steps_bits_and_parts_in_the_table(tmp_path: Path) -> None:
    made = budgeted(tmp_path)
    assert made.title == "cpu-demo, None, 30 seconds of steps of 16 x 128 tokens, on a device"
    line = table_of((tmp_path / "report.md").read_text())[0]
    assert (line["steps"], line["bits per byte"], line["kernels"]) == ("40", "1.6250", "5")
    assert line["compiling"] == "3.2 s"
    assert line["texts, tokens/s"] == "1: 80, 8: 500"
    assert line["HellaSwag"] == "29.55% ± 0.46%"
    assert {path.stem for path in tmp_path.glob("*.png")} == {*PLOTS, "step", "generation"}
    page = (tmp_path / "report.html").read_text()
    assert "Once &lt;upon&gt;" in page
    assert "    Once <upon>\n    a time\n" in (tmp_path / "report.md").read_text()
    again = read_report(tmp_path)
    assert again == replace(made, rows=again.rows)
    assert [asdict(row) for row in again.rows] == [asdict(row) for row in made.rows]
    assert again.rows[0].breakdown == made.rows[0].breakdown


def test_the_clock_begins_behind_the_first_step_and_evaluations_lie_on_it(tmp_path: Path) -> None:
    made = budgeted(tmp_path)
    figures = drawn(made.rows, None, made.reference)
    top, below = figures["loss-by-time"].axes
    label = top.get_lines()[0].get_label()
    assert label == "gpt-triton (first step after 4 s)"
    seconds = np.linspace(1.0, 1.2, 39)
    assert top.get_lines()[0].get_xdata()[-1] == pytest.approx(seconds.sum())
    x, y = below.get_lines()[0].get_data()
    assert x == pytest.approx([seconds[:19].sum(), seconds.sum()])
    assert y == pytest.approx([2.5, 1.625])
    # by the tokens of a step here, and no further than the runs go
    published = figures["loss-by-step"].axes[0].get_lines()[-1]
    assert (published.get_label(), published.get_xdata().tolist()) == ("another text", [1.0, 20.0])


def test_a_run_of_a_few_steps_is_a_point_that_can_be_seen() -> None:
    figures = ROWS[0].figures
    assert figures is not None
    few = replace(
        ROWS[0], figures=replace(figures, steps=4, losses=figures.losses[:4], seconds=figures.seconds[:4])
    )
    made = drawn([ROWS[0], few], None)
    for name in ("loss-by-step", "loss-by-time"):
        long, short = made[name].axes[0].get_lines()[:2]
        assert (len(short.get_xdata()), short.get_marker()) == (1, "o")
        assert len(long.get_xdata()) > 1
        assert long.get_marker() == "None"


def test_a_steps_parts_add_up_to_it(tmp_path: Path) -> None:
    (axes,) = drawn(budgeted(tmp_path).rows, None)["step"].axes
    widths = [bar.get_width() for bar in axes.patches if bar.get_y() < 0.0]
    assert sum(widths) == pytest.approx(100.0)
    assert sorted(width for width in widths if width) == pytest.approx([20.0, 30.0, 50.0])

    # a busy CPU takes seconds
    long = replace(budgeted(tmp_path).rows[0], breakdown=Breakdown(1, 3.0, 2.1012, {"nvjet_a": (8, 2.1012)}))
    (axes,) = drawn([long], None)["step"].axes
    assert {"2,101", "899"} <= {text.get_text() for text in axes.texts}
