"""Runs a competitor in a process of its own, and reads what it left."""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gpt_trainer.checkpoint.discovery import CHECKPOINTS
from gpt_trainer.metrics import METRICS_NAME, read_metrics
from gpt_trainer.run_folder import read_plan
from gpt_trainer.stopping import StopFlag

from gpt_compare.competitor import Competitor
from gpt_compare.figures import Row, failed, measure

LOG_NAME = "output.txt"
POLL_SECONDS = 0.25
PATIENCE_SECONDS = 10.0
"""How long a process may take to end when it is asked to; then it is killed."""
TAIL_BYTES = 8192


def run_competitor(
    competitor: Competitor,
    plan: Path,
    stop: StopFlag,
    *,
    keep_checkpoints: bool = False,
    show: Callable[[str], None] = lambda _: None,
) -> Row:
    """Train one competitor, and remove its checkpoints.

    Args:
        competitor: Which.
        plan: TOML file with the settings that all have in common; the run gets a folder beside it.
        stop: Ends the process early.
        keep_checkpoints: Leave them.
        show: Told the newest line of the output now and then.
    """
    run = plan.parent / competitor.folder
    run.mkdir()
    began = time.monotonic()
    with (run / LOG_NAME).open("wb") as log:
        command = competitor.command(plan, run)
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            first = _watch(process, run, stop, show)
        finally:
            _end(process)
    total = time.monotonic() - began
    if not keep_checkpoints:
        shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)
    row = _read(competitor, run, process.returncode, stop)
    return replace(row, first_step_after=first, total_seconds=total)


def _watch(
    process: subprocess.Popen[bytes], run: Path, stop: StopFlag, show: Callable[[str], None]
) -> float | None:
    """Wait for the end or a signal; the seconds until the first step was written."""
    began, first, running = time.monotonic(), None, True
    while running and not stop():
        running = process.poll() is None
        if first is None and b'"loss"' in _tail(run / METRICS_NAME):
            first = time.monotonic() - began
        if running:
            show(last_line(run / LOG_NAME))
            time.sleep(POLL_SECONDS)
    return first


def _end(process: subprocess.Popen[bytes]) -> None:
    """Make sure that it has ended: asked first, then killed."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _read(competitor: Competitor, run: Path, status: int, stop: StopFlag) -> Row:
    """The row of a process that has ended."""
    lines = read_metrics(run / METRICS_NAME)
    if stop():
        step = max((line["step"] for line in lines), default=0)
        return failed(competitor, f"stopped after step {step}")
    if status:
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return failed(competitor, f"{how}: {complaint(run / LOG_NAME)}")
    record = read_plan(run)
    assert record is not None, "a run that ends well has a record"
    return Row(competitor.label, figures=measure(lines), made_by=record["made_by"])


def complaint(path: Path) -> str:
    """Why a process failed: the last line of its output, or what stands in the box that ends it.

    Args:
        path: Its output; tyro frames what it says of a wrong flag, and adds help below a rule.
    """
    last = last_line(path)
    if not last.startswith("╰"):
        return last
    box = _tail(path).decode(errors="replace").rpartition("╭")[2].splitlines()[1:]
    words = [line.strip("│╰╯ ") for line in box]
    return " ".join(itertools.takewhile(lambda line: line.strip("─"), words))


def last_line(path: Path) -> str:
    """The last line of a file that is not blank, or nothing.

    Args:
        path: The file; it need not exist.
    """
    lines = _tail(path).decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _tail(path: Path) -> bytes:
    """The end of a file; nothing if it is not there."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
        return file.read()
