"""Runs a competitor in a process of its own, and reads what it left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from gpt_data.stopping import STARTER, StopFlag
from gpt_trainer.report.metrics import METRICS_NAME, read_metrics
from gpt_trainer.report.profiling import FOLDER
from gpt_trainer.run.folder import stored_record

from gpt_compare.breakdown import read_profile
from gpt_compare.competitor import Competitor
from gpt_compare.figures import Row, measure
from gpt_compare.gauge import Gauge
from gpt_compare.observing import OBSERVED_NAME, Speed

LOG_NAME = "output.txt"
POLL_SECONDS = 0.25
PATIENCE_SECONDS = 10.0
"""How long a process may take to end when it is asked to; then it is killed."""
SILENCE_SECONDS = 900.0
"""A competitor that writes nothing for so long hangs; compiling a large model takes minutes."""
TAIL_BYTES = 8192
SAMPLE_ENDS = r"^(?:losses drawn in |next: |generating \d+ texts |step +\d+[/:])"


class Watched(NamedTuple):
    """What was seen of a process from outside.

    Attributes:
        first_step_after: Seconds until its first step was written; ``None`` without one.
        watts: Mean over the second half of its training; ``None`` where nothing counts joules.
        throttled: Whether the device said so at any time.
        silent: Whether it was given up for writing nothing.
    """

    first_step_after: float | None
    watts: float | None
    throttled: bool
    silent: bool


def run_competitor(
    competitor: Competitor,
    plan: Path,
    stop: StopFlag,
    *,
    turn: int = 1,
    gauge: Gauge | None = None,
    keep_checkpoints: bool = False,
    show: Callable[[str], None] = lambda _: None,
) -> Row:
    """Train one competitor.

    Args:
        plan: TOML file with the settings that all have in common; the run gets a folder beside it.
        turn: Which of its turns this is, from 1; each has a folder of its own.
        gauge: Of the device; none counts nothing.
    """
    run = plan.parent / (competitor.folder if turn == 1 else f"{competitor.folder}-turn-{turn}")
    run.mkdir()
    began = time.monotonic()
    with (run / LOG_NAME).open("wb") as log:
        command = competitor.command(plan, run, keep_checkpoints)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {STARTER: str(os.getpid())},
        )
        try:
            watched = _watch(process, run, stop, gauge or Gauge(), show)
        finally:
            _end(process)
    total = time.monotonic() - began
    if watched.silent:
        return Row(
            competitor.label, f"wrote nothing for {SILENCE_SECONDS:.0f} s: {complaint(run / LOG_NAME)}"
        )
    row = _read(competitor, run, process.returncode, stop)
    return replace(
        row,
        first_step_after=watched.first_step_after,
        total_seconds=total,
        watts=watched.watts,
        throttled=watched.throttled,
    )


def _watch(
    process: subprocess.Popen[bytes], run: Path, stop: StopFlag, gauge: Gauge, show: Callable[[str], None]
) -> Watched:
    """Wait for the end, a signal or too long a silence."""
    began = heard = last = time.monotonic()
    first, throttled, size, steps = None, False, 0, 0
    samples: list[tuple[float, float]] = []
    running = True
    while running and not stop() and time.monotonic() - heard < SILENCE_SECONDS:
        running, now = process.poll() is None, time.monotonic()
        told, said = (_size(run / name) for name in (METRICS_NAME, LOG_NAME))
        if told + said != size:
            heard, size = now, told + said
        if told != steps:
            steps, newest = told, _tail(run / METRICS_NAME)
            # in saving, sampling and what is measured after the last step the device may rest
            if b'"loss"' in newest and (first is None or b'"loss"' in newest.splitlines()[-1]):
                first, last = first or now - began, now
        joules = gauge.joules()
        if joules is not None:
            samples.append((now, joules))
        throttled = throttled or gauge.throttled()
        if running:
            show(last_line(run / LOG_NAME))
            time.sleep(POLL_SECONDS)
    middle = last if first is None else (began + first + last) / 2
    watts = mean_power([sample for sample in samples if middle <= sample[0] <= last])
    return Watched(first, watts, throttled, running and not stop())


def _size(path: Path) -> int:
    """Bytes of a file; none if it is not there."""
    return path.stat().st_size if path.is_file() else 0


def mean_power(samples: Sequence[tuple[float, float]]) -> float | None:
    """Watts between the first and the last of (seconds, joules).

    ``None`` from fewer than two, and where the counter began again at zero meanwhile.
    """
    if len(samples) < 2 or any(after < before for (_, before), (_, after) in pairwise(samples)):
        return None
    (began, before), (ended, after) = samples[0], samples[-1]
    return (after - before) / (ended - began)


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
        return Row(competitor.label, f"stopped after step {step}")
    if status:
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return Row(competitor.label, f"{how}: {complaint(run / LOG_NAME)}")
    record = stored_record(run)
    assert record is not None, "a run that ends well has a record"
    seen = _observed(run)
    return Row(
        competitor.label,
        figures=measure(lines),
        made_by=record["made_by"],
        compile_seconds=seen.get("compile_seconds"),
        generation=tuple(Speed(*speed) for speed in seen.get("generation", ())),
        breakdown=read_profile(run / FOLDER, _profiled(competitor)),
        sample=sample_of(run / LOG_NAME),
    )


def _observed(run: Path) -> dict[str, Any]:
    """What the process saw of itself; nothing if it wrote nothing."""
    path = run / OBSERVED_NAME
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return found


def _profiled(competitor: Competitor) -> int:
    """How many steps it was to record."""
    counts = [flag.partition("=")[2] for flag in competitor.flags if flag.startswith("--profile=")]
    return int(counts[-1]) if counts else 1


def sample_of(path: Path) -> str:
    """The last text that a run wrote, as its output has it; nothing if it wrote none.

    Args:
        path: Its output: a sample stands behind a line of its own, and before the next step's or the end's.
    """
    if not path.is_file():
        return ""
    words = re.split(r"^step \d+: sample\n", path.read_text("utf-8", errors="replace"), flags=re.MULTILINE)
    if len(words) < 2:
        return ""
    return re.split(SAMPLE_ENDS, words[-1], flags=re.MULTILINE)[0].strip()


def complaint(path: Path) -> str:
    """Why a process failed: an exception that nobody caught, or the last line.

    Args:
        path: Its output. Some libraries add advice below an exception.
    """
    frames = _tail(path).decode(errors="replace").rpartition('  File "')[2]
    raised = re.search(r"^(?:\w+\.)*[A-Z]\w+(?:: .+)?$", frames, re.MULTILINE)
    return last_line(path) if raised is None else raised[0]


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
