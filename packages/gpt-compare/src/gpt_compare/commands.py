"""``gpt-compare``: train side by side, then one table, the plots and one page.

``--batch-size``, ``--context`` and ``--preset`` take lists: a comparison for each, a table and a plot of all.
``gpt-compare report DIR`` draws a report again, ``gpt-compare diff A B`` says what got slower.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path

from gpt_data.stopping import StopFlag
from gpt_data.terminal import emit
from gpt_trainer.errors import InputError
from gpt_trainer.gpt2.data import open_data
from gpt_trainer.run.folder import create_folder

from gpt_compare.comparison import Comparison, read_report
from gpt_compare.difference import differences
from gpt_compare.figures import Row
from gpt_compare.gauge import Gauge, driver_version, gauge_of
from gpt_compare.report import Screen, show, write_json, write_report
from gpt_compare.request import Request, point_request
from gpt_compare.sweep import Point, is_sweep, list_places, merged, points_of, write_sweep
from gpt_compare.turns import run_all

COMPARISONS = Path("comparisons")
FAILED, INTERRUPTED = 1, 130


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 if every competitor finished, 1 if one failed, 130 after a signal.

    Raises:
        InputError: If a value is unusable, or the data cannot be had.
        WriteError: If the report cannot be written.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in AFTERWARDS:
        run_again = AFTERWARDS[argv[0]]
        return _explain(run_again) if {"-h", "--help"} & {*argv} else run_again(argv[1:])
    places, stop = points_of(argv), StopFlag()
    several = len(places) > 1
    requests = [point_request(point) for point in places]
    command, gauge = typed(argv), gauge_of(requests[0].config.runtime.device)
    # once: from the second place on the load is our own
    disturbances = gauge.disturbances()
    done: list[tuple[Point, Comparison]] = []
    with stop.installed(), _new_folder(requests[0]) as folder:
        for number, (point, request) in enumerate(zip(places, requests, strict=True), 1):
            if not stop():
                where = folder / point.name
                where.mkdir(exist_ok=True)
                if several:
                    list_places(folder, places[:number])
                begun = _begun(request, command, disturbances)
                done.append((point, compare(request, where, begun, stop, gauge, pictures=not several)))
        if several and done:
            _publish_sweep(folder, done)
    if stop():
        return INTERRUPTED
    return FAILED if any(row.error is not None for _, each in done for row in each.rows) else 0


def typed(argv: Sequence[str]) -> str:
    """The command as it can be typed again, with the choice of a GPU where there was one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    choice = "" if visible is None else f"CUDA_VISIBLE_DEVICES={shlex.quote(visible)} "
    return choice + shlex.join(["gpt-compare", *argv])


def _begun(request: Request, command: str, disturbances: Sequence[str]) -> Comparison:
    """What is known before anyone has run."""
    return Comparison(
        request.preset,
        request.settings,
        (),
        command,
        datetime.now(UTC).isoformat(" ", "minutes"),
        driver_version(),
        request.options.price_per_hour,
        disturbances,
        request.reference,
    )


def compare(
    request: Request, folder: Path, comparison: Comparison, stop: StopFlag, gauge: Gauge, *, pictures: bool
) -> Comparison:
    """Train every competitor, and report.

    Args:
        comparison: Without rows.
    """
    console = Screen()
    # prepared once and before anything is timed
    open_data(request.config.data, stop, plain=not sys.stderr.isatty()).close()

    def keep(rows: Sequence[Row]) -> None:
        """Have what is known on disk, whatever comes."""
        write_json(folder, replace(comparison, rows=rows))

    keep(())
    labels = ", ".join(competitor.label for competitor in request.competitors)
    console.print(f"{folder}: {labels}, one after another", soft_wrap=True)
    comparison = comparison.of(run_all(request, folder, stop, gauge, console, keep))
    _publish(folder, comparison, console, pictures)
    return comparison


def _publish(folder: Path, comparison: Comparison, console: Screen, pictures: bool = True) -> None:
    report = write_report(folder, comparison, pictures)
    show(console, comparison)
    plots = " and the plots" if any(row.figures is not None for row in comparison.rows) else ""
    others = f" and {report.stem}.html, with report.json{plots} beside them" if pictures else ""
    console.print(f"{report}{others}", soft_wrap=True)


def _publish_sweep(folder: Path, done: Sequence[tuple[Point, Comparison]]) -> None:
    Screen().print(f"{write_sweep(folder, done)}, with sweep.png beside it", soft_wrap=True)


def _explain(command: Callable[[list[str]], int]) -> int:
    emit((command.__doc__ or "").replace("``", ""))
    return 0


def _show_again(words: list[str]) -> int:
    """``gpt-compare report DIR...`` draws again, with the rows of further folders, as of another GPU."""
    if not words:
        raise InputError("report takes folders that gpt-compare made")
    folders = [Path(word) for word in words]
    if any(map(is_sweep, folders)):
        found = merged(folders)
        for point, comparison in found:
            (folders[0] / point.name).mkdir(exist_ok=True)
            _publish(folders[0] / point.name, comparison, Screen(), pictures=False)
        _publish_sweep(folders[0], found)
    else:
        _publish(folders[0], reduce(Comparison.taking_in, map(read_report, folders)), Screen())
    return 0


def _diff(words: list[str]) -> int:
    """``gpt-compare diff A B`` says what got slower from A to B; 1 if by more than the spread."""
    if len(words) != 2:
        raise InputError("diff takes two folders that gpt-compare made, the older first")
    before, after = (read_report(Path(word)) for word in words)
    console = Screen()
    if before.title != after.title:
        console.print(f"not the same: {before.title}; {after.title}")
    lines = list(differences(before, after))
    for line, _ in lines:
        console.print(line, soft_wrap=True)
    return FAILED if any(worse for _, worse in lines) else 0


AFTERWARDS = {"report": _show_again, "diff": _diff}
"""What is done with reports that are there."""


@contextmanager
def _new_folder(request: Request) -> Iterator[Path]:
    """The comparison's folder; removed again if nothing comes of it."""
    folder = create_folder(request.options.out, request.preset, COMPARISONS)
    if any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: choose another --out")
    try:
        yield folder
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise
