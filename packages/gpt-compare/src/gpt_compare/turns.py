"""Who trains when: turn after turn, forth and back; before that the largest batch that fits."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from gpt_data.stopping import StopFlag
from rich.console import Console
from rich.text import Text

from gpt_compare.competitor import Competitor
from gpt_compare.figures import Row, of_turns
from gpt_compare.gauge import Gauge
from gpt_compare.plan import write_plan
from gpt_compare.request import Request
from gpt_compare.running import run_competitor
from gpt_compare.sweep import largest_batch


def run_all(
    request: Request,
    folder: Path,
    stop: StopFlag,
    gauge: Gauge,
    console: Console,
    keep: Callable[[Sequence[Row]], None],
) -> list[Row]:
    """Turn after turn, forth and back; a failure or a signal leaves what the others have.

    Args:
        keep: Told all rows so far whenever there is one more.
    """
    plan = write_plan(folder, request.settings)
    competitors = [equipped(competitor, request) for competitor in request.competitors]
    if request.largest:
        competitors = [_largest(competitor, request, plan, stop, console) for competitor in competitors]
    turns: dict[str, list[Row]] = {competitor.label: [] for competitor in competitors}

    def so_far() -> list[Row]:
        """A row of each that had a turn."""
        return [
            _with_rows(of_turns(rows), competitor) if request.largest else of_turns(rows)
            for competitor, rows in zip(competitors, turns.values(), strict=True)
            if rows
        ]

    for turn in range(1, request.options.repeat + 1):
        for competitor in competitors if turn % 2 else reversed(competitors):
            rows = turns[competitor.label]
            if stop():
                rows.append(Row(competitor.label, "not begun"))
            elif all(row.error is None for row in rows):
                rows.append(
                    _run_one(competitor, plan, turn, request.options.keep_checkpoints, stop, gauge, console)
                )
                keep(so_far())
    return so_far()


def equipped(competitor: Competitor, request: Request) -> Competitor:
    """The competitor with what is asked of all and is no setting of a run."""
    options = request.options
    shared = [] if options.init_from is None else [f"--init-from={options.init_from}"]
    shared += [f"--profile={options.profile}"] if options.profile else []
    return competitor._replace(flags=(*shared, *competitor.flags), generate=options.generate)


def _with_rows(row: Row, competitor: Competitor) -> Row:
    """The row, the batch that it found for itself among what it was made with."""
    found = [flag.partition("=")[2] for flag in competitor.flags if flag.startswith("--micro-batch=")]
    return replace(row, made_by={**row.made_by, "rows": found[-1]}) if found else row


def _largest(
    competitor: Competitor, request: Request, plan: Path, stop: StopFlag, console: Console
) -> Competitor:
    """The competitor with the largest batch that fits; as it was if none does, so that it says why."""
    context = request.config.model.context

    def of(rows: int) -> tuple[str, ...]:
        return (*competitor.flags, f"--micro-batch={rows}", f"--tokens-per-step={rows * context}")

    def fits(rows: int) -> bool:
        if stop():
            return False
        flags = (*of(rows), "--steps=2", "--warmup=1")
        probe = competitor._replace(flags=flags, label=f"probe {competitor.label} {rows}")
        good = run_competitor(probe, plan, stop).error is None
        shutil.rmtree(plan.parent / probe.folder, ignore_errors=True)
        told = "fit" if good else "do not fit"
        console.print(f"{competitor.label}: {rows} rows {told}")
        return good

    rows = largest_batch(fits, request.config.batch.micro_batch)
    return competitor._replace(flags=of(rows)) if rows else competitor


def _run_one(
    competitor: Competitor, plan: Path, turn: int, keep: bool, stop: StopFlag, gauge: Gauge, console: Console
) -> Row:
    """One competitor; on a terminal its newest line moves below the others."""
    label = competitor.label
    with console.status(Text(label)) as status:

        def tell(line: str) -> None:
            status.update(Text(f"{label}: {line}", no_wrap=True, overflow="ellipsis"))

        row = run_competitor(competitor, plan, stop, turn=turn, gauge=gauge, keep_checkpoints=keep, show=tell)
    how = row.error or f"{row.total_seconds:.0f} s"
    console.print(f"{label}: {how}")
    return row
