"""Recording with torch's own profiler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

ROWS = 30


class RecordedProfile:
    """A finished recording."""

    def __init__(self, sort_by: str) -> None:
        self._sort_by = sort_by
        self._averages: Any = None

    def finish(self, averages: Any) -> None:
        """Take over the recording's averages by operator."""
        self._averages = averages

    def table(self) -> str:
        """The most expensive kernels (operators on a CPU), one per line, most expensive first.

        Raises:
            ValueError: If the recording is still running.
        """
        if self._averages is None:
            raise ValueError("the profile is still recording; read its table after the with block")
        return str(self._averages.table(sort_by=self._sort_by, row_limit=ROWS, max_name_column_width=60))


@contextmanager
def record(folder: Path, device: torch.device) -> Iterator[RecordedProfile]:
    """Record until the end of the block, then write ``trace.json`` for a trace viewer."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    result = RecordedProfile("self_device_time_total" if on_gpu else "self_cpu_time_total")
    folder.mkdir(parents=True, exist_ok=True)
    # one cycle is all there is, and torch before 2.12 warns that others would be lost
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        yield result
        if on_gpu:
            torch.cuda.synchronize(device)
    profiler.export_chrome_trace(str(folder / "trace.json"))
    result.finish(profiler.key_averages())
