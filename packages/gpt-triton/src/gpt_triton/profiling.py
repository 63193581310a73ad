"""A stretch of training under torch's own profiler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

ROWS = 30


class Recording:
    """Implements ``gpt_trainer.backend.Profile``; filled when the recording ends."""

    def __init__(self) -> None:
        self._table = ""

    def table(self) -> str:
        """The most expensive kernels, one per line, most expensive first."""
        return self._table

    def _fill(self, table: str) -> None:
        self._table = table


@contextmanager
def record(folder: Path, device: torch.device) -> Iterator[Recording]:
    """Record until the block ends, then write ``trace.json`` (Chrome's trace format) into ``folder``."""
    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    recording = Recording()
    folder.mkdir(parents=True, exist_ok=True)
    # one cycle is all there is, and torch before 2.12 warns that others would be lost
    with profile(activities=activities, acc_events=True) as profiler:
        yield recording
        if gpu:
            torch.cuda.synchronize(device)
    profiler.export_chrome_trace(str(folder / "trace.json"))
    order = "self_device_time_total" if gpu else "self_cpu_time_total"
    recording._fill(profiler.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=60))
