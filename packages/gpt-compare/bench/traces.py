"""What the GPUs of a process did while torch's or JAX's profiler looked, and when they only sent."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Kernel(NamedTuple):
    """A kernel's time on a device, microseconds, and whether it sends."""

    begin: float
    end: float
    device: str
    sends: bool


def kernels(folder: Path) -> Iterator[Kernel]:
    """The kernels and copies of the trace in a folder."""
    for path in [*folder.glob("trace.json"), *folder.glob("plugins/profile/*/*.trace.json.gz")]:
        text = path.read_bytes()
        events = json.loads(gzip.decompress(text) if path.suffix == ".gz" else text)["traceEvents"]
        streams = set(_streams(events))
        for event in events:
            of_torch = event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
            if event.get("ph") == "X" and (of_torch or (event["pid"], event["tid"]) in streams):
                begin, device = event["ts"], str(event["pid"] if not of_torch else event["args"]["device"])
                yield Kernel(begin, begin + event["dur"], device, "nccl" in event["name"].lower())


def _streams(events: list[dict[str, Any]]) -> Iterator[tuple[int, int]]:
    """Process and thread numbers that stand for the streams of GPUs in JAX's traces."""
    named = [(event.get("name"), event, str(event.get("args", {}).get("name", ""))) for event in events]
    gpus = {event["pid"] for kind, event, name in named if kind == "process_name" and "/device:GPU" in name}
    for kind, event, name in named:
        if kind == "thread_name" and event["pid"] in gpus and name.startswith("Stream"):
            yield event["pid"], event["tid"]


def unhidden(found: Iterable[Kernel]) -> float:
    """Microseconds in which something is sent and nothing else runs, on the device that waits longest."""
    by_device: dict[str, list[Kernel]] = {}
    for one in found:
        by_device.setdefault(one.device, []).append(one)
    return max((_unhidden(one) for one in by_device.values()), default=0.0)


def _unhidden(found: list[Kernel]) -> float:
    marks = [(one.begin, 1, one.sends) for one in found] + [(one.end, -1, one.sends) for one in found]
    total, sending, others, before = 0.0, 0, 0, 0.0
    for when, change, sends in sorted(marks):
        if sending and not others:
            total += when - before
        sending, others = (sending + change, others) if sends else (sending, others + change)
        before = when
    return total
