"""A stretch of training under JAX's own profiler, and a table made from its trace."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from gpt_trainer.report.recording import ROWS, Recording


@contextmanager
def record(folder: Path) -> Iterator[Recording]:
    """Record until the block ends; the trace goes below ``folder`` (TensorBoard's and Chrome's formats)."""
    recording = Recording()
    folder.mkdir(parents=True, exist_ok=True)
    with jax.profiler.trace(str(folder)):
        yield recording
        for array in jax.live_arrays():
            array.block_until_ready()
    traces = sorted(folder.glob("plugins/profile/*/*.trace.json.gz"))
    recording.fill(make_table(read_events(traces[-1])) if traces else "the profiler wrote no trace")


def read_events(trace: Path) -> list[dict[str, Any]]:
    """Events of a trace that stand for an operation of a compiled program."""
    with gzip.open(trace, "rt", encoding="utf-8") as text:
        events = json.load(text)["traceEvents"]
    return [event for event in events if event.get("ph") == "X" and "hlo_op" in event.get("args", {})]


def make_table(events: list[dict[str, Any]]) -> str:
    """Operations by total time, most expensive first: milliseconds, share, calls, name.

    Args:
        events: With ``dur`` in microseconds.
    """
    total: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for event in events:
        name = event["args"]["hlo_op"]
        total[name] += event["dur"]
        calls[name] += 1
    whole = sum(total.values()) or 1.0
    lines = [
        f"{time / 1000:12.3f} {time / whole:7.1%} {calls[name]:8d}  {name}"
        for name, time in sorted(total.items(), key=lambda item: -item[1])[:ROWS]
    ]
    return "\n".join([f"{'total ms':>12} {'share':>7} {'calls':>8}  operation", *lines])
